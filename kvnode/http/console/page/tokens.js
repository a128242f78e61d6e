// Access tokens, for administrators: who has one, a new one, an end to one.

import { ask, get } from "./api.js";
import { areYouSure } from "./dialog.js";
import { field, h, section, setChildren, setText } from "./dom.js";
import { DASH, moment } from "./text.js";

const PATH = "/admin/api/v1/tokens";
const EVERY_MS = 5_000;

const ROLES = ["read", "write", "admin"];
const DAY_S = 86_400;

export function tokensSection() {
  const body = h("tbody");
  const said = h("p", { class: "refused", role: "alert", hidden: true });
  const made = h("div", { class: "secret", "aria-live": "polite", hidden: true });
  const name = h("input", { type: "text", required: true, spellcheck: "false", autocomplete: "off", placeholder: "whose it is" });
  const role = h("select", {}, ROLES.map((each) => h("option", { value: each }, each)));
  const under = h("input", { type: "text", spellcheck: "false", autocomplete: "off", placeholder: "app/ shop/", class: "mono" });
  const days = h("input", { type: "number", min: "1", max: "3650", placeholder: "never ends" });
  const create = h("button", { type: "submit", class: "primary" }, "Create");
  const form = h("form", { class: "new-token", "aria-label": "New token", onsubmit: submit },
    field("Name", name), field("Role", role), field("Only keys under", under), field("Days it lasts", days), create);
  const element = section("Tokens", "tokens", null, said,
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "All tokens" },
      h("table", { "aria-label": "Access" },
        h("thead", {}, h("tr", {}, ["Name", "Role", "Only keys under", "Created", "Expires", "Last used"].map((each) => h("th", { scope: "col" }, each)),
          h("th", { scope: "col", class: "actions" }, "Actions"))),
        body)),
    made, form);
  let over = false;

  (async () => {
    while (!over) {
      await look();
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  })();

  async function look() {
    let tokens;
    try {
      ({ tokens } = await get(PATH, {}, { timeout_ms: 5_000 }));
    } catch {
      return;
    }
    if (!over) show(tokens);
  }

  const rows = new Map();
  function show(tokens) {
    setChildren(body, tokens.map((token) => {
      const facts = JSON.stringify(token);
      let row = rows.get(token.id);
      if (row?.facts !== facts) rows.set(token.id, row = { facts, element: newRow(token) });
      return row.element;
    }));
  }

  function newRow(token) {
    return h("tr", {},
      h("th", { scope: "row" }, token.name), h("td", {}, token.role.replace("_", " ")),
      h("td", { class: "mono" }, token.prefixes?.length ? token.prefixes.join("  ") : "every key"),
      h("td", {}, moment(token.created_ms)),
      h("td", {}, token.expires_ms ? `${token.expired ? "ended " : ""}${moment(token.expires_ms)}` : "never"),
      h("td", {}, token.last_used_ms ? moment(token.last_used_ms) : DASH),
      h("td", { class: "actions" }, h("button", { type: "button", class: "danger", onclick: () => revoke(token) }, "Revoke")));
  }

  function revoke(token) {
    areYouSure({
      sentence: `Whatever uses the token ${token.name} is refused from now on, on every node, and its sessions end.`,
      yes: `Yes, revoke ${token.name}`,
      run: async () => { await ask("DELETE", `${PATH}/${encodeURIComponent(token.id)}`); await look(); },
    });
  }

  async function submit(event) {
    event.preventDefault();
    create.disabled = true;
    said.hidden = true;
    const prefixes = under.value.split(/[\s,]+/).filter(Boolean);
    try {
      const token = await ask("POST", PATH, { json: { name: name.value.trim(), role: role.value, ...(prefixes.length ? { prefixes } : {}), ...(days.value ? { expires_s: Number(days.value) * DAY_S } : {}) } });
      showSecret(token);
      form.reset();
      await look();
    } catch (error) {
      said.hidden = false;
      setText(said, error.message);
    }
    create.disabled = false;
  }

  function showSecret(token) {
    const secret = h("code", { class: "secret-text" }, token.token);
    const copy = h("button", { type: "button", onclick: async () => {
      try {
        await navigator.clipboard.writeText(token.token);
        setText(copy, "Copied");
      } catch {
        getSelection().selectAllChildren(secret); // a page without TLS may not write to the clipboard
      }
    } }, "Copy");
    const close = h("button", { type: "button", class: "ghost", onclick: () => { made.hidden = true; made.replaceChildren(); } }, "Done");
    made.replaceChildren(
      h("p", {}, h("strong", {}, `The token of ${token.name}. `), "It is shown this once; no node keeps it."),
      h("div", { class: "secret-row" }, secret, copy, close), token.warning ? h("p", { class: "small" }, token.warning) : "");
    made.hidden = false;
  }

  return { element, stop() { over = true; } };
}
