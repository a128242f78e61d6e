// Which keys are asked for: a row for each beginning of keys, a column for each minute of the last hour, reads and
// writes apart. A cell fills in `Prefix`; for the keyboard the row's name does the same.

import { get } from "./api.js";
import { h, s, section, setAttribute, setChildren, setText } from "./dom.js";
import { clock, whole } from "./text.js";

const EVERY_MS = 5_000;
const ROW = 26;
const CELL = 8;
const SHADES = 6;
const LEAST = 15; // columns, while nodes have seen less than that

export function heatSection(choosePrefix) {
  const names = h("div", { class: "heat-names" });
  const since = [h("span", {}), h("span", {})];
  const axis = ["Reads", "Writes"].map((kind, index) => h("div", {}, since[index], h("b", {}, kind), h("span", {}, "now")));
  const drawing = s("svg", { role: "img", "aria-label": "Heat", class: "heat-picture", preserveAspectRatio: "none" });
  const legend = h("div", { class: "heat-legend quiet" });
  const told = h("p", { class: "quiet small heat-told" }, "Each cell is a minute. Choose one to see its keys.");
  const empty = h("p", { class: "empty" }, "No requests for keys in the last hour.");
  const body = h("div", { class: "heat-body", hidden: true }, names, h("div", { class: "heat-scroll", tabindex: "0", role: "group", "aria-label": "The last hour" },
    h("div", { class: "heat-axis quiet", "aria-hidden": "true" }, axis),
    drawing));
  const element = section("Heat", "heat", legend, body, empty, told);
  legend.append(
    h("span", {}, "Reads ", ramp("reads")), h("span", {}, "Writes ", ramp("writes")));
  const buttons = new Map();
  let over = false;

  (async () => {
    while (!over) {
      try {
        const answer = await get("/admin/api/v1/heat", {}, { timeout_ms: 5_000 });
        if (!over) draw(answer);
      } catch {
        // The head of the page says that nothing answers.
      }
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  })();

  drawing.addEventListener("click", (event) => {
    const prefix = event.target.dataset?.prefix;
    if (prefix !== undefined) choosePrefix(prefix);
  });
  drawing.addEventListener("pointerover", (event) => {
    setText(told, event.target.dataset?.told ?? "Each cell is a minute. Choose one to see its keys.");
  });

  function draw({ rows: all, minutes: kept, last_minute_ms }) {
    const begun = all.map((row) => row.reads.findIndex((count, minute) => count + row.writes[minute] > 0));
    const minutes = Math.min(kept, Math.max(LEAST, kept - Math.min(kept, ...begun)));
    const rows = all.map((row) => ({ ...row, reads: row.reads.slice(-minutes), writes: row.writes.slice(-minutes) }));
    for (const each of since) setText(each, `${minutes} min ago`);
    body.hidden = rows.length === 0;
    empty.hidden = rows.length !== 0;
    told.hidden = rows.length === 0;
    const half = minutes * CELL;
    const gap = minutes * CELL * 0.04;
    const height = rows.length * ROW;
    const highest = Math.max(1, ...rows.flatMap((row) => [...row.reads, ...row.writes]));
    setAttribute(drawing, "viewBox", `0 0 ${half * 2 + gap} ${height}`);
    setAttribute(drawing, "height", height);
    const cells = [];
    rows.forEach((row, index) => {
      for (const [kind, offset] of [["reads", 0], ["writes", half + gap]]) {
        row[kind].forEach((count, column) => {
          if (count === 0) return;
          const when = clock(last_minute_ms - (minutes - 1 - column) * 60_000).slice(0, 5);
          const sentence = `${row.prefix || "Keys without a slash"}, ${when}: ${whole(count)} ${kind}`;
          const cell = s("rect", {
            x: offset + column * CELL, y: index * ROW + 1, width: CELL - 1, height: ROW - 2,
            class: `cell ${kind} shade-${shade(count, highest)}`,
            "data-prefix": row.prefix, "data-told": sentence,
          }, s("title", {}, sentence));
          cells.push(cell);
        });
      }
    });
    const rails = rows.map((row, index) => [0, half + gap].map((x) => `M${x} ${index * ROW + ROW / 2}h${half - 1}`).join("")).join("");
    drawing.replaceChildren(
      s("path", { d: rails, class: "rails" }),
      ...cells);
    setChildren(names, rows.map((row) => {
      let button = buttons.get(row.prefix);
      if (button === undefined) {
        button = h("button", { type: "button", class: "key", title: row.prefix, onclick: () => choosePrefix(row.prefix) }, row.prefix || "(no slash)");
        buttons.set(row.prefix, button);
      }
      return button;
    }));
  }

  return { element, stop() { over = true; } };
}

/** By the logarithm: ten times as much is a step, however much the busiest has. */
function shade(count, highest) {
  return 1 + Math.min(SHADES - 1, Math.floor((Math.log1p(count) / Math.log1p(highest)) * SHADES));
}

function ramp(kind) {
  return s("svg", { viewBox: `0 0 ${SHADES * 10} 10`, width: SHADES * 10, height: 10, "aria-hidden": "true" },
    Array.from({ length: SHADES }, (_, index) => s("rect", { x: index * 10, width: 9, height: 10, rx: 2, class: `${kind} shade-${index + 1}` })));
}
