// An open model: RATE requests a second (1,500) begin for SECONDS (60), whether or not the ones before have been answered.
//
// What a closed loop hides shows here: while answers are slow, users go on coming. One that nobody is free to make is a failure.

import * as lib from './lib.js';

const RATE = Number(__ENV.RATE || 1500);

export const options = lib.options({
    executor: 'constant-arrival-rate',
    rate: RATE,
    timeUnit: '1s',
    duration: `${lib.SECONDS}s`,
    preAllocatedVUs: 400,
    maxVUs: 400,
});

export { act, readSamples, setup, teardown } from './lib.js';

export function handleSummary(data) {
    return lib.summary(`${RATE}/s open`, data);
}
