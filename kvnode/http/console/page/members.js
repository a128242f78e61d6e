// Who the members are, who leads, and what an administrator may do with each.

import { ask } from "./api.js";
import { areYouSure } from "./dialog.js";
import { field, h, section, setAttribute, setChildren, setText } from "./dom.js";
import { whole } from "./text.js";

const PATH = "/admin/api/v1";

export function membersSection(may, refresh) {
  const body = h("tbody", { role: "rowgroup" });
  const rows = new Map();
  const beside = h("span", { class: "quiet" });
  // With its roles said: where there is no room for a table, the style sheet makes cards of it, and it stays a table.
  const columns = [["Node"], ["Role"], ["Applied", "number"], ["Lag", "number"], ["Health"], ...(may.administrate ? [["Actions", "actions"]] : [])];
  const table = h("table", { role: "table", "aria-label": "Members" },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" },
      columns.map(([name, kind]) => h("th", { role: "columnheader", scope: "col", class: kind }, name)))),
    body);
  const element = section("Members", "members", beside, h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "All members" }, table));

  function update(cluster) {
    setText(beside, `${cluster.nodes.length} ${cluster.nodes.length === 1 ? "node" : "nodes"}, answered by ${cluster.node_id}`);
    const shown = cluster.nodes.map((node, index) => {
      const row = rows.get(node.id) ?? newRow(node.id);
      rows.set(node.id, row);
      row.update(node, index, cluster);
      return row.element;
    });
    setChildren(body, shown);
    for (const id of rows.keys()) if (!cluster.nodes.some((node) => node.id === id)) rows.delete(id);
  }

  function newRow(id) {
    let node = null;
    let cluster = null;
    const swatch = h("span", { class: "swatch", "aria-hidden": "true" });
    const address = h("span", { class: "quiet address" });
    const role = h("span", { class: "role" });
    const applied = h("td", { role: "cell", class: "number" });
    const lag = h("td", { role: "cell", class: "number" });
    const health = h("td", { role: "cell", class: "health" });
    const transfer = h("button", { type: "button", onclick: () => askTransfer(node, cluster) }, "Transfer leadership");
    const drain = h("button", { type: "button", onclick: () => askDrain(node) }, "Drain");
    const undrain = h("button", { type: "button", onclick: () => askUndrain(node) }, "Undrain");
    const remove = h("button", { type: "button", class: "danger", onclick: () => askRemove(node) }, "Remove");
    const buttons = h("div", { class: "row-buttons" });
    const row = h("tr", { role: "row" },
      h("th", { role: "rowheader", scope: "row" }, h("div", { class: "node" }, swatch, h("div", {}, h("span", { class: "node-id" }, id), address))),
      h("td", { role: "cell" }, role), applied, lag, health,
      may.administrate ? h("td", { role: "cell", class: "actions" }, buttons) : null);
    return {
      element: row,
      update(seen, index, all) {
        node = seen;
        cluster = all;
        setAttribute(swatch, "class", `swatch series-${index % 7}`);
        setText(address, (node.http ?? node.raft).replace(/^https?:\/\//, ""));
        setText(role, node.role);
        setAttribute(role, "class", `role role-${node.role}`);
        setText(applied, whole(node.applied_index));
        setText(lag, whole(node.lag));
        setText(health, node.health);
        setAttribute(health, "class", `health ${node.ready ? "well" : "unwell"}`);
        setChildren(buttons, [node.role === "leader" ? transfer : null, node.draining ? undrain : drain, remove].filter(Boolean));
      },
    };
  }

  function askTransfer(node, cluster) {
    const others = cluster.nodes.filter((other) => other.id !== node.id && other.role !== "learner");
    const to = h("select", {}, h("option", { value: "" }, "the one that is furthest"),
      others.map((other) => h("option", { value: other.id }, other.id)));
    areYouSure({
      sentence: `${node.id} hands the leadership over. Writes wait for a moment, and none is lost.`,
      yes: "Yes, transfer leadership",
      controls: [field("New leader", to)],
      run: () => then(ask("POST", `${PATH}/leader/transfer`, { json: to.value ? { to: to.value } : {} })),
    });
  }

  function askDrain(node) {
    areYouSure({
      sentence: `${node.id} takes no new work from now on: its probes fail, and balancers turn to the other nodes.`,
      yes: `Yes, drain ${node.id}`,
      run: () => then(ask("POST", `${PATH}/drain`, { json: { node: node.id } })),
    });
  }

  function askUndrain(node) {
    areYouSure({
      sentence: `${node.id} takes new work again.`,
      yes: `Yes, undrain ${node.id}`,
      run: () => then(ask("DELETE", `${PATH}/drain?node=${encodeURIComponent(node.id)}`)),
    });
  }

  function askRemove(node) {
    areYouSure({
      sentence: `${node.id} leaves the cluster for good. To come back it has to join anew, with an empty directory.`,
      yes: `Yes, remove ${node.id}`,
      run: () => then(ask("DELETE", `${PATH}/members/${encodeURIComponent(node.id)}`)),
    });
  }

  async function then(request) {
    await request;
    refresh();
  }

  return { element, update };
}
