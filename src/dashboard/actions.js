// What people can do from the page, each asked for in a dialog or by one button: for vendors, for a job, for many jobs.
// Never guesses what happened: every action says what the API answered.

import { key, post, send } from "./api.js";
import { ask, field, select } from "./ask.js";
import { address, el, say } from "./dom.js";
import { isOneValue } from "./json.js";
import { count, counted } from "./words.js";

const vendorPath = (name, rest = "") => `/vendors/${encodeURIComponent(name)}${rest}`;
const jobPath = (id, rest = "") => `/jobs/${encodeURIComponent(id)}${rest}`;

/** Runs what a button does, and says what came of it. Resolves with whether it was done. */
async function run(work, done) {
  try {
    await work();
    say(done);
    return true;
  } catch (problem) {
    say(problem.text ?? String(problem), "bad");
    return false;
  }
}

export function pauseVendor(name) {
  return ask({
    title: `Pause ${name}`,
    content: [
      el("p", null, "No call is made to it while it is paused. Jobs are accepted and kept."),
      field(
        "For how long",
        select(
          "for",
          [
            ["", "until it is resumed"],
            ["10m", "10 minutes"],
            ["1h", "1 hour"],
            ["8h", "8 hours"],
            ["1d", "1 day"],
          ],
          "",
        ),
      ),
    ],
    button: "Pause",
    work: async (data) => {
      await post(vendorPath(name, "/pause"), data.get("for") ? { for: data.get("for") } : {});
      say(`${name} is paused.`);
    },
  });
}

export function resumeVendor(name) {
  return run(() => post(vendorPath(name, "/resume")), `${name} is resumed: calls go out again.`);
}

export async function changeLimits(name) {
  let now;
  try {
    now = await send("GET", vendorPath(name, "/limits"));
  } catch (problem) {
    say(problem.text, "bad");
    return false;
  }
  const { limits, source, by, since } = JSON.parse(now.text);
  const lines = limits.map((limit) => "  " + written(limit)).join(",\n");
  const area = el("textarea", { name: "limits", rows: 8, required: true, spellcheck: "false", class: "code" }, `[\n${lines}\n]`);
  const origin =
    source === "live"
      ? `Live limits, set by ${by ?? "somebody"} at ${since}. They override those of the config file.`
      : "They come from the config file.";
  const restore = el(
    "button",
    { type: "button", onclick: () => restoreLimits(name, restore.closest("dialog")) },
    "Use those of the file again",
  );
  return ask({
    title: `Limits of ${name}`,
    content: [
      el("p", null, origin, " They are in force in every process at once, for the whole pool."),
      field(
        "Limits, as JSON",
        area,
        'Such as ["50/s", {"calls": 20000, "per": "day", "shape": "calendar", "tz": "America/New_York"}]',
      ),
      source === "live" ? el("p", null, restore) : null,
    ],
    button: "Set these limits",
    work: async (data) => {
      const text = data.get("limits");
      if (!isOneValue(text)) throw new Error("The limits must be one JSON array.");
      await send("PUT", vendorPath(name, "/limits"), {
        body: `{"limits": ${text}}`,
        headers: { "if-match": now.headers.get("etag") ?? "*" },
      });
      say(`The limits of ${name} are in force.`);
    },
  });
}

/** A limit on a line, without what it has by itself: an id that only repeats its numbers would be wrong after a change. */
function written({ id, key, ...limit }) {
  const given = { ...(/^\d+\/\w+$/.test(id) ? {} : { id }), ...limit, ...(key === "vendor" ? {} : { key }) };
  const members = Object.entries(given).map(([name, value]) => `"${name}": ${JSON.stringify(value)}`);
  return `{${members.join(", ")}}`;
}

async function restoreLimits(name, box) {
  if (await run(() => send("DELETE", vendorPath(name, "/limits")), `The limits of the file are in force for ${name} again.`))
    box.close();
}

export async function sendTestJob(name) {
  let made = null;
  await ask({
    title: `A test job for ${name}`,
    content: [
      el(
        "p",
        null,
        "It is a job like any other: the vendor is called, and may charge for it. It gets the tag ",
        el("code", null, "test"),
        ".",
      ),
      field(
        "Payload, as JSON",
        el("textarea", { name: "payload", rows: 8, required: true, spellcheck: "false", class: "code" }, '{\n  "test": true\n}'),
      ),
    ],
    button: "Send it",
    work: async (data) => {
      const text = data.get("payload");
      if (!isOneValue(text)) throw new Error("The payload must be one JSON value.");
      const answer = await send("POST", "/jobs", {
        body: `{"vendor": ${JSON.stringify(name)}, "tags": ["test"], "payload": ${text}}`,
      });
      made = JSON.parse(answer.text).request_id;
    },
  });
  if (made) location.hash = address(["jobs", made]);
}

