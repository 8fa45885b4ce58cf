// A whole Fetchgate with mock vendors and a browser, for the tests of the dashboard. Nothing here knows how a page is made.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import axe from "axe-core";
import { chromium } from "playwright-core";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "../..");
const BINARIES = process.env.BINARIES ?? join(ROOT, "target/debug");
/** With FROM_DISK=1 the files of the page come from src/dashboard, so that they can be changed without building again. */
const FROM_DISK = process.env.FROM_DISK === "1";
const ADMIN = "an-admin-key-of-at-least-32-characters";

/** `open`: no keys, the embedded store. `keyed`: with keys. `scaled`: with keys, over Redis and MongoDB. */
export const KINDS = (process.env.KINDS ?? "open keyed scaled").split(" ");

/** Widths and themes. */
export const LOOKS = [
  [1280, "light"],
  [1280, "dark"],
  [390, "light"],
  [390, "dark"],
];

const FLAGS = [
  "no-sandbox",
  "disable-gpu",
  "disable-quic",
  "no-first-run",
  "disable-background-networking",
  "disable-component-update",
  "disable-sync",
];

export async function world(kind, vendors = VENDORS) {
  const folder = mkdtempSync(join(tmpdir(), "fetchgate-browser-"));
  const children = [];
  const start = (program, ...args) => {
    const child = spawn(program, args, {
      cwd: folder,
      stdio: ["ignore", "ignore", "pipe"],
      env: { ...process.env, RUST_LOG: "warn" },
    });
    const process_ = { child, log: "" };
    child.stderr.on("data", (text) => (process_.log += text));
    child.on("error", (error) => (process_.log += error));
    children.push(process_);
    return process_;
  };
  const stop = async () => {
    await browser?.close();
    for (const { child } of children.reverse()) {
      const ended = new Promise((resolve) => child.on("exit", resolve));
      if (child.exitCode == null && child.kill("SIGTERM")) await Promise.race([ended, pause(10000)]);
      child.kill("SIGKILL");
    }
    rmSync(folder, { recursive: true, force: true });
  };
  let browser = null;
  try {
    const [api, mocks] = [await freePort(), await freePort()];
    start(join(BINARIES, "mock-vendors"), "--listen", `127.0.0.1:${mocks}`);
    const store = kind === "scaled" ? await servers(start, folder) : `[store]\nurl = "sqlite:${folder}/jobs.db"\n`;
    writeFileSync(join(folder, "fetchgate.toml"), config(kind, api, mocks, store, vendors));
    const service = start(join(BINARIES, "fetchgate"), "serve", "--config", "fetchgate.toml");
    const url = `http://127.0.0.1:${api}`;
    await eventually(
      "the service is ready",
      async () => (await fetch(`${url}/readyz`)).ok,
      () => service.log,
      60000,
    );
    browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: FLAGS.map((flag) => `--${flag}`),
    });
    const key = kind === "open" ? null : ADMIN;
    return new World({ kind, url, key, mocks: `http://127.0.0.1:${mocks}`, browser, service, stop });
  } catch (error) {
    await stop();
    throw error;
  }
}

class World {
  constructor(parts) {
    Object.assign(this, parts);
  }

  /** A request as an application makes it; gives the answer's JSON. */
  async api(method, path, body, key = this.key) {
    const headers = { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const text = typeof body === "string" ? body : body && JSON.stringify(body);
    const answer = await fetch(this.url + path, { method, headers, body: text });
    const said = await answer.text();
    assert.ok(answer.ok, `${method} ${path} ${answer.status} ${said}`);
    return said ? JSON.parse(said) : null;
  }

  /** How many calls have arrived at a mock vendor. */
  async calls(name) {
    return (await (await fetch(`${this.mocks}/count/${name}`)).json()).count;
  }

  async submit(vendor, payload = {}, more = {}) {
    return (await this.api("POST", "/jobs", { vendor, payload, ...more })).request_id;
  }

  async ended(id, status) {
    const job = await this.api("GET", `/jobs/${id}?wait=30s`);
    assert.equal(job.status, status, JSON.stringify(job));
    return job;
  }

  /** A page of the dashboard, logged in. What goes wrong in it is in `faults`. */
  async open(hash = "#/", { width = 1280, colorScheme = "light", key = this.key } = {}) {
    const context = await this.browser.newContext({ viewport: { width, height: 900 }, colorScheme });
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    const page = await context.newPage();
    page.setDefaultTimeout(20000);
    page.faults = [];
    page.on("console", (said) => said.type() === "error" && page.faults.push(`${said.text()} ${said.location().url}`));
    page.on("pageerror", (error) => page.faults.push(String(error.stack)));
    if (key) await page.addInitScript((key) => sessionStorage.setItem("fetchgate.key", key), key);
    if (FROM_DISK) await fromDisk(page);
    await page.goto(`${this.url}/${hash}`);
    return page;
  }
}

/** What went wrong in a page; answers with these statuses are no fault. */
export function assertNoFaults(page, ...statuses) {
  const expected = (fault) => statuses.some((status) => fault.includes(`the server responded with a status of ${status}`));
  assert.deepEqual(
    page.faults.filter((fault) => !expected(fault)),
    [],
  );
}

/** No serious finding of axe, nothing wider than the screen, and each thing that can be pressed has a name. */
export async function assertAccessible(page, what) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const findings = serious.map(
    ({ id, nodes }) =>
      `${id}: ${nodes
        .slice(0, 3)
        .map(({ html, failureSummary }) => `${html}\n  ${failureSummary}`)
        .join("\n")}`,
  );
  assert.deepEqual(findings, [], what);
  const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(over <= 0, `${what} is ${over} pixels too wide`);
}

