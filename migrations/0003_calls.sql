-- The audit: the calls that were made, in blocks, each written by the process that made them.
CREATE TABLE calls (
  pool   TEXT NOT NULL,
  first  INTEGER NOT NULL,             -- time of its first call; microseconds on the limiter's clock
  id     INTEGER NOT NULL,             -- random, chosen by its writer
  last   INTEGER NOT NULL,
  count  INTEGER NOT NULL,
  body   BLOB NOT NULL,                -- the times, and who called (src/audit/block.rs)
  PRIMARY KEY (pool, first, id)
) STRICT, WITHOUT ROWID;

-- Totals of each vendor, since the store was made.
CREATE TABLE tallies (
  vendor    TEXT PRIMARY KEY,
  calls     INTEGER NOT NULL,
  throttled INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The judge's findings about a pool's calls so far.
CREATE TABLE verdicts (
  pool      TEXT PRIMARY KEY,
  judged_to INTEGER NOT NULL,          -- compared at every change
  body      TEXT NOT NULL              -- JSON
) STRICT, WITHOUT ROWID;
