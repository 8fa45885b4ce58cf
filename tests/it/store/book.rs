//! The use of long limits, as the book of each backend keeps it.

use std::sync::Arc;

use fetchgate::{
    book::{Book, Charge, Spend},
    clock::{Clock, Time},
    roles::Roles,
    store::{redis_mongo::RedisMongo, sqlite::Sqlite},
};
use tempfile::TempDir;

use super::{VENDORS, work};
use crate::{
    on_every_backend,
    support::{Backend, START, database, servers},
};

on_every_backend!(a_pool_reads_only_its_own_spends, old_spends_are_deleted_a_minute_late_at_most);

async fn open(backend: Backend, folder: &TempDir) -> Arc<dyn Book> {
    let clock = Clock::manual(START);
    match backend {
        Backend::Sqlite => {
            let path = folder.path().join("jobs.db");
            Arc::new(Sqlite::open(&path, clock, VENDORS.map(Arc::from), 10).expect("the store opens"))
        }
        Backend::RedisMongo => {
            let database = database(folder);
            let (uri, redis) = (servers::mongo().mongo_url(&database), servers::redis().link());
            let store = RedisMongo::open(&uri, &database, redis, VENDORS.map(work).to_vec(), clock, 10, Roles::Both);
            Arc::new(store.await.expect("the store opens"))
        }
    }
}

fn spend(pool: &str, ends_at: i64) -> Spend {
    Spend { pool: pool.into(), count: "60s/vendor".into(), tenant: String::new(), ends_at: Time(ends_at), calls: 1 }
}

async fn charge(book: &dyn Book, spend: Spend, forget: i64) {
    book.charge(vec![Charge { spend, forget: Time(forget) }]).await.expect("the store works");
}

async fn spends(book: &dyn Book, pool: Option<&str>, since: i64) -> Vec<Spend> {
    let mut spends = book.spends(pool, Time(since)).await.expect("the store works");
    spends.sort_by(|a, b| (&a.pool, a.ends_at).cmp(&(&b.pool, b.ends_at)));
    spends
}

async fn a_pool_reads_only_its_own_spends(backend: Backend) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let book = open(backend, &folder).await;
    for (pool, ends_at) in [("a", 1_000), ("a", 2_000), ("b", 3_000)] {
        charge(&*book, spend(pool, ends_at), 0).await;
    }
    assert_eq!(spends(&*book, Some("a"), 0).await, [spend("a", 1_000), spend("a", 2_000)]);
    assert_eq!(spends(&*book, Some("a"), 2_000).await, [spend("a", 2_000)]);
    assert_eq!(spends(&*book, Some("c"), 0).await, []);
    assert_eq!(spends(&*book, None, 2_000).await, [spend("a", 2_000), spend("b", 3_000)]);
}

async fn old_spends_are_deleted_a_minute_late_at_most(backend: Backend) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let book = open(backend, &folder).await;
    charge(&*book, spend("b", 1_000), 0).await;
    charge(&*book, spend("a", 1_000), 0).await;
    charge(&*book, spend("a", 100_000), 59_999).await;
    charge(&*book, spend("a", 100_001), 60_000).await;
    let left = [spend("a", 100_000), spend("a", 100_001), spend("b", 1_000)];
    assert_eq!(spends(&*book, None, 0).await, left, "those of another pool are none of its business");
}
