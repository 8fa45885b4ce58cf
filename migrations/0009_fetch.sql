-- Where a job's data is, whose vendor is done and has not given it: a URL, or '' when the config says it. Stored behind the payload, so it
-- is read together with it.
ALTER TABLE jobs ADD COLUMN fetch TEXT;
