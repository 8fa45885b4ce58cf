//! The ten rules for streams as work queues, each learned from somebody's incident, as they hold here.

use std::{collections::BTreeSet, time::Duration};

use fetchgate::{
    job::{FailureCode, JobId, Priority, Status, lifecycle},
    store::{Filter, Sees, Settled, Slice, Which, With, redis_mongo::VendorWork},
};
use futures_util::future::join_all;
use mongodb::bson::{Binary, Document, doc, spec::BinarySubtype};
use tokio::task::JoinSet;

use super::{
    LEASE, TestStore, attempt, complete, failed,
    site::{SHUT, Site},
    work,
};
use crate::{failure::wait_until, support::servers};

const LONG: Duration = Duration::from_secs(20);

impl TestStore {
    async fn submit_many(&self, n: usize) -> Vec<JobId> {
        self.submit_all((0..n).map(|_| self.job("v", Priority::Normal, "t")).collect()).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_1_an_id_is_in_the_stream_once_whoever_adds_it() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let ids = a.submit_many(8).await;
    let held = a.claim("v", 2).await;
    for _ in 0..5 {
        // Both look for lanes that nobody knows of, read the lane and add what they find.
        site.clock.advance(Duration::from_secs(2));
        for process in [&a, &b] {
            process.store.ready("v").await.unwrap();
            assert!(process.claim_calls("v", 4, 0).await.is_empty());
        }
        let in_stream = site.in_stream().await;
        assert_eq!(in_stream.len(), ids.len());
        assert_eq!(in_stream.into_iter().collect::<BTreeSet<_>>().len(), ids.len());
    }
    assert_eq!(b.claim_all("v").await.len(), ids.len() - held.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_2_what_is_settled_is_acknowledged_and_deleted_together() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let mut sizes = BTreeSet::new();
    for _ in 0..4 {
        a.submit_many(150).await;
        for process in [&a, &b].into_iter().cycle().take(40) {
            let leases = process.claim("v", 10).await;
            process.settle_all(leases.into_iter().map(|lease| (lease, complete())).collect()).await;
        }
        let pending: Vec<(String, String, i64, i64)> =
            site.ask(&["XPENDING", ":1:jobs", "workers", "-", "+", "9"]).await;
        let (left, index): (i64, i64) = (site.ask(&["XLEN", ":1:jobs"]).await, site.ask(&["HLEN", ":index"]).await);
        assert_eq!((pending.len(), left, index), (0, 0, 0));
        sizes.insert(site.ask::<i64>(&["MEMORY", "USAGE", ":1:jobs"]).await);
    }
    assert!(sizes.last().unwrap() - sizes.first().unwrap() < 1000, "it does not grow: {sizes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_3_a_group_or_a_stream_that_has_gone_is_made_again_and_nothing_is_lost_or_doubled() {
    for damage in [&["XGROUP", "DESTROY", ":1:jobs", "workers"][..], &["DEL", ":1:jobs"], &["DEL", ":state"]] {
        let site = Site::new();
        let (a, b) = (site.process().await, site.process().await);
        let mut ids: BTreeSet<JobId> = a.submit_many(30).await.into_iter().collect();
        let held = a.claim("v", 10).await;
        assert_eq!(held.len(), 10);
        site.ask::<i64>(damage).await;
        ids.extend(b.submit_many(5).await);
        site.recover(&[&b, &a]).await;
        let others = b.claim_all("v").await;
        let all = held.iter().chain(&others).map(|lease| lease.job.id).collect::<Vec<_>>();
        assert_eq!((all.len(), all.into_iter().collect::<BTreeSet<_>>()), (ids.len(), ids.clone()), "{damage:?}");
        for (process, leases) in [(&a, held), (&b, others)] {
            process.settle_all(leases.into_iter().map(|lease| (lease, complete())).collect()).await;
        }
        assert!(a.claim_all("v").await.is_empty());
        assert_eq!(site.ask::<i64>(&["HLEN", ":index"]).await, 0);
    }
}

#[tokio::test]
async fn rule_4_a_redis_that_throws_keys_away_is_refused() {
    let server = servers::Server::redis();
    let link = server.link();
    link.check().await.expect("as it should be set up");
    server.say("CONFIG SET maxmemory-policy allkeys-lru");
    let why = link.check().await.expect_err("it may evict our keys");
    assert!(why.contains("CONFIG SET maxmemory-policy noeviction"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_5_no_leased_entry_is_ever_trimmed() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    a.submit_many(400).await;
    let mut held = Vec::new();
    while held.len() < 400 {
        let (of_a, of_b) = (a.claim("v", 7).await, b.claim("v", 7).await);
        assert!(!of_a.is_empty() || !of_b.is_empty(), "stuck at {}", held.len());
        held.extend(of_a.into_iter().map(|lease| (&a, lease)).chain(of_b.into_iter().map(|lease| (&b, lease))));
    }
    assert_eq!(site.in_stream().await.len(), 400);
    for (process, lease) in held {
        assert_eq!(process.settle(lease, failed()).await, Settled::Stored);
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/redis_mongo/index/lua");
    for script in std::fs::read_dir(folder).expect("the scripts") {
        let text = std::fs::read_to_string(script.expect("a file").path()).expect("text").to_uppercase();
        assert!(["'MAXLEN", "'MINID", "'XTRIM", "'BLOCK"].iter().all(|word| !text.contains(word)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_6_what_has_lapsed_is_reclaimed_however_much_was_given_back_before_it() {
    let site = Site::new();
    let wide = || vec![VendorWork { depth: 1000, ..work("v") }];
    let (a, b) = (site.process_for(wide(), &site.clock).await, site.process_for(wide(), &site.clock).await);
    a.submit_many(700).await;
    let mut leases = a.claim("v", 650).await;
    assert_eq!(leases.len(), 650);
    let last = leases.split_off(600);
    a.store.release(leases.into_iter().map(|lease| (lease, None)).collect()).await;
    // Given back long ago.
    let given_back: Vec<(String, String, i64, i64)> =
        site.ask(&["XPENDING", ":1:jobs", "workers", "-", "+", "999", "free"]).await;
    assert_eq!(given_back.len(), 600);
    for (entry, ..) in given_back {
        site.ask::<Vec<String>>(&["XCLAIM", ":1:jobs", "workers", "free", "0", &entry, "TIME", "0", "JUSTID"]).await;
    }
    assert_eq!(b.lapse().await, last.len(), "its worker is dead");
    assert_eq!(b.store.reclaim().await.unwrap(), 0);
    assert_eq!(b.claim_all("v").await.len(), 700);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_7_a_lease_is_kept_while_its_outcome_waits_for_the_store() {
    let site = Site::with_own_mongo();
    let (a, b) = (site.process().await, site.process().await);
    let id = a.submit().await;
    let lease = a.claim_one().await;
    assert_eq!(b.store.reclaim().await.unwrap(), 0);
    // Before which look it has been held, as its entry says it: in seconds, as its time of delivery.
    let held_since = async || {
        let server: (i64, i64) = site.ask(&["TIME"]).await;
        let pending: Vec<(String, String, i64, i64)> =
            site.ask(&["XPENDING", ":1:jobs", "workers", "-", "+", "9"]).await;
        (server.0 * 1000 + server.1 / 1000 - pending[0].2 + 500) / 1000
    };
    let claimed = held_since().await;
    site.mongo().freeze();
    wait_until("it is frozen", LONG, async || {
        tokio::time::timeout(Duration::from_millis(200), b.store.attempts(&Sees::All, id)).await.is_err().then_some(())
    })
    .await;
    let unsettled = a.try_settle(lease, complete()).await.expect_err("MongoDB does not answer");
    site.clock.advance(LEASE * 3);
    wait_until("the lease is kept", LONG, async || (held_since().await > claimed).then_some(())).await;
    site.mongo().thaw();
    wait_until("MongoDB is back", LONG, async || b.store.ready("v").await.ok()).await;
    let freed = wait_until("MongoDB is back", LONG, async || b.store.reclaim().await.ok()).await;
    assert_eq!(freed, 0);
    let settled = a.store.settle(*unsettled.lease, unsettled.change, unsettled.attempt).await;
    assert_eq!(settled.expect("MongoDB is back"), Settled::Stored);
    assert_eq!(b.status(id).await, Status::Complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_8_neither_a_bad_entry_nor_an_unreadable_job_stops_its_neighbours() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let before = a.submit_many(3).await;
    for bad in [&["x", "y"][..], &["id", "short"], &["id", "0123456789abcdef", "and", "more"]] {
        site.ask::<String>(&[&["XADD", ":1:jobs", "*"][..], bad].concat()).await;
    }
    // Of ours as it seems, but of no job.
    site.ask::<String>(&["XADD", ":1:jobs", "*", "id", "0123456789abcdef"]).await;
    let after = b.submit_many(3).await;
    // A job that a newer version wrote, perhaps.
    let database = mongodb::Client::with_uri_str(servers::mongo().mongo_url(&site.database())).await.unwrap();
    let jobs = database.database(&site.database()).collection::<Document>("jobs");
    let id = Binary { subtype: BinarySubtype::Generic, bytes: before[1].as_bytes().to_vec() };
    jobs.update_one(doc! { "_id": id }, doc! { "$set": { "stage": "unheard-of" } }).await.unwrap();
    let mut claimed = BTreeSet::new();
    for process in [&a, &b].into_iter().cycle().take(8) {
        for lease in process.claim("v", 3).await {
            claimed.insert(lease.job.id);
            assert_eq!(process.settle(lease, complete()).await, Settled::Stored);
        }
    }
    assert_eq!(claimed, [before[0], before[2]].into_iter().chain(after).collect());
    site.clock.advance(LEASE);
    assert_eq!(b.store.reclaim().await.unwrap(), 0, "nothing is held");
    let page = b.store.list(&Sees::All, &Filter::default(), Slice::page(None, 10)).await.unwrap();
    assert_eq!(page.jobs.len(), 5, "and the others can be listed");
    let asked: Vec<JobId> = before.iter().copied().cycle().take(30).collect();
    let found = join_all(asked.iter().map(|id| b.store.find(&Sees::All, *id, With::NEITHER))).await;
    for (id, found) in asked.iter().zip(found) {
        assert_eq!(
            found.is_err(),
            *id == before[1],
            "nor is it unknown to those who ask for it beside others: {found:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_8_entries_that_somebody_deletes_come_back_and_the_others_are_not_doubled() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let mut ids: BTreeSet<JobId> = a.submit_many(6).await.into_iter().collect();
    ids.remove(&a.claim("v", 1).await[0].job.id);
    let entries: Vec<(String, Vec<Vec<u8>>)> = site.ask(&["XRANGE", ":1:jobs", "-", "+"]).await;
    for (entry, _) in &entries[2..5] {
        assert_eq!(site.ask::<i64>(&["XDEL", ":1:jobs", entry]).await, 1);
    }
    // Lanes that nobody knows of are looked for now and then.
    site.clock.advance(Duration::from_secs(11));
    b.store.ready("v").await.unwrap();
    let claimed = b.claim_all("v").await;
    assert_eq!(claimed.len(), ids.len());
    assert_eq!(claimed.iter().map(|lease| lease.job.id).collect::<BTreeSet<_>>(), ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_8_a_job_whose_workers_die_is_given_up_and_one_that_goes_on_in_between_is_not() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let lose = async |times: usize| {
        for _ in 0..times {
            assert_eq!(a.claim("v", 1).await.len(), 1);
            assert_eq!(b.lapse().await, 1);
        }
    };
    let id = a.submit().await;
    lose(4).await;
    let lease = a.claim_one().await;
    a.settle(lease, fetchgate::job::lifecycle::Next::Call { due_at: site.now() }).await;
    lose(4).await;
    assert_eq!(b.status(id).await, Status::Pending, "what was before the last step is forgiven");
    lose(1).await;
    let job = b.find(id).await;
    assert_eq!((job.status, job.failure.unwrap().code), (Status::Failed, FailureCode::Crashed));
    assert!(a.claim_all("v").await.is_empty());
    let now = site.now();
    let replay = Box::new(move |job: &_| lifecycle::replay(job, now));
    b.store.amend(&Sees::All, Which::Id(id), now, replay).await.unwrap();
    lose(4).await;
    assert_eq!(b.status(id).await, Status::Pending, "a replay begins anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_9_a_holder_is_checked_at_settle_in_whichever_process() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let id = a.submit().await;
    let stale = a.claim_one().await;
    assert_eq!(b.lapse().await, 1);
    let fresh = b.claim_one().await;
    assert_eq!(a.settle(stale, failed()).await, Settled::TooLate);
    assert!(a.claim_all("v").await.is_empty(), "and does not take the entry from its holder");
    assert_eq!(b.settle(fresh, complete()).await, Settled::Stored);
    assert_eq!(a.status(id).await, Status::Complete);
    assert_eq!(site.ask::<i64>(&["XLEN", ":1:jobs"]).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_9_a_holder_of_a_lost_index_is_still_checked() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let id = a.submit().await;
    let stale = a.claim_one().await;
    site.lose_the_index().await;
    b.store.ready("v").await.unwrap();
    site.clock.advance(SHUT);
    b.store.ready("v").await.unwrap();
    // The holder did not say in time what it holds: the job goes again, and whoever stores first has made the call.
    let fresh = b.claim_all("v").await.pop().expect("it is free");
    let (first, second) = (attempt(&stale, a.now()).n, attempt(&fresh, b.now()).n);
    assert_eq!((first, second), (1, 1));
    assert_eq!(b.settle(fresh, failed()).await, Settled::Stored);
    assert_eq!(a.settle(stale, failed()).await, Settled::TooLate);
    assert_eq!(a.store.attempts(&Sees::All, id).await.unwrap().unwrap().iter().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_10_nobody_blocks_on_the_connection_that_all_share() {
    let site = Site::with_own_redis();
    let (a, b) = (site.process().await, site.process().await);
    let begun = std::time::Instant::now();
    let mut asking = JoinSet::new();
    for store in [a.store.clone(), b.store.clone()].into_iter().cycle().take(200) {
        asking.spawn(async move { store.ready("v").await.map(|ready| ready.next_due) });
    }
    for found in asking.join_all().await {
        assert_eq!(found.unwrap(), None);
    }
    assert!(begun.elapsed() < LONG);
    let clients: String = site.ask(&["INFO", "clients"]).await;
    assert!(clients.contains("blocked_clients:0"), "{clients}");
}
