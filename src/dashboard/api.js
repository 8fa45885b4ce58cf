// Talking to the API: requests with the key of this tab, and events as they come.
// Never keeps the key anywhere but in this tab's session, and never puts it into an address.

const KEY = "fetchgate.key";

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** An answer that is not 2xx, or none (status 0). `detail` is a sentence for people. */
export class Problem extends Error {
  constructor(status, code, detail, errors = [], retryAfter = null) {
    super(detail);
    Object.assign(this, { status, code, detail, errors, retryAfter });
  }

  /** The sentence, and what is wrong with each field. */
  get text() {
    return [this.detail, ...this.errors.map(({ pointer, detail }) => `${pointer || "The whole"}: ${detail}`)].join("\n");
  }
}

/** Called with the problem whenever a request answers that the key is not good. */
export const refused = { listener: () => {} };

/** The difference between the service's clock and this browser's, in milliseconds; headers have whole seconds only. */
let skew = 0;

export const now = () => Date.now() + skew;

/** Sends a request; gives `{text, headers}` of a 2xx, else throws a Problem. A string is sent as JSON as it is. */
export async function send(method, path, { body, headers = {}, signal } = {}) {
  const response = await open(method, path, { body, headers, signal });
  const text = await response.text().catch((error) => {
    throw unreachable(error);
  });
  if (!response.ok) throw problem(response, text);
  return { text, headers: response.headers };
}

/** An answer of the API as values. Not for payloads and results: their numbers keep their digits only as text. */
export async function read(path, options) {
  return JSON.parse((await send("GET", path, options)).text);
}

/** Sends values as JSON; gives the answer's values. */
export async function post(path, value, options = {}) {
  const { text } = await send("POST", path, { ...options, body: value === undefined ? undefined : JSON.stringify(value) });
  return text ? JSON.parse(text) : null;
}

async function open(method, path, { body, headers, signal }) {
  const all = new Headers(headers);
  if (body !== undefined) all.set("content-type", "application/json");
  if (key.get()) all.set("authorization", `Bearer ${key.get()}`);
  const asked = Date.now();
  let response;
  try {
    response = await fetch(new URL(path.replace(/^\//, ""), document.baseURI), {
      method,
      body,
      headers: all,
      signal,
      cache: "no-store",
    });
  } catch (error) {
    throw unreachable(error);
  }
  measure(response.headers.get("date"), asked);
  return response;
}

function unreachable(error) {
  if (error.name === "AbortError") return error;
  return new Problem(0, "unreachable", "Fetchgate cannot be reached from this browser. It is tried again.");
}

function measure(date, asked) {
  const at = Date.parse(date);
  // The header has whole seconds, and the way there and back takes time too: smaller differences say nothing.
  if (Number.isNaN(at)) return;
  const found = at + 500 - (asked + Date.now()) / 2;
  skew = Math.abs(found) > 2000 ? found : 0;
}

function problem(response, text) {
  let said = {};
  try {
    said = JSON.parse(text);
  } catch {
    // A proxy's page, say: its status is all that we can use.
  }
  const detail = said.detail ?? `The answer had the status ${response.status}.`;
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  const made = new Problem(response.status, said.code ?? "unknown", detail, said.errors ?? [], retryAfter);
  if (response.status === 401) refused.listener(made);
  return made;
}

/**
 * Calls `onEvent({id, event, data})` for each Server-Sent Event until the signal ends it, connecting again where it broke off;
 * `isOnce`: a stream that the service ends is not opened again. Resolves when there is nothing more to come, as where this
 * service has no events for us: then the caller polls.
 */
export async function stream(path, { signal, onEvent, isOnce = false }) {
  let last = null;
  let wait = 1000;
  while (!signal.aborted) {
    try {
      const headers = { accept: "text/event-stream", ...(last ? { "last-event-id": last } : {}) };
      const response = await open("GET", path, { headers, signal });
      if (response.ok) {
        wait = 1000;
        await events(response.body, (event) => {
          last = event.id ?? last;
          onEvent(event);
        });
        if (isOnce) return;
      } else {
        const made = problem(response, await response.text());
        if (made.status < 500 && made.status !== 429) return;
        wait = Math.max(wait, (made.retryAfter ?? 0) * 1000);
      }
    } catch (error) {
      if (signal.aborted) return;
    }
    await pause(wait, signal);
    wait = Math.min(wait * 2, 30000);
  }
}

export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** Reads an event stream to its end (the HTML standard, 9.2.6). */
async function events(body, onEvent) {
  const decoder = new TextDecoder();
  let rest = "";
  let event = {};
  for (const reader = body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines.map((line) => line.replace(/\r$/, ""))) {
      if (line === "") {
        if (event.data !== undefined || event.event) onEvent(event);
        event = {};
      } else if (!line.startsWith(":")) {
        const [, name, text] = /^([^:]*)(?:: ?(.*))?$/.exec(line);
        if (name === "data") event.data = event.data === undefined ? (text ?? "") : `${event.data}\n${text ?? ""}`;
        else if (name === "event" || name === "id") event[name] = text ?? "";
      }
    }
  }
}
