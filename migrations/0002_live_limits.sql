-- Live limits, which replace those of the config file, by pool. Removing them keeps the row, so that its version only grows.
CREATE TABLE live_limits (
  pool    TEXT PRIMARY KEY,
  version INTEGER NOT NULL,
  limits  TEXT,                          -- JSON array, NULL when the file's are in force
  since   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
