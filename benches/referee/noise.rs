//! What this machine does to the time of a call without any limiter: the least that any margin in the table can mean.
//!
//! Never part of the verdict: it tells a reader how much of a breach may be the machine's.

use std::{
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fetchgate::vendor::http::{Client, Connection, Origin};
use http_body_util::Full;
use hyper::Request;
use mock_vendors::MockVendors;
use tokio::task::JoinSet;

const NAME: &str = "noise";
const PACED: usize = 400;
const APART: Duration = Duration::from_millis(5);
const BURST: usize = 50;
const BURSTS: usize = 10;

/// One paced connection, then bursts over many: how much later than sent the vendor has stamped the calls.
pub(crate) async fn print(vendors: &MockVendors) {
    let origin = Origin { tls: false, host: "127.0.0.1".into(), port: vendors.address().port() };
    let client = Client::new();
    let mut late = Vec::new();
    let begun = Instant::now();
    for i in 1..=PACED as u32 {
        tokio::time::sleep_until((begun + APART * i).into()).await;
        late.push(once(&client, &origin, vendors).await);
    }
    report("noise: 200/s", late);

    let mut late = Vec::new();
    for _ in 0..BURSTS {
        late.push(burst(&client, &origin, vendors).await);
    }
    report("noise: the last of 50 at once", late);
    println!();
}

/// Watches how late this machine wakes a thread that does nothing but wait. Whoever works is held up for longer.
pub(crate) struct Watch {
    stop: Sender<()>,
    latest: JoinHandle<Duration>,
}

impl Watch {
    pub(crate) fn start() -> Watch {
        let (stop, stopped) = channel::<()>();
        let latest = std::thread::spawn(move || {
            let (nap, mut latest) = (Duration::from_millis(1), Duration::ZERO);
            loop {
                let begun = Instant::now();
                match stopped.recv_timeout(nap) {
                    Err(RecvTimeoutError::Timeout) => latest = latest.max(begun.elapsed().saturating_sub(nap)),
                    _ => return latest,
                }
            }
        });
        Watch { stop, latest }
    }

    pub(crate) fn end(self) -> Duration {
        drop(self.stop);
        self.latest.join().expect("it only waits")
    }
}

async fn once(client: &Client, origin: &Origin, vendors: &MockVendors) -> Duration {
    vendors.reset(NAME);
    let connection = client.connection(origin).await.expect("the mock vendors listen");
    let sent = Instant::now();
    client.keep(call(connection, origin).await);
    vendors.arrival_times(NAME)[0].saturating_duration_since(sent)
}

async fn burst(client: &Client, origin: &Origin, vendors: &MockVendors) -> Duration {
    let mut connections = Vec::new();
    for _ in 0..BURST {
        connections.push(client.connection(origin).await.expect("the mock vendors listen"));
    }
    vendors.reset(NAME);
    let sent = Instant::now();
    let mut calls = JoinSet::new();
    for connection in connections {
        let origin = origin.clone();
        calls.spawn(async move { call(connection, &origin).await });
    }
    for connection in calls.join_all().await {
        client.keep(connection);
    }
    vendors.arrival_times(NAME)[BURST - 1].saturating_duration_since(sent)
}

async fn call(mut connection: Connection, origin: &Origin) -> Connection {
    let request = Request::post(format!("/sync/{NAME}")).header("host", origin.authority());
    connection.send(request.body(Full::default()).expect("a request")).await.expect("an answer");
    connection
}

fn report(what: &str, mut late: Vec<Duration>) {
    late.sort();
    let ms = |at: usize| late[at.min(late.len() - 1)].as_secs_f64() * 1000.0;
    println!(
        "{what:<30} stamped {:.2} ms after sending (median), {:.2} (99 %), {:.2} (most)",
        ms(late.len() / 2),
        ms(late.len() * 99 / 100),
        ms(late.len() - 1)
    );
}
