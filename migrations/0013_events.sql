-- The job's last event: when its vendor accepted it, or when it ended. NULL while it is pending. Numbers go up in the order of commits. Jobs from
-- before this version have none. Stored behind the payload, but read from the index.
ALTER TABLE jobs ADD COLUMN event INTEGER;
CREATE INDEX jobs_events ON jobs (event) WHERE event IS NOT NULL;
