-- For the deletion of lanes without jobs: no job of a lane has a number above its last_n, so a lane has no jobs if its last_n is below the
-- number of the oldest job.
ALTER TABLE lanes ADD COLUMN last_n INTEGER NOT NULL DEFAULT 0;
UPDATE lanes SET last_n = (SELECT coalesce(max(n), 0) FROM jobs);
CREATE INDEX lanes_last ON lanes (last_n);
