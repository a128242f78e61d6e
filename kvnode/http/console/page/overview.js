// The page once it may be seen: what leads, every section, and the one clock that keeps them true.

import { get, heard, Refused, Silent } from "./api.js";
import { setAttribute, setText, h } from "./dom.js";
import { goingOn } from "./failover.js";
import { figuresSection } from "./figures.js";
import { heatSection } from "./heat.js";
import { keysSection } from "./keys.js";
import { membersSection } from "./members.js";
import { signOut } from "./signin.js";
import { timelineSection } from "./timeline.js";
import { tokensSection } from "./tokens.js";
import { valueSection } from "./value.js";

const EVERY_MS = 700; // a change is on the page within two seconds: this, and what the nodes are given to answer
const ANSWER_MS = 2_500;

export function startConsole(access, begin) {
  const may = {
    write: access.may.includes("write"),
    administrate: access.may.includes("admin"),
    prefixes: access.prefixes, // of keys; none: all of them
  };
  let over = false;
  const id = h("code", { class: "cluster-id" }, "…");
  const status = h("p", { class: "status", role: "status" }, "Asking…");
  const banner = h("div", { class: "banner", role: "alert", hidden: true });
  const out = h("button", { type: "button", class: "ghost", onclick: () => signOut(() => end()) }, "Sign out");
  const who = h("span", { class: "quiet who" }, access.name ? `${access.name} · ${access.may.at(-1)}${may.prefixes.length ? ` · ${may.prefixes.join(" ")}` : ""}` : "");
  const members = membersSection(may, refresh);
  const value = valueSection(may);
  const keys = keysSection(may, value.open);
  const sections = [
    members, figuresSection(), keys, value, heatSection(keys.setPrefix), timelineSection(),
    ...(may.administrate ? [tokensSection()] : []),
  ];
  document.body.replaceChildren(
    h("header", { class: "top" },
      h("div", { class: "top-inner" },
        h("img", { src: "console/icon.svg", alt: "", width: "28", height: "28" }),
        h("h1", {}, h("span", { class: "quiet" }, "Cluster "), id),
        status,
        access.asks_for_tokens ? h("div", { class: "account" }, who, access.session ? out : null) : null)),
    banner,
    h("main", { class: "grid" }, sections.map((each) => each.element)));

  const position = () => Object.fromEntries(Object.entries({ prefix: keys.state(), key: value.state() }).filter(([, text]) => text));
  const going = goingOn(banner, position, value.isDirty);
  resume();
  heard.onUnauthorized = (sentence) => end(sentence);

  function end(sentence) {
    if (over) return;
    over = true;
    sections.forEach((each) => each.stop?.());
    begin(sentence);
  }

  /** Where the page of a node that went away was. */
  function resume() {
    const before = new URLSearchParams(location.hash.slice(1));
    if (before.size === 0) return;
    history.replaceState(null, "", location.pathname);
    if (before.has("prefix")) keys.restore(before.get("prefix"));
    if (before.has("key")) value.open(before.get("key"));
  }

  let asking = null;
  function refresh() {
    asking ??= look().finally(() => { asking = null; });
    return asking;
  }

  async function look() {
    try {
      const cluster = await get("/admin/api/v1/nodes", {}, { timeout_ms: ANSWER_MS });
      if (over) return;
      going.heard(cluster);
      setText(id, cluster.cluster_id);
      const leads = cluster.leader_id !== null;
      setText(status, leads ? `${cluster.leader_id} leads in term ${cluster.term}` : "No leader");
      setAttribute(status, "class", leads ? "status led" : "status leaderless");
      document.title = leads ? `kvnode · ${cluster.leader_id} leads` : "kvnode · no leader";
      sections.forEach((each) => each.update?.(cluster));
    } catch (error) {
      if (over) return;
      if (!(error instanceof Silent || (error instanceof Refused && error.status >= 500))) return;
      if (going.silent()) {
        setText(status, "No leader"); // that this page knows of
        setAttribute(status, "class", "status leaderless");
      }
    }
  }

  (async () => {
    while (!over) {
      await refresh();
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  })();
}
