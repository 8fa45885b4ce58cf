//! What this machine does to the time of a call without any limiter: the least that any margin in the table can mean.
//!
//! Never looks at Fetchgate: a breach is the machine's only where threads that go before everybody else stood still for as long.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
/// As a rule a timer is late by less.
const USUAL: Duration = Duration::from_millis(1);

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

/// Watches how late this machine wakes threads that do nothing but wait, one for each core and, where we may, before everybody else:
/// so long it stood still for the vendor too. Whoever works is held up for longer.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    watching: Vec<JoinHandle<Vec<Stall>>>,
}

/// The machine did nothing that it should have done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stall {
    pub(crate) from: Instant,
    pub(crate) until: Instant,
}

impl Watch {
    pub(crate) fn start() -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let watching = (0..cores)
            .map(|core| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    go_first();
                    stay_on(core);
                    watch(&stop)
                })
            })
            .collect();
        Watch { stop, watching }
    }

    /// Every stall that was seen, of any core.
    pub(crate) fn end(self) -> Vec<Stall> {
        self.stop.store(true, Ordering::Relaxed);
        self.watching.into_iter().flat_map(|thread| thread.join().expect("it only waits")).collect()
    }
}

fn watch(stop: &AtomicBool) -> Vec<Stall> {
    let (nap, mut stalls) = (Duration::from_millis(1), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let from = Instant::now();
        std::thread::park_timeout(nap);
        let until = Instant::now();
        if until - from > nap + USUAL {
            stalls.push(Stall { from, until });
        }
    }
    stalls
}

/// Where we may, this thread goes before everybody else's: the vendor is a machine of its own, and does little.
pub(crate) fn go_first() {
    tell_scheduler("chrt", &["--rr", "--pid", "5"]);
}

fn stay_on(core: usize) {
    tell_scheduler("taskset", &["--cpu-list", "--pid", &core.to_string()]);
}

/// Says something about this thread to a program that takes its id. Only root may; without it there is more noise, and the table says so.
fn tell_scheduler(program: &str, arguments: &[&str]) {
    let thread = std::fs::read_link("/proc/thread-self").ok();
    if let Some(id) = thread.as_ref().and_then(|path| path.file_name()) {
        let mut command = Command::new(program);
        drop(command.args(arguments).arg(id).stdout(Stdio::null()).stderr(Stdio::null()).status());
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
