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

/** `position` gives where one is on the page, `isDirty` whether something was typed that is not saved. */
export function goingOn(banner, position, isDirty) {
  let cluster = null;
  let silentSince = null;
  let leaving = false;
  let said = null;
  const gone = new URLSearchParams(location.hash.slice(1)).get("gone");
  if (gone !== null) {
    say(`${gone} went away. This page goes on at ${location.host}.`, "arrived");
    banner.append(h("button", { type: "button", class: "ghost", onclick: clear }, "Dismiss"));
  }

  /** Says it once, however often it is still so: what is read aloud is not repeated, and a link stays where it is. */
  function say(sentence, className, ...more) {
    if (said === sentence) return;
    said = sentence;
    banner.className = `banner ${className}`;
    banner.replaceChildren(h("span", {}, sentence, ...more));
    banner.hidden = false;
  }

  function clear() {
    said = null;
    banner.hidden = true;
    banner.replaceChildren();
  }

  return {
    heard(seen) {
      const back = silentSince !== null && cluster !== null;
      cluster = seen;
      silentSince = null;
      if (back && !leaving) {
        say(`Answered again, by ${seen.node_id}.`, "arrived");
        setTimeout(() => { if (silentSince === null) clear(); }, 4_000);
      }
    },
    /** Whether it has been so for longer than a lost connection takes. */
    silent() {
      silentSince ??= performance.now();
      const isLong = performance.now() - silentSince >= PATIENCE_MS;
      if (!leaving) offer(isLong);
      return isLong;
    },
  };

  function offer(isLong) {
    const from = cluster === null ? "The node" : heard.nodes.size > 1 ? "The cluster" : cluster.node_id;
    const next = cluster !== null && isOwnPage(cluster) ? otherMember(cluster) : null;
    if (next === null) {
      say(`${from} does not answer. Asking again every second…`, "away");
    } else if (!isLong) {
      say(`${from} does not answer. If it stays away, this page goes on at ${next.id}.`, "away");
    } else {
      const there = `${next.http}/admin/#${new URLSearchParams({ gone: cluster.node_id, ...position() })}`;
      if (isDirty()) {
        say(`${from} went away. What you have typed is kept here until it is back, or `, "away",
          h("a", { href: there }, `go on at ${next.id} without it`), ".");
        return;
      }
      leaving = true;
      say(`${from} went away. Going on at ${next.id}, ${next.http}…`, "away");
      setTimeout(() => location.replace(there), SAID_MS);
    }
  }
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
