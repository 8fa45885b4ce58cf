// Numbers, times and states as people read them.
// Never decides anything: what a state means for a job or a vendor is the API's to say.

import { now } from "./api.js";
import { el } from "./dom.js";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const hundredths = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

export const NONE = "–";

export function count(n) {
  return n == null ? NONE : whole.format(n);
}

/** `1 job`, `2 jobs`. */
export function counted(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** So many a second. */
export function rate(n) {
  if (n == null) return NONE;
  return (n >= 100 ? whole : n >= 10 ? tenths : hundredths).format(n);
}

/** A length of time: `12 ms`, `1.2 s`, `3 min 20 s`, `5 h 10 min`, `2 d 3 h`. */
export function duration(ms) {
  if (ms == null) return NONE;
  if (ms < 1000) return `${whole.format(ms)} ms`;
  if (ms < 59_950) return `${tenths.format(ms / 1000)} s`;
  const secs = Math.round(ms / 1000);
  const parts = [
    [Math.floor(secs / 86400), "d"],
    [Math.floor(secs / 3600) % 24, "h"],
    [Math.floor(secs / 60) % 60, "min"],
    [secs % 60, "s"],
  ];
  const first = parts.findIndex(([n]) => n > 0);
  const shown = parts.slice(first, first + 2).filter(([n]) => n > 0);
  return shown.map(([n, unit]) => `${n} ${unit}`).join(" ");
}

/** `3 min ago`, `in 20 s`; exact when pointed at. */
export function when(time) {
  if (!time) return NONE;
  const ms = Date.parse(time) - now();
  const text = Math.abs(ms) < 1500 ? "now" : ms < 0 ? `${coarse(-ms)} ago` : `in ${coarse(ms)}`;
  return el("time", { datetime: time, title: exact(time) }, text);
}

const coarse = (ms) => duration(Math.max(1000, Math.round(ms / 1000) * 1000));

/** For how long it has been so. */
export function since(time) {
  return time ? el("time", { datetime: time, title: exact(time) }, `for ${coarse(now() - Date.parse(time))}`) : null;
}

export function exact(time) {
  return time ? time.replace("T", " ").replace("Z", " UTC") : NONE;
}

/** The time of day in the browser's own zone, with milliseconds; exact when pointed at. */
export function clock(time) {
  if (!time) return NONE;
  const at = new Date(time);
  const text = at.toLocaleTimeString("en-GB", { hour12: false }) + "." + String(at.getMilliseconds()).padStart(3, "0");
  return el("time", { datetime: time, title: exact(time) }, text);
}

const STATES = {
  pending: "idle",
  processing: "busy",
  complete: "good",
  failed: "bad",
  expired: "bad",
  cancelled: "off",
};

/** A job's status: a word, with a colour beside it. */
export function status(name) {
  return el("span", { class: `state ${STATES[name] ?? "off"}` }, name);
}

/** Why a job waits, as a sentence. `blocked_on` comes from the API. */
export function whyWaiting(job) {
  const on = job.blocked_on ?? "";
  if (on.startsWith("limit:")) return `It waits for a permit: the limit ${on.slice(6)} allows no call before then.`;
  const sentences = {
    not_before: "Its own time has not come: it was submitted for later.",
    vendor_paused: "Its vendor is paused.",
    credentials: "The vendor refuses our credentials.",
    breaker: "Calls to the vendor fail, so only a probe goes out now and then.",
    slowed_by_vendor: "The vendor has asked for fewer calls.",
    retry_backoff: "The last attempt failed; it waits before the next.",
    next_poll: "The vendor is working on it; it waits for the next poll.",
    awaiting_callback: "The vendor has accepted it; it waits for the vendor's callback.",
    concurrency: "As many calls as may be in flight are in flight.",
    queue: "It waits for its turn.",
  };
  return sentences[on] ?? (on ? `It waits: ${on}.` : "");
}

/** States in which a vendor needs somebody, the worst first: what to call it, what it means, what to do, and the button's words. */
const TROUBLES = {
  credentials: {
    word: "credentials refused",
    ends: "next try",
    kind: "bad",
    means: "The vendor refuses our credentials. Its jobs are kept, and none of them counts an attempt.",
    mend: "Put the right secret in place: a file is read again by itself. Then try now.",
    button: "Try now",
  },
  breaker: {
    word: "failing",
    ends: "next try",
    kind: "bad",
    means: "Almost all calls fail, so only a probe goes out now and then. Its jobs are kept.",
    mend: "When the vendor is well again, the next probe finds out by itself. To know at once, try now.",
    button: "Try now",
  },
  vendor_paused: {
    word: "paused",
    ends: "goes on",
    kind: "warn",
    means: "Somebody has paused it. Jobs are accepted and kept; no call is made.",
    mend: "Resume it when you are ready.",
    button: "Resume",
  },
  slowed_by_vendor: {
    word: "slowed by vendor",
    ends: "goes on",
    kind: "warn",
    means: "The vendor has asked for fewer calls, so its whole pool is silent for as long as it said.",
    mend: "This ends by itself. If it comes often, lower the limit. If the vendor has said that you may call, call now.",
    button: "Call now",
  },
};

const ORDER = Object.keys(TROUBLES);

export function trouble(vendor) {
  return vendor.blocked_on
    ? (TROUBLES[vendor.blocked_on] ?? {
        word: vendor.blocked_on,
        ends: "goes on",
        kind: "warn",
        means: "",
        mend: "",
        button: "Resume",
      })
    : null;
}

/** When what holds a vendor or a job back ends, as far as that is known. */
export function ends({ blocked_on: on, until }) {
  if (until)
    return [`${on === "awaiting_callback" ? "the vendor's time ends" : (TROUBLES[on]?.ends ?? "goes on")} `, when(until)];
  if (on === "vendor_paused") return "until it is resumed";
  return on === "breaker" || on === "credentials" ? "until a probe succeeds" : null;
}

/** Orders vendors: those that need somebody first, the worst of them before the others, then by name. */
export function byNeed(a, b) {
  const place = (vendor) => (vendor.blocked_on ? ORDER.indexOf(vendor.blocked_on) : ORDER.length);
  return place(a) - place(b) || a.name.localeCompare(b.name);
}

/** A vendor's state: a word, with a colour beside it. */
export function vendorState(vendor) {
  const { word, kind } = trouble(vendor) ?? { word: "calling", kind: "good" };
  const idle = !vendor.blocked_on && !vendor.waiting && !vendor.in_flight && !vendor.open;
  return el("span", { class: `state ${idle ? "off" : kind}` }, idle ? "idle" : word);
}

const OUTCOMES = {
  done: ["good", "done"],
  accepted: ["busy", "accepted by the vendor"],
  pending: ["idle", "not ready yet"],
  slow_down: ["warn", "asked to slow down"],
  try_again: ["warn", "failed, worth another try"],
  refused: ["bad", "refused"],
  unauthorized: ["bad", "credentials refused"],
  timeout: ["warn", "timed out"],
  no_connection: ["warn", "no connection"],
};

/** What came of an attempt: a word, with a colour beside it. */
export function outcome(name) {
  const [kind, word] = OUTCOMES[name] ?? (name ? ["off", name] : ["busy", "in flight"]);
  return el("span", { class: `state ${kind}` }, word);
}

/** Why nothing happened after an attempt with this outcome. */
export function waitedAfter(attempt, isWebhook) {
  const reasons = {
    accepted: isWebhook ? "for the vendor's callback" : "for the next poll",
    pending: "for the next poll",
    slow_down: "because the vendor asked for fewer calls",
    try_again: "before trying again",
    timeout: "before trying again",
    no_connection: "before trying again",
    unauthorized: "for good credentials",
  };
  return reasons[attempt?.outcome] ?? "for its turn";
}
