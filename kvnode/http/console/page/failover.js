// What the page does when the node that it came from is gone.
//
// Behind a balancer the same address answers again, through another node: asking on is all there is to do. Where the
// page came from a node itself, it goes to the same page of another member. It may not ask that one beforehand, for
// that would be a request to another origin; it goes to one that the cluster has just called reachable.

import { heard } from "./api.js";
import { h } from "./dom.js";

const PATIENCE_MS = 1_500; // a node that restarts is away for longer, a lost connection is not
const SAID_MS = 1_200; // the sentence is there long enough to be read
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])$/;

export function goingOn(banner) {
  let cluster = null;
  let silentSince = null;
  let leaving = false;
  const arrived = new URLSearchParams(location.hash.slice(1)).get("gone");
  if (arrived !== null) {
    say(`${arrived} went away. This page goes on at ${location.host}.`, "arrived");
    banner.append(h("button", { type: "button", class: "ghost", onclick: clear }, "Dismiss"));
    history.replaceState(null, "", location.pathname);
  }

  function say(sentence, className) {
    banner.className = `banner ${className}`;
    banner.replaceChildren(h("span", {}, sentence));
    banner.hidden = false;
  }

  function clear() {
    banner.hidden = true;
    banner.replaceChildren();
  }

  return {
    heard(seen) {
      const back = silentSince !== null;
      cluster = seen;
      silentSince = null;
      if (back && !leaving) {
        say(`Answered again, by ${seen.node_id}.`, "arrived");
        setTimeout(() => { if (silentSince === null) clear(); }, 4_000);
      }
    },
    silent() {
      if (leaving) return;
      silentSince ??= performance.now();
      const from = cluster === null ? "The node" : heard.nodes.size > 1 ? "The cluster" : cluster.node_id;
      const next = cluster !== null && isOwnPage(cluster) ? otherMember(cluster) : null;
      if (next === null) {
        say(`${from} does not answer. Asking again every second…`, "away");
      } else if (performance.now() - silentSince < PATIENCE_MS) {
        say(`${from} does not answer. If it stays away, this page goes on at ${next.id}.`, "away");
      } else {
        leaving = true;
        say(`${from} went away. Going on at ${next.id}, ${next.http}…`, "away");
        setTimeout(() => location.replace(`${next.http}/admin/#gone=${encodeURIComponent(cluster.node_id)}`), SAID_MS);
      }
    },
  };
}

/** Whether the page came from the node that answers it, not from a balancer. */
function isOwnPage(cluster) {
  const own = cluster.nodes.find((node) => node.id === cluster.node_id);
  return heard.nodes.size === 1 && own?.http !== null && own !== undefined && isHere(own.http);
}

function isHere(url) {
  const there = new URL(url);
  const same = there.hostname === location.hostname || (LOOPBACK.test(there.hostname) && LOOPBACK.test(location.hostname));
  return same && there.protocol === location.protocol && there.port === location.port;
}

function otherMember(cluster) {
  const others = cluster.nodes.filter((node) => node.id !== cluster.node_id && node.http && node.role !== "unreachable"
    && new URL(node.http).protocol === location.protocol);
  return others.find((node) => node.ready) ?? others[0] ?? null;
}
