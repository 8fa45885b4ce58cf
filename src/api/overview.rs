//! What `GET /stats`, `/failures`, `/system` and `/vendors` share: answers that are made only now and then, however many ask.
//!
//! Never mixes up whom an answer is for: that is part of its name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{http::StatusCode, response::Response};
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{dto, error::ApiError};
use crate::{
    clock::{Clock, Nanos, nanos},
    processes::Processes,
    stats::Stats,
    store::{Sees, StoreError},
};

/// How long most answers are good for.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(1);
/// One that took long to make is good for this many times as long, so that making it never keeps the service busy.
const TIMES_ITS_MAKING: Nanos = 10;
/// Answers that are kept. Those of many tenants may be more; then they are made anew.
const MOST_KEPT: usize = 256;

/// The parts of the service that only these answers need.
pub struct Overview {
    pub stats: Stats,
    pub(super) processes: Processes,
    /// The config in force, as people may see it.
    pub(super) config: Box<RawValue>,
    /// What the jobs are kept in, and the version of its schema.
    pub(super) store: (&'static str, u64),
    /// How long ended jobs are kept.
    pub(super) retention: Duration,
    pub(super) answers: Answers,
    /// Locked while failures are counted: however much is asked, lists find a reader of the store that is free.
    pub(super) counting: tokio::sync::Mutex<()>,
}

impl Overview {
    pub fn new(
        stats: Stats,
        processes: Processes,
        config: Box<RawValue>,
        store: (&'static str, u64),
        retention: Duration,
    ) -> Overview {
        let (answers, counting) = (Answers::default(), tokio::sync::Mutex::default());
        Overview { stats, processes, config, store, retention, answers, counting }
    }
}

/// Answers, by what was asked and for whom.
#[derive(Default)]
pub(super) struct Answers(Mutex<Places>);

type Places = HashMap<String, Arc<tokio::sync::Mutex<Option<Kept>>>>;

struct Kept {
    until: Nanos,
    answer: Result<Bytes, StoreError>,
}

impl Kept {
    fn is_good(&self, now: Nanos) -> bool {
        now < self.until
    }
}

/// The name of an answer: what was asked, and of whose jobs.
pub(super) fn name(what: &str, sees: &Sees) -> String {
    match sees {
        Sees::All => format!("{what} of all"),
        Sees::Tenant(tenant) => format!("{what} of the tenant {tenant}"),
    }
}

impl Answers {
    /// The answer of this name, made now if there is none that is good. Whoever asks meanwhile waits for it. It is good for `good_for`, or longer
    /// if it took long to make.
    pub(super) async fn get<T: Serialize>(
        &self,
        clock: &Clock,
        good_for: Duration,
        name: String,
        make: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<Response, ApiError> {
        let place = self.place(name, clock.nanos());
        let mut kept = place.lock().await;
        let began = clock.nanos();
        if kept.as_ref().is_none_or(|kept| !kept.is_good(began)) {
            let made = make.await.map(|view| serde_json::to_vec(&view).expect("our own answers are plain data").into());
            let now = clock.nanos();
            let good_for = nanos(good_for).max((now - began).saturating_mul(TIMES_ITS_MAKING));
            *kept = Some(Kept { until: began.saturating_add(good_for), answer: made });
        }
        let answer = kept.as_ref().expect("it was just made").answer.clone();
        Ok(dto::json_response(StatusCode::OK, answer?))
    }

    /// Has the answers made anew whose names begin like this: somebody has changed what they say. One that is being made goes to those who wait for it.
    pub(super) fn forget(&self, what: &str) {
        self.places().retain(|name, _| !name.starts_with(what));
    }

    fn place(&self, name: String, now: Nanos) -> Arc<tokio::sync::Mutex<Option<Kept>>> {
        let mut places = self.places();
        if places.len() >= MOST_KEPT && !places.contains_key(&name) {
            // One that is being made is locked.
            places.retain(|_, place| {
                place.try_lock().map_or(true, |kept| kept.as_ref().is_some_and(|kept| kept.is_good(now)))
            });
            if places.len() >= MOST_KEPT {
                places.clear();
            }
        }
        places.entry(name).or_default().clone()
    }

    /// A panic under the lock leaves at worst an answer that is made anew.
    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::clock::Time;

    async fn text(answer: Result<Response, ApiError>) -> String {
        let body = answer.expect("an answer").into_body().collect().await.expect("a body").to_bytes();
        String::from_utf8(body.to_vec()).expect("text")
    }

    #[tokio::test]
    async fn an_answer_is_made_once_a_second_for_each_who_may_see_another() {
        let (answers, clock, made) = (Answers::default(), Clock::manual(Time(0)), AtomicUsize::new(0));
        let ask = |name: &str| {
            let (answers, clock, made, name) = (&answers, &clock, &made, name.to_owned());
            async move {
                text(answers.get(clock, GOOD_FOR, name, async { Ok(made.fetch_add(1, Ordering::Relaxed)) }).await).await
            }
        };
        assert_eq!((ask("a").await, ask("a").await, ask("b").await), ("0".into(), "0".into(), "1".into()));
        clock.advance(Duration::from_secs(1));
        assert_eq!(ask("a").await, "2");
        answers.forget("a");
        assert_eq!((ask("a").await, ask("b").await), ("3".into(), "4".into()), "b has become old");
    }

    #[tokio::test]
    async fn an_answer_that_takes_long_is_made_less_often_and_a_failure_is_kept_as_well() {
        let (answers, clock) = (Answers::default(), Clock::manual(Time(0)));
        let slow = |value: u8| {
            let clock = clock.clone();
            async move {
                clock.advance(Duration::from_secs(1));
                Ok(value)
            }
        };
        assert_eq!(text(answers.get(&clock, GOOD_FOR, "a".into(), slow(1)).await).await, "1");
        clock.advance(Duration::from_secs(8));
        assert_eq!(text(answers.get(&clock, GOOD_FOR, "a".into(), slow(2)).await).await, "1");
        clock.advance(Duration::from_secs(1));
        assert_eq!(text(answers.get(&clock, GOOD_FOR, "a".into(), slow(3)).await).await, "3");
        let fails = async { Err::<u8, _>(StoreError::Unavailable("the test says so".into())) };
        assert!(answers.get(&clock, GOOD_FOR, "b".into(), fails).await.is_err());
        assert!(answers.get(&clock, GOOD_FOR, "b".into(), async { Ok(1_u8) }).await.is_err());
    }

    #[tokio::test]
    async fn answers_are_bounded_in_number() {
        let (answers, clock) = (Answers::default(), Clock::manual(Time(0)));
        for n in 0..1_000 {
            assert!(answers.get(&clock, GOOD_FOR, n.to_string(), async { Ok(n) }).await.is_ok());
        }
        assert!(answers.0.lock().unwrap().len() <= MOST_KEPT);
    }
}
