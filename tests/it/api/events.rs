//! What readers of events are told, when, and after what: cut off, restarted, slow, of another tenant, without a key.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fetchgate::store::events::EventId;
use hyper::Method;
use serde_json::{Value, json};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::access::{ADMIN, ask, keyed, make_key, submit};
use crate::{
    failure::{self, LONG, SYNC_AND_WEBHOOK, wait_until},
    on_every_backend,
    support::{
        Backend, TestApp, openapi,
        stream::{EventStream, Seen, Told, ended, read_for_ever},
    },
};

on_every_backend!(
    what_a_vendor_accepts_and_what_ends_is_told,
    another_poll_is_no_event,
    a_stream_shows_what_it_was_asked_for,
    the_stream_of_one_job_ends_with_the_job,
    a_reader_goes_on_where_it_was_cut_off,
    over_two_hundred_a_second_a_count_stands_for_the_rest,
    a_tenant_is_told_of_its_own_jobs_only,
    a_stream_ends_with_its_key,
    a_reader_that_is_too_far_behind_begins_anew,
    what_a_slow_reader_missed_is_read_again,
    an_idle_line_gets_comments_that_say_how_far_it_is,
);

const VENDORS: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync"
limits = []
[vendors.bad]
kind = "sync"
url = "VENDORS/sync/bad?status=400"
limits = []
[vendors.hook]
kind = "webhook"
url = "VENDORS/async/hook?never"
limits = []
[vendors.polling]
kind = "polling"
url = "VENDORS/polling"
limits = []
polling = { ticket = "/id", url = "VENDORS/polling/polling/{{ ticket | path }}", every = "2s", done = { at = "/state", is = ["done"] }, result = "/output" }
"#;

/// The id that is before all events.
const LONG_AGO: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

