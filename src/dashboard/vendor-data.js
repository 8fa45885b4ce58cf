// Vendors as the pages show them: read, with the calls a second that follow from two readings, and a row for each in a table.
// Never reads by itself: a page says when.

import { now, read } from "./api.js";
import { gauge, History, spark } from "./chart.js";
import { el, link, say, table } from "./dom.js";
import { pauseVendor, resumeVendor, vendorPath } from "./actions.js";
import { byNeed, count, duration, ends, NONE, rate, since, trouble, vendorState, when } from "./words.js";

/** Rates are means over so long: other processes count their calls once a second. */
const MEAN_MS = 5000;

/** If more vendors than this change their state at once, only their number is said. */
const MOST_NEWS = 3;

/** By name: what was sent a second, and the latest counts. Kept while the tab is open, so that charts go on over pages. */
const seen = new Map();

/** All vendors, those that need somebody first. */
export async function readVendors(signal) {
  const { vendors } = await read("/vendors", { signal });
  vendors.forEach(note);
  announce(vendors);
  return vendors.sort(byNeed);
}

export async function readVendor(name, signal) {
  const vendor = await read(vendorPath(name), { signal });
  note(vendor);
  return vendor;
}

function note({ name, calls_total: calls, throttled_total: throttled }) {
  // A tenant's key does not see what was sent.
  if (calls == null) return;
  const { history, counts } = seen.get(name) ?? { history: new History(), counts: [] };
  seen.set(name, { history, counts });
  const at = now();
  const first = counts[0];
  if (first && at - first.at >= 900) {
    const a_second = (from, to) => (Math.max(0, to - from) * 1000) / (at - first.at);
    history.add(at, { sent: a_second(first.calls, calls), throttled: a_second(first.throttled, throttled) });
  }
  counts.push({ at, calls, throttled });
  while (counts.length > 1 && counts[1].at <= at - MEAN_MS) counts.shift();
}

export function historyOf(name) {
  return seen.get(name)?.history ?? new History();
}

let troubled = null;

/** Says which vendors have just stopped, and which are well again. */
function announce(vendors) {
  const is = new Map(vendors.filter((vendor) => vendor.blocked_on).map((vendor) => [vendor.name, trouble(vendor).word]));
  if (troubled) {
    const news = [...is].filter(([name, word]) => troubled.get(name) !== word).map(([name, word]) => `${name}: ${word}.`);
    news.push(...[...troubled.keys()].filter((name) => !is.has(name)).map((name) => `${name} is called again.`));
    if (news.length > MOST_NEWS) say(`${count(news.length)} vendors have changed their state.`);
    else news.forEach((text) => say(text));
  }
  troubled = is;
}

/** The calls a second that the limit with the shortest window allows, or null: what a minute allows may all come in one second. */
export function perSecond({ limits }) {
  const units = { ms: 0.001, s: 1 };
  let shortest = { secs: 11, rate: null };
  for (const { calls, per, key } of limits) {
    const [, n, unit] = /^(\d+)(ms|s)$/.exec(per) ?? [];
    const secs = Number(n) * units[unit];
    if (key === "vendor" && secs < shortest.secs) shortest = { secs, rate: calls / secs };
  }
  return shortest.rate;
}

/** The buttons that stop a vendor, or let it go on. */
export function vendorButtons(vendor, done) {
  const found = trouble(vendor);
  const then = async (doing) => (await doing) && done();
  return [
    found
      ? el(
          "button",
          {
            type: "button",
            class: "main",
            "aria-label": `${found.button}: ${vendor.name}`,
            onclick: () => then(resumeVendor(vendor.name)),
          },
          found.button,
        )
      : null,
    vendor.paused
      ? null
      : el(
          "button",
          { type: "button", "aria-label": `Pause ${vendor.name}`, onclick: () => then(pauseVendor(vendor.name)) },
          "Pause",
        ),
  ];
}

/** Why a vendor is not called, since when, until when, and the button that mends it; null if it is. */
export function need(vendor, done) {
  const found = trouble(vendor);
  if (!found) return null;
  const { last_error: error } = vendor;
  return el(
    "li",
    { class: `need ${found.kind}`, key: vendor.name },
    el("h3", null, link(["vendors", vendor.name], {}, vendor.name), " ", vendorState(vendor)),
    el("p", null, found.means, " ", found.mend),
    el(
      "p",
      { class: "facts" },
      since(vendor.since),
      el("span", null, ends(vendor)),
      vendor.paused_by ? el("span", null, "by ", el("b", { class: "data" }, vendor.paused_by)) : null,
      el("span", null, count(vendor.waiting), " waiting"),
    ),
    error && vendor.blocked_on !== "vendor_paused" ? said(error) : null,
    el("p", { class: "buttons" }, vendorButtons(vendor, done)),
  );
}

/** An error as the API gives it: its message, and the vendor's own words. */
export function said(error) {
  return el(
    "div",
    { class: "error" },
    el("p", null, el("span", { class: "data" }, error.message), error.at ? [" ", when(error.at)] : null),
    error.vendor
      ? el("p", { class: "quote" }, `The vendor said ${error.vendor.status}: `, el("q", { class: "data" }, error.vendor.body))
      : null,
  );
}

export function vendorTable(vendors, stats, done) {
  const times = new Map(stats?.vendors.map((vendor) => [vendor.name, vendor.end_to_end_ms]));
  const head = [
    "Vendor",
    "State",
    "Limit used",
    "Sent a second",
    "Waiting",
    "In flight",
    "Open",
    "429s",
    "p95",
    "Drained",
    "Actions",
  ];
  const classes = ["", "", "wide", "wide line-up", "num", "num wide", "num wide", "num wide", "num wide", "wide line-up", "wide"];
  const row = (vendor) => {
    const sent = historyOf(vendor.name).points.map(({ values }) => values.sent);
    const cells = [
      link(["vendors", vendor.name], {}, vendor.name),
      [vendorState(vendor), vendor.blocked_on ? el("small", null, ends(vendor)) : null],
      vendor.limits.slice(0, 2).map((limit) => (limit.used == null ? el("span", { class: "of" }, limit.id) : gauge(limit))),
      [spark(sent.slice(-60), perSecond(vendor)), " ", rate(sent.at(-1))],
      [
        count(vendor.waiting),
        vendor.oldest_waiting_s > 1 ? el("small", null, ` oldest ${duration(vendor.oldest_waiting_s * 1000)}`) : null,
      ],
      count(vendor.in_flight),
      count(vendor.open),
      count(vendor.throttled_total),
      duration(times.get(vendor.name)?.p95),
      vendor.waiting ? when(vendor.drain_eta) : NONE,
      el("span", { class: "buttons" }, vendorButtons(vendor, done).find(Boolean)),
    ];
    return el(
      "tr",
      { key: vendor.name, class: vendor.blocked_on ? "blocked" : null },
      cells.map((cell, i) => (i ? el("td", { class: classes[i] }, cell) : el("th", { scope: "row" }, cell))),
    );
  };
  return table("Vendors", head, classes, vendors.map(row));
}
