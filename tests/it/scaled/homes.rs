//! Each vendor has a home among the workers, and another one as soon as that worker is missed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{LONG, Process, World, all_complete, counter};
use crate::failure::wait_until;

const VENDORS: usize = 60;

/// Submits a job to every vendor.
async fn submit_to_all(api: &Process) {
    let batch: Vec<Value> = (0..VENDORS).map(|i| json!({"vendor": format!("v{i}"), "payload": i})).collect();
    let (status, body) = api.send("POST", "/jobs/batch", json!(batch).to_string()).await.expect("an answer");
    assert_eq!(status, 202, "{}", String::from_utf8_lossy(&body));
}

/// How many vendors' jobs this worker has completed.
async fn vendors_of(worker: &Process) -> usize {
    let mut of_it = 0;
    for i in 0..VENDORS {
        let ended = format!("fetchgate_jobs_ended_total{{vendor=\"v{i}\",status=\"complete\"}}");
        of_it += usize::from(counter(worker, &ended).await > 0);
    }
    of_it
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_home_of_many_vendors_is_killed_their_jobs_start_elsewhere_within_five_seconds() {
    let vendor = |i| {
        format!(
            "[vendors.v{i}]\nkind = \"sync\"\nurl = \"VENDORS/sync\"\nlimits = [\"50/s\", \"2000/m\"]\ntimeout = \"30s\"\n"
        )
    };
    let world = World::new(&(0..VENDORS).map(vendor).collect::<String>()).await;
    let (api, dying, other) = (world.api().await, world.worker().await, world.worker().await);
    wait_until("both are on the list for longer than it takes to miss one", LONG, async || {
        let said: BTreeMap<String, u64> = world.ask_redis(&["HGETALL", "fetchgate:work:workers"]).await;
        (said.len() == 2 && said.values().all(|count| *count >= 5)).then_some(())
    })
    .await;
    submit_to_all(&api).await;
    all_complete(&api, LONG).await;
    let (before, of_dying) = (vendors_of(&other).await, vendors_of(&dying).await);
    assert!(before + of_dying >= VENDORS && of_dying > VENDORS / 5, "both are homes: {before} and {of_dying}");

    dying.kill();
    let killed = Instant::now();
    submit_to_all(&api).await;
    world.called("sync", 2 * VENDORS as u64).await;
    let took = killed.elapsed();
    eprintln!("{of_dying} vendors had their home there; all were called again after {took:?}");
    assert!(took < Duration::from_secs(5), "a vendor waited for its home: {took:?}");
    assert_eq!(all_complete(&api, LONG).await, 2 * VENDORS);
}
