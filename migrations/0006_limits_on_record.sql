-- Which limits a pool had, and since when: a process that starts with others begins with the calls that these allowed.
CREATE TABLE limits_on_record (
    pool TEXT NOT NULL,
    since INTEGER NOT NULL, -- ms since 1970
    limits TEXT NOT NULL,   -- JSON, as the API writes them
    PRIMARY KEY (pool, since)
) STRICT, WITHOUT ROWID;
