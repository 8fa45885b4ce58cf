// What both load tests share: what a user does, how the end is waited for, and the verdict.
//
// Never believes what Fetchgate says about limits: the vendors count what arrived, by their own clock.

import { check, sleep } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { Counter } from 'k6/metrics';

const BASE_URL = __ENV.BASE_URL || 'http://127.0.0.1:8000';
const VENDORS_URL = __ENV.VENDORS_URL || 'http://127.0.0.1:9000';
export const SECONDS = Number(__ENV.SECONDS || 60);
const DRAIN_SECONDS = Number(__ENV.DRAIN_SECONDS || 120);
const P95_MS = Number(__ENV.P95_MS || 20);

// Iterations that are under way at the end of the load get this long; only then are the same users asked for their samples.
export const FINISH_SECONDS = 10;
// Ids that each user remembers, to read them while the load runs and to see at the end that they are complete.
const REMEMBERED = 20;
const SAMPLED = 3;
const STATUSES = ['pending', 'processing', 'complete'];
const PERIODS_MS = { ms: 1, s: 1000, m: 60000, h: 3600000, d: 86400000 };

const accepted = new Counter('jobs_accepted');
// One more for each job that is accepted, one fewer for each that a vendor was called for: what is left was lost.
const lost = new Counter('jobs_lost');
const sampled = new Counter('jobs_sampled');
const breaches = new Counter('limit_breaches');

// Each user has its own: k6 gives every one a copy of the script.
const mine = [];

export function options(load) {
    return {
        scenarios: {
            load: { exec: 'act', gracefulStop: `${FINISH_SECONDS}s`, ...load },
            samples: {
                executor: 'per-vu-iterations',
                exec: 'readSamples',
                vus: load.vus || load.preAllocatedVUs,
                iterations: 1,
                startTime: `${SECONDS + FINISH_SECONDS}s`,
                maxDuration: `${DRAIN_SECONDS}s`,
            },
        },
        thresholds: {
            checks: ['rate==1'],
            'http_req_duration{scenario:load}': [`p(95)<=${P95_MS}`],
            'http_reqs{scenario:load}': [`count>=${Number(__ENV.MIN_RATE || 0) * SECONDS}`],
            dropped_iterations: ['count==0'],
            jobs_accepted: ['count>0'],
            jobs_lost: ['count<=0'],
            jobs_sampled: ['count>0'],
            limit_breaches: ['count==0'],
        },
        summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max'],
        setupTimeout: '30s',
        teardownTimeout: `${DRAIN_SECONDS + 30}s`,
    };
}

// Starts the vendors' counts anew.
export function setup() {
    for (const vendor of vendors()) {
        http.del(`${VENDORS_URL}/stats/${vendor.name}`);
    }
}

// 70 % of what users do is submitting, the rest is reading what they have submitted before.
export function act() {
    if (mine.length > 0 && Math.random() < 0.3) {
        read(mine[Math.floor(Math.random() * mine.length)]);
    } else {
        submit();
    }
}

function submit() {
    const dice = Math.random();
    const vendor = dice < 0.8 ? 'sync' : dice < 0.95 ? 'async' : 'polling';
    const customer = exec.vu.idInTest * 1000000 + exec.vu.iterationInScenario;
    const payload = { customer_id: customer, options: { priority: 'high', verify_address: true } };
    const headers = { 'Content-Type': 'application/json' };
    const reply = http.post(`${BASE_URL}/jobs`, JSON.stringify({ payload, vendor }), { headers, tags: { name: 'POST /jobs' } });
    const id = reply.status === 202 ? reply.json('request_id') : undefined;
    if (check(reply, { 'submit: 202 with a request_id': () => typeof id === 'string' && id.length === 36 })) {
        accepted.add(1);
        lost.add(1);
        mine.push(id);
        if (mine.length > REMEMBERED) {
            mine.shift();
        }
    } else {
        tell(reply);
    }
}

// What came instead of the right answer.
function tell(reply) {
    console.error(`${reply.request.method} ${reply.url}: ${reply.status} ${reply.error} ${String(reply.body).slice(0, 300)}`);
}