async fn listen(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> EventStream {
    let stream = EventStream::try_open(app.url.trim_start_matches("http://"), path, headers).await.expect("an answer");
    assert_eq!(stream.status(), "200", "{}", stream.head);
    stream
}

/// Goes on after the last id that another stream has got.
async fn go_on(app: &TestApp, path: &str, last: &EventStream) -> EventStream {
    listen(app, path, &[("last-event-id", last.last_id.as_deref().expect("an id"))]).await
}

/// The next event: of which job, and what became of it.
async fn next(app: &TestApp, stream: &mut EventStream) -> (String, String) {
    of(&stream.next_while_time_passes(app).await.expect("an event"))
}

fn of(told: &Told) -> (String, String) {
    assert_eq!(told.event, "job", "{told:?}");
    let text = |name: &str| told.data[name].as_str().expect("a text").to_owned();
    (text("request_id"), text("status"))
}

fn is(id: &str, status: &str) -> (String, String) {
    (id.to_owned(), status.to_owned())
}

/// A job of this vendor, after all is done that can be.
async fn run(app: &mut TestApp, vendor: &str) -> String {
    let id = app.submit(vendor, "1").await;
    app.run_until_idle().await;
    id
}

async fn what_a_vendor_accepts_and_what_ends_is_told(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    let mut events = listen(&app, "/events", &[]).await;
    assert!(events.head.contains("content-type: text/event-stream\r\n"), "{}", events.head);
    assert!(events.head.contains("cache-control: no-store\r\n"), "{}", events.head);
    let sync = run(&mut app, "sync").await;
    let told = events.next_while_time_passes(&app).await.expect("an event");
    let at = app.find(&sync).await["updated_at"].clone();
    let data = json!({"request_id": sync, "vendor": "sync", "tenant": "default", "status": "complete", "at": at});
    assert_eq!((told.event.as_str(), &told.data), ("job", &data));
    let misfit = openapi::misfit(&openapi::file()["components"]["schemas"]["JobEvent"], &told.data);
    assert!(misfit.is_none(), "{misfit:?}");

    let hook = run(&mut app, "hook").await;
    assert_eq!(next(&app, &mut events).await, is(&hook, "processing"));
    let path = app.callback_path("hook", 0);
    assert_eq!(app.post(&path, r#"{"result": 1}"#).await.status, 200);
    assert_eq!(next(&app, &mut events).await, is(&hook, "complete"));
    let bad = run(&mut app, "bad").await;
    assert_eq!(next(&app, &mut events).await, is(&bad, "failed"));
    let later = app.submit_with(r#"{"vendor": "sync", "payload": 1, "not_before": "1h"}"#).await;
    app.send(Method::POST, &format!("/jobs/{later}/cancel"), &[], "").await;
    assert_eq!(next(&app, &mut events).await, is(&later, "cancelled"));
    app.send(Method::POST, &format!("/jobs/{later}/replay"), &[], "").await;
    app.run_until_idle().await;
    assert_eq!(next(&app, &mut events).await, is(&later, "complete"), "that it waits again is no event");
    app.stop().await;
    assert_eq!(events.next().await, None, "a service that stops ends its streams");
}

async fn another_poll_is_no_event(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    let mut events = listen(&app, "/events", &[]).await;
    let id = app.submit("polling", "1").await;
    app.run_for(Duration::from_secs(1)).await;
    assert_eq!(next(&app, &mut events).await, is(&id, "processing"));
    app.run_until_idle().await;
    assert!(app.calls("polling") > 2, "it was asked again");
    assert_eq!(next(&app, &mut events).await, is(&id, "complete"));
    app.stop().await;
}

async fn a_stream_shows_what_it_was_asked_for(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    let filters = ["vendor=bad", "status=failed", "tag=blue", "tenant=acme", "vendor=sync&tag=blue"];
    let mut streams = Vec::new();
    for filter in filters {
        streams.push(listen(&app, &format!("/events?{filter}"), &[]).await);
    }
    let mut ids = Vec::new();
    for job in [
        r#"{"vendor": "sync", "payload": 1, "tags": ["red"], "tenant": "x"}"#,
        r#"{"vendor": "sync", "payload": 1, "tags": ["red", "blue"]}"#,
        r#"{"vendor": "sync", "payload": 1, "tenant": "acme"}"#,
        r#"{"vendor": "bad", "payload": 1}"#,
        r#"{"vendor": "bad", "payload": 1, "tags": ["blue"], "tenant": "acme"}"#,
        r#"{"vendor": "sync", "payload": 1, "tags": ["blue"]}"#,
    ] {
        ids.push(app.submit_with(job).await);
        app.run_until_idle().await;
    }
    let wanted: [&[usize]; 5] = [&[3, 4], &[3, 4], &[1, 4, 5], &[2, 4], &[1, 5]];
    for ((filter, mut stream), wanted) in filters.into_iter().zip(streams).zip(wanted) {
        for which in wanted {
            assert_eq!(next(&app, &mut stream).await.0, ids[*which], "{filter}");
        }
    }
    for wrong in ["status=pending", "status=done", "vendor=", "limit=1"] {
        let answer = app.get(&format!("/events?{wrong}")).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (422, "invalid_parameter"), "{wrong}");
    }
    app.stop().await;
}

async fn the_stream_of_one_job_ends_with_the_job(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    let id = app.submit("hook", "1").await;
    let path = format!("/jobs/{id}/events");
    let mut own = listen(&app, &path, &[]).await;
    run(&mut app, "sync").await;
    assert_eq!(next(&app, &mut own).await, is(&id, "processing"));
    let mut late = listen(&app, &path, &[]).await;
    assert_eq!(next(&app, &mut late).await, is(&id, "processing"), "it says how the job is");
    let mut informed = go_on(&app, &path, &late).await;
    assert_eq!(app.post(&app.callback_path("hook", 0), r#"{"result": 1}"#).await.status, 200);
    for stream in [&mut own, &mut late, &mut informed] {
        assert_eq!(next(&app, stream).await, is(&id, "complete"));
        assert_eq!(stream.next_while_time_passes(&app).await, None);
    }
    let mut after = listen(&app, &path, &[]).await;
    assert_eq!(next(&app, &mut after).await, is(&id, "complete"));
    assert_eq!((after.next().await, &after.last_id), (None, &own.last_id), "the same event has the same id");
    assert_eq!(go_on(&app, &path, &after).await.next().await, None);

    let waiting = app.submit_with(r#"{"vendor": "sync", "payload": 1, "not_before": "1d"}"#).await;
    let mut own = listen(&app, &format!("/jobs/{waiting}/events"), &[]).await;
    app.send(Method::POST, &format!("/jobs/{waiting}/cancel"), &[], "").await;
    app.send(Method::DELETE, &format!("/jobs/{waiting}"), &[], "").await;
    assert_eq!(own.next_while_time_passes(&app).await, None, "its job was deleted");
    let unknown = app.get(&format!("/jobs/{waiting}/events")).await;
    assert_eq!((unknown.status.as_u16(), unknown.code().as_str()), (404, "unknown_job"));
    app.stop().await;
}

async fn a_reader_goes_on_where_it_was_cut_off(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    let mut early = listen(&app, "/events", &[]).await;
    let first = early.next_of_all().await.expect("an id, before any event");
    assert!(first.id.is_some() && first.event.is_empty(), "{first:?}");
    let mut events = listen(&app, "/events", &[]).await;
    let mut ids = vec![run(&mut app, "sync").await];
    let told = events.next_while_time_passes(&app).await.expect("an event");
    assert_eq!(of(&told), is(&ids[0], "complete"));
    for vendor in ["bad", "hook", "sync"] {
        ids.push(run(&mut app, vendor).await);
    }
    let mut app = app.crash_and_restart().await;
    let mut goes_on = go_on(&app, "/events", &events).await;
    let mut from_the_start = go_on(&app, "/events", &early).await;
    ids.push(run(&mut app, "sync").await);
    // Over MongoDB the last two seconds come again.
    let mut seen = BTreeMap::from([(told.id.expect("an id"), ids[0].clone())]);
    while seen.len() < ids.len() {
        let told = goes_on.next_while_time_passes(&app).await.expect("an event");
        let (job, _) = of(&told);
        let before = seen.insert(told.id.expect("an id"), job.clone());
        assert!(before.is_none_or(|before| before == job), "what comes twice has the same id");
    }
    assert_eq!(seen.into_values().collect::<BTreeSet<_>>(), ids.iter().cloned().collect());
    for id in &ids {
        assert_eq!(next(&app, &mut from_the_start).await.0, *id, "in their order");
    }
    app.stop().await;
}

async fn over_two_hundred_a_second_a_count_stands_for_the_rest(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    let mut events = listen(&app, "/events?vendor=sync", &[]).await;
    let job = |i: usize| json!({"vendor": if i.is_multiple_of(10) { "bad" } else { "sync" }, "payload": i});
    let batch: Vec<Value> = (0..400).map(job).collect();
    assert_eq!(app.post("/jobs/batch", json!(batch).to_string()).await.json()["accepted"], 400);
    app.run_until_idle().await;
    let mut seen = BTreeSet::new();
    let lag = loop {
        let told = events.next_while_time_passes(&app).await.expect("an event");
        if told.event != "job" {
            break told;
        }
        seen.insert(of(&told).0);
    };
    assert_eq!((lag.event.as_str(), &lag.id, &lag.data), ("lag", &None, &json!({"missed": 160})));
    assert_eq!(seen.len(), 200);
    let mut rest = go_on(&app, "/events?vendor=sync", &events).await;
    while seen.len() < 360 {
        seen.insert(next(&app, &mut rest).await.0);
    }
    let more = run(&mut app, "sync").await;
    assert_eq!(next(&app, &mut events).await.0, more, "the stream goes on");
    app.stop().await;
}

async fn a_tenant_is_told_of_its_own_jobs_only(backend: Backend) {
    let mut app = TestApp::with(backend, &keyed("")).await;
    let mut keys = Vec::new();
    for tenant in ["acme", "rival"] {
        keys.push(make_key(&app, &json!({"name": tenant, "tenant": tenant, "scopes": ["submit", "read"]})).await.1);
    }
    let bearers: Vec<String> = keys.iter().map(|key| format!("Bearer {key}")).collect();
    let admin = format!("Bearer {ADMIN}");
    let mut own = listen(&app, "/events", &[("authorization", &bearers[0])]).await;
    let mut others = listen(&app, "/events", &[("authorization", &bearers[1])]).await;
    let mut all = listen(&app, "/events", &[("authorization", &admin)]).await;
    let mut named = listen(&app, "/events?tenant=rival", &[("authorization", &admin)]).await;
    let mut ids = Vec::new();
    for key in [&keys[0], &keys[1], &keys[0]] {
        ids.push(submit(&app, key, r#"{"vendor": "one", "payload": 1}"#).await);
        app.run_until_idle().await;
    }
    for (stream, wanted) in [
        (&mut own, [0, 2].as_slice()),
        (&mut others, [1].as_slice()),
        (&mut all, [0, 1, 2].as_slice()),
        (&mut named, [1].as_slice()),
    ] {
        for which in wanted {
            assert_eq!(next(&app, stream).await.0, ids[*which]);
        }
    }
    let other = ask(&app, &keys[1], Method::GET, "/events?tenant=acme", "").await;
    assert_eq!((other.status.as_u16(), other.code().as_str()), (403, "forbidden"));
    let unknown = ask(&app, &keys[1], Method::GET, &format!("/jobs/{}/events", ids[0]), "").await;
    assert_eq!((unknown.status.as_u16(), unknown.code().as_str()), (404, "unknown_job"));
    app.stop().await;
}

async fn a_stream_ends_with_its_key(backend: Backend) {
    let app = TestApp::with(backend, &keyed("")).await;
    let id = submit(&app, ADMIN, r#"{"vendor": "one", "payload": 1, "tenant": "acme", "not_before": "1h"}"#).await;
    for path in ["/events".to_owned(), format!("/jobs/{id}/events")] {
        for is_deleted in [true, false] {
            let body = json!({"name": "k", "tenant": "acme", "scopes": ["read"], "expires_in": "1m"});
            let (key_id, key) = make_key(&app, &body).await;
            let bearer = format!("Bearer {key}");
            let mut stream = listen(&app, &path, &[("authorization", &bearer)]).await;
            if is_deleted {
                assert_eq!(ask(&app, ADMIN, Method::DELETE, &format!("/keys/{key_id}"), "").await.status, 204);
            } else {
                app.clock.advance(Duration::from_secs(60));
            }
            app.clock.advance(Duration::from_secs(1));
            let end = tokio::time::timeout(LONG, stream.next()).await.expect("the end within a second");
            assert_eq!(end, None, "{path}");
            assert_eq!(ask(&app, &key, Method::GET, &path, "").await.status, 401);
        }
    }
    app.stop().await;
}

async fn a_reader_that_is_too_far_behind_begins_anew(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    // The server that stands in for MongoDB reads all that a statement could find, so it gets few.
    let old = if backend == Backend::Sqlite { 100_000 } else { 2_000 };
    app.store_old_events(old).await;
    let mut reads = listen(&app, "/events", &[("last-event-id", LONG_AGO)]).await;
    let mut seen = BTreeSet::new();
    for _ in 0..1000 {
        let told = reads.next().await.expect("an event");
        assert!(seen.insert(told.id.clone()), "{told:?}");
        assert_eq!(told.data["tenant"], "old");
    }
    drop(reads);
    run(&mut app, "sync").await;
    for (most, counted) in [(10, 10), (200_000, old as u64 + 1)] {
        assert_eq!(app.app.events.count_after(EventId::FIRST, most).await.ok(), Some(counted));
    }
    let too_far: &[&str] = if backend == Backend::Sqlite { &[LONG_AGO, "not-an-id"] } else { &["not-an-id"] };
    for last in too_far {
        let mut anew = listen(&app, "/events", &[("last-event-id", last)]).await;
        let told = anew.next().await.expect("an event");
        assert_eq!((told.event.as_str(), told.id.is_some(), &told.data), ("reset", true, &json!({})), "{last}");
        let id = run(&mut app, "sync").await;
        // What was stored right before may come too.
        while next(&app, &mut anew).await.0 != id {}
    }
    app.stop().await;
}

async fn what_a_slow_reader_missed_is_read_again(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    let old = 4_000;
    app.store_old_events(old).await;
    let address = app.url.trim_start_matches("http://").parse().expect("an address");
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("set");
    let connection: TcpStream = socket.connect(address).await.expect("the service listens");
    // It does not read, and what it has asked for fills all buffers.
    let asked = EventStream::on(connection, "/events", &[("last-event-id", LONG_AGO)]).await;
    let mut slow = asked.expect("an answer");
    let mut quick = listen(&app, "/events", &[]).await;
    let mut ids = BTreeSet::new();
    // More than is kept for it.
    for _ in 0..20 {
        let id = run(&mut app, "sync").await;
        assert_eq!(next(&app, &mut quick).await.0, id);
        ids.insert(id);
    }
    let (mut seen, all) = (BTreeSet::new(), old + ids.len());
    while seen.len() < all {
        let told = slow.next_while_time_passes(&app).await.expect("an event");
        ids.remove(&of(&told).0);
        seen.insert(told.id);
    }
    assert!(ids.is_empty(), "{ids:?}");
    let id = run(&mut app, "sync").await;
    while next(&app, &mut slow).await.0 != id {}
    app.stop().await;
}

async fn an_idle_line_gets_comments_that_say_how_far_it_is(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    let mut events = listen(&app, "/events?status=failed", &[]).await;
    let begun = events.next_of_all().await.expect("an id").id;
    let unseen = run(&mut app, "sync").await;
    let mut all = listen(&app, "/events", &[("last-event-id", LONG_AGO)]).await;
    assert_eq!(next(&app, &mut all).await.0, unseen);
    app.clock.advance(Duration::from_secs(15));
    let comment = loop {
        // Until the event that is not shown has been passed.
        let told = tokio::time::timeout(LONG, events.next_of_all()).await.expect("a comment").expect("it goes on");
        assert!(told.is_comment && told.event.is_empty(), "{told:?}");
        if told.id != begun {
            break told;
        }
        app.clock.advance(Duration::from_secs(15));
    };
    assert_eq!(comment.data, Value::Null);
    let later = run(&mut app, "bad").await;
    let mut after = go_on(&app, "/events", &events).await;
    // Over MongoDB the last two seconds come again.
    let is_known = |told: &(String, String)| backend == Backend::RedisMongo && told.0 == unseen;
    let mut told = next(&app, &mut after).await;
    while is_known(&told) {
        told = next(&app, &mut after).await;
    }
    assert_eq!(told, is(&later, "failed"), "it need not go further back");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_bounds_no_stream_is_opened_until_another_is_closed() {
    let app = TestApp::with(Backend::Sqlite, &keyed("")).await;
    let mut keys = Vec::new();
    for tenant in ["acme", "rival"] {
        keys.push(make_key(&app, &json!({"name": tenant, "tenant": tenant, "scopes": ["read"]})).await.1);
    }
    let bearer = format!("Bearer {}", keys[0]);
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(listen(&app, "/events", &[("authorization", &bearer)]).await);
    }
    let full = ask(&app, &keys[0], Method::GET, "/events", "").await;
    assert_eq!((full.status.as_u16(), full.code().as_str()), (429, "too_many_streams"));
    assert_eq!(full.header("retry-after"), "5");
    listen(&app, "/events", &[("authorization", &format!("Bearer {}", keys[1]))]).await;
    open.pop();
    let address = app.url.trim_start_matches("http://");
    wait_until("a place", LONG, async || {
        let stream = EventStream::try_open(address, "/events", &[("authorization", &bearer)]).await?;
        (stream.status() == "200").then_some(())
    })
    .await;
    let free = &app.app.events.free_streams;
    wait_until("the others are closed", LONG, async || (free.available_permits() == 901).then_some(())).await;
    let taken = free.try_acquire_many(u32::try_from(free.available_permits()).expect("hundreds"));
    let full = ask(&app, &keys[1], Method::GET, "/events", "").await;
    assert_eq!((full.status.as_u16(), full.code().as_str()), (503, "over_capacity"));
    assert_eq!(full.header("retry-after"), "5");
    drop((taken, open));
    wait_until("room for more", LONG, async || (free.available_permits() > 900).then_some(())).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_misses_nothing_when_the_process_is_killed() {
    let world = failure::World::new(SYNC_AND_WEBHOOK).await;
    let seen = Seen::default();
    let mut reading = JoinSet::new();
    let mut process = world.start().await;
    reading.spawn(read_for_ever(world.address(), seen.clone()));
    for round in 1..=3 {
        process.submit_many("sync", 60).await;
        process.submit_many("hook", 20).await;
        wait_until("some have ended", LONG, async || (ended(&seen).len() > round * 20).then_some(())).await;
        process.kill();
        process = world.start().await;
    }
    let jobs: BTreeSet<String> = process.all_jobs().await.into_keys().collect();
    for id in &jobs {
        process.ended(id).await;
    }
    wait_until("all were seen", LONG, async || (ended(&seen) == jobs).then_some(())).await;
    assert!(reading.try_join_next().is_none(), "the reader has broken off");
    reading.shutdown().await;
}
