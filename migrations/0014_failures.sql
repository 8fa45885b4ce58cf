-- For counting jobs that ended without a result: all that is counted is in the index. It has no other jobs, so they cost nothing.
CREATE INDEX jobs_failed ON jobs (finished_at, lane, failure_code, failure)
  WHERE finished_at IS NOT NULL AND failure_code IS NOT NULL;
