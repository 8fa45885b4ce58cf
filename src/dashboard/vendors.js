// All vendors: each with its limits and what was really sent, those that need somebody first.

import { read } from "./api.js";
import { el, show } from "./dom.js";
import { readVendors, vendorTable } from "./vendor-data.js";
import { count, counted } from "./words.js";

/** Rows that are drawn at most; the filter finds the others. */
const MOST = 100;

export const title = () => "Vendors";

export function open(view) {
  let stats = null;
  let vendors = null;
  const input = el("input", {
    type: "search",
    name: "filter",
    "aria-label": "Show vendors whose name contains",
    placeholder: "Name contains …",
    autocomplete: "off",
  });
  const table = el("div", { own: true, key: "table" });
  const draw = () => {
    if (!vendors) return show(table, el("p", { class: "loading" }, "Reading …"));
    const found = vendors.filter(({ name }) => name.includes(input.value.trim()));
    const needing = vendors.filter(({ blocked_on }) => blocked_on).length;
    show(
      table,
      el(
        "p",
        { class: "sum" },
        counted(vendors.length, "vendor"),
        needing ? `, ${count(needing)} of them not being called` : ", all being called",
      ),
      vendorTable(found.slice(0, MOST), stats, again),
      found.length > MOST ? el("p", null, `${count(found.length - MOST)} more: say more of the name.`) : null,
      found.length === 0 ? el("p", null, "No vendor has such a name.") : null,
    );
  };
  input.addEventListener("input", draw);
  view.show(el("h1", null, "Vendors"), el("p", { class: "filters" }, input), table);
  const again = view.every(2000, async (signal) => {
    vendors = await readVendors(signal);
    draw();
  });
  view.every(2000, async (signal) => {
    stats = await read("/stats", { signal });
    draw();
  });
  draw();
}
