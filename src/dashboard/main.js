// Where everything starts: which page is shown, logging in, the theme, the search.
// Never asks the API for data: the pages do.

import { key, pause, Problem, read, refused, stream } from "./api.js";
import { address, el, say, show } from "./dom.js";

const main = document.getElementById("main");

/** Pages by the first part of the address; each gives `title(view)` and `open(view)`. Loaded when they are first shown. */
const PAGES = {
  "": () => import("./overview.js"),
  vendors: (rest) => (rest.length ? import("./vendor.js") : import("./vendors.js")),
  jobs: (rest) => (rest.length ? import("./job.js") : import("./jobs.js")),
  failures: () => import("./failures.js"),
  system: () => import("./system.js"),
};

/** A page that is being shown, until another is. */
class View {
  #stop = new AbortController();
  #problems = new Map();

  constructor(parts, query) {
    this.rest = parts.slice(1);
    this.query = query;
    this.signal = this.#stop.signal;
  }

  show(...children) {
    if (!this.signal.aborted) show(main, ...children);
  }

  end() {
    this.#stop.abort();
    document.querySelectorAll("dialog").forEach((box) => box.close());
    show(document.getElementById("problem"));
  }

  /**
   * Does `work` now, and again every so many milliseconds while the page can be seen, at most a quarter of the time. Gives a
   * function that has it done again soon.
   */
  every(ms, work) {
    let hurry = () => {};
    const loop = async () => {
      while (!this.signal.aborted) {
        const began = performance.now();
        const problem = await this.#attempt(work);
        const wait = Math.max(problem?.status === 403 ? 30000 : ms, (performance.now() - began) * 3);
        await Promise.race([pause(wait, this.signal), new Promise((resolve) => (hurry = resolve))]);
        await seen(this.signal);
      }
    };
    loop();
    return () => hurry();
  }

  /**
   * Calls `onEvent` when an event has come, or may have been missed. Only while the page can be seen, because a browser has few
   * connections to a service for all of its tabs. `isOnce`: a stream that the service ends is not opened again.
   */
  async follow(path, onEvent, isOnce = false) {
    while (!this.signal.aborted) {
      const hidden = new AbortController();
      const look = () => document.hidden && hidden.abort();
      document.addEventListener("visibilitychange", look);
      await stream(path, { signal: AbortSignal.any([this.signal, hidden.signal]), onEvent, isOnce });
      document.removeEventListener("visibilitychange", look);
      onEvent();
      if (!hidden.signal.aborted) return;
      await seen(this.signal);
    }
  }

  async #attempt(work) {
    try {
      await work(this.signal);
      this.#problems.delete(work);
      return this.#tell();
    } catch (problem) {
      if (this.signal.aborted) return null;
      if (!(problem instanceof Problem)) console.error(problem);
      this.#problems.set(work, problem.text ?? String(problem));
      this.#tell();
      return problem;
    }
  }

  /** What does not work now, above the page. */
  #tell() {
    if (this.signal.aborted) return;
    const texts = [...new Set(this.#problems.values())];
    show(
      document.getElementById("problem"),
      texts.map((text) => el("p", null, text)),
    );
  }
}

/** Waits until the tab can be seen. */
async function seen(signal) {
  while (document.hidden && !signal.aborted) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

let view = null;

async function route(isFirst = false) {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").map(decode);
  view?.end();
  const mine = (view = new View(parts, Object.fromEntries(new URLSearchParams(query))));
  mark(parts[0]);
  const load = PAGES[parts[0]];
  const page = load ? await load(parts.slice(1)).catch(() => null) : NOTHING_THERE;
  if (mine.signal.aborted) return;
  document.title = `${page?.title(mine) ?? "Not loaded"} · Fetchgate`;
  show(main);
  if (!page)
    return mine.show(
      el("h1", null, "Not loaded"),
      el("p", null, "This page could not be loaded. Fetchgate may be restarting; load it again."),
    );
  page.open(mine);
  if (!isFirst) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

const NOTHING_THERE = {
  title: () => "Nothing there",
  open: (view) =>
    view.show(
      el("h1", null, "Nothing there"),
      el("p", null, "There is no such page. ", el("a", { href: "#/" }, "Go to the overview"), "."),
    ),
};

function mark(first) {
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.getAttribute("href") === `#/${first}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** Asks for a key. It stays in this tab, and is forgotten when the tab is closed. */
function logIn() {
  // Several requests may have been refused at once.
  if (!view && key.get() == null) return;
  view?.end();
  view = null;
  const hadOne = key.get() != null;
  key.forget();
  leave.hidden = true;
  document.title = "Log in · Fetchgate";
  const said = el(
    "p",
    { class: "said", role: "alert" },
    hadOne ? "This key is not good: it is wrong, has expired or was deleted." : "",
  );
  const input = el("input", {
    type: "password",
    name: "key",
    id: "key",
    autocomplete: "off",
    required: true,
    spellcheck: "false",
  });
  const submit = async (event) => {
    event.preventDefault();
    key.set(input.value.trim());
    try {
      await read("/vendors");
    } catch (problem) {
      // A key may be good and not be for vendors; a bad one has brought this form back already.
      if (problem.status === 401) return;
      if (problem.status !== 403) {
        key.forget();
        return show(said, problem.text ?? String(problem));
      }
    }
    leave.hidden = false;
    route();
  };
  show(
    main,
    el(
      "form",
      { class: "login", onsubmit: submit, own: true, key: Math.random() },
      el("h1", null, "Log in"),
      el("p", null, "This Fetchgate needs a key. It is kept in this tab only, and forgotten when you close it."),
      el("p", { class: "field" }, el("label", { for: "key" }, "Key"), input),
      said,
      el("p", { class: "buttons" }, el("button", { class: "main" }, "Log in")),
    ),
  );
  input.focus();
}

refused.listener = logIn;

const leave = document.getElementById("leave");
leave.hidden = key.get() == null;
leave.addEventListener("click", () => {
  key.forget();
  leave.hidden = true;
  say("You are logged out.");
  route();
});

/** The theme: as the system says, until somebody chooses. */
const THEMES = { system: "dark", dark: "light", light: "system" };
const theme = document.getElementById("theme");
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  theme.textContent = `Theme: ${name}`;
  localStorage.setItem("fetchgate.theme", name);
}
const kept = localStorage.getItem("fetchgate.theme");
setTheme(kept in THEMES ? kept : "system");
theme.addEventListener("click", () => setTheme(THEMES[document.documentElement.dataset.theme]));

const search = document.getElementById("search");
search.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = new FormData(search).get("q").trim();
  if (!text) return;
  if (/^[0-9a-f]{8}-[0-9a-f-]{27}$/i.test(text)) location.hash = address(["jobs", text.toLowerCase()]);
  else location.hash = (await isVendor(text)) ? address(["vendors", text]) : address(["jobs"], { tag: text });
  search.reset();
});

async function isVendor(name) {
  try {
    return (await read("/vendors")).vendors.some((vendor) => vendor.name === name);
  } catch {
    return false;
  }
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, textarea, select, dialog");
  if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  search.elements.q.focus();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

addEventListener("hashchange", () => route());
route(true);
