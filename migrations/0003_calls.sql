-- The audit: the calls that went out, in blocks, each written by the process that made them.
CREATE TABLE calls (
  pool   TEXT NOT NULL,
  first  INTEGER NOT NULL,             -- of its calls; microseconds on the limiter's clock
  id     INTEGER NOT NULL,             -- drawn by its writer
  last   INTEGER NOT NULL,
  count  INTEGER NOT NULL,
  body   BLOB NOT NULL,                -- the times, and who called (src/audit/block.rs)
  PRIMARY KEY (pool, first, id)
) STRICT, WITHOUT ROWID;

-- What was counted for a vendor since the store was made.
CREATE TABLE tallies (
  vendor    TEXT PRIMARY KEY,
  calls     INTEGER NOT NULL,
  throttled INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What the judge of a pool's calls has found so far.
CREATE TABLE verdicts (
  pool      TEXT PRIMARY KEY,
  judged_to INTEGER NOT NULL,          -- compared at every change
  body      TEXT NOT NULL              -- JSON
) STRICT, WITHOUT ROWID;
