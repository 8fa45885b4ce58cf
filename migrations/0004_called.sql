-- Calls that are made at most once, and are about to be made or in flight. A row is for one attempt, and is deleted when that is settled,
-- released or reclaimed. Not a column of `jobs`: it would be behind the big columns, where every list would pay for it.
CREATE TABLE called (
  id        BLOB PRIMARY KEY,
  attempt   INTEGER NOT NULL,            -- counts while the job has not ended and its own number is less
  called_at INTEGER NOT NULL             -- milliseconds since the Unix epoch
) STRICT, WITHOUT ROWID;
