//! A Redis that takes long to answer: permits are in time when they come, or it is said why there are none.

use std::sync::atomic::AtomicI64;

use fetchgate::{redis_link::RedisUrl, store::StoreError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};

use super::*;

/// How long a slow question takes.
const TAKES: Nanos = 20 * MS;

/// A guard of 8 ms, of which 6 ms are for us.
fn paced() -> Limit {
    Limit { guard: Duration::from_millis(8), ..limit(100, Duration::from_secs(1), Shape::Paced) }
}

/// The way to the shared server, on which questions take their time: it passes on the clock of the scene.
struct Way {
    /// So many questions are slow.
    slow: Arc<AtomicI64>,
    _tasks: JoinSet<()>,
}

impl Way {
    /// Puts it between this scene and its server.
    async fn of(scene: &mut Scene) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://127.0.0.1:{}/0", listener.local_addr().unwrap().port());
        scene.redis = Redis::new(RedisUrl::parse(&url).unwrap());
        let (slow, mut tasks) = (Arc::new(AtomicI64::new(0)), JoinSet::new());
        let (clock, many) = (scene.clock.clone(), slow.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (from, _) = listener.accept().await.unwrap();
                let to = TcpStream::connect(("127.0.0.1", servers::redis().port)).await.unwrap();
                let ((questions, mut back), (mut answers, there)) = (from.into_split(), to.into_split());
                let (clock, many) = (clock.clone(), many.clone());
                connections.spawn(async move {
                    tokio::select! {
                        _ = pass(questions, there, clock, many) => {}
                        _ = copy(&mut answers, &mut back) => {}
                    }
                });
            }
        });
        Way { slow, _tasks: tasks }
    }
}

async fn pass(
    mut questions: OwnedReadHalf,
    mut there: OwnedWriteHalf,
    clock: Clock,
    slow: Arc<AtomicI64>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = questions.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if slow.fetch_sub(1, Ordering::Relaxed) > 0 {
            advance(&clock, TAKES);
        }
        there.write_all(&buffer[..read]).await?;
    }
}

/// A process that has had a permit, the last of it this long ago; from here on so many questions are slow.
async fn slow_after(silence: Nanos, slow: i64) -> (Scene, Way, RedisLimiter) {
    let mut scene = Scene::new(&[paced()]);
    let way = Way::of(&mut scene).await;
    let limiter = scene.warm().await;
    one(&scene, &limiter).await.unwrap();
    advance(&scene.clock, silence);
    way.slow.store(slow, Ordering::Relaxed);
    (scene, way, limiter)
}

/// Asks for one permit, whose call can go at its time.
async fn one_that_can_be_used(scene: &Scene, limiter: &RedisLimiter) {
    let permit = one(scene, limiter).await.unwrap();
    advance_to(&scene.clock, permit.at);
    assert_eq!(limiter.check(&permit, scene.clock.nanos()), Ok(()));
}

/// Asks for one permit.
async fn one(scene: &Scene, limiter: &RedisLimiter) -> Result<Permit, StoreError> {
    let answers = limiter.reserve("acme", &wishes("t", 1), scene.in_ms(500)).await?;
    Ok(permits(answers).pop().expect("nothing is used"))
}

#[test]
fn permits_are_in_time_however_long_the_answer_takes_of_late() {
    run_io(async {
        let (scene, way, limiter) = slow_after(0, i64::MAX).await;
        let mut in_time = Vec::new();
        for _ in 0..10 {
            advance(&scene.clock, 100 * MS);
            let permit = one(&scene, &limiter).await.unwrap();
            in_time.push(limiter.check(&permit, scene.clock.nanos()).is_ok());
        }
        assert_eq!(in_time[1..], [true; 9], "the first could not know");
        assert!(!in_time[0]);

        way.slow.store(0, Ordering::Relaxed);
        for _ in 0..50 {
            advance(&scene.clock, 100 * MS);
            one(&scene, &limiter).await.unwrap();
        }
        let permit = one(&scene, &limiter).await.unwrap();
        assert!(
            permit.at <= scene.in_ms(11),
            "no later than the pace asks: {} ms",
            (permit.at - scene.clock.nanos()) / MS
        );
    });
}

#[test]
fn one_slow_answer_after_a_long_silence_is_asked_again() {
    run_io(async {
        let (scene, _way, limiter) = slow_after(60 * SECOND, 1).await;
        one_that_can_be_used(&scene, &limiter).await;
    });
}

#[test]
fn when_every_answer_takes_longer_than_the_guard_allows_that_is_said() {
    run_io(async {
        let (scene, way, limiter) = slow_after(60 * SECOND, i64::MAX).await;
        let error = one(&scene, &limiter).await.unwrap_err().to_string();
        assert!(error.contains("takes 20.0 ms") && error.contains("\"acme\" leave 6.0 ms"), "{error}");
        assert!(error.contains("guard = \"40ms\""), "{error}");

        way.slow.store(0, Ordering::Relaxed);
        advance(&scene.clock, SECOND);
        one_that_can_be_used(&scene, &limiter).await;
    });
}
