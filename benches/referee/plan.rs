//! What is tried: the limits, the vendor that counts them, and what goes wrong meanwhile.
//!
//! Never runs anything; see `faults` and `site`.

use std::{fmt, time::Duration};

/// At most `calls` in any window of `per`, and how Fetchgate is told to spread them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) calls: usize,
    pub(crate) per: Duration,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Paced,
    Window,
    Bucket { burst: usize },
}

/// What happens in the middle of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// SIGSTOP to one worker (or to the only process), SIGCONT 3 s later.
    WorkerStopped,
    /// kill -9 of one worker, and a new one.
    WorkerKilled,
    RedisRestarted,
    RedisFlushed,
    RedisFrozen,
    /// Half of the limit is used, then everything is killed, Redis is flushed, and all begins again.
    AllKilledHalfUsed,
    /// One call is answered 429 with `Retry-After: 2`.
    Throttled,
    /// Another limit is laid live over the one of the file.
    Relimited(Promise),
    /// Two workers read another limit in their file than the API and the third: the stricter one is promised.
    TwoFiles(Promise),
}

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) promises: Vec<Promise>,
    /// How the vendor is asked to behave, as a query.
    pub(crate) query: &'static str,
    pub(crate) concurrency: usize,
    pub(crate) fault: Fault,
    pub(crate) lasts: Duration,
}

/// A concurrency limit's vendor takes so long for each call.
const LATENCY: Duration = Duration::from_millis(50);

impl Promise {
    fn new(calls: usize, per_secs: u64, shape: Shape) -> Promise {
        Promise { calls, per: Duration::from_secs(per_secs), shape }
    }

    /// As the config says it.
    pub(crate) fn toml(&self) -> String {
        let shape = match self.shape {
            Shape::Paced => r#""paced""#.into(),
            Shape::Window => r#""window""#.into(),
            Shape::Bucket { burst } => format!(r#""bucket", burst = {burst}"#),
        };
        format!(r#"{{ calls = {}, per = "{}s", shape = {shape} }}"#, self.calls, self.per.as_secs())
    }

    /// As the short form says it, which stands for the shape that a period of seconds has by itself.
    pub(crate) fn short(&self) -> String {
        format!("{}/{}s", self.calls, self.per.as_secs())
    }

    pub(crate) fn rate(&self) -> f64 {
        self.calls as f64 / self.per.as_secs_f64()
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = match self.shape {
            Shape::Paced => "paced",
            Shape::Window => "window",
            Shape::Bucket { .. } => "bucket",
        };
        write!(f, "{}/{}s {shape}", self.calls, self.per.as_secs())
    }
}

impl Fault {
    /// Whether it takes several processes, or the Redis between them.
    pub(crate) fn is_only_scaled(self) -> bool {
        matches!(self, Fault::RedisRestarted | Fault::RedisFlushed | Fault::RedisFrozen | Fault::TwoFiles(_))
    }
}

impl Scenario {
    /// More jobs than can be called for in the time: there is always a backlog.
    pub(crate) fn jobs(&self) -> usize {
        let slowest = self.promises.iter().map(Promise::rate).reduce(f64::min);
        let mut rate = slowest.unwrap_or(self.concurrency as f64 / LATENCY.as_secs_f64());
        if let Fault::Relimited(to) = self.fault {
            rate = rate.max(to.rate());
        }
        let bursts: usize = self.promises.iter().map(|promise| promise.calls).sum();
        (rate * self.lasts.as_secs_f64() * 1.1) as usize + 2 * bursts.min(1000)
    }
}

/// Every scenario. The query of each enforcing vendor says the same limit as its promise, or none if it only watches.
pub(crate) fn all(quick: bool) -> Vec<Scenario> {
    let lasts = Duration::from_secs(if quick { 7 } else { 14 });
    let with = |name, promises, query, fault| Scenario { name, promises, query, concurrency: 64, fault, lasts };
    let steady = |name, promise, query| with(name, vec![promise], query, Fault::None);
    let paced = |calls| Promise::new(calls, 1, Shape::Paced);
    let window = |calls, secs| Promise::new(calls, secs, Shape::Window);
    let bucket = |calls, secs, burst| Promise::new(calls, secs, Shape::Bucket { burst });
    let broken = |name, fault| with(name, vec![paced(100)], "", fault);
    // What is held ahead takes places too: with too few of them workers come back sooner than the horizon wants.
    let wide = |scenario| Scenario { concurrency: 600, ..scenario };
    let long = if quick { 12 } else { 20 };
    vec![
        steady("paced", paced(100), ""),
        wide(steady("paced", paced(200), "")),
        wide(steady("paced", paced(1000), "")),
        with("two limits at once", vec![paced(20), window(50, 3)], "", Fault::None),
        steady("vendor: sliding log", paced(100), "enforce=log&max=100&per_ms=1000"),
        steady("vendor: sliding log", window(50, 2), "enforce=log&max=50&per_ms=2000"),
        steady("vendor: sliding log", bucket(50, 2, 10), "enforce=log&max=50&per_ms=2000"),
        steady("vendor: fixed window", window(50, 2), "enforce=window&max=50&per_ms=2000&phase_ms=777"),
        steady("vendor: sliding counter", paced(100), "enforce=counter&max=100&per_ms=1000&phase_ms=333"),
        steady("vendor: token bucket", bucket(50, 2, 10), "enforce=bucket&max=50&per_ms=2000&burst=12"),
        Scenario {
            concurrency: 8,
            ..with("vendor: concurrency 8", vec![], "enforce=concurrency&max=8&latency_ms=50", Fault::None)
        },
        broken("a worker stopped for 3 s", Fault::WorkerStopped),
        broken("a worker killed", Fault::WorkerKilled),
        broken("Redis restarted", Fault::RedisRestarted),
        broken("Redis flushed", Fault::RedisFlushed),
        broken("Redis frozen for 3 s", Fault::RedisFrozen),
        with("a window, Redis flushed", vec![window(50, 2)], "", Fault::RedisFlushed),
        with("429, Retry-After: 2", vec![paced(100)], "", Fault::Throttled),
        broken("the limit halved live", Fault::Relimited(paced(50))),
        broken("the limit doubled live", Fault::Relimited(paced(200))),
        broken("two files: 100/s and 200/s", Fault::TwoFiles(paced(200))),
        Scenario {
            lasts: Duration::from_secs(2 * long + 2),
            ..with("half used, all killed", vec![window(60, long)], "", Fault::AllKilledHalfUsed)
        },
    ]
}
