// Who led when, why that changed, and for how long nobody did.

import { get } from "./api.js";
import { h, section, setText } from "./dom.js";
import { moment, seconds } from "./text.js";

const EVERY_MS = 2_000;
const SHOWN_MAX = 60;

export function timelineSection() {
  const list = h("ol", { class: "changes", "aria-label": "Timeline" });
  const note = h("p", { class: "quiet small note", hidden: true });
  const element = section("Timeline", "timeline", null, h("div", { class: "tall", tabindex: "0", role: "group", "aria-label": "Changes of leadership" }, list), note);
  let over = false;
  let shown = "";

  (async () => {
    while (!over) {
      try {
        const { changes, unanswered } = await get("/admin/api/v1/timeline", {}, { timeout_ms: 5_000 });
        if (!over) show(changes.slice(-SHOWN_MAX).reverse(), unanswered);
      } catch {
        // The head of the page says that nothing answers.
      }
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  })();

  function show(changes, unanswered) {
    note.hidden = unanswered.length === 0;
    setText(note, `Without what ${unanswered.join(" and ")} saw.`);
    const now = JSON.stringify(changes);
    if (now === shown) return;
    shown = now;
    list.replaceChildren(...changes.map(entry));
  }

  function entry(change) {
    const led = change.leader_id !== null;
    const gap = change.leaderless_s;
    const what = led
      ? [h("strong", {}, change.leader_id), ` leads in term ${change.term}`]
      : [h("strong", {}, change.previous_id ?? "The leader"), ` stops leading in term ${change.term}`];
    return h("li", { class: led ? "led" : "lost" },
      h("time", { datetime: new Date(change.at_ms).toISOString(), class: "quiet" }, moment(change.at_ms)),
      h("p", {}, what),
      h("p", { class: "quiet" }, sentence(change.reason)),
      led && gap !== null ? h("p", { class: gap >= 1 ? "gap long" : "gap" }, gap < 0.001 ? "without a gap" : `${seconds(gap)} without a leader`) : null);
  }

  return { element, stop() { over = true; } };
}

function sentence(reason) {
  // A node's name stays as it is.
  return /^(it|the|a|no|there) /.test(reason) ? reason.charAt(0).toUpperCase() + reason.slice(1) : reason;
}
