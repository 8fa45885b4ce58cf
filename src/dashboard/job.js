// One job: what happened to it and when, why it waits, its payload and its result, and what can be done with it.
// Never turns payload or result into values: they are shown as they were stored.

import { send } from "./api.js";
import { asCurl, cancelJob, eraseJob, jobPath, replayJob, resendWebhook, resumeVendor } from "./actions.js";
import { copy, el, link, say, section } from "./dom.js";
import { split, tree } from "./json.js";
import { timeline } from "./timeline.js";
import { said } from "./vendor-data.js";
import { count, duration, ends, exact, since, status, trouble, when, whyWaiting } from "./words.js";

/** Texts that are never read as values. */
const RAW = ["result", "payload"];
const ENDED = ["complete", "failed", "cancelled", "expired"];

export const title = (view) => `Job ${view.rest[0]}`;

export function open(view) {
  const [id] = view.rest;
  const found = { id, attempts: null, payload: null, result: null, job: null, shown: {} };
  const draw = () =>
    view.show(
      el("h1", null, "Job ", el("code", null, id)),
      found.job ? page(found, act) : el("p", { class: "loading" }, "Reading …"),
    );
  draw();
  let isDue = true;
  const again = view.every(1500, async (signal) => {
    // A job that has ended changes only by what somebody does.
    if (!isDue && found.job && ENDED.includes(found.job.status) && !isSending(found.job)) return;
    isDue = false;
    try {
      await readAll(found, signal);
    } catch (problem) {
      if (problem.status !== 404) throw problem;
      view.show(
        el("h1", null, "No such job"),
        el(
          "p",
          null,
          "No job has the id ",
          el("code", null, id),
          ". It may have been erased, deleted after the time that ended jobs are kept, or belong to another tenant.",
        ),
        el("p", null, link(["jobs"], {}, "All jobs")),
      );
      return view.end();
    }
    draw();
  });
  const hurry = () => {
    isDue = true;
    again();
  };
  const act = async (doing) => (await doing) && hurry();
  view.follow(jobPath(id, "/events"), hurry, true);
}

const isSending = (job) => job.result_webhook?.next_at != null;

async function readAll(found, signal) {
  // The payload never changes, so it is read once.
  const [job, attempts] = await Promise.all([
    send("GET", jobPath(found.id, found.payload == null ? "?include=payload" : ""), { signal }),
    send("GET", jobPath(found.id, "/attempts"), { signal }),
  ]);
  const { raw, values } = split(job.text, RAW);
  const before = found.job?.status;
  found.job = values;
  found.payload = raw.payload ?? found.payload;
  found.result = raw.result ?? null;
  found.attempts = JSON.parse(attempts.text);
  if (before && before !== values.status) say(`The job is ${values.status}.`);
}

function page(found, act) {
  const { job, payload, attempts } = found;
  return [
    el(
      "p",
      { class: "headline" },
      status(job.status),
      " of ",
      link(["vendors", job.vendor], {}, el("span", { class: "data" }, job.vendor)),
      job.error ? [" ", el("code", null, job.error.code)] : null,
    ),
    buttons(job, payload, act),
    job.error ? said(job.error) : null,
    waiting(job, act),
    facts(job),
    section("happened", "What happened", timeline(job, attempts)),
    job.result_webhook ? webhook(job, act) : null,
    el("div", { class: "data-pair" }, own(found, "payload", "Payload"), own(found, "result", "Result")),
  ];
}

/** A text as a tree. It is made once, and stays as it is, open where it was opened, until the text is another. */
function own(found, name, label) {
  const text = found[name];
  if (text == null) {
    delete found.shown[name];
    return null;
  }
  const isNew = found.shown[name]?.text !== text;
  if (isNew) found.shown[name] = { text, key: {} };
  return el("div", { key: found.shown[name].key, own: true }, isNew ? tree(text, label) : null);
}

