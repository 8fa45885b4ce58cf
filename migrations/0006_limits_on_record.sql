-- The limits that a pool had, and since when. A process that starts with other limits assumes all the calls that these allowed.
CREATE TABLE limits_on_record (
    pool TEXT NOT NULL,
    since INTEGER NOT NULL, -- ms since 1970
    limits TEXT NOT NULL,   -- JSON, as the API writes them
    PRIMARY KEY (pool, since)
) STRICT, WITHOUT ROWID;
