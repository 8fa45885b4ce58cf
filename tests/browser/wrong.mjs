// Vendors that go wrong, one for each way, until a test makes them well. A webhook vendor that is well calls back.

import { createServer } from "node:http";

const json = (answer, status, value, headers = {}) =>
  answer.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(value));

const WAYS = {
  down: (answer) => answer.socket.resetAndDestroy(),
  slow: () => {},
  locked: (answer) => json(answer, 401, { error: "unknown key" }),
  picky: (answer) => json(answer, 422, { error: "no such customer" }),
  silent: (answer) => json(answer, 202, {}),
  throttling: (answer) => json(answer, 429, { error: "too many" }, { "retry-after": "600" }),
};

export const NAMES = Object.keys(WAYS);

const once = 'retry = { attempts = 1, first = "1s", max = "1s", unanswered = 0 }';

/** What is more than a URL and a limit in the config of each. */
const MORE = {
  slow: `concurrency = 2\ntimeout = "2s"\nbreaker = false\n${once}`,
  silent: `answer_within = "8s"\nwebhook = { verify = "none" }\n${once}`,
};

export async function vendorsThatGoWrong() {
  const calls = Object.fromEntries(NAMES.map((name) => [name, 0]));
  const well = new Set();
  const server = createServer(async (request, answer) => {
    const name = request.url.slice(1);
    let text = "";
    for await (const part of request) text += part;
    calls[name] += 1;
    if (!well.has(name)) return WAYS[name](answer);
    json(answer, name === "silent" ? 202 : 200, { data: "fine" });
    if (name !== "silent") return;
    const { callback_url } = JSON.parse(text);
    await fetch(callback_url, { method: "POST", headers: { "content-type": "application/json" }, body: '{"result": "fine"}' });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${server.address().port}`;
  const vendor = (name) => `[vendors.${name}]
kind = "${name === "silent" ? "webhook" : "sync"}"
url = "${url}/${name}"
limits = ["50/s"]
${MORE[name] ?? ""}
`;
  return {
    /** For the config file. */
    config: NAMES.map(vendor).join(""),
    calls: (name) => calls[name],
    heal: (name) => well.add(name),
    stop: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}
