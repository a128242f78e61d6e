// One key: its value as text or as bytes, what it was before, and changing it without running over somebody else.

import { ask, get, hasNoPath, keyPath, Refused } from "./api.js";
import { field, h, section, setAttribute, setText } from "./dom.js";
import { asHex, asText, bytes, DASH, fromBase64, fromHex, seconds, whole } from "./text.js";

const EVERY_MS = 1_000;
const HEX_BYTES_MAX = 65_536; // three characters for each byte: a field with more of them is of no use to anybody
const EVENTS = { put: "written", delete: "deleted", expire: "expired" };

export function valueSection(may, onClose) {
  const title = h("h3", { class: "key-name" });
  const facts = h("dl", { class: "facts" });
  const content = h("textarea", { rows: "10", spellcheck: "false", autocomplete: "off", wrap: "soft" });
  const type = h("input", { type: "text", spellcheck: "false", autocomplete: "off", placeholder: "application/octet-stream" });
  const asTextChoice = h("input", { type: "radio", name: "shown-as", value: "text" });
  const asHexChoice = h("input", { type: "radio", name: "shown-as", value: "hex" });
  const choices = h("fieldset", { class: "segmented" }, h("legend", { class: "visually-hidden" }, "Shown as"),
    h("label", {}, asTextChoice, h("span", {}, "Text")), h("label", {}, asHexChoice, h("span", {}, "Hex")));
  const said = h("div", { class: "said", "aria-live": "polite" });
  const clash = h("div", { class: "clash", role: "alert", hidden: true });
  const save = h("button", { type: "button", class: "primary", onclick: saveIt }, "Save");
  const remove = h("button", { type: "button", class: "danger", onclick: deleteIt }, "Delete");
  const buttons = h("div", { class: "buttons value-buttons" }, said, may.write ? [remove, save] : null);
  const past = h("ol", { class: "past", "aria-label": "History" });
  const pastNote = h("p", { class: "quiet small" });
  const none = h("p", { class: "empty" }, "Choose a key to see its value and what it was before.");
  const panel = h("div", { class: "card-body value-body", hidden: true },
    title, facts, clash,
    h("div", { class: "value-head" }, field("Content type", type, "field-inline grow"), choices),
    field("Value", content, "field value-field"), buttons,
    h("h3", { class: "past-head" }, "History"), past, pastNote);
  const element = section("Value", "value", null, none, panel);

  let key = null;
  let item = null; // as it was when it was loaded: what Save is measured against; null for a key that is not there
  let original = ""; // what the field showed then
  let originalType = "";
  let newest = null; // the revision that the cluster has now, as far as this page knows
  let asked = 0;
  let busy = false; // a change of one's own is under way, which is not somebody else's
  let over = false;

  asTextChoice.addEventListener("change", () => recode("text"));
  asHexChoice.addEventListener("change", () => recode("hex"));
  content.addEventListener("input", buttonsFit);
  type.addEventListener("input", buttonsFit);
  content.addEventListener("keydown", (event) => {
    if (event.key === "s" && (event.metaKey || event.ctrlKey)) { event.preventDefault(); if (!save.disabled) saveIt(); }
  });
  loop();

  async function loop() {
    while (!over) {
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
      if (key !== null && !busy) await look();
    }
  }

  const shownAs = () => (asHexChoice.checked ? "hex" : "text");
  const isDirty = () => key !== null && (content.value !== original || type.value !== originalType);

  /** The key as it is now, null where it is not there: the first of those that begin with it. By its listing, because
   *  a browser cannot ask for every key by its path, and writes a line for each 404. */
  async function read(wanted, withValue) {
    const page = await get("/v1/kv", {
      prefix: wanted, limit: 1, ...(withValue ? {} : { keys_only: true, sizes: true, consistency: "stale" }),
    });
    return page.items[0]?.key === wanted ? page.items[0] : null;
  }

  async function open(wanted) {
    const mine = ++asked;
    key = wanted;
    none.hidden = true;
    panel.hidden = false;
    setText(title, wanted);
    tell("");
    let found;
    try {
      found = await read(wanted, true);
    } catch (error) {
      if (mine === asked) tell(error.message, "bad");
      return;
    }
    if (mine === asked) show(found);
  }

  function show(found, keepView = false) {
    item = found;
    newest = found?.mod_revision ?? null;
    clash.hidden = true;
    const value = found === null ? new Uint8Array() : fromBase64(found.value);
    const text = asText(value);
    const hex = text === null || (keepView && shownAs() === "hex");
    asHexChoice.checked = hex;
    asTextChoice.checked = !hex;
    asTextChoice.disabled = text === null;
    const long = hex && value.length > HEX_BYTES_MAX;
    content.value = hex ? asHex(value.subarray(0, HEX_BYTES_MAX)) : text;
    content.readOnly = long || !may.write;
    type.readOnly = !may.write;
    original = content.value;
    type.value = originalType = found?.content_type ?? "";
    if (found === null) tell("This key is not there. Save writes it.", "warn");
    if (long) tell(`The first ${bytes(HEX_BYTES_MAX)} of ${bytes(value.length)}.`, "warn");
    describe(found, value.length);
    buttonsFit();
    history();
  }

  function describe(found, size) {
    const pairs = found === null ? [["State", "not there"]] : [
      ["Size", bytes(size)], ["Revision", whole(found.mod_revision)], ["Created at", whole(found.create_revision)],
      ["Version", whole(found.version)], ["TTL", found.ttl === undefined ? DASH : seconds(found.ttl)],
    ];
    facts.replaceChildren(...pairs.map(([name, what]) => h("div", {}, h("dt", {}, name), h("dd", {}, what))));
  }

  function buttonsFit() {
    save.disabled = content.readOnly || (item !== null && !isDirty());
    remove.disabled = item === null;
    setAttribute(content, "class", isDirty() ? "dirty" : null);
  }

  function recode(to) {
    const value = to === "hex" ? new TextEncoder().encode(content.value) : fromHex(content.value);
    const text = value === null ? null : asText(value);
    if (value === null || (to === "text" && text === null)) {
      asHexChoice.checked = true;
      tell("These bytes are not text.", "warn");
      return;
    }
    const wasDirty = isDirty();
    content.value = to === "hex" ? asHex(value) : text;
    if (!wasDirty) original = content.value;
    buttonsFit();
  }

  function tell(sentence, kind = "") {
    setText(said, sentence);
    setAttribute(said, "class", `said ${kind}`);
  }

  /** Whether the key has changed since it was loaded; what nobody has touched here is shown anew. */
  async function look() {
    const mine = asked;
    const wanted = key;
    let found;
    try {
      found = await read(wanted, false);
    } catch {
      return; // the head of the page says that nothing answers
    }
    if (mine !== asked || wanted !== key) return;
    const revision = found?.mod_revision ?? null;
    if (revision === newest) {
      if (found !== null && found.ttl !== undefined && item !== null) describe({ ...item, ttl: found.ttl }, found.size);
      return;
    }
    if (revision !== null && newest !== null && revision < newest) return; // a node that is behind
    newest = revision;
    if (isDirty()) await showClash();
    else {
      await reload(true);
      tell(revision === null ? "Deleted by somebody else just now." : "Changed by somebody else just now.", "warn");
    }
  }

  async function reload(keepView) {
    const mine = ++asked;
    const found = await read(key, true);
    if (mine === asked) show(found, keepView);
  }

  /** Somebody else's change beside one's own, which stays in the field. */
  async function showClash() {
    let theirs;
    try {
      theirs = await read(key, true);
    } catch (error) {
      tell(error.message, "bad");
      return;
    }
    newest = theirs?.mod_revision ?? null;
    const value = theirs === null ? null : fromBase64(theirs.value);
    const was = item === null ? "not there" : `revision ${whole(item.mod_revision)}`;
    const is = theirs === null ? "deleted" : `revision ${whole(theirs.mod_revision)}`;
    clash.replaceChildren(
      h("p", {}, h("strong", {}, "Somebody else has changed this key. "), `It was ${was} when you began, and is ${is} now. Yours is not saved.`),
      value === null ? "" : h("pre", { tabindex: "0", "aria-label": "What it is now" }, preview(value)),
      h("div", { class: "buttons" },
        h("button", { type: "button", onclick: () => show(theirs, true) }, "Take theirs"),
        h("button", { type: "button", onclick: () => { item = theirs; clash.hidden = true; tell("Save now replaces theirs.", "warn"); buttonsFit(); save.disabled = false; } }, "Keep mine")));
    clash.hidden = false;
  }

  async function saveIt() {
    const value = shownAs() === "hex" ? fromHex(content.value) : new TextEncoder().encode(content.value);
    if (value === null) {
      tell("These are not pairs of hexadecimal digits.", "bad");
      return;
    }
    save.disabled = true;
    tell("Saving…");
    busy = true;
    asked += 1;
    try {
      await write(value);
      await reload(true);
      tell("Saved.", "good");
    } catch (error) {
      if (error instanceof Refused && error.status === 412) {
        tell("Not saved.", "bad");
        await showClash();
      } else tell(error.message, "bad");
      save.disabled = false;
    }
    busy = false;
  }

  /** With the revision that was loaded as the condition: what came since is never replaced unseen. */
  async function write(value) {
    // A token with prefixes has no right to leases: then the time that is left begins anew.
    const lease = item?.lease === undefined ? "" : may.prefixes.length ? `?ttl=${Math.max(1, item.ttl)}` : `?lease=${item.lease}`;
    if (!hasNoPath(key)) {
      const headers = item === null ? { "If-None-Match": "*" } : { "If-Match": `"${item.mod_revision}"` };
      if (type.value) headers["Content-Type"] = type.value;
      await ask("PUT", `${keyPath(key)}${lease}`, { body: value, headers });
      return;
    }
    const binary = Array.from(value, (byte) => String.fromCharCode(byte)).join("");
    const put = { key, value: btoa(binary), ...(type.value ? { content_type: type.value } : {}), ...(lease ? { lease: item.lease } : {}) };
    await transaction([{ put }]);
  }

  async function transaction(success) {
    const outcome = await ask("POST", "/v1/txn", { json: { compare: [{ key, mod_revision: item?.mod_revision ?? 0 }], success, failure: [] } });
    if (!outcome.succeeded) throw new Refused(412, { message: "Somebody else has changed this key." }, null);
  }

  async function deleteIt() {
    const gone = item;
    const kept = content.value;
    remove.disabled = true;
    busy = true;
    asked += 1;
    try {
      if (hasNoPath(key)) await transaction([{ delete: { key } }]);
      else await ask("DELETE", keyPath(key), { headers: { "If-Match": `"${gone.mod_revision}"` } });
      await reload(true);
      content.value = kept; // Save brings it back
      tell("Deleted. Save brings it back.", "warn");
      buttonsFit();
    } catch (error) {
      if (error instanceof Refused && error.status === 412) await showClash();
      else tell(error.message, "bad");
      remove.disabled = false;
    }
    busy = false;
  }

  async function history() {
    const wanted = key;
    let found;
    try {
      found = await get("/admin/api/v1/history", { key: wanted, limit: 20, consistency: "stale" });
    } catch {
      return;
    }
    if (wanted !== key) return;
    past.replaceChildren(...found.changes.map((change) => h("li", {},
      h("span", { class: "past-what" }, change.event === "put" && change.version === 1 ? "created" : EVENTS[change.event]),
      h("span", { class: "quiet" }, `revision ${whole(change.revision)}`),
      change.event === "put" ? h("span", { class: "quiet" }, bytes(change.size)) : null,
      change.event === "put" ? h("code", { class: "preview" }, preview(fromBase64(change.value))) : null)));
    const whole_ = found.changes.at(-1)?.version === 1;
    setText(pastNote, whole_ ? "" : found.changes.length === 0
      ? `Nothing happened to it since revision ${whole(found.oldest_revision)}, which is as far as this node remembers.`
      : `What was before revision ${whole(found.changes.at(-1).revision)} this node does not show.`);
  }

  return {
    element,
    open,
    isDirty,
    state: () => key,
    stop() { over = true; },
  };
}

function preview(value) {
  const text = asText(value);
  if (text !== null) return text.slice(0, 400);
  return asHex(value.subarray(0, 48)).replace(/\n/g, " ") + (value.length > 48 ? " …" : "");
}
