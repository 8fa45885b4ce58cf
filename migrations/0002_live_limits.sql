-- Limits laid over those of the config file, by pool. A row stays when they are taken away, so that its version never goes back.
CREATE TABLE live_limits (
  pool    TEXT PRIMARY KEY,
  version INTEGER NOT NULL,
  limits  TEXT,                          -- JSON array, NULL when the file's are in force
  since   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
