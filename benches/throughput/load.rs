//! The load: jobs over HTTP, one by one on many connections, or in batches.
//!
//! A `503` is asked again, as it says; its time counts. Any other answer that is not the right one ends the bench.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use bytes::Bytes;
use fetchgate::vendor::http::{Client, Connection, Origin, Reply};
use http_body_util::Full;
use hyper::{Method, Request};
use tokio::task::JoinSet;

const CONNECTIONS: usize = 64;
/// The most jobs that a batch may have.
pub(crate) const BATCH: usize = 10_000;
/// Batches under way at once.
const BATCHES: usize = 2;
/// A store that is too busy to answer in time is asked again so often, and so much later.
const MOST_REFUSED: usize = 20;
const AGAIN: Duration = Duration::from_millis(100);

/// One connection to a process.
pub(crate) struct Peer {
    origin: Origin,
    connection: Connection,
}

impl Peer {
    pub(crate) async fn connect(origin: &Origin) -> anyhow::Result<Peer> {
        Ok(Peer { origin: origin.clone(), connection: Client::new().connection(origin).await? })
    }

    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Reply> {
        self.send(Method::GET, path, String::new()).await
    }

    pub(crate) async fn post(&mut self, path: &str, body: String) -> anyhow::Result<Reply> {
        self.send(Method::POST, path, body).await
    }

    async fn send(&mut self, method: Method, path: &str, body: String) -> anyhow::Result<Reply> {
        let request = Request::builder().method(method).uri(path).header("host", self.origin.authority());
        let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(body)))?;
        Ok(self.connection.send(request).await?)
    }
}

fn job(vendor: &str, i: usize) -> String {
    format!(r#"{{"payload":{{"customer_id":{i},"options":{{"priority":"high"}}}},"vendor":"{vendor}"}}"#)
}

/// Submits jobs one by one; says how long each answer took, in order.
pub(crate) async fn submit(api: &Origin, vendor: &str, jobs: usize) -> anyhow::Result<Vec<Duration>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (next, api, vendor) = (next.clone(), api.clone(), vendor.to_owned());
        clients.spawn(async move {
            let (mut peer, mut took) = (Peer::connect(&api).await?, Vec::new());
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= jobs {
                    return anyhow::Ok(took);
                }
                took.push(submit_one(&mut peer, &vendor, i).await?);
            }
        });
    }
    let mut all = Vec::with_capacity(jobs);
    while let Some(took) = clients.join_next().await {
        all.extend(took??);
    }
    all.sort_unstable();
    Ok(all)
}

pub(crate) async fn submit_one(peer: &mut Peer, vendor: &str, i: usize) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut reply = peer.post("/jobs", job(vendor, i)).await?;
    for _ in 0..MOST_REFUSED {
        if reply.status != 503 {
            break;
        }
        tokio::time::sleep(AGAIN).await;
        reply = peer.post("/jobs", job(vendor, i)).await?;
    }
    ensure!(reply.status == 202, "{} {}", reply.status, String::from_utf8_lossy(&reply.body));
    Ok(begun.elapsed())
}

/// Submits jobs in batches as large as they may be.
pub(crate) async fn submit_batches(api: &Origin, vendor: &str, jobs: usize) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..BATCHES {
        let (next, api, vendor) = (next.clone(), api.clone(), vendor.to_owned());
        clients.spawn(async move {
            let mut peer = Peer::connect(&api).await?;
            loop {
                let from = next.fetch_add(BATCH, Ordering::Relaxed);
                if from >= jobs {
                    return anyhow::Ok(());
                }
                let batch: Vec<String> = (from..jobs.min(from + BATCH)).map(|i| job(&vendor, i)).collect();
                let reply = peer.post("/jobs/batch", format!("[{}]", batch.join(","))).await?;
                let all_taken = format!("{{\"accepted\":{},\"rejected\":0,", batch.len());
                let is_right = reply.status == 202 && reply.body.starts_with(all_taken.as_bytes());
                ensure!(
                    is_right,
                    "{} {}",
                    reply.status,
                    String::from_utf8_lossy(&reply.body[..reply.body.len().min(200)])
                );
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    Ok(())
}

/// Jobs that have ended well, by the metrics of one process.
pub(crate) fn ended(metrics: Reply) -> usize {
    let text = String::from_utf8_lossy(&metrics.body);
    let counts = text
        .lines()
        .filter(|line| line.starts_with("fetchgate_jobs_ended_total{") && line.contains(r#"status="complete""#));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum()
}

/// The value that this share of all does not exceed, in milliseconds; of times in order.
pub(crate) fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let i = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(i).map_or(f64::NAN, |took| took.as_secs_f64() * 1000.0)
}
