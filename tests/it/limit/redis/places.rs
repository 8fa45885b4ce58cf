//! Places for calls in flight: never more in all processes together than there are.

use super::*;

async fn places(limiter: &RedisLimiter, most: usize, busy: usize) -> usize {
    limiter.share_in_flight("acme", most, busy).await.unwrap()
}

/// The first three seconds are for those who lived through a loss.
async fn settled(scene: &Scene) -> RedisLimiter {
    let limiter = scene.process();
    assert_eq!(places(&limiter, 10, 1).await, 0, "nothing new before everybody can have said what he uses");
    advance(&scene.clock, 3 * SECOND);
    limiter
}

#[test]
fn a_lone_process_has_all_places_that_it_needs_and_two_share_them() {
    run_io(async {
        let scene = Scene::new(&[]);
        let (a, b) = (settled(&scene).await, scene.process());
        assert_eq!(places(&a, 10, 9).await, 10);
        assert_eq!(places(&b, 10, 1).await, 0, "all are given");
        advance(&scene.clock, 500 * MS);
        assert_eq!(places(&a, 10, 2).await, 5);
        assert_eq!(places(&b, 10, 1).await, 4);
        // What one does not use the other may have.
        advance(&scene.clock, 500 * MS);
        assert_eq!((places(&b, 10, 1).await, places(&a, 10, 5).await), (4, 6));
        advance(&scene.clock, 500 * MS);
        assert_eq!((places(&b, 10, 1).await, places(&a, 10, 6).await), (3, 7));
    });
}

#[test]
fn inside_a_block_nothing_is_asked() {
    run_io(async {
        let scene = Scene::new(&[]);
        let a = settled(&scene).await;
        assert_eq!(places(&a, 10, 1).await, 9);
        scene.flush();
        assert_eq!(places(&a, 10, 5).await, 9);
        advance(&scene.clock, 99 * MS);
        assert_eq!(places(&a, 10, 10).await, 9);
    });
}

#[test]
fn the_block_of_a_dead_process_is_given_away_only_when_its_calls_are_over() {
    run_io(async {
        let scene = Scene::new(&[]);
        let (dead, b) = (settled(&scene).await, scene.process());
        assert_eq!(places(&dead, 10, 10).await, 10);
        drop(dead);
        for _ in 0..69 {
            advance(&scene.clock, 100 * MS);
            assert_eq!(places(&b, 10, 1).await, 0); // 2 s of lease and 5 s of a call
        }
        advance(&scene.clock, 200 * MS);
        assert_eq!(places(&b, 10, 1).await, 9);
    });
}

#[test]
fn when_a_process_dies_that_did_not_need_all_places_another_begins_at_once() {
    run_io(async {
        let scene = Scene::new(&[]);
        let (dead, b) = (settled(&scene).await, scene.process());
        assert_eq!(places(&dead, 80, 1).await, 70);
        drop(dead);
        assert_eq!(places(&b, 80, 1).await, 10);
    });
}

#[test]
fn after_a_loss_what_is_in_use_is_kept_and_nothing_new_is_given_for_three_seconds() {
    run_io(async {
        let scene = Scene::new(&[]);
        let (a, b) = (settled(&scene).await, scene.process());
        assert_eq!(places(&a, 10, 6).await, 9);
        advance(&scene.clock, 500 * MS);
        scene.flush();
        assert_eq!(places(&b, 10, 4).await, 0);
        assert_eq!(places(&a, 10, 6).await, 6);
        advance(&scene.clock, 2_900 * MS);
        assert_eq!((places(&b, 10, 4).await, places(&a, 10, 6).await), (0, 6));
        advance(&scene.clock, 100 * MS);
        assert_eq!(places(&b, 10, 4).await, 4);
    });
}

#[test]
fn a_stop_gives_places_back_at_once() {
    run_io(async {
        let scene = Scene::new(&[]);
        let (a, b) = (settled(&scene).await, scene.process());
        assert_eq!(places(&a, 10, 9).await, 10);
        a.stop().await.unwrap();
        assert_eq!(places(&b, 10, 9).await, 10);
    });
}

/// A process of the storm: what it was told, what it has in flight and until when each call lasts at most.
struct Member {
    limiter: RedisLimiter,
    flying: Vec<Nanos>,
}

#[test]
fn never_more_calls_are_in_flight_than_there_are_places() {
    for seed in 0..40_u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        run_io(async {
            let scene = Scene::new(&[]);
            let most = random.usize(1..20);
            let mut members: Vec<Member> =
                (0..4).map(|_| Member { limiter: scene.process(), flying: Vec::new() }).collect();
            // Calls of processes that died: the vendor works on them.
            let mut orphans: Vec<Nanos> = Vec::new();
            let (mut peak, mut lost_at) = (0, Nanos::MIN);
            for _ in 0..300 {
                // Processes that live say what they use within three seconds of a loss.
                let is_shaken = scene.clock.nanos() < lost_at.saturating_add(4 * SECOND);
                let scale = [50, 400, if is_shaken { 900 } else { 3_000 }][random.usize(0..3)];
                advance(&scene.clock, random.i64(0..scale) * MS);
                let now = scene.clock.nanos();
                members.iter_mut().for_each(|member| member.flying.retain(|end| *end > now));
                orphans.retain(|end| *end > now);
                let who = random.usize(0..4);
                let member = &mut members[who];
                match random.u32(0..60) {
                    0 => {
                        orphans.append(&mut member.flying);
                        member.limiter = scene.process();
                    }
                    // Nobody can speak for the calls of processes that are dead.
                    1 if orphans.is_empty() => {
                        scene.flush();
                        lost_at = now;
                    }
                    _ => {
                        let wish = random.usize(0..10);
                        let busy = member.flying.len();
                        let allowed = places(&member.limiter, most, busy + wish).await;
                        let free = allowed.saturating_sub(busy).min(wish);
                        member.flying.extend((0..free).map(|_| now + random.i64(1..5_000) * MS));
                    }
                }
                let flying = orphans.len() + members.iter().map(|member| member.flying.len()).sum::<usize>();
                assert!(flying <= most, "seed {seed}: {flying} of {most}");
                peak = peak.max(flying);
            }
            assert!(peak * 2 >= most, "seed {seed}: of {most} places {peak} were ever used");
        });
    }
}
