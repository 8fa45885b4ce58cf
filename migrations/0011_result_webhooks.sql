-- Where the ends of jobs are announced: a row for each job with a callback_url, made with the job and deleted with it. Not columns of `jobs`:
-- to change one of them, SQLite would write payload and result again.
CREATE TABLE result_webhooks (
  id           BLOB PRIMARY KEY,         -- the job's
  url          TEXT NOT NULL,
  receiver     TEXT NOT NULL,            -- the URL's origin
  status       INTEGER NOT NULL,         -- 0 pending, 1 delivered, 2 gave up
  next_at      INTEGER,                  -- all times: milliseconds since the Unix epoch. NULL before the job's end, and when nothing is left to do
  since        INTEGER,
  attempts     INTEGER NOT NULL,
  last_status  INTEGER,
  last_error   TEXT,
  omits_result INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX result_webhooks_due ON result_webhooks (receiver, next_at) WHERE next_at IS NOT NULL;
