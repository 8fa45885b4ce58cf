//! Calls that go out late put off those after them, so that half of the guard is left for the link, however late they are.

use std::collections::VecDeque;

use fetchgate::limit::Limiter;

use super::*;

const N: usize = 100;
const GUARD: Nanos = 8 * MS;

fn limits() -> [Limit; 1] {
    [Limit { guard: Duration::from_millis(8), ..limit(N as u64, Duration::from_secs(1), Shape::Paced) }]
}

/// Calls a backlog for ten seconds, some of it as late as can be, over a link that holds up the late ones by all that is left. When the
/// calls arrive.
async fn backlog(limiter: &dyn Limiter, clock: &Clock, random: &mut fastrand::Rng) -> Vec<Nanos> {
    let (mut held, mut arrived, end) = (VecDeque::<Permit>::new(), Vec::new(), clock.nanos() + 10 * SECOND);
    while clock.nanos() < end {
        let (now, horizon) = (clock.nanos(), nanos(limiter.horizon()));
        held.extend(permits(limiter.reserve("acme", &wishes("t", N), now + horizon).await.unwrap()));
        let half = now + horizon / 2;
        while let Some(permit) = held.pop_front_if(|permit| permit.at <= half) {
            let is_late = random.u8(..8) == 0;
            let late = if is_late { random.i64(0..=permit.late_after - permit.at) } else { 0 };
            advance_to(clock, permit.at + late);
            if limiter.check(&permit, clock.nanos()).is_ok() {
                // The machine may stand still after the last look too.
                advance(clock, if random.u8(..50) == 0 { random.i64(0..=4 * GUARD) } else { 0 });
                let sent = clock.nanos();
                limiter.call_left(&permit, sent);
                let jitter = if is_late { GUARD / 2 } else { random.i64(0..=MS) };
                arrived.push(sent + jitter);
            }
        }
        advance_to(clock, half);
    }
    arrived
}

fn judge(arrived: Vec<Nanos>) {
    assert!(arrived.len() >= 10 * N * 95 / 100, "{} calls", arrived.len());
    assert!(most_in_any_window(arrived, SECOND) <= N);
}

#[test]
fn late_calls_of_one_process_leave_room_for_the_link() {
    for seed in 0..20 {
        run(async {
            let (clock, book) = (Clock::manual(START), Arc::<MemoryBook>::default());
            let local = open(&limits(), &clock, &book).await;
            advance(&clock, SECOND);
            judge(backlog(&local, &clock, &mut fastrand::Rng::with_seed(seed)).await);
        });
    }
}

#[test]
fn late_calls_over_redis_leave_room_for_the_link() {
    for seed in 0..5 {
        redis::run_io(async {
            let scene = redis::Scene::new(&limits());
            let limiter = scene.warm().await;
            judge(backlog(&limiter, &scene.clock, &mut fastrand::Rng::with_seed(seed)).await);
        });
    }
}
