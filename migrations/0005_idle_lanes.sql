-- Lanes without jobs go: no job of a lane has a number above its last_n, so a lane whose last_n is below the oldest job's has none.
ALTER TABLE lanes ADD COLUMN last_n INTEGER NOT NULL DEFAULT 0;
UPDATE lanes SET last_n = (SELECT coalesce(max(n), 0) FROM jobs);
CREATE INDEX lanes_last ON lanes (last_n);
