-- Keys of callers, without their secrets.
CREATE TABLE api_keys (
  id           TEXT PRIMARY KEY,
  hash         BLOB NOT NULL,            -- SHA-256 of the whole key
  name         TEXT NOT NULL,
  tenant       TEXT,                     -- NULL: all tenants
  scopes       TEXT NOT NULL,            -- names with spaces between them
  created_at   INTEGER NOT NULL,         -- all times: milliseconds since the Unix epoch
  created_by   TEXT NOT NULL,
  expires_at   INTEGER,
  last_used_at INTEGER
) STRICT, WITHOUT ROWID;

-- Who paused a vendor or set live limits: the name of the key. NULL if an older version wrote it.
ALTER TABLE pauses ADD COLUMN since INTEGER;
ALTER TABLE pauses ADD COLUMN set_by TEXT;
ALTER TABLE live_limits ADD COLUMN set_by TEXT;
