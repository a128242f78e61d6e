// The one question that this page asks before something is done that is felt elsewhere.

import { h, freshId, setText } from "./dom.js";

/** Asks `Are you sure?`. `run` does it; what it refuses with is shown in the node's own words. */
export function areYouSure({ sentence, yes, controls = [], run }) {
  const heading = freshId("sure");
  const about = freshId("about");
  const refused = h("p", { class: "refused", role: "alert", hidden: true });
  const confirm = h("button", { type: "button", class: "primary" }, yes);
  const cancel = h("button", { type: "button" }, "Cancel");
  const dialog = h("dialog", { "aria-labelledby": heading, "aria-describedby": about },
    h("h2", { id: heading }, "Are you sure?"),
    h("p", { id: about }, sentence),
    ...controls,
    refused,
    h("div", { class: "buttons" }, cancel, confirm));
  cancel.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  confirm.addEventListener("click", async () => {
    confirm.disabled = true;
    setText(confirm, "Asking the cluster…");
    try {
      await run();
      dialog.close();
    } catch (error) {
      refused.hidden = false;
      setText(refused, error.message);
      controls.forEach((control) => control.remove());
      confirm.remove();
      setText(cancel, "Close");
      cancel.focus();
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  cancel.focus();
}
