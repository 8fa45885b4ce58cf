//! Our own throughput on this machine: the binary's parts in one process, mock vendors in another task, jobs over real HTTP.
//!
//! Prints a table. Absolute numbers drift with the machine; compare runs made one after the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use fetchgate::{
    clock::Clock,
    config,
    roles::Roles,
    service::{Listeners, Service},
    shutdown::Shutdown,
    vendor::http::{Client, Origin},
};
use http_body_util::Full;
use hyper::{Method, Request};
use mock_vendors::MockVendors;
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const JOBS: usize = 60_000;
const CONNECTIONS: usize = 64;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("{:<28} {:>10} {:>12} {:>12}", "", "jobs", "accepted/s", "ended/s");
    for (name, vendor, limits) in [
        ("sync vendor, no limit", "sync", "[]"),
        ("webhook vendor, no limit", "async", "[]"),
        ("accepting alone", "sync", r#"["1/m"]"#),
    ] {
        let (accepted, ended) = runtime.block_on(run(vendor, limits))?;
        let ended = if limits == "[]" { format!("{ended:.0}") } else { "-".into() };
        println!("{name:<28} {JOBS:>10} {accepted:>12.0} {ended:>12}");
    }
    Ok(())
}

/// Accepted and ended jobs a second.
async fn run(vendor: &str, limits: &str) -> anyhow::Result<(f64, f64)> {
    let folder = tempfile::tempdir()?;
    let vendors = MockVendors::start("127.0.0.1:0").await?;
    let api = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = api.local_addr()?;
    let text = format!(
        r#"
[server]
listen = "{address}"
public_url = "http://{address}"
[store]
url = "sqlite:{folder}/jobs.db"
[vendors.sync]
kind = "sync"
url = "{url}/sync"
limits = {limits}
concurrency = 64
[vendors.async]
kind = "webhook"
url = "{url}/async?callback_ms=0"
limits = {limits}
concurrency = 64
"#,
        folder = folder.path().display(),
        url = vendors.url(),
    );
    let config = config::parse(&text, "bench", std::iter::empty())?;
    let service = Service::build(&config, Roles::Both, Clock::system()).await?;
    let shutdown = Shutdown::new();
    let mut running = JoinSet::new();
    running.spawn(service.run(Listeners { api: Some(api), ops: None }, shutdown.clone()));

    let origin = Origin::of(&format!("http://{address}").parse()?).expect("http");
    let started = Instant::now();
    submit_all(&origin, vendor).await;
    let accepted = JOBS as f64 / started.elapsed().as_secs_f64();
    if limits == "[]" {
        wait_for_all(&origin, vendor).await;
    }
    let ended = JOBS as f64 / started.elapsed().as_secs_f64();
    shutdown.stop.cancel();
    while let Some(outcome) = running.join_next().await {
        outcome??;
    }
    vendors.stop().await;
    Ok((accepted, ended))
}

async fn submit_all(origin: &Origin, vendor: &str) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (next, origin, vendor) = (next.clone(), origin.clone(), vendor.to_owned());
        clients.spawn(async move {
            let mut connection = Client::new().connection(&origin).await.expect("the service listens");
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= JOBS {
                    return;
                }
                let body = format!(r#"{{"payload":{{"customer_id":{i}}},"vendor":"{vendor}"}}"#);
                let request = request(&origin, Method::POST, "/jobs", body);
                let reply = connection.send(request).await.expect("an answer");
                assert_eq!(reply.status, 202);
            }
        });
    }
    clients.join_all().await;
}

/// Waits until the service counts every job as ended.
async fn wait_for_all(origin: &Origin, vendor: &str) {
    let mut connection = Client::new().connection(origin).await.expect("the service listens");
    let wanted = format!(r#"fetchgate_jobs_ended_total{{vendor="{vendor}",status="complete"}} {JOBS}"#);
    loop {
        let reply = connection.send(request(origin, Method::GET, "/metrics", String::new())).await.expect("an answer");
        if String::from_utf8_lossy(&reply.body).contains(&wanted) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

fn request(origin: &Origin, method: Method, path: &str, body: String) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", origin.authority())
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .expect("a request")
}
