//! Checks where jobs are kept: `[store]`, and `[queue]`, which belongs to MongoDB.
//!
//! Never shows a URL: people put passwords into them. Whether a server answers there is found out later.

use std::path::PathBuf;

use mongodb::options::{Acknowledgment, ConnectionString};
use toml::Spanned;

use super::{
    Secret, Store, StoreAt,
    check::{Check, Filled, LONGEST},
    raw,
};
use crate::redis_link::RedisUrl;

const FORM: &str = r#"Write "sqlite:data/fetchgate.db", or "mongodb://HOST:27017/fetchgate""#;
const MONGO_FORM: &str = r#"Write "mongodb://HOST:27017/fetchgate": the name after the slash is the database"#;
const REDIS_FORM: &str =
    r#"Write "redis://HOST:6379/0", with TLS rediss://, or redis+sentinel:// or redis+cluster:// with several hosts"#;
/// MongoDB allows no longer names.
const MOST_DATABASE_BYTES: usize = 63;
/// MongoDB's own databases.
const NOT_OURS: [&str; 3] = ["admin", "config", "local"];

pub(super) fn store(cx: &mut Check<'_>, raw: &raw::Store, queue: Option<&Spanned<raw::Queue>>) -> Option<Store> {
    let retention = cx.duration("store.retention", &raw.retention, LONGEST);
    let url = cx.text("store.url", &raw.url)?;
    let is_mongo = url.text.starts_with("mongodb://") || url.text.starts_with("mongodb+srv://");
    let at = if is_mongo { redis_mongo(cx, url, queue) } else { sqlite(cx, &url, queue) };
    Some(Store { at: at?, retention: retention? })
}

fn sqlite(cx: &mut Check<'_>, url: &Filled, queue: Option<&Spanned<raw::Queue>>) -> Option<StoreAt> {
    let path = match url.text.strip_prefix("sqlite:") {
        None => Err("this begins neither with sqlite: nor with mongodb://"),
        Some(path) if path.trim().is_empty() => Err("the path is missing"),
        Some(path) if path.contains(":memory:") => Err("jobs in memory would be lost with the process"),
        Some(path) if path.starts_with("//") => Err("this is a path, without // before it"),
        Some(path) if path.contains(['?', '\0']) => Err("the path has a character that means something else to SQLite"),
        Some(path) => Ok(PathBuf::from(path)),
    };
    match (path, queue) {
        (Err(what), _) => cx.problem("store.url", &url.span, what, FORM),
        (Ok(_), Some(queue)) => {
            let mend = r#"Remove [queue], or write store.url = "mongodb://HOST:27017/fetchgate""#;
            cx.problem("queue", &queue.span(), "a queue belongs to a MongoDB store; SQLite needs none", mend);
        }
        (Ok(path), None) => return Some(StoreAt::Sqlite(path)),
    }
    None
}

/// MongoDB for the jobs, and Redis, which it needs.
fn redis_mongo(cx: &mut Check<'_>, url: Filled, queue: Option<&Spanned<raw::Queue>>) -> Option<StoreAt> {
    let database = database(&url.text);
    if let Err((what, mend)) = database {
        cx.problem("store.url", &url.span, what, mend);
    }
    let Some(queue) = queue else {
        let mend = r#"Add [queue] with url = "redis://HOST:6379/0""#;
        return cx.refuse("queue", &url.span, "a MongoDB store needs Redis beside it", mend);
    };
    let redis = cx.needed("queue.url", &queue.span(), &queue.get_ref().url, REDIS_FORM)?;
    let redis = cx.text("queue.url", redis)?;
    match RedisUrl::parse(&redis.text) {
        Ok(redis) => Some(StoreAt::RedisMongo { mongo: Secret::new(url.text), database: database.ok()?, redis }),
        Err(what) => cx.refuse("queue.url", &redis.span, what, REDIS_FORM),
    }
}

/// The database of a MongoDB URI; else what is wrong with the URI, and what to do.
fn database(uri: &str) -> Result<String, (&'static str, &'static str)> {
    let uri = ConnectionString::parse(uri).map_err(|_| ("this is not a MongoDB URI", MONGO_FORM))?;
    let is_weak = uri.write_concern.is_some_and(|concern| {
        concern.journal == Some(false) || concern.w.is_some_and(|w| w != Acknowledgment::Majority)
    });
    if is_weak {
        let what = "with this MongoDB URI accepted jobs could be lost";
        return Err((what, "Remove w and journal from it: writes are made with w=majority and journal=true"));
    }
    if uri.read_preference.is_some_and(|from| !matches!(from, mongodb::options::ReadPreference::Primary)) {
        let what = "with this MongoDB URI reads could return old data";
        return Err((what, "Remove readPreference from it: jobs are read from the primary"));
    }
    let name = uri.default_database.unwrap_or_default();
    // The name is also a part of our keys in Redis, where braces and colons have a meaning.
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
    match name.as_str() {
        "" => Err(("this MongoDB URI names no database", MONGO_FORM)),
        name if NOT_OURS.contains(&name) => Err(("this MongoDB URI names a database of MongoDB's own", MONGO_FORM)),
        name if name.len() > MOST_DATABASE_BYTES || !name.bytes().all(is_plain) => {
            Err(("this is not a name for a database", "Write up to 63 letters, digits, _ and -"))
        }
        _ => Ok(name),
    }
}
