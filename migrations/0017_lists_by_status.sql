-- For lists and bulk changes by tenant, vendor or status: the jobs of each lane that have a status, by id.
DROP INDEX jobs_of_lane;
CREATE INDEX jobs_of_lane ON jobs (lane, status, id);
