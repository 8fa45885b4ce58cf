//! Opening the file: the schema's steps, the settings of connections, and why opening may fail.
//!
//! Never changes a step that a version has shipped: what is wrong with one is mended by the next.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, config::DbConfig};

use super::writer::BUSY;

/// The schema in steps: `PRAGMA user_version` says how many have been made.
const MIGRATIONS: [&str; 16] = [
    include_str!("../../../migrations/0001_jobs.sql"),
    include_str!("../../../migrations/0002_live_limits.sql"),
    include_str!("../../../migrations/0003_calls.sql"),
    include_str!("../../../migrations/0004_called.sql"),
    include_str!("../../../migrations/0005_idle_lanes.sql"),
    include_str!("../../../migrations/0006_limits_on_record.sql"),
    include_str!("../../../migrations/0007_unanswered.sql"),
    include_str!("../../../migrations/0008_vendors_words.sql"),
    include_str!("../../../migrations/0009_fetch.sql"),
    include_str!("../../../migrations/0010_keys.sql"),
    include_str!("../../../migrations/0011_result_webhooks.sql"),
    include_str!("../../../migrations/0012_heavy_jobs.sql"),
    include_str!("../../../migrations/0013_events.sql"),
    include_str!("../../../migrations/0014_failures.sql"),
    include_str!("../../../migrations/0015_lists.sql"),
    include_str!("../../../migrations/0016_traces.sql"),
];

/// The newest version of the schema.
pub const SCHEMA: usize = MIGRATIONS.len();

/// Why the store could not be opened: a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another process; one process owns the file, so stop the other one or give this one another store.url", path = .0.display())]
    InUse(PathBuf),
    #[error("cannot open {path}: {why}; check that the folder exists, is on a local disk and can be written", path = .0.display(), why = .1)]
    File(PathBuf, std::io::Error),
    #[error("cannot use {path} as the store: {why}", path = .0.display(), why = .1)]
    Sqlite(PathBuf, rusqlite::Error),
    #[error("{path} was written by a newer version of Fetchgate (schema {found}, this one knows {known}); run that version", path = .path.display())]
    Newer { path: PathBuf, found: usize, known: usize },
    #[error("SQLite {0} can lose commits when its log is reset; 3.51.3 or newer is needed")]
    OldSqlite(&'static str),
}

/// Sets the writer's connection up and brings the schema to the newest version.
pub(super) fn migrate(conn: &Connection, path: &Path) -> Result<(), OpenError> {
    let explain = |why| OpenError::Sqlite(path.to_owned(), why);
    conn.busy_timeout(BUSY).map_err(explain)?;
    conn.set_prepared_statement_cache_capacity(64);
    keep_plans(conn).map_err(explain)?;
    // FULL: an accepted job survives a power cut. No automatic checkpoints: the writer makes them between commits. No mmap. A small cache: a
    // commit that splits pages scans the whole cache, and writes are close together.
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;
         PRAGMA mmap_size = 0; PRAGMA cache_size = -8192; PRAGMA temp_store = MEMORY; PRAGMA foreign_keys = OFF;
         PRAGMA journal_size_limit = 67108864;",
    )
    .map_err(explain)?;
    let found: usize = conn.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(explain)?;
    if found > MIGRATIONS.len() {
        return Err(OpenError::Newer { path: path.to_owned(), found, known: MIGRATIONS.len() });
    }
    for (done, step) in MIGRATIONS.iter().enumerate().skip(found) {
        let step = format!("BEGIN IMMEDIATE; {step} PRAGMA user_version = {}; COMMIT;", done + 1);
        conn.execute_batch(&step).map_err(explain)?;
    }
    Ok(())
}

/// Keeps the plans of prepared statements. Without this SQLite makes a new plan whenever a bound value might make a partial index
/// usable (`IS NOT NULL` in its condition is enough), which is at every settle and every read.
pub(super) fn keep_plans(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}
