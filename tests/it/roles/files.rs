//! Processes whose files have different limits, as while a new config is rolled out: the stricter of all hold, until one is gone.

use std::{sync::Arc, time::Duration};

use fetchgate::{
    api::App,
    clock::{Clock, nanos},
    config::{self, write_limits},
    in_force::FOLLOW_EVERY,
    limit::Answer,
    roles::Roles,
    service::Service,
};
use mongodb::bson::{Document, doc};
use tempfile::TempDir;

use crate::{
    limit::most_in_any_window,
    support::{START, database, servers},
};

/// A process over the folder's database whose file has these limits. The test says when it looks at the book.
async fn process(folder: &TempDir, clock: &Clock, limits: &str) -> Arc<App> {
    let (mongo, redis) = (servers::mongo().mongo_url(&database(folder)), servers::redis().redis_url());
    let text = format!(
        "[store]\nurl = \"{mongo}\"\n[queue]\nurl = \"{redis}\"\n\
         [vendors.one]\nkind = \"sync\"\nurl = \"http://127.0.0.1:9\"\nlimits = {limits}\n"
    );
    let config = config::parse(&text, "test", std::iter::empty()).unwrap_or_else(|error| panic!("{error}"));
    Service::build(&config, Roles::Both, clock.clone()).await.expect("the service").into_parts().0
}

fn in_force(app: &App) -> Vec<String> {
    let terms = app.limits.get("one").expect("a pool");
    let mut ids: Vec<String> = terms.limits.iter().map(|limit| limit.id.to_string()).collect();
    ids.sort();
    ids
}

async fn follow(app: &App) {
    app.limits.follow(&*app.limiter).await.expect("the book is there");
}

