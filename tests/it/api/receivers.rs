//! Receivers of result webhooks that are silent, down, slow or hostile: none of them costs another receiver anything.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fetchgate::{
    clock::nanos,
    config::Tenants,
    guard::Guard,
    result_webhooks::{Context, Deliverer, Parts, secrets::Secrets},
};
use futures_util::FutureExt as _;
use hyper::Method;
use mock_vendors::MockVendors;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::result_webhooks::{ONE, header, ids, submit, submit_to, webhook};
use crate::{
    failure::free_address,
    on_every_backend,
    support::{
        Answer, Backend, TestApp,
        raw::{Raw, RawVendor},
        sign::standard_v1,
    },
};

on_every_backend!(
    prompt_receivers_have_places_that_silent_ones_cannot_take,
    every_receiver_has_its_turn_however_many_fail,
    a_receiver_that_is_down_for_an_hour_gets_everything_afterwards,
    an_answer_is_its_head_whatever_comes_after_it,
    a_redirect_is_not_followed,
    a_url_of_two_kibibytes_is_sent_to_as_it_is,
    a_clock_that_is_set_keeps_nothing_back_and_sends_nothing_twice,
    each_tenant_has_its_own_secret_and_sends_only_its_own_again,
    a_tenant_holds_up_no_other_at_the_same_host,
    jobs_that_cannot_be_read_hold_up_no_other,
    a_name_that_leads_to_a_private_address_is_never_connected_to,
    a_name_that_changes_its_address_is_looked_at_again,
);

/// Announcements may also go to these origins.
async fn allowing(backend: Backend, origins: &[String]) -> TestApp {
    let allowed: String = origins.iter().map(|origin| format!(", \"{origin}\"")).collect();
    TestApp::with(backend, &ONE.replace("\"VENDORS\"]", &format!("\"VENDORS\"{allowed}]"))).await
}

/// Many origins at one port. Their names come before those of all mock vendors, which are at 127.0.0.1.
fn origins(port: u16) -> Vec<String> {
    (0..40).map(|n| format!("http://127.0.0.{}:{port}", 100 + n)).collect()
}

async fn prompt_receivers_have_places_that_silent_ones_cannot_take(backend: Backend) {
    // The system takes the connections, and nobody reads them.
    let silent = TcpListener::bind("0.0.0.0:0").await.expect("a port");
    let origins = origins(silent.local_addr().expect("the port").port());
    let mut app = allowing(backend, &origins).await;
    submit(&app, "sync", "/sync/hook").await;
    app.run_until_idle().await;
    app.announce().await;
    assert_eq!(ids(&app, "hook").len(), 1);
    for origin in &origins {
        submit_to(&app, "sync", &format!("{origin}/hook")).await;
    }
    for _ in 0..20 {
        submit(&app, "sync", "/sync/hook").await;
    }
    app.run_until_idle().await;
    let announced = async {
        while ids(&app, "hook").len() < 21 {
            app.begin_announcing().await;
        }
    };
    // Less than the time that the silent ones have to answer.
    tokio::time::timeout(Duration::from_secs(10), announced).await.expect("the silent ones are not waited for");
    app.stop().await;
}

async fn every_receiver_has_its_turn_however_many_fail(backend: Backend) {
    let down = TcpListener::bind("0.0.0.0:0").await.and_then(|free| free.local_addr()).expect("a port");
    let origins = origins(down.port());
    let mut app = allowing(backend, &origins).await;
    let mut jobs = Vec::new();
    for origin in &origins {
        jobs.push(submit_to(&app, "sync", &format!("{origin}/hook")).await);
    }
    app.run_until_idle().await;
    for _ in 0..6 {
        app.announce_once().await;
        app.advance(Duration::from_secs(120)).await;
    }
    for id in &jobs {
        let told = webhook(&app, id).await;
        assert!(told["attempts"].as_u64().expect("a number") >= 3, "{told}");
    }
    app.stop().await;
}