function read(id) {
    const reply = http.get(`${BASE_URL}/jobs/${id}`, { tags: { name: 'GET /jobs/{id}' } });
    const job = reply.status === 200 ? reply.json() : {};
    if (!check(reply, { 'read: 200 with that id and a known status': () => job.request_id === id && STATUSES.includes(job.status) })) {
        tell(reply);
    }
}

// The same users, after the load: what they were promised has come. It waits as a client would, by a long poll.
export function readSamples() {
    for (const id of mine.slice(-SAMPLED)) {
        let job = {};
        for (let waited = 0; waited < DRAIN_SECONDS && job.status !== 'complete'; waited += 30) {
            const reply = http.get(`${BASE_URL}/jobs/${id}?wait=30s`, { tags: { name: 'GET /jobs/{id}?wait' }, timeout: '40s' });
            job = reply.status === 200 ? reply.json() : {};
        }
        check(job, { 'in the end: complete, with a result': () => job.status === 'complete' && job.result !== undefined });
        sampled.add(1);
    }
}

// Waits until nothing is left to do, and asks the vendors what they saw.
export function teardown() {
    check(null, { 'all was drained in time': () => drained() });
    let called = 0;
    for (const vendor of vendors()) {
        called += stats(vendor.name, 1000).distinct;
        for (const limit of vendor.limits) {
            const [, length, unit] = /^(\d+)(ms|[smhd])$/.exec(limit.per) || [];
            // A calendar's day is longer than a load test.
            const seen = unit ? stats(vendor.name, length * PERIODS_MS[unit]) : { worst_window: 0 };
            check(seen, { 'the vendor remembers every call': (seen) => !seen.journal_full });
            console.log(`${vendor.name}: ${seen.worst_window} calls in the worst ${limit.per}, of ${limit.calls}`);
            breaches.add(Math.max(seen.worst_window - limit.calls, 0));
        }
    }
    lost.add(-called);
}

// Whether nothing waits, nothing is open and no more calls arrive, for two looks in a row.
function drained() {
    let before = -1;
    for (let looks = 0; looks < DRAIN_SECONDS; looks++) {
        const all = vendors();
        const left = all.reduce((sum, vendor) => sum + vendor.waiting + vendor.open + vendor.in_flight, 0);
        const calls = all.reduce((sum, vendor) => sum + stats(vendor.name, 1000).count, 0);
        if (left === 0 && calls === before) {
            return true;
        }
        before = calls;
        sleep(1);
    }
    return false;
}

function vendors() {
    return http.get(`${BASE_URL}/vendors`).json('vendors');
}

function stats(name, windowMs) {
    return http.get(`${VENDORS_URL}/stats/${name}?window_ms=${windowMs}`).json();
}

// One row of the table, into the file named by ROW, and in words to standard output.
export function summary(name, data) {
    const of = (metric, value) => (data.metrics[metric] ? data.metrics[metric].values[value] : 0) || 0;
    const took = (value) => of('http_req_duration{scenario:load}', value).toFixed(1);
    const rate = Math.round(of('http_reqs{scenario:load}', 'count') / SECONDS);
    const broken = Object.entries(data.metrics).filter(([, metric]) => Object.values(metric.thresholds || {}).some((one) => !one.ok));
    const cells = [
        `${__ENV.BACKEND || BASE_URL}, ${name}`,
        rate,
        took('med'),
        took('p(95)'),
        took('p(99)'),
        took('max'),
        of('jobs_accepted', 'count'),
        `${of('checks', 'fails')} of ${of('checks', 'passes') + of('checks', 'fails')}`,
        of('jobs_lost', 'count'),
        of('limit_breaches', 'count'),
        broken.length ? `broken: ${broken.map(([metric]) => metric).join(', ')}` : 'kept',
    ];
    const row = `| ${cells.join(' | ')} |\n`;
    return __ENV.ROW ? { stdout: row, [__ENV.ROW]: row } : { stdout: row };
}
