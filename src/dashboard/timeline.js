// What happened to a job, in order: each wait with its reason and length, each call with what the vendor said.

import { span } from "./chart.js";
import { el } from "./dom.js";
import { clock, count, duration, outcome, status, waitedAfter, whyWaiting } from "./words.js";

/** Shorter waits are not worth a line. */
const LEAST_WAIT_MS = 20;
const ENDED = ["complete", "failed", "cancelled", "expired"];

export function timeline(job, { attempts, omitted }) {
  const isWebhook = !attempts.some(({ kind }) => kind === "poll") && job.blocked_on !== "next_poll";
  const began = Date.parse(job.created_at);
  const ended = job.finished_at ? Date.parse(job.finished_at) : null;
  const calls = attempts.map((attempt) => {
    const from = Date.parse(attempt.sent_at ?? attempt.permit_at);
    return { attempt, from, to: from + (attempt.latency_ms ?? 0) };
  });
  const end = Math.max(ended ?? 0, calls.at(-1)?.to ?? 0, Date.parse(job.updated_at), began + 1);
  const bar = (from, to, kind) => span((from - began) / (end - began), (to - began) / (end - began), kind);
  const rows = [moment("submitted", job.created_at, el("strong", null, "Submitted"))];
  let at = began;
  let before = null;
  const waited = (to, why) => {
    if (to - at >= LEAST_WAIT_MS)
      rows.push(
        el(
          "li",
          { class: "wait", key: `wait ${rows.length}` },
          el("span", { class: "at" }),
          el("div", null, `Waited ${duration(to - at)} ${why}`, bar(at, to, "waited")),
        ),
      );
    at = Math.max(at, to);
  };
  calls.forEach((call, i) => {
    if (omitted && i > 0 && call.attempt.n > before.n + 1) {
      rows.push(
        el(
          "li",
          { class: "wait", key: "omitted" },
          el("span", { class: "at" }),
          el("div", null, `${count(omitted)} attempts in between are not kept.`),
        ),
      );
      at = Math.max(at, call.from);
    }
    waited(call.from, before ? waitedAfter(before, isWebhook) : "for its turn and a permit");
    rows.push(attemptRow(call, bar(call.from, call.to, "called")));
    at = Math.max(at, call.to);
    before = call.attempt;
  });
  if (ended != null) {
    waited(ended, before ? waitedAfter(before, isWebhook) : "and was never called");
    if (isWebhook && before?.outcome === "accepted" && job.status === "complete")
      rows.push(moment("called back", job.finished_at, el("strong", null, "The vendor called back")));
    rows.push(moment("ended", job.finished_at, status(job.status)));
  } else {
    rows.push(now(job));
  }
  return el("ol", { class: "timeline" }, rows);
}

function moment(key, time, ...what) {
  return el("li", { key }, el("span", { class: "at" }, clock(time)), el("div", null, what));
}

function attemptRow({ attempt }, bar) {
  const { n, kind, sent_at, permit_at, status: answered, latency_ms, outcome: came, detail, response } = attempt;
  return el(
    "li",
    { key: `attempt ${n}` },
    el("span", { class: "at" }, clock(sent_at ?? permit_at)),
    el(
      "div",
      null,
      el("strong", null, `${kind === "poll" ? "Poll" : "Call"} ${count(n)}`),
      " ",
      outcome(came),
      " ",
      answered ? el("span", null, "status ", el("b", null, answered)) : null,
      came ? el("span", null, ` after ${duration(latency_ms)}`) : null,
      bar,
      detail ? el("p", { class: "data" }, detail) : null,
      response
        ? el(
            "details",
            { open: came !== "done" },
            el("summary", null, "The vendor's words"),
            el("pre", { class: "data", tabindex: 0 }, response),
          )
        : null,
    ),
  );
}

function now(job) {
  const what = ENDED.includes(job.status) ? status(job.status) : [status(job.status), " ", whyWaiting(job)];
  return el("li", { key: "now", class: "now" }, el("span", { class: "at" }, "now"), el("div", null, what));
}
