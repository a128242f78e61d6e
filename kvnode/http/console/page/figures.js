// The last fifteen minutes of every node, drawn: one line for each, in the colour that it has among the members.

import { get } from "./api.js";
import { h, s, section, setAttribute, setChildren, setText } from "./dom.js";
import { clock, DASH, seconds, short } from "./text.js";

const EVERY_MS = 5_000;
const LEAST_MS = 60_000; // a node that has just begun fills the chart soon, and the whole of it after a quarter of an hour
const WIDTH = 300;
const HEIGHT = 92;
const CHARTS = [
  { name: "Writes per second", unit: "/s", lines: [["writes_per_s", ""]] },
  { name: "Reads per second", unit: "/s", lines: [["reads_per_s", ""]] },
  { name: "Write latency", unit: " ms", lines: [["write_p50_ms", "p50"], ["write_p99_ms", "p99"]] },
  { name: "Fsync", unit: " ms", lines: [["fsync_p50_ms", "p50"], ["fsync_p99_ms", "p99"]] },
];

export function figuresSection() {
  const charts = CHARTS.map(newChart);
  const element = section("Figures", "figures", h("span", { class: "quiet" }, "the last 15 minutes of each node"),
    h("div", { class: "charts" }, charts.map((chart) => chart.element)));
  const samples = new Map(); // node -> its samples
  let order = [];
  let over = false;

  (async () => {
    while (!over) {
      await look();
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  })();

  async function look() {
    const newest = [...samples.values()].map((each) => each.at(-1)?.at_ms ?? 0);
    let answer;
    try {
      answer = await get("/admin/api/v1/figures", { since_ms: newest.length ? Math.max(0, Math.min(...newest)) : null }, { timeout_ms: 5_000 });
    } catch {
      return;
    }
    if (over) return;
    const span_ms = answer.span_s * 1000;
    for (const { node, samples: added } of answer.nodes) {
      const kept = samples.get(node) ?? [];
      const last = kept.at(-1)?.at_ms ?? 0;
      samples.set(node, [...kept, ...added.filter((each) => each.at_ms > last)].filter((each) => each.at_ms > answer.now_ms - span_ms));
    }
    const oldest = Math.min(...[...samples.values()].map((each) => each[0]?.at_ms ?? answer.now_ms));
    const from = Math.max(answer.now_ms - span_ms, Math.min(oldest, answer.now_ms - LEAST_MS));
    for (const chart of charts) chart.draw(samples, order, from, answer.now_ms, answer.step_s * 1000);
  }

  return {
    element,
    update(cluster) { order = cluster.nodes.map((node) => node.id); },
    stop() { over = true; },
  };
}

function newChart({ name, unit, lines }) {
  const lead = h("div", { class: "legend" });
  const plot = s("g", {});
  const cursor = s("line", { y1: 0, y2: HEIGHT, class: "cursor", visibility: "hidden" });
  const drawing = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 14}`, role: "img", class: "chart", preserveAspectRatio: "none" },
    s("path", { d: `M0 ${HEIGHT}H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 12H${WIDTH}`, class: "grid-lines" }), plot, cursor);
  const scale = h("span", { class: "scale quiet" });
  const at = h("span", { class: "at quiet" });
  const since = h("span", {});
  const element = h("figure", { class: "figure" },
    h("figcaption", {}, h("h3", {}, name, lines.length > 1 ? h("span", { class: "quiet kinds" }, " p50 ", h("i", { class: "solid", "aria-hidden": "true" }), " p99 ", h("i", { class: "dotted", "aria-hidden": "true" })) : null), scale),
    drawing, h("div", { class: "ends quiet", "aria-hidden": "true" }, since, at, h("span", {}, "now")), lead);
  let state = null;

  drawing.addEventListener("pointermove", (event) => {
    if (state === null) return;
    const box = drawing.getBoundingClientRect();
    read(state.from + ((event.clientX - box.left) / box.width) * (state.to - state.from));
  });
  drawing.addEventListener("pointerleave", () => read(null));

  function draw(samples, order, from, to, step) {
    const nodes = order.filter((node) => samples.has(node));
    const highest = Math.max(0, ...nodes.flatMap((node) => samples.get(node).flatMap((each) => lines.map(([field]) => each[field] ?? 0))));
    const ceiling = roundUp(highest);
    state = { samples, order, nodes, from, to, step };
    setText(since, `${seconds((to - from) / 1000)} ago`);
    setText(scale, ceiling === 0 ? "" : `${short(ceiling)}${unit}`);
    const x = (at_ms) => ((at_ms - from) / (to - from)) * WIDTH;
    const y = (value) => HEIGHT - (ceiling === 0 ? 0 : (value / ceiling) * (HEIGHT - 12));
    plot.replaceChildren(...nodes.flatMap((node) => [...lines].reverse().map(([field, kind]) =>
      s("path", { d: path(samples.get(node), field, x, y, step), class: `line series-${order.indexOf(node) % 7} ${kind === "p99" ? "dotted" : ""}` }))));
    const latest = nodes.map((node) => `${node} ${lines.map(([field, kind]) => `${kind} ${valueOf(samples.get(node).at(-1), field)}`.trim()).join(", ")}`);
    setAttribute(drawing, "aria-label", `${name}, the last 15 minutes. Now: ${latest.join("; ") || "nothing yet"}.`);
    read(null);
  }

  function valueOf(sample, field) {
    const value = sample?.[field];
    return value === null || value === undefined ? DASH : `${short(value)}${unit}`;
  }

  /** The legend says what was at that time, or what is now. */
  function read(time) {
    const { samples, order, nodes, from, to, step } = state;
    cursor.setAttribute("visibility", time === null ? "hidden" : "visible");
    if (time !== null) {
      cursor.setAttribute("x1", ((time - from) / (to - from)) * WIDTH);
      cursor.setAttribute("x2", ((time - from) / (to - from)) * WIDTH);
    }
    setText(at, time === null ? "" : clock(time));
    const entries = nodes.map((node) => {
      const all = samples.get(node);
      const sample = time === null ? all.at(-1) : all.find((each) => Math.abs(each.at_ms - time) <= step / 2);
      return h("span", { class: "entry" }, h("span", { class: `swatch series-${order.indexOf(node) % 7}`, "aria-hidden": "true" }),
        `${node} `, h("b", {}, lines.map(([field]) => valueOf(sample, field)).join(" · ")));
    });
    setChildren(lead, entries);
  }

  return { element, draw };
}

function path(samples, field, x, y, step) {
  let d = "";
  let before = null;
  for (const sample of samples) {
    const value = sample[field];
    if (value === null || value === undefined) { before = null; continue; }
    const joined = before !== null && sample.at_ms - before < step * 2.5; // a node that was away leaves a gap
    d += `${joined ? "L" : "M"}${x(sample.at_ms).toFixed(1)} ${y(value).toFixed(1)}`;
    if (!joined) d += "h.01";
    before = sample.at_ms;
  }
  return d;
}

/** 1, 2 or 5 times a power of ten: a scale that does not move with every sample. */
function roundUp(value) {
  if (value <= 0) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= value);
}