/** Goes to a button or a link by Tab, and presses it. */
export async function press(page, name) {
  await page.locator("body").press("Tab");
  for (let i = 0; i < 60; i++) {
    const here = await page.evaluate(
      () => document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent,
    );
    if (here === name) {
      const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
      assert.equal(outline, "solid", "the focus can be seen");
      return page.keyboard.press("Enter");
    }
    await page.keyboard.press("Tab");
  }
  assert.fail(`no way to ${name} by Tab`);
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export async function eventually(what, look, more = () => "", ms = 30000) {
  let last = null;
  for (const end = Date.now() + ms; Date.now() < end; await pause(100)) {
    try {
      if (await look()) return;
    } catch (error) {
      last = error;
    }
  }
  assert.fail(`not in time: ${what} ${last ?? ""} ${more()}`);
}

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function listens(port) {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => (socket.destroy(), resolve(true)));
    socket.on("error", () => resolve(false));
  });
}

/** `scripts/with-servers` puts them on the PATH. */
async function servers(start, folder) {
  const [redis, mongo] = [await freePort(), await freePort()];
  start(
    "redis-server",
    "--bind",
    "127.0.0.1",
    "--port",
    String(redis),
    "--save",
    "",
    "--maxmemory-policy",
    "noeviction",
    "--dir",
    folder,
  );
  const program = process.env.PATH.split(":").some((path) => existsSync(join(path, "mongod")))
    ? "mongod"
    : (process.env.MONGO_BIN ?? "secantusd-rs");
  const place = mkdtempSync(join(folder, "mongo-"));
  if (program === "mongod") start(program, "--bind_ip", "127.0.0.1", "--quiet", "--port", String(mongo), "--dbpath", place);
  else
    start(
      program,
      "--host",
      "127.0.0.1",
      "--cache-size",
      "512M",
      "--log-level",
      "ERROR",
      "--port",
      String(mongo),
      "--storage-path",
      place,
    );
  for (const port of [redis, mongo]) await eventually("a server listens", () => listens(port));
  return `[store]\nurl = "mongodb://127.0.0.1:${mongo}/dashboard?directConnection=true"\n[queue]\nurl = "redis://127.0.0.1:${redis}/0"\n`;
}

async function fromDisk(page) {
  const kinds = { html: "text/html", css: "text/css", js: "text/javascript", svg: "image/svg+xml" };
  const serve = (route, name) =>
    route.fulfill({
      contentType: `${kinds[name.split(".").at(-1)]}; charset=utf-8`,
      body: readFileSync(join(ROOT, "src/dashboard", name)),
    });
  await page.route("**/dashboard/*", (route) => serve(route, route.request().url().split("/").at(-1)));
  await page.route(/:\d+\/$/, (route) => serve(route, "index.html"));
}

function config(kind, api, mocks, store, vendors) {
  const keys = kind === "open" ? "" : `[auth]\nmode = "api_key"\nadmin_key = "${ADMIN}"\n`;
  return `[server]
listen = "127.0.0.1:${api}"
public_url = "http://127.0.0.1:${api}"
${keys}${store}[result_webhooks]
allow = ["http://127.0.0.1:${mocks}"]
${vendors.replaceAll("MOCKS", `http://127.0.0.1:${mocks}`)}`;
}

export const GOOD = `
[vendors.good]
kind = "sync"
url = "MOCKS/sync/good"
limits = ["50/s", { calls = 100000, per = "1d" }]
`;

/** Vendors that do what they should, and one that refuses. */
export const VENDORS = `${GOOD}
[vendors.hook]
kind = "webhook"
url = "MOCKS/async/hook?callback_ms=100"
limits = ["20/s"]
webhook = { verify = "none" }
[vendors.polled]
kind = "polling"
url = "MOCKS/polling/polled"
limits = ["20/s"]
polling = { ticket = "/id", url = "MOCKS/polling/polled/{{ ticket | path }}", every = "200ms", done = { at = "/state", is = ["done"] }, result = "/output" }
[vendors.picky]
kind = "sync"
url = "MOCKS/sync/picky?status=422&body=%7B%22error%22%3A%22no%20such%20customer%22%7D"
limits = ["50/s"]
`;
