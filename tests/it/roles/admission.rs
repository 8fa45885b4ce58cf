//! Processes that accept jobs of the same tenant let in no more together than one would, but for what they have not heard yet.

use std::{sync::Arc, time::Duration};

use fetchgate::{
    admission::Admission,
    clock::Clock,
    config::{SubmitRate, Tenant, Tenants},
};

use crate::support::{START, database, servers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_let_in_what_one_may() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
    let process = || {
        let submit = Some(SubmitRate { jobs: 60, per: Duration::from_secs(60) });
        let others = Tenant { submit, ..Tenant::default() };
        let shared = Some((servers::redis().link(), database(&folder)));
        Admission::new(Tenants { others, ..Tenants::default() }, clock.clone(), shared)
    };
    let (a, b, tenant): (_, _, Arc<str>) = (process(), process(), "acme".into());
    let taken = |admission: &Admission| (0..100).take_while(|_| admission.take(&tenant).is_ok()).count();
    let exchange = async || {
        for admission in [&a, &b] {
            admission.exchange().await.expect("Redis is there");
        }
        // The first did not hear of what the second told.
        a.exchange().await.expect("Redis is there");
    };
    assert_eq!(taken(&a), 60);
    exchange().await;
    assert!(b.take(&tenant).is_ok(), "it has not heard of this tenant");
    exchange().await;
    assert_eq!((taken(&a), taken(&b)), (0, 0), "now it has");
    // One a second is let in from here on, by both together, and the one too many is made up for.
    let mut more = 0;
    for _ in 0..30 {
        clock.advance(Duration::from_secs(1));
        more += taken(&a) + taken(&b);
        exchange().await;
    }
    assert!((29..=31).contains(&more), "{more}");
}