async fn a_receiver_that_is_down_for_an_hour_gets_everything_afterwards(backend: Backend) {
    const OWED: usize = 60;
    const MINUTE: Duration = Duration::from_secs(60);
    let down = free_address();
    let mut app = allowing(backend, &[format!("http://{down}")]).await;
    let mut owed = Vec::new();
    for _ in 0..OWED {
        owed.push(submit_to(&app, "sync", &format!("http://{down}/sync/back")).await);
    }
    app.run_until_idle().await;
    for minute in 1..=60 {
        submit(&app, "sync", "/sync/hook").await;
        app.run_until_idle().await;
        app.announce().await;
        assert_eq!(ids(&app, "hook").len(), minute, "the other receiver has it in the same minute");
        app.advance(MINUTE).await;
    }
    let mut tries = 0;
    for id in &owed {
        let told = webhook(&app, id).await;
        assert_eq!(told["status"], "pending");
        tries += told["attempts"].as_u64().expect("a number");
    }
    assert!((30..=61).contains(&tries), "about one a minute, however much is owed: {tries}");
    let back = MockVendors::start(&down.to_string()).await.expect("its own port");
    for _ in 0..2 {
        app.announce().await;
        app.advance(MINUTE).await;
    }
    let came: Vec<String> = back.arrivals("back").iter().map(|one| header(one, "webhook-id").to_owned()).collect();
    assert_eq!((came.len(), came.into_iter().collect::<BTreeSet<_>>().len()), (OWED, OWED));
    assert_eq!(webhook(&app, &owed[0]).await["status"], "delivered");
    app.stop().await;
}

async fn an_answer_is_its_head_whatever_comes_after_it(backend: Backend) {
    let (head, huge) = ("HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n", "x".repeat(1 << 20));
    let answers = [
        // A body without an end, and one that never comes.
        (Raw::Stall(format!("{head}{huge}").into()), "delivered"),
        (Raw::Stall(head.into()), "delivered"),
        // A head without an end, and none.
        (Raw::Stall(format!("HTTP/1.1 200 OK\r\nx: {huge}").into()), "pending"),
        (Raw::Cut(format!("\r\n{huge}").into()), "pending"),
    ];
    let mut receivers = Vec::new();
    for (answer, status) in answers {
        receivers.push((RawVendor::start(vec![answer]).await, status));
    }
    let origins: Vec<String> = receivers.iter().map(|(receiver, _)| receiver.url.clone()).collect();
    let mut app = allowing(backend, &origins).await;
    let mut jobs = Vec::new();
    for origin in &origins {
        jobs.push(submit_to(&app, "sync", &format!("{origin}/hook")).await);
    }
    app.run_until_idle().await;
    let announced = tokio::time::timeout(Duration::from_secs(10), app.announce_once()).await;
    assert_eq!(announced, Ok(true), "sooner than a receiver has to answer");
    for (id, (_, status)) in jobs.iter().zip(&receivers) {
        let told = webhook(&app, id).await;
        assert_eq!((&told["status"], &told["attempts"]), (&json!(status), &json!(1)), "{told}");
        assert!(told.to_string().len() < 1000, "nothing of what came is kept");
    }
    app.stop().await;
}

async fn a_redirect_is_not_followed(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    for status in [301, 302, 307, 308] {
        let to = format!("/sync/hook?status={status}&header=location:/sync/elsewhere");
        let id = submit(&app, "sync", &to).await;
        app.run_until_idle().await;
        app.announce().await;
        let told = webhook(&app, &id).await;
        assert_eq!((&told["status"], &told["last_status"]), (&json!("pending"), &json!(status)));
    }
    assert_eq!((app.calls("hook"), app.calls("elsewhere")), (4, 0));
    app.stop().await;
}

async fn a_url_of_two_kibibytes_is_sent_to_as_it_is(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let mut url = format!("{}/sync/hook?body={}", app.vendors.url(), "%20".repeat(500));
    url += &"y".repeat(2048 - url.len());
    let id = submit_to(&app, "sync", &url).await;
    app.run_until_idle().await;
    app.announce().await;
    let told = webhook(&app, &id).await;
    assert_eq!((&told["status"], &told["url"]), (&json!("delivered"), &json!(url)));
    assert!(url.ends_with(&app.vendors.arrivals("hook")[0].path_and_query));
    app.stop().await;
}

