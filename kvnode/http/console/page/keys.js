// The keys under a prefix, page by page, and what changes among them while one looks.
//
// Keys, sizes and revisions of the page are asked for every second, and compared with the second before: what that costs
// does not depend on how much is written, and it works through any proxy.

import { get } from "./api.js";
import { field, h, section, setAttribute, setChildren, setText } from "./dom.js";
import { bytes, DASH, seconds, whole } from "./text.js";

const PAGE = 20;
const EVERY_MS = 1_000;
const TYPING_MS = 200;
const MARKED_MS = 12_000; // a change can be seen for so long

export function keysSection(may, choose) {
  const prefix = h("input", { type: "text", spellcheck: "false", autocomplete: "off", placeholder: may.prefixes.length ? may.prefixes[0] : "every key", value: may.prefixes[0] ?? "" });
  const body = h("tbody", { role: "rowgroup" });
  const nothing = h("p", {});
  const write = h("button", { type: "button", hidden: true, onclick: () => choose(prefix.value) }, "Write a key of this name");
  const empty = h("div", { class: "empty", hidden: true }, nothing, write);
  const said = h("p", { class: "refused", role: "alert", hidden: true });
  const counted = h("span", { class: "quiet" });
  const previous = h("button", { type: "button", disabled: true, onclick: () => turn(-1) }, "Previous");
  const next = h("button", { type: "button", disabled: true, onclick: () => turn(1) }, "Next");
  const columns = [["Key"], ["Size", "number"], ["Revision", "number"], ["TTL", "number"], [h("span", { class: "visually-hidden" }, "Changes")]];
  const table = h("table", { role: "table", "aria-label": "Keys" }, // the roles are said for the reason that members.js gives
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" },
      columns.map(([name, kind]) => h("th", { role: "columnheader", scope: "col", class: kind }, name)))),
    body);
  const own = may.prefixes.length < 2 ? null : h("div", { class: "own" }, h("span", { class: "quiet" }, "Your token reaches"),
    may.prefixes.map((each) => h("button", { type: "button", class: "mono", onclick: () => { prefix.value = each; start(); } }, each)));
  const element = section("Keys", "keys", [counted],
    h("div", { class: "filter" }, field("Prefix", prefix, "field-inline grow"), h("div", { class: "buttons" }, previous, next)),
    own, said, h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "This page of keys" }, table), empty);

  const rows = new Map();
  let cursors = [null]; // of every page up to this one
  let following = null;
  let known = null; // key -> revision on the page as it was a second ago; null right after it was turned
  let chosen = null;
  let asked = 0;
  let timer = null;
  let over = false;

  prefix.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(start, TYPING_MS); });
  loop();

  async function loop() {
    while (!over) {
      await look();
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  }

  function start() {
    clearTimeout(timer);
    cursors = [null];
    known = null;
    look();
  }

  function turn(by) {
    cursors = by > 0 ? [...cursors, following] : cursors.slice(0, -1);
    known = null;
    look();
  }

  async function look() {
    const mine = ++asked;
    if (may.prefixes.length && !may.prefixes.some((each) => prefix.value.startsWith(each))) {
      outside();
      return;
    }
    let page;
    try {
      page = await get("/v1/kv", {
        prefix: prefix.value || null, cursor: cursors.at(-1), limit: PAGE,
        keys_only: true, sizes: true, count: true, consistency: "stale",
      }, { timeout_ms: 5_000 });
    } catch (error) {
      if (mine === asked && error.status !== undefined) say(error.message);
      return;
    }
    if (mine === asked && !over) show(page);
  }

  /** What the node would refuse is not asked for. */
  function outside() {
    known = null;
    setChildren(body, []);
    table.hidden = true;
    previous.disabled = next.disabled = true;
    setText(counted, "");
    empty.hidden = false;
    write.hidden = true;
    setText(nothing, `Your token reaches the keys under ${may.prefixes.join(", ")} alone.`);
  }

  function say(sentence) {
    said.hidden = sentence === null;
    setText(said, sentence ?? "");
  }

  function show(page) {
    say(null);
    following = page.cursor ?? null;
    previous.disabled = cursors.length === 1;
    next.disabled = following === null;
    const first = (cursors.length - 1) * PAGE;
    setText(counted, page.count === 0 ? "" : `${whole(first + 1)}–${whole(first + page.items.length)} of ${whole(page.count)}`);
    const now = performance.now();
    const shown = page.items.map((item) => {
      let row = rows.get(item.key);
      if (row === undefined) rows.set(item.key, row = newRow(item.key));
      if (known !== null && known.get(item.key) !== item.mod_revision) row.mark(known.has(item.key) ? "changed" : "new", now);
      row.update(item, now);
      return row.element;
    });
    setChildren(body, shown);
    known = new Map(page.items.map((item) => [item.key, item.mod_revision]));
    for (const key of rows.keys()) if (!known.has(key)) rows.delete(key);
    table.hidden = page.items.length === 0;
    empty.hidden = page.items.length !== 0;
    write.hidden = !may.write || prefix.value === "";
    setText(nothing, prefix.value ? "No key begins with this." : "There are no keys yet.");
  }

  function newRow(key) {
    const button = h("button", { type: "button", class: "key", title: key, onclick: (event) => { event.stopPropagation(); pick(); } }, key);
    const size = h("td", { role: "cell", class: "number" });
    const revision = h("td", { role: "cell", class: "number" });
    const ttl = h("td", { role: "cell", class: "number" });
    const mark = h("span", { class: "mark", hidden: true });
    const row = h("tr", { role: "row", class: "choice", onclick: pick }, h("th", { role: "rowheader", scope: "row" }, button),
      size, revision, ttl, h("td", { role: "cell", class: "marks" }, mark));
    let markedAt = -Infinity;
    function pick() {
      chosen = key;
      choose(key);
      for (const each of rows.values()) each.choose();
    }
    return {
      element: row,
      choose() {
        setAttribute(row, "class", chosen === key ? "choice chosen" : "choice");
        setAttribute(button, "aria-current", chosen === key ? "true" : null);
      },
      mark(word, at) {
        setText(mark, word);
        markedAt = at;
        row.classList.remove("flash");
        requestAnimationFrame(() => row.classList.add("flash"));
      },
      update(item, at) {
        setText(size, bytes(item.size));
        setText(revision, whole(item.mod_revision));
        setText(ttl, item.ttl === undefined ? DASH : seconds(item.ttl));
        mark.hidden = at - markedAt > MARKED_MS;
        if (mark.hidden) row.classList.remove("flash");
      },
    };
  }

  return {
    element,
    refresh: look,
    setPrefix(text) {
      prefix.value = text;
      start();
      prefix.focus();
      prefix.scrollIntoView({ block: "nearest" });
    },
    forget() {
      chosen = null;
      for (const each of rows.values()) each.choose();
    },
    state: () => prefix.value,
    restore(text) {
      prefix.value = text;
      start();
    },
    stop() { over = true; clearTimeout(timer); },
  };
}
