//! One scenario from start to verdict: the backlog, what breaks in the middle, the rows.
//!
//! Never looks at times itself (see `measure`).

use std::time::{Duration, Instant};

use anyhow::ensure;
use mock_vendors::Answer;

use crate::{
    measure::{self, Verdict},
    noise::Watch,
    plan::{Fault, Scenario},
    site::{Site, VENDOR},
};

/// A worker that is stopped, and a Redis that is frozen, are so for this long.
const STANDSTILL: Duration = Duration::from_secs(3);
/// What a vendor's `Retry-After` says in one of the scenarios.
const RETRY_AFTER: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(30);

/// Plays a scenario, prints its rows and says how many broke a promise.
pub(crate) async fn play(scenario: &Scenario, mut site: Site<'_>) -> anyhow::Result<usize> {
    site.vendors.reset(VENDOR);
    site.start().await?;
    let (before, watch) = (site.counted().await, Watch::start());
    if scenario.fault == Fault::AllKilledHalfUsed {
        use_half_and_kill_all(scenario, &mut site).await?;
    }
    site.submit(scenario.jobs()).await?;
    calls(&site, 1).await?;
    let begun = site.vendors.arrival_times(VENDOR)[0];
    tokio::time::sleep_until((begun + scenario.lasts / 3).into()).await;
    let struck = Instant::now();
    let throttled = strike(scenario.fault, &mut site).await?;
    tokio::time::sleep_until((begun + scenario.lasts).into()).await;
    let (arrivals, ended) = (site.vendors.arrival_times(VENDOR), Instant::now());
    let (after, noise) = (site.counted().await, watch.end());
    site.kill_all();

    let stats = site.vendors.stats(VENDOR, Duration::from_secs(1));
    let common = Verdict::new(scenario, site.backend, &arrivals, &stats, (&before, &after), noise);
    let mut broken = 0;
    for row in common.rows(scenario, &arrivals, struck, ended) {
        row.print();
        broken += usize::from(row.is_broken());
    }
    if let Some(number) = throttled {
        broken += usize::from(!measure::print_silence(&arrivals, number, RETRY_AFTER));
    }
    Ok(broken)
}

/// Waits until so many calls have arrived.
async fn calls(site: &Site<'_>, wanted: u64) -> anyhow::Result<()> {
    let end = Instant::now() + LONG;
    while site.vendors.count(VENDOR) < wanted {
        ensure!(Instant::now() < end, "the vendor saw {} calls of {wanted}", site.vendors.count(VENDOR));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn use_half_and_kill_all(scenario: &Scenario, site: &mut Site<'_>) -> anyhow::Result<()> {
    let half = scenario.promises[0].calls / 2;
    site.submit(half).await?;
    calls(site, half as u64).await?;
    site.kill_all();
    if let Some(servers) = &site.servers {
        servers.redis.say("FLUSHALL");
    }
    site.start().await
}

/// Breaks what is to be broken. The number of the call that is answered 429, if one is.
async fn strike(fault: Fault, site: &mut Site<'_>) -> anyhow::Result<Option<usize>> {
    match fault {
        Fault::None | Fault::AllKilledHalfUsed | Fault::TwoFiles(_) => {}
        Fault::Relimited(to) => site.lay_limit(&to).await?,
        Fault::WorkerStopped => {
            site.signal_worker("STOP")?;
            tokio::time::sleep(STANDSTILL).await;
            site.signal_worker("CONT")?;
        }
        Fault::WorkerKilled => site.replace_worker().await?,
        Fault::Throttled => {
            let number = site.vendors.count(VENDOR) as usize;
            let answer = Answer::status(429).header("retry-after", &RETRY_AFTER.as_secs().to_string());
            site.vendors.script(VENDOR, vec![answer]);
            return Ok(Some(number));
        }
        Fault::RedisRestarted | Fault::RedisFlushed | Fault::RedisFrozen => {
            let Some(servers) = &mut site.servers else { return Ok(None) };
            match fault {
                Fault::RedisRestarted => servers.redis.restart(),
                Fault::RedisFlushed => drop(servers.redis.say("FLUSHALL")),
                _ => {
                    servers.redis.freeze();
                    tokio::time::sleep(STANDSTILL).await;
                    servers.redis.thaw();
                }
            }
        }
    }
    Ok(None)
}
