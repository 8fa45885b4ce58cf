// Jobs that ended without a result, grouped by what went wrong, each group with the button that runs it again.

import { read } from "./api.js";
import { field, select } from "./ask.js";
import { address, el, show } from "./dom.js";
import { failureTable } from "./failure-table.js";
import { count, counted, when } from "./words.js";

const TIMES = [
  ["15m", "the last 15 minutes"],
  ["1h", "the last hour"],
  ["6h", "the last 6 hours"],
  ["1d", "the last day"],
  ["7d", "the last 7 days"],
];

export const title = () => "Failures";

export function open(view) {
  const time = view.query.since ?? "1h";
  const vendor = view.query.vendor ?? "";
  const list = el("div", { own: true, key: "list" }, el("p", { class: "loading" }, "Reading …"));
  const since = select("since", TIMES, time);
  const name = el("input", { type: "text", name: "vendor", value: vendor, autocomplete: "off", spellcheck: "false" });
  const choose = (event) => {
    event.preventDefault();
    location.hash = address(["failures"], { since: since.value, vendor: name.value.trim() });
  };
  since.addEventListener("change", choose);
  view.show(
    el("h1", null, "Failures"),
    el(
      "form",
      { class: "filters", onsubmit: choose, own: true, key: "form", "aria-label": "Which failures" },
      field("Ended in", since),
      field("Vendor", name),
      el("p", { class: "buttons" }, el("button", { class: "main" }, "Show")),
    ),
    list,
  );
  const again = view.every(5000, async (signal) => {
    const found = await read(`/failures?${new URLSearchParams({ since: time, ...(vendor ? { vendor } : {}) })}`, { signal });
    show(
      list,
      el(
        "p",
        { class: "sum" },
        `${counted(found.count, "job")} ended without a result`,
        found.more ? [" since ", when(found.since), ": there are more, and only the newest are looked at"] : null,
        ".",
      ),
      found.failures.length ? failureTable(found.failures, again) : null,
      found.omitted ? el("p", null, `${count(found.omitted)} more in smaller groups.`) : null,
    );
  });
}
