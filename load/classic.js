// The classic load test: USERS users (200) for SECONDS (60), 70 % submit and 30 % read, each with 100 ms to think.
//
// A closed loop: 200 users with 100 ms to think make 2,000 requests a second at most, however fast the answers are.

import { sleep } from 'k6';
import * as lib from './lib.js';

const USERS = Number(__ENV.USERS || 200);

export const options = lib.options({ executor: 'constant-vus', vus: USERS, duration: `${lib.SECONDS}s` });

export { readSamples, setup, teardown } from './lib.js';

export function act() {
    lib.act();
    sleep(0.1);
}

export function handleSummary(data) {
    return lib.summary(`${USERS} users`, data);
}
