// The list of jobs: found by what they have in common, changed together with the count first.
// Never more rows than somebody asked for: a page at a time, however many jobs there are.

import { read } from "./api.js";
import { changeMany } from "./actions.js";
import { field, select } from "./ask.js";
import { address, el, show } from "./dom.js";
import { jobTable } from "./job-table.js";
import { counted } from "./words.js";

const PAGE = 50;
/** A page of the API may be short, because it looks at a bounded number of rows: so many are read until one page here is full. */
const MOST_READS = 20;
const POLL_MS = 5000;

const STATUSES = ["pending", "processing", "complete", "failed", "cancelled", "expired"];
const CODES = [
  "vendor_refused",
  "attempts_exhausted",
  "timeout",
  "no_answer",
  "bad_response",
  "response_too_large",
  "deadline",
  "crashed",
  "unknown_outcome",
];
const NAMES = ["status", "vendor", "tenant", "tag", "code", "created_after", "created_before"];

export const title = () => "Jobs";

export function open(view) {
  const filter = Object.fromEntries(NAMES.filter((name) => view.query[name]).map((name) => [name, view.query[name]]));
  const jobs = new Map();
  let cursor = null;
  let isWhole = false;
  let isPaged = false;
  const list = el("div", { own: true, key: "list" });
  const live = el("input", { type: "checkbox", name: "live", id: "live", checked: true });
  const draw = (text) => {
    const shown = [...jobs.values()].sort((a, b) => (a.request_id < b.request_id ? 1 : -1));
    show(
      list,
      shown.length ? jobTable(shown) : el("p", { class: "loading" }, text ?? (isWhole ? "No job matches." : "None found yet.")),
      el(
        "p",
        { class: "buttons" },
        isWhole
          ? el("span", null, `${counted(shown.length, "job")}; that is all.`)
          : cursor && el("button", { type: "button", onclick: further }, shown.length ? "Show more" : "Search further back"),
        text && shown.length ? el("span", { role: "status" }, text) : null,
      ),
    );
  };
  const page = async (from, signal) => {
    const query = new URLSearchParams({ ...filter, limit: PAGE, ...(from ? { cursor: from } : {}) });
    return read(`/jobs?${query}`, { signal });
  };
  /** Reads on until there are as many more as a page has. What is shown stays from then on. */
  const further = async () => {
    isPaged = true;
    const wanted = jobs.size + PAGE;
    for (let n = 0; n < MOST_READS && jobs.size < wanted && !isWhole; n++) {
      draw("Searching …");
      const found = await page(cursor, view.signal);
      found.jobs.forEach((job) => jobs.set(job.request_id, job));
      cursor = found.next_cursor;
      isWhole = cursor == null;
    }
    draw();
  };
  /** Reads the newest again. Those that are shown already stay where they are. */
  const newest = async (signal) => {
    const found = await page(null, signal);
    if (!isPaged) jobs.clear();
    found.jobs.forEach((job) => jobs.set(job.request_id, job));
    if (!isPaged) [cursor, isWhole] = [found.next_cursor, found.next_cursor == null];
    if (isPaged || jobs.size || isWhole) return draw();
    await further();
  };
  view.show(
    el("h1", null, "Jobs"),
    form(filter),
    el(
      "p",
      { class: "buttons" },
      el("label", { for: "live", class: "check" }, live, " Live"),
      el("button", { type: "button", onclick: () => change("replay") }, "Replay all that match …"),
      el("button", { type: "button", onclick: () => change("cancel") }, "Cancel all that match …"),
    ),
    list,
  );
  const change = async (action) => (await changeMany(action, filter)) && ((isDue = true), again());
  // Events say when something has changed; jobs that are only submitted announce nothing, so the list is also read now and then.
  let isDue = true;
  let last = 0;
  const again = view.every(2000, async (signal) => {
    if (last && (!live.checked || (!isDue && Date.now() - last < POLL_MS))) return;
    [isDue, last] = [false, Date.now()];
    await newest(signal);
  });
  // Jobs leave these two with an event of another status.
  const isLive = ["pending", "processing"].includes(filter.status);
  const names = ["vendor", "tag", ...(isLive ? [] : ["status"])];
  const of = new URLSearchParams(Object.entries(filter).filter(([name]) => names.includes(name)));
  view.follow(of.size ? `/events?${of}` : "/events", () => (isDue = true));
  draw("Reading …");
}

function form(filter) {
  const text = (name, more = {}) =>
    el("input", { type: "text", name, value: filter[name], autocomplete: "off", spellcheck: "false", ...more });
  const any = (names) => [["", "any"], ...names.map((name) => [name, name.replaceAll("_", " ")])];
  const submit = (event) => {
    event.preventDefault();
    const data = new FormData(event.currentTarget);
    const times = ["created_after", "created_before"].map((name) => [
      name,
      data.get(name) ? new Date(data.get(name)).toISOString() : "",
    ]);
    const given = Object.fromEntries([...data].map(([name, value]) => [name, value.trim()]));
    const next = address(["jobs"], { ...given, ...Object.fromEntries(times) });
    // The same search once more is a new search.
    if (location.hash === next) dispatchEvent(new Event("hashchange"));
    location.hash = next;
  };
  return el(
    "form",
    { class: "filters", onsubmit: submit, own: true, key: "form", "aria-label": "Which jobs" },
    field("Status", select("status", any(STATUSES), filter.status ?? "")),
    field("Vendor", text("vendor")),
    field("Tag", text("tag")),
    field("Tenant", text("tenant")),
    field("Error code", select("code", any(CODES), filter.code ?? "")),
    field("Submitted after", text("created_after", { type: "datetime-local", value: local(filter.created_after) })),
    field("Submitted before", text("created_before", { type: "datetime-local", value: local(filter.created_before) })),
    el("p", { class: "buttons" }, el("button", { class: "main" }, "Search"), el("a", { href: "#/jobs" }, "All jobs")),
  );
}

/** A time as the browser's own field wants it: in its zone, without one. */
function local(time) {
  const at = new Date(time ?? "");
  return Number.isNaN(at.getTime()) ? null : new Date(at - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}
