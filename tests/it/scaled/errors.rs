//! What was wrong with a vendor's calls, as processes show it that make none.

use super::{LONG, World, pass};
use crate::failure::wait_until;
use std::time::Duration;

const VENDOR: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?status=422"
limits = []
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_process_shows_the_last_error_of_a_call_that_a_worker_made() {
    let world = World::new(VENDOR).await;
    let api = world.api().await;
    assert!(api.json("/vendors/sync").await["last_error"].is_null(), "nobody has called yet");
    let worker = world.worker().await;
    api.submit_many("sync", 1).await;
    let error = wait_until("the API shows the error", LONG, async || {
        let error = api.json("/vendors/sync").await["last_error"].clone();
        (!error.is_null()).then_some(error)
    })
    .await;
    assert_eq!((&error["code"], &error["vendor"]["status"]), (&"vendor_refused".into(), &422.into()), "{error}");
    assert!(error["at"].is_string(), "{error}");

    // One that comes within the same second is shown too, a second later.
    api.submit_many("sync", 1).await;
    wait_until("the API shows the later error", LONG, async || {
        (api.json("/vendors/sync").await["last_error"]["at"] != error["at"]).then_some(())
    })
    .await;
    drop(worker);
    pass(Duration::from_millis(10)).await;
    assert!(!api.json("/vendors/sync").await["last_error"].is_null(), "it is there without its worker");
}