async fn end(app: &App) {
    app.limits.stop().await.expect("the book is there");
    app.limiter.stop().await.expect("stopped");
    app.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_files_differ_the_stricter_limits_hold_in_every_process() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
    let old = process(&folder, &clock, r#"["40/s", "100/h"]"#).await;
    assert_eq!(in_force(&old), ["100/h", "40/s"]);
    let new = process(&folder, &clock, r#"["20/s", "200/h", "9/5s"]"#).await;
    assert_eq!(in_force(&new), ["100/h", "20/s", "9/5s"], "before its first permit");
    follow(&old).await;
    assert_eq!(in_force(&old), in_force(&new), "a second later");
    let order = |app: &App| write_limits(&app.limits.get("one").expect("a pool").limits);
    assert_eq!(order(&old), order(&new));
    end(&new).await;
    follow(&old).await;
    assert_eq!(in_force(&old), ["100/h", "40/s"], "the other has stopped");
    end(&old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vendor_sees_no_more_than_the_stricter_file_allows() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
    let old = process(&folder, &clock, r#"["40/s"]"#).await;
    let new = process(&folder, &clock, r#"["20/s"]"#).await;
    follow(&old).await;
    for app in [&old, &new] {
        app.limiter.outlook("one", 0, 1).await.expect("the limiter works");
    }
    clock.advance(Duration::from_secs(10));
    let mut times = Vec::new();
    for _ in 0..100 {
        for app in [&old, &new] {
            let until = clock.nanos() + nanos(Duration::from_millis(100));
            let wishes = vec![Arc::from("default"); 10];
            for answer in app.limiter.reserve("one", &wishes, until).await.expect("the limiter works") {
                if let Answer::Granted(permit) = answer {
                    times.push(permit.at);
                }
            }
        }
        clock.advance(Duration::from_millis(50));
    }
    let (worst, all) = (most_in_any_window(times.clone(), nanos(Duration::from_secs(1))), times.len());
    assert!(worst <= 20 && all >= 98, "{worst} in a second, {all} in five");
    end(&new).await;
    end(&old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limits_of_a_process_that_died_hold_for_three_more_looks() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
    let dead = process(&folder, &clock, r#"["20/s"]"#).await;
    let alive = process(&folder, &clock, r#"["40/s"]"#).await;
    for _ in 0..2 {
        clock.advance(FOLLOW_EVERY);
        // However often it looks meanwhile, because somebody says that the book has changed.
        for _ in 0..5 {
            follow(&alive).await;
            assert_eq!(in_force(&alive), ["20/s"]);
        }
    }
    clock.advance(FOLLOW_EVERY);
    follow(&alive).await;
    assert_eq!(in_force(&alive), ["40/s"]);
    // It was not dead but slow, and says that it lives.
    follow(&dead).await;
    follow(&alive).await;
    assert_eq!((in_force(&alive), in_force(&dead)), (vec!["20/s".to_owned()], vec!["20/s".to_owned()]));
    end(&dead).await;
    end(&alive).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_crashed_processes_are_deleted_once_they_are_no_longer_listed() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
    for (wait, reports) in [(0, 1), (30, 2), (20, 3), (20, 3), (61, 1)] {
        clock.advance(Duration::from_secs(wait * 60));
        // Nobody stops it in good order.
        let crashed = process(&folder, &clock, r#"["40/s"]"#).await;
        let kept = collection(&folder, "processes").await.count_documents(doc! {}).await;
        assert_eq!(kept.expect("MongoDB is there"), reports);
        crashed.store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_live_in_one_process_replaces_the_files_of_all() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
    let here = process(&folder, &clock, r#"["40/s"]"#).await;
    let there = process(&folder, &clock, r#"["20/s"]"#).await;
    let limits = config::parse_limits(r#"["60/s"]"#).expect("limits");
    let any = fetchgate::in_force::Expected::Any;
    assert!(
        here.limits.set_live(&*here.limiter, "one", &any, Some(&limits), "the test").await.expect("the book is there")
    );
    follow(&there).await;
    assert_eq!((in_force(&here), in_force(&there)), (vec!["60/s".to_owned()], vec!["60/s".to_owned()]));
    let usage = there.limiter.usage("one").await;
    assert_eq!(&*usage[0].limit.id, "60/s", "the limiter has them too");
    assert!(there.limits.set_live(&*there.limiter, "one", &any, None, "the test").await.expect("the book is there"));
    follow(&here).await;
    assert_eq!((in_force(&here), in_force(&there)), (vec!["20/s".to_owned()], vec!["20/s".to_owned()]));
    end(&here).await;
    end(&there).await;
}

async fn collection(folder: &TempDir, name: &str) -> mongodb::Collection<Document> {
    let uri = servers::mongo().mongo_url(&database(folder));
    let client = mongodb::Client::with_uri_str(uri).await.expect("a URI");
    client.database(&database(folder)).collection(name)
}

/// A newer version has written this document; its kind of limit nobody knows yet.
async fn write(folder: &TempDir, name: &str, document: Document) {
    collection(folder, name).await.insert_one(document).await.expect("MongoDB is there");
}

const UNKNOWN: &str = r#"{"calls": 5, "per": "1s", "shape": "spiral"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_newer_versions_file_what_is_known_holds_and_everything_else_is_followed() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
    let app = process(&folder, &clock, r#"["40/s", "100/h"]"#).await;
    let limits = format!(r#"{{"one": ["20/s", {UNKNOWN}, "9/5s"], "two": "all"}}"#);
    write(&folder, "processes", doc! { "_id": "newer", "beat": 1_i64, "limits": limits }).await;
    follow(&app).await;
    assert_eq!(in_force(&app), ["100/h", "20/s", "9/5s"]);
    let third = process(&folder, &clock, r#"["10/s"]"#).await;
    follow(&app).await;
    assert_eq!(in_force(&app), ["10/s", "100/h", "9/5s"], "the others are followed as before");
    end(&third).await;
    for _ in 0..4 {
        clock.advance(FOLLOW_EVERY);
        follow(&app).await;
    }
    assert_eq!(in_force(&app), ["100/h", "40/s"], "it is silent, and gone");
    end(&app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_limits_set_by_a_newer_version_the_known_ones_apply_with_the_files() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
    let app = process(&folder, &clock, r#"["40/s", "100/h"]"#).await;
    let limits = format!(r#"["30/s", {UNKNOWN}]"#);
    write(&folder, "live_limits", doc! { "_id": "one", "version": 3_i64, "limits": limits, "since": START.0 }).await;
    follow(&app).await;
    assert_eq!(in_force(&app), ["100/h", "30/s"]);
    let begun = process(&folder, &clock, r#"["40/s", "100/h"]"#).await;
    assert_eq!(in_force(&begun), ["100/h", "30/s"]);
    let (limits, any) = (config::parse_limits(r#"["60/s"]"#).expect("limits"), fetchgate::in_force::Expected::Any);
    assert!(
        begun
            .limits
            .set_live(&*begun.limiter, "one", &any, Some(&limits), "the test")
            .await
            .expect("the book is there")
    );
    follow(&app).await;
    assert_eq!((in_force(&app), in_force(&begun)), (vec!["60/s".to_owned()], vec!["60/s".to_owned()]));
    end(&begun).await;
    end(&app).await;
}