async fn a_clock_that_is_set_keeps_nothing_back_and_sends_nothing_twice(backend: Backend) {
    let day = nanos(Duration::from_secs(86_400));
    let mut app = TestApp::with(backend, ONE).await;
    let tried = submit(&app, "sync", "/sync/tried?fail_first=1").await;
    app.run_until_idle().await;
    app.announce().await;
    assert_eq!(webhook(&app, &tried).await["last_status"], 500);
    let owed = submit(&app, "sync", "/sync/hook").await;
    app.run_until_idle().await;
    app.clock.step(-day);
    app.advance(Duration::from_secs(1)).await;
    app.announce().await;
    for id in [&tried, &owed] {
        assert_eq!(webhook(&app, id).await["status"], "delivered");
    }
    for step in [2 * day, -day] {
        app.clock.step(step);
        app.advance(Duration::from_secs(1)).await;
        app.announce().await;
    }
    assert_eq!((ids(&app, "tried").len(), ids(&app, "hook").len()), (2, 1));
    app.stop().await;
}

async fn ask(app: &TestApp, key: &str, method: Method, path: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    app.send(method, path, &headers, body.to_string()).await
}

async fn each_tenant_has_its_own_secret_and_sends_only_its_own_again(backend: Backend) {
    const ADMIN: &str = "an-admin-key-of-at-least-32-characters";
    let keyed = format!("[auth]\nmode = \"api_key\"\nadmin_key = \"{ADMIN}\"\n{ONE}");
    let mut app = TestApp::with(backend, &keyed).await;
    let mut tenants = Vec::new();
    for tenant in ["acme", "rival"] {
        let wanted = json!({"name": tenant, "tenant": tenant, "scopes": ["submit", "read"]});
        let made = ask(&app, ADMIN, Method::POST, "/keys", &wanted).await;
        let key = made.json()["key"].as_str().expect("a key").to_owned();
        let url = format!("{}/sync/{tenant}", app.vendors.url());
        let job = json!({"vendor": "sync", "payload": 1, "callback_url": url});
        let accepted = ask(&app, &key, Method::POST, "/jobs", &job).await;
        let id = accepted.json()["request_id"].as_str().expect("an id").to_owned();
        tenants.push((tenant, key, id));
    }
    app.run_until_idle().await;
    app.announce().await;
    let mut all_secrets = BTreeSet::new();
    for ((tenant, key, id), (other, _, others)) in tenants.iter().zip(tenants.iter().rev()) {
        let shown = ask(&app, key, Method::GET, "/result-webhooks/secret", &json!(null)).await.json();
        assert_eq!((&shown["tenant"], shown["secrets"].as_array().map(Vec::len)), (&json!(tenant), Some(1)));
        let path = format!("/result-webhooks/secret?tenant={other}");
        assert_eq!(ask(&app, key, Method::GET, &path, &json!(null)).await.status, 403);
        let secret = shown["secrets"][0].as_str().expect("a secret");
        let one = app.vendors.arrivals(tenant).remove(0);
        let signed = standard_v1(secret, header(&one, "webhook-id"), header(&one, "webhook-timestamp"), &one.body);
        assert_eq!(header(&one, "webhook-signature"), signed, "by its own secret, and no other");
        all_secrets.insert(secret.to_owned());

        let again =
            async |id: &str| ask(&app, key, Method::POST, &format!("/jobs/{id}/result-webhook"), &json!(null)).await;
        let refused = again(others).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (404, "unknown_job"));
        assert_eq!(again(id).await.status, 202);
    }
    assert_eq!(all_secrets.len(), 2);
    app.announce().await;
    for (tenant, ..) in &tenants {
        assert_eq!(ids(&app, tenant).len(), 2, "sent again by itself alone");
    }
    app.stop().await;
}

async fn a_tenant_holds_up_no_other_at_the_same_host(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    for (tenant, path) in [("acme", "sync/busy?status=503&retry_after=3600"), ("rival", "sync/hook")] {
        let url = format!("{}/{path}", app.vendors.url());
        let job = json!({"vendor": "sync", "payload": 1, "tenant": tenant, "callback_url": url});
        app.submit_with(&job.to_string()).await;
        app.run_until_idle().await;
        app.announce().await;
    }
    assert_eq!((app.calls("busy"), app.calls("hook")), (1, 1));
    submit_to(&app, "sync", &format!("{}/sync/hook", app.vendors.url())).await;
    app.run_until_idle().await;
    app.announce().await;
    assert_eq!(app.calls("hook"), 2);
    app.stop().await;
}

