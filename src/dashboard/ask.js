// Asking before something is done: one form for every dialog.
// Never does anything before its button is pressed, and never closes on a failure: the reason is shown where it was asked.

import { dialog, el, show } from "./dom.js";

/**
 * A form in a dialog. `work(data, progress)` does it, and gives a sentence for the page or nothing; while it runs, `progress(text)`
 * shows how far it is. Resolves with whether it was done.
 */
export async function ask({ title, content, button, kind = "", work }) {
  let isDone = false;
  await dialog(title, (close) => {
    const said = el("p", { class: "said", role: "alert" });
    const progress = el("p", { class: "progress", role: "status" });
    const go = el("button", { class: `main ${kind}` }, button);
    const stop = new AbortController();
    const submit = async (event) => {
      event.preventDefault();
      show(said);
      go.disabled = true;
      try {
        await work(new FormData(event.currentTarget), (text) => show(progress, text), stop.signal);
        isDone = true;
        close();
      } catch (problem) {
        if (problem.name !== "AbortError") show(said, problem.text ?? String(problem));
      }
      go.disabled = false;
    };
    const cancel = el("button", { type: "button", onclick: () => close() }, "Leave it");
    const form = el(
      "form",
      { method: "dialog", onsubmit: submit },
      content,
      progress,
      said,
      el("p", { class: "buttons" }, go, cancel),
    );
    // Closing the dialog stops what it does, wherever that is.
    queueMicrotask(() => form.closest("dialog").addEventListener("close", () => stop.abort()));
    return form;
  });
  return isDone;
}

export function field(label, control, hint) {
  const id = `field-${control.getAttribute("name")}`;
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return el(
    "p",
    { class: "field" },
    el("label", { for: id }, label),
    control,
    hint ? el("small", { id: `${id}-hint` }, hint) : null,
  );
}

export function select(name, options, chosen) {
  const option = ([value, text]) => el("option", { value, selected: value === chosen }, text);
  return el("select", { name }, options.map(option));
}
