// The first page: how much flows, whether limits were kept, who needs somebody, what fails.
// Never more than what `/stats`, `/vendors` and `/failures` say; the chart begins when the page is opened.

import { read } from "./api.js";
import { asCurl, sendTestJob } from "./actions.js";
import { History, lines } from "./chart.js";
import { copy, el, link, say, section } from "./dom.js";
import { failureTable } from "./failure-table.js";
import { need, readVendors, vendorTable } from "./vendor-data.js";
import { count, counted, duration, NONE, rate } from "./words.js";

/** Vendors in the table at most; the page of vendors has all. */
const MOST = 10;
/** Groups of failures at most; the page of failures has all. */
const MOST_FAILURES = 3;

const history = new History();
let breaches = 0;

export const title = () => "Overview";

export function open(view) {
  let stats = null;
  let vendors = null;
  let failures = null;
  const draw = () =>
    view.show(
      el("h1", { class: "hidden" }, "Overview"),
      vendors ? page(stats, vendors, failures, { again, failed }) : el("p", { class: "loading" }, "Reading …"),
    );
  draw();
  view.every(1000, async (signal) => {
    stats = await read("/stats", { signal });
    if (stats.accepted_per_s != null)
      history.add(Date.parse(stats.at), { accepted: stats.accepted_per_s, done: stats.done_per_s, failed: stats.failed_per_s });
    draw();
  });
  const again = view.every(2000, async (signal) => {
    vendors = await readVendors(signal);
    const broken = sum(vendors, "breaches_total");
    if (broken > breaches) say(`A limit was broken; breaches in all: ${count(broken)}.`, "bad");
    breaches = broken;
    draw();
  });
  const failed = view.every(10000, async (signal) => {
    failures = await read("/failures?since=1h", { signal });
    draw();
  });
}

function page(stats, vendors, failures, { again, failed }) {
  const isUnused = stats && !stats.waiting && !stats.open && !stats.accepted_per_s && !sum(vendors, "calls_total");
  const needs = vendors.map((vendor) => need(vendor, again)).filter(Boolean);
  const busiest = [...vendors].sort(
    (a, b) => !!b.blocked_on - !!a.blocked_on || b.waiting - a.waiting || a.name.localeCompare(b.name),
  );
  return [
    stats && tiles(stats, vendors),
    needs.length
      ? section("needs", "Needs somebody", el("ul", null, needs.slice(0, MOST)), more(needs.length, ["vendors"]))
      : null,
    isUnused ? first(vendors) : null,
    failures?.failures.length
      ? section(
          "failures",
          [link(["failures"], {}, "Failed in the last hour"), el("small", null, ` ${counted(failures.count, "job")}`)],
          failureTable(failures.failures, failed, MOST_FAILURES),
        )
      : null,
    stats?.window_s == null ? null : chart(),
    section(
      "vendors",
      [link(["vendors"], {}, "Vendors"), needs.length ? null : el("small", null, " all are being called")],
      vendorTable(busiest.slice(0, MOST), stats, again),
      more(vendors.length, ["vendors"]),
    ),
  ];
}

function more(all, parts) {
  return all > MOST ? el("p", null, link(parts, {}, `All ${count(all)}`)) : null;
}

const sum = (vendors, name) => vendors.reduce((sum, vendor) => sum + (vendor[name] ?? 0), 0);

function tiles(stats, vendors) {
  // A tenant's key does not see what is of all tenants.
  const isOfAll = stats.accepted_per_s !== undefined;
  const broken = sum(vendors, "breaches_total");
  const { p50, p95 } = stats.end_to_end_ms ?? {};
  const tile = (name, value, note, kind = "") =>
    el(
      "div",
      { class: `tile ${kind}` },
      el("dt", null, name),
      el("dd", null, el("strong", null, value), note ? el("small", null, note) : null),
    );
  return el(
    "dl",
    { class: "tiles" },
    isOfAll
      ? tile(
          "Breaches",
          count(broken),
          broken ? "limits were broken" : `of ${counted(sum(vendors, "calls_total"), "call")}`,
          broken ? "bad" : "good",
        )
      : null,
    isOfAll && tile("Jobs in", rate(stats.accepted_per_s), "a second"),
    isOfAll && tile("Done", rate(stats.done_per_s), "a second"),
    isOfAll && tile("Failed", rate(stats.failed_per_s), "a second", stats.failed_per_s > 0 ? "bad" : ""),
    tile(
      "Waiting",
      count(stats.waiting),
      stats.oldest_waiting_s > 1 ? `oldest ${duration(stats.oldest_waiting_s * 1000)}` : `${count(stats.open)} with vendors`,
    ),
    isOfAll && tile("End to end", p50 == null ? NONE : duration(p50), p95 == null ? "median" : `median; p95 ${duration(p95)}`),
  );
}

function chart() {
  const series = [
    { name: "accepted", label: "in", kind: "accepted" },
    { name: "done", label: "done", kind: "done" },
    { name: "failed", label: "failed", kind: "failed" },
  ];
  return section(
    "flow",
    ["Jobs"],
    lines({ history, series, label: "Jobs accepted, done and failed a second, over the last three minutes" }),
  );
}

/** What to do when nothing has happened yet. */
function first(vendors) {
  const name = vendors[0]?.name ?? "sync";
  const command = asCurl({ vendor: name, priority: "normal", tags: [] }, '{"customer_id": 12345}');
  return section(
    "first",
    ["No job yet"],
    el("p", null, "Send the first one, and watch it here. From a terminal:"),
    el("pre", { tabindex: 0 }, command),
    el(
      "p",
      { class: "buttons" },
      el("button", { type: "button", onclick: () => copy(command, "Command") }, "Copy the command"),
      vendors
        .slice(0, 5)
        .map((vendor) =>
          el(
            "button",
            { type: "button", key: vendor.name, onclick: () => sendTestJob(vendor.name) },
            `Test job for ${vendor.name}`,
          ),
        ),
    ),
  );
}