export function cancelJob(id) {
  return ask({
    title: "Cancel this job",
    content: el("p", null, "It ends now, without a result. A call that is already under way may still reach the vendor."),
    button: "Cancel the job",
    kind: "danger",
    work: async () => {
      await post(jobPath(id, "/cancel"));
      say("The job is cancelled.");
    },
  });
}

export function replayJob(id) {
  return run(() => post(jobPath(id, "/replay")), "The job runs again.");
}

export function eraseJob(id) {
  return ask({
    title: "Erase this job",
    content: el("p", null, "The job, its payload, its result and its attempts are deleted. This cannot be undone."),
    button: "Erase it",
    kind: "danger",
    work: async () => {
      await send("DELETE", jobPath(id));
      say("The job is erased.");
    },
  });
}

export function resendWebhook(id) {
  return run(() => post(jobPath(id, "/result-webhook")), "The result webhook is sent again.");
}

const BULK = {
  cancel: {
    title: "Cancel all that match",
    done: "cancelled",
    button: (n) => `Cancel ${counted(n, "job")}`,
    kind: "danger",
    none: "Nothing that matches can be cancelled: jobs that have ended stay as they are.",
  },
  replay: {
    title: "Replay all that match",
    done: "replayed",
    button: (n) => `Replay ${counted(n, "job")}`,
    kind: "",
    none: "Nothing that matches can be replayed: only failed, expired and cancelled jobs can.",
  },
};

/** Counts first what a change of many jobs would change, shows that, and does it when asked to. */
export async function changeMany(action, filter) {
  const { title, done, button, kind, none } = BULK[action];
  const words = Object.entries(filter).map(([name, value]) =>
    el("li", null, el("b", null, name.replace("_", " ")), " ", el("span", { class: "data" }, value)),
  );
  const what = words.length ? el("ul", { class: "filter" }, words) : el("p", null, el("strong", null, "Every job there is."));
  let total;
  await ask({
    title,
    content: [el("p", null, "First they are counted; nothing is changed by that."), what],
    button: "Count them",
    work: async (_, progress, signal) => {
      total = await walk(action, filter, { dry_run: true }, signal, (n) => progress(`${count(n)} so far …`));
    },
  });
  if (total == null) return false;
  if (total === 0) {
    say(none);
    return false;
  }
  return ask({
    title,
    content: [
      el("p", { class: "total" }, el("strong", null, counted(total, "job")), ` would be ${done}.`),
      what,
      el("p", null, "Closing this window stops it; what is done by then stays done."),
    ],
    button: button(total),
    kind,
    work: async (_, progress, signal) => {
      const n = await walk(action, filter, {}, signal, (n) => progress(`${count(n)} of ${count(total)} ${done} …`));
      say(`${counted(n, "job")} ${done}.`);
    },
  });
}

/** Goes through all that match, page by page; gives how many were changed, or would be. */
async function walk(action, filter, more, signal, progress) {
  let sum = 0;
  let cursor = null;
  do {
    const body = { filter, ...more, ...(cursor ? { cursor } : {}), ...(Object.keys(filter).length ? {} : { all: true }) };
    const page = await post(`/jobs/${action}`, body, { signal });
    sum += more.dry_run ? page.matched : page.done;
    cursor = page.next_cursor;
    progress(sum);
  } while (cursor);
  return sum;
}

/** A command that submits the same job again. The key is left to the environment of whoever runs it. */
export function asCurl(job, payload) {
  const given = {
    vendor: JSON.stringify(job.vendor),
    priority: job.priority === "normal" ? null : JSON.stringify(job.priority),
    tags: job.tags.length ? JSON.stringify(job.tags) : null,
    callback_url: job.result_webhook ? JSON.stringify(job.result_webhook.url) : null,
    payload,
  };
  const members = Object.entries(given).filter(([, text]) => text != null);
  const body = `{${members.map(([name, text]) => `"${name}": ${text}`).join(", ")}}`;
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const url = new URL("jobs", document.baseURI).href;
  const bearer = key.get() ? ` \\\n  --header "Authorization: Bearer $FETCHGATE_KEY"` : "";
  return `curl --location ${quoted(url)} \\\n  --header 'Content-Type: application/json'${bearer} \\\n  --data-raw ${quoted(body)}`;
}

export { jobPath, vendorPath };
