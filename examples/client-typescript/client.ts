// Submits a job to Fetchgate, waits for its end and prints it. How to generate `fetchgate.d.ts`: see ../README.md

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { components, operations } from "./fetchgate.d.ts";

type SubmitJob = components["schemas"]["SubmitJob"];
type Accepted = components["schemas"]["Accepted"];
type Job = components["schemas"]["Job"];
type Problem = components["schemas"]["Problem"];
type Wait = NonNullable<operations["getJob"]["parameters"]["query"]>["wait"];

const TRIES = 5;
const TIMEOUT_MS = 75_000; // longer than Fetchgate waits for a job
const ENDED: Job["status"][] = ["complete", "failed", "expired", "cancelled"];

const url = process.env.FETCHGATE_URL ?? "http://127.0.0.1:8000";
const key = process.env.FETCHGATE_KEY; // only where Fetchgate asks for one

// The answer. Tries again, a few times, after a lost connection and where Fetchgate says when (429, 503).
async function call<T>(path: string, init: { method?: string; headers?: Record<string, string>; body?: string } = {}): Promise<T> {
  const headers = { ...init.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  for (let triesLeft = TRIES - 1; ; triesLeft--) {
    let pauseSecs = 1;
    try {
      const answer = await fetch(url + path, { ...init, headers, signal: AbortSignal.timeout(TIMEOUT_MS) });
      const body = await answer.text();
      if (answer.ok) return JSON.parse(body);
      if (![429, 503].includes(answer.status) || triesLeft === 0) {
        const problem: Problem = JSON.parse(body);
        throw new Error(`${problem.code}: ${problem.detail}`);
      }
      pauseSecs = Number(answer.headers.get("retry-after") ?? pauseSecs);
    } catch (error) {
      const isLost = error instanceof TypeError || (error instanceof Error && error.name === "TimeoutError");
      if (!isLost || triesLeft === 0) throw error;
    }
    await sleep(pauseSecs * 1000);
  }
}

// Submits a job and waits for its end, however long that takes.
async function run(job: SubmitJob): Promise<Job> {
  const headers = {
    "Content-Type": "application/json",
    "Idempotency-Key": randomUUID(), // with the same key, trying again makes no second job
    Prefer: "wait=10",
  };
  const wait: Wait = "30s";
  let answer = await call<Accepted | Job>("/jobs", { method: "POST", headers, body: JSON.stringify(job) });
  while (!("status" in answer && ENDED.includes(answer.status))) {
    answer = await call<Job>(`/jobs/${answer.request_id}?wait=${wait}`);
  }
  return answer;
}

const ended = await run({ payload: { name: "Ada" }, vendor: process.argv[2] ?? "sync" });
console.log(ended.request_id, ended.status, JSON.stringify(ended.result));
process.exitCode = ended.status === "complete" ? 0 : 1;