function buttons(job, payload, act) {
  const id = job.request_id;
  const button = (text, doing, kind) => el("button", { type: "button", class: kind, key: text, onclick: doing }, text);
  const isEnded = ENDED.includes(job.status);
  const erase = async () => (await eraseJob(id)) && (location.hash = "#/jobs");
  return el(
    "p",
    { class: "buttons" },
    isEnded && job.status !== "complete" ? button("Replay", () => act(replayJob(id)), "main") : null,
    isEnded ? null : button("Cancel …", () => act(cancelJob(id))),
    payload == null ? null : button("Copy as curl", () => copy(asCurl(job, payload), "Command")),
    button("Copy the id", () => copy(id, "Id")),
    isEnded ? button("Erase …", erase, "danger") : null,
  );
}

/** Why nothing moves, since when, until when, and the button that mends it. */
function waiting(job, act) {
  if (!job.blocked_on) return null;
  const found = trouble(job);
  const isOfVendor = ["vendor_paused", "credentials", "breaker", "slowed_by_vendor"].includes(job.blocked_on);
  return el(
    "section",
    { class: `need ${isOfVendor ? found.kind : "calm"}`, "aria-label": "Why it waits" },
    el("p", null, el("strong", null, whyWaiting(job)), isOfVendor ? ` ${found.mend}` : null),
    el(
      "p",
      { class: "facts" },
      since(job.since),
      el("span", null, ends(job)),
      job.position ? el("span", null, `number ${count(job.position)} in line`) : null,
      job.position_at_least ? el("span", null, `number ${count(job.position_at_least)} or later in line`) : null,
      job.eta ? el("span", null, "expected to be called ", when(job.eta)) : null,
    ),
    job.last_error ? said(job.last_error) : null,
    isOfVendor
      ? el(
          "p",
          { class: "buttons" },
          el(
            "button",
            { type: "button", class: "main", onclick: () => act(resumeVendor(job.vendor)) },
            `${found.button}: ${job.vendor}`,
          ),
        )
      : null,
  );
}

function facts(job) {
  const fact = (name, value) => (value == null ? null : el("div", { key: name }, el("dt", null, name), el("dd", null, value)));
  const data = (text) => (text == null ? null : el("span", { class: "data" }, text));
  const took = job.finished_at ? duration(Date.parse(job.finished_at) - Date.parse(job.created_at)) : null;
  return el(
    "dl",
    { class: "facts-list" },
    fact("Submitted", el("time", { datetime: job.created_at }, exact(job.created_at))),
    fact("Took", took),
    fact("Tenant", data(job.tenant)),
    fact("Priority", job.priority),
    fact("Tags", job.tags.length ? job.tags.map((tag) => el("span", { class: "tag data" }, tag)) : null),
    fact("Calls", job.attempts ? `${count(job.attempts)}, of which ${count(job.tries)} count` : "none yet"),
    fact("Vendor's ticket", data(job.ticket)),
    fact("Deadline", job.deadline ? when(job.deadline) : null),
  );
}

function webhook(job, act) {
  const { url, status: state, attempts, last_status, last_error, next_at } = job.result_webhook;
  return section(
    "webhook",
    ["Result webhook"],
    el(
      "p",
      null,
      el("span", { class: `state ${{ delivered: "good", failed: "bad" }[state] ?? "idle"}` }, state),
      " to ",
      el("span", { class: "data" }, url),
    ),
    el(
      "p",
      { class: "facts" },
      el("span", null, `${count(attempts)} sent`),
      last_status ? el("span", null, `last answered ${last_status}`) : null,
      next_at ? el("span", null, "next ", when(next_at)) : null,
    ),
    last_error ? el("p", { class: "data" }, last_error) : null,
    ENDED.includes(job.status)
      ? el(
          "p",
          { class: "buttons" },
          el("button", { type: "button", onclick: () => act(resendWebhook(job.request_id)) }, "Send it again"),
        )
      : null,
  );
}
