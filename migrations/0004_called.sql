-- At most once: submitting calls that are about to be made or under way. A row counts for one attempt, and goes when that is settled, given
-- back or reclaimed. Not a column of `jobs`: behind its big columns every list would pay for it, and few jobs have it.
CREATE TABLE called (
  id        BLOB PRIMARY KEY,
  attempt   INTEGER NOT NULL,            -- counts while the job's own is less and it has not ended
  called_at INTEGER NOT NULL             -- milliseconds since the Unix epoch
) STRICT, WITHOUT ROWID;