/// Announces what this service owes, under another guard and by a name server of the test's own, which has the next of these answers each
/// time. Counts how often that is asked.
fn resolving(app: &TestApp, guard: Guard, answers: Vec<Vec<SocketAddr>>) -> (Deliverer, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let parts = Parts {
        store: app.app.store.clone(),
        outbox: app.app.webhooks.outbox.clone(),
        guard,
        lookup: Arc::new(move |host, _| {
            assert_eq!(host, "hooks.example");
            let addresses = answers[count.fetch_add(1, Ordering::Relaxed)].clone();
            Box::pin(async move { Ok(addresses) })
        }),
        secrets: Secrets::new(&Tenants::default(), &[], [1; 32]),
        metrics: app.app.metrics.clone(),
        clock: app.clock.clone(),
        give_up_after: Duration::from_secs(86_400),
        show: |_, _| b"{}".to_vec(),
    };
    (Deliverer::new(Arc::new(Context::new(parts))), asked)
}

/// One try; gives what is shown of it.
async fn one_try(app: &mut TestApp, deliverer: &mut Deliverer, id: &str) -> Value {
    deliverer.tick().await.expect("the store works");
    assert!(deliverer.finish_turns().await);
    let told = webhook(app, id).await;
    assert_eq!((&told["status"], &told["last_status"]), (&json!("pending"), &json!(null)));
    app.advance(Duration::from_secs(3600)).await;
    told
}

async fn jobs_that_cannot_be_read_hold_up_no_other(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    // More than a turn claims at once.
    let mut unreadable = Vec::new();
    for _ in 0..40 {
        unreadable.push(submit(&app, "sync", "/sync/hook").await);
    }
    app.run_until_idle().await;
    app.clock.advance(Duration::from_secs(1));
    let last = submit(&app, "sync", "/sync/hook").await;
    app.run_until_idle().await;
    for id in &unreadable {
        app.damage(id).await;
    }
    app.announce().await;
    assert_eq!(ids(&app, "hook"), [format!("{last}-0")]);
    app.stop().await;
}

async fn a_name_that_leads_to_a_private_address_is_never_connected_to(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let here = listener.local_addr().expect("the port");
    let id = submit_to(&app, "sync", &format!("https://hooks.example:{}/x", here.port())).await;
    app.run_until_idle().await;
    let mapped = SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0x7f00, 1], here.port()));
    let public = SocketAddr::from(([1, 1, 1, 1], here.port()));
    let answers = vec![vec![here], vec![mapped], vec![public, here], vec![here, public]];
    let all = answers.len();
    let (mut deliverer, asked) = resolving(&app, Guard::default(), answers);
    for tries in 1..=all {
        let told = one_try(&mut app, &mut deliverer, &id).await;
        assert_eq!((asked.load(Ordering::Relaxed), &told["attempts"]), (tries, &json!(tries)), "once for each try");
        assert!(told["last_error"].as_str().expect("a reason").contains("not public"), "{told}");
    }
    assert!(listener.accept().now_or_never().is_none(), "nobody came");
    app.stop().await;
}

async fn a_name_that_changes_its_address_is_looked_at_again(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    // Stands for a public address: it takes a connection and closes it.
    let open = TcpListener::bind("127.0.0.2:0").await.expect("a port");
    let open_at = open.local_addr().expect("the port");
    let closed_at = SocketAddr::from(([127, 0, 0, 1], open_at.port()));
    let closed = TcpListener::bind(closed_at).await.expect("the same port");
    let (came, mut tasks) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    let count = came.clone();
    tasks.spawn(async move {
        while open.accept().await.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let id = submit_to(&app, "sync", &format!("https://hooks.example:{}/x", open_at.port())).await;
    app.run_until_idle().await;
    let guard = Guard { nets: vec!["127.0.0.2/32".parse().expect("a block")], origins: Vec::new() };
    let answers = [vec![open_at], vec![closed_at], vec![open_at, closed_at], vec![open_at]];
    let (mut deliverer, asked) = resolving(&app, guard, answers.to_vec());
    for (tries, connections) in [(1, 1), (2, 1), (3, 1), (4, 2)] {
        let told = one_try(&mut app, &mut deliverer, &id).await;
        assert_eq!((asked.load(Ordering::Relaxed), came.load(Ordering::Relaxed)), (tries, connections), "{told}");
    }
    assert!(closed.accept().now_or_never().is_none(), "nobody came");
    app.stop().await;
}
