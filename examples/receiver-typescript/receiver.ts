// Takes result webhooks of Fetchgate on port 8090 and prints the jobs. How to run it: see ../README.md

import { createServer, type IncomingMessage } from "node:http";
import { Webhook, WebhookVerificationError } from "standardwebhooks";

const PORT = Number(process.env.PORT ?? 8090);
const MAX_BODY = 1 << 20; // a job without a large result is well below this
const webhook = new Webhook(process.env.WEBHOOK_SECRET ?? "");
const seen = new Set<string>(); // in a real service: a table with the ids of the last day, written together with your own change

async function read(request: IncomingMessage): Promise<string | undefined> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of request) {
    bytes += piece.length;
    if (bytes > MAX_BODY) return undefined;
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString("utf8"); // exactly as it came: that is what is signed
}

async function receive(request: IncomingMessage): Promise<number> {
  const body = await read(request);
  if (body === undefined) return 413;
  try {
    webhook.verify(body, request.headers as Record<string, string>);
  } catch (error) {
    if (error instanceof WebhookVerificationError) return 401;
    throw error;
  }
  const message = String(request.headers["webhook-id"]);
  if (!seen.has(message)) {
    seen.add(message);
    const job = JSON.parse(body);
    console.log(job.request_id, job.status, JSON.stringify(job.result));
  }
  return 204;
}

createServer((request, response) => {
  receive(request)
    .catch((error) => {
      console.error(error);
      return 500;
    })
    .then((status) => response.writeHead(status).end());
}).listen(PORT, "127.0.0.1");
