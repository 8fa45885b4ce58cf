// One vendor: what holds it back, its limits against what was really sent, and what can be done about it.

import { now, read } from "./api.js";
import { changeLimits, changeMany, sendTestJob, vendorPath } from "./actions.js";
import { gauge, lines } from "./chart.js";
import { el, link, section, table } from "./dom.js";
import { failureTable } from "./failure-table.js";
import { jobTable } from "./job-table.js";
import { drained, historyOf, need, perSecond, readVendor, said, vendorButtons } from "./vendor-data.js";
import { count, duration, NONE, vendorState, when } from "./words.js";

/** How far the audit looks back: over a longer time a busy vendor has too many calls to look at while somebody waits. */
const AUDITED_MS = 5 * 60_000;
const AUDIT_EVERY_MS = 30_000;

export const title = (view) => `Vendor ${view.rest[0]}`;

export function open(view) {
  const [name] = view.rest;
  const found = {};
  let auditAt = 0;
  const draw = () =>
    view.show(el("h1", { class: "data" }, name), found.vendor ? page(found, again, failed) : el("p", { class: "loading" }, "Reading …"));
  draw();
  const again = view.every(1000, async (signal) => {
    found.vendor = await readVendor(name, signal);
    draw();
    // A tenant's key may not look at what others sent.
    if (found.vendor.calls_total == null || now() < auditAt) return;
    auditAt = now() + AUDIT_EVERY_MS;
    const from = new Date(now() - AUDITED_MS).toISOString();
    found.audit = await read(vendorPath(name, `/audit?since=${from}`), { signal });
    draw();
  });
  const part = (key, ms, path) =>
    view.every(ms, async (signal) => {
      found[key] = await read(path(), { signal });
      draw();
    });
  const encoded = encodeURIComponent(name);
  part("recent", 3000, () => `/jobs?vendor=${encoded}&limit=10`);
  const failed = part("failures", 15000, () => `/failures?since=1d&vendor=${encoded}`);
}

function page({ vendor, recent, failures, audit }, again, failed) {
  const filter = { vendor: vendor.name };
  const needed = need(vendor, again);
  return [
    el(
      "p",
      { class: "buttons" },
      needed ? null : vendorState(vendor),
      needed ? null : vendorButtons(vendor, again),
      el("button", { type: "button", onclick: async () => (await changeLimits(vendor.name)) && again() }, "Limits …"),
      el("button", { type: "button", onclick: () => sendTestJob(vendor.name) }, "Test job …"),
      el("button", { type: "button", onclick: () => changeMany("cancel", filter) }, "Cancel its jobs …"),
    ),
    needed ? el("ul", { class: "needs" }, needed) : null,
    facts(vendor),
    failures?.failures.length ? section("failures", "Failed in the last day", failureTable(failures.failures, failed, 5)) : null,
    vendor.calls_total == null ? null : section("sent", "Calls", calls(vendor)),
    section("limits", "Limits", limits(vendor, audit)),
    !needed && vendor.last_error ? section("last", "Last failed call", said(vendor.last_error)) : null,
    recent
      ? section(
          "recent",
          [link(["jobs"], filter, "Newest jobs")],
          recent.jobs.length
            ? jobTable(recent.jobs)
            : el("p", null, recent.next_cursor ? "None among the newest jobs of all vendors." : "None yet."),
        )
      : null,
  ];
}

function facts(vendor) {
  const fact = (name, ...value) => el("div", { key: name }, el("dt", null, name), el("dd", null, value));
  // A tenant's key does not see what is of all tenants.
  const isOfAll = vendor.calls_total != null;
  const jobs = (n, status) => (n ? link(["jobs"], { vendor: vendor.name, status }, count(n)) : count(n));
  return el(
    "dl",
    { class: "facts-list" },
    fact("Kind", vendor.kind),
    fact("Pool", el("span", { class: "data" }, vendor.pool)),
    fact("Waiting", jobs(vendor.waiting, "pending")),
    isOfAll && fact("Oldest", vendor.oldest_waiting_s == null ? NONE : duration(vendor.oldest_waiting_s * 1000)),
    isOfAll && fact("Drained", drained(vendor)),
    isOfAll && fact("In flight", `${count(vendor.in_flight)} of ${count(vendor.concurrency)}`),
    fact("Accepted, unanswered", jobs(vendor.open, "processing")),
    isOfAll && fact("Calls", count(vendor.calls_total)),
    isOfAll && fact("429s", count(vendor.throttled_total)),
    isOfAll && fact("Breaches", el("strong", { class: vendor.breaches_total ? "bad" : "good" }, count(vendor.breaches_total))),
    fact("Breaker", vendor.breaker.replace("_", " ")),
  );
}

function calls(vendor) {
  const series = [
    { name: "sent", label: "sent", kind: "sent" },
    { name: "throttled", label: "answered 429", kind: "failed" },
  ];
  return lines({
    history: historyOf(vendor.name),
    series,
    limit: perSecond(vendor),
    label: `Calls a second to ${vendor.name} over the last three minutes, against its limit`,
  });
}

/** Each limit, how much of it is used, and the worst window that was really sent. */
function limits(vendor, audit) {
  if (!vendor.limits.length) return el("p", null, "It has none.");
  const worst = new Map(audit?.limits.map((limit) => [limit.id, limit]));
  const row = (limit) => {
    const seen = worst.get(limit.id);
    return el(
      "tr",
      { key: limit.id },
      el("th", { scope: "row", class: "data" }, limit.id),
      el("td", null, limit.used == null ? `${count(limit.calls)} per ${limit.per}` : gauge(limit)),
      el("td", { class: "wide" }, limit.shape),
      el("td", { class: "wide" }, limit.key === "tenant" ? "each tenant" : "all together"),
      el("td", { class: "wide" }, when(limit.next_at)),
      el("td", { class: "num" }, seen ? `${count(seen.max_in_any_window)} of ${count(seen.limit)}` : NONE),
      el(
        "td",
        { class: "num" },
        seen
          ? [
              el(
                "strong",
                { class: seen.limit != null && seen.worst_ever > seen.limit ? "bad" : "good" },
                count(seen.worst_ever),
              ),
              seen.worst_ever_at ? el("small", null, " ", when(seen.worst_ever_at)) : null,
            ]
          : NONE,
      ),
    );
  };
  const head = ["Limit", "Used now", "Shape", "Counts", "Next call", "Worst window, 5 min", "Worst ever"];
  const classes = ["", "", "wide", "wide", "wide", "num", "num"];
  return table("Limits", head, classes, vendor.limits.map(row));
}
