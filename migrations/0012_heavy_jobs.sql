-- For the bytes that wait, at start: jobs that have not ended and whose payload counts (see `SMALL_PAYLOAD`). Most jobs are not in it.
CREATE INDEX jobs_heavy ON jobs (lane, length(payload)) WHERE stage < 3 AND length(payload) > 4096;
