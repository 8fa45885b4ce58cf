-- For lists and bulk changes of one tenant: the jobs of each of its lanes by id.
CREATE INDEX jobs_of_lane ON jobs (lane, id);
CREATE INDEX lanes_of_tenant ON lanes (tenant);
-- The same for all jobs that ended without a result (failed, cancelled, expired), which are few.
CREATE INDEX jobs_without_result ON jobs (id) WHERE status > 2;
