-- One row for each lane: (vendor, priority, tenant), the unit of order and fairness.
CREATE TABLE lanes (
  lane      INTEGER PRIMARY KEY,
  vendor    TEXT NOT NULL,
  priority  INTEGER NOT NULL,            -- 0 high, 1 normal, 2 low
  tenant    TEXT NOT NULL,
  UNIQUE (vendor, priority, tenant)
) STRICT;

-- One row for each job, from submit until it is deleted. Big columns are last, so that lists do not read them.
CREATE TABLE jobs (
  n               INTEGER PRIMARY KEY,   -- order of arrival; internal
  id              BLOB NOT NULL UNIQUE,  -- the UUID v7; its first 48 bits are the time of creation
  lane            INTEGER NOT NULL REFERENCES lanes (lane),
  status          INTEGER NOT NULL,      -- 0 pending, 1 processing, 2 complete, 3 failed, 4 cancelled, 5 expired
  stage           INTEGER NOT NULL,      -- 0 waits for its call, 1 for a poll, 2 for a callback, 3 has ended
  due_at          INTEGER NOT NULL,      -- all times: milliseconds since the Unix epoch
  alarm_at        INTEGER,               -- the earlier of deadline_at and answer_by, while not ended
  answer_by       INTEGER,
  deadline_at     INTEGER,
  deadline_within INTEGER,               -- milliseconds, when the deadline was given as a duration
  run             INTEGER NOT NULL DEFAULT 0,
  tries           INTEGER NOT NULL DEFAULT 0,
  attempt         INTEGER NOT NULL DEFAULT 0,  -- the fence: compared at every settle
  updated_at      INTEGER NOT NULL,
  finished_at     INTEGER,
  failure_code    TEXT,
  failure         TEXT,
  ticket          TEXT,
  tags            TEXT,                  -- JSON array, NULL when empty
  payload         BLOB NOT NULL,
  result          BLOB,
  attempts        BLOB                   -- JSON
) STRICT;

-- For dispatch: the lane's jobs that wait for a call or a poll, in order.
CREATE INDEX jobs_waiting ON jobs (lane, stage, due_at, n) WHERE stage < 2;
-- For the janitor.
CREATE INDEX jobs_alarm ON jobs (alarm_at) WHERE alarm_at IS NOT NULL;
-- For callbacks on the shared URL, which name the ticket.
CREATE INDEX jobs_ticket ON jobs (ticket) WHERE ticket IS NOT NULL;

CREATE TABLE idempotency (
  tenant     TEXT NOT NULL,
  key        TEXT NOT NULL,
  body_hash  BLOB NOT NULL,
  id         BLOB NOT NULL,
  created_at INTEGER NOT NULL,
  PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_age ON idempotency (created_at);

-- The book: use of long limits, pauses, settings.
CREATE TABLE spends (
  pool    TEXT NOT NULL,
  count   TEXT NOT NULL,
  tenant  TEXT NOT NULL,
  ends_at INTEGER NOT NULL,
  calls   INTEGER NOT NULL,
  PRIMARY KEY (pool, count, tenant, ends_at)
) STRICT, WITHOUT ROWID;

CREATE TABLE pauses (
  vendor TEXT PRIMARY KEY,
  until  INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE settings (
  name  TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
