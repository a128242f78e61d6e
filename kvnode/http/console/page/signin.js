// Where the nodes ask for tokens: a token goes in once, and a session's cookie that no script can read goes on.

import { ask, Refused } from "./api.js";
import { field, h, setText } from "./dom.js";

const SESSION = "/admin/api/v1/session";

export function showSignIn(sentence, then) {
  const token = h("input", { type: "password", autocomplete: "current-password", required: true, spellcheck: "false" });
  const said = h("p", { class: "refused", role: "alert", hidden: !sentence }, sentence ?? "");
  const button = h("button", { type: "submit", class: "primary" }, "Sign in");
  const form = h("form", { class: "card sign-in", "aria-label": "Sign in", onsubmit: submit },
    h("img", { src: "console/icon.svg", alt: "", width: "44", height: "44" }),
    h("h1", {}, "kvnode"),
    h("p", { class: "quiet" }, "This cluster asks for a token."),
    field("Token", token), said, button);
  document.body.replaceChildren(h("main", { class: "alone" }, form));
  token.focus();

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    try {
      await ask("POST", SESSION, { headers: { Authorization: `Bearer ${token.value.trim()}` } });
      then();
    } catch (error) {
      said.hidden = false;
      setText(said, error instanceof Refused && error.status === 401 ? "This token is not valid, or not any more." : error.message);
      button.disabled = false;
      token.select();
      token.focus();
    }
  }
}

export async function signOut(then) {
  try {
    await ask("DELETE", SESSION);
  } finally {
    then();
  }
}
