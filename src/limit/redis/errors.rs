//! The last error of each vendor, for all processes: each writes its own to Redis, at most once a second and vendor.
//!
//! Never delays a call: what is noted waits here until it is written, and of several errors only the last is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    clock::{Nanos, nanos},
    redis_link::Redis,
};

/// The time between two writes for one vendor.
const EVERY: Duration = Duration::from_secs(1);

/// This process's part of the last errors.
pub(super) struct Errors {
    prefix: String,
    vendors: Mutex<HashMap<Arc<str>, Own>>,
}

/// The last error of a vendor in this process.
struct Own {
    error: Arc<str>,
    is_written: bool,
    /// When the next one may be written.
    next_at: Nanos,
}

impl Errors {
    pub(super) fn new(prefix: &str) -> Errors {
        Errors { prefix: prefix.to_owned(), vendors: Mutex::default() }
    }

    pub(super) fn note(&self, vendor: &Arc<str>, error: Arc<str>) {
        let mut vendors = self.lock();
        let next_at = vendors.get(vendor).map_or(Nanos::MIN, |own| own.next_at);
        vendors.insert(vendor.clone(), Own { error, is_written: false, next_at });
    }

    /// Writes what may be written now; says whether something is left for later.
    pub(super) async fn write(&self, redis: &Redis, now: Nanos) -> bool {
        for (vendor, error) in self.take_due(now) {
            let mut set = ::redis::cmd("SET");
            set.arg(self.key(&vendor)).arg(&*error);
            if let Err(why) = redis.command::<()>(&set).await {
                tracing::debug!(%vendor, error = %why, "the vendor's last error is not shown by other processes");
            }
        }
        self.is_left()
    }

    /// The last error of a vendor in any process. An own one that is not written yet is newer than what Redis has.
    pub(super) async fn last(&self, redis: &Redis, vendor: &str) -> Option<Arc<str>> {
        let own = self.lock().get(vendor).map(|own| (own.error.clone(), own.is_written));
        if let Some((error, false)) = own {
            return Some(error);
        }
        let mut get = ::redis::cmd("GET");
        get.arg(self.key(vendor));
        let of_all = redis.command::<Option<String>>(&get).await.ok().flatten();
        of_all.map(Arc::from).or(own.map(|(error, _)| error))
    }

    /// Vendors and their errors that may be written now.
    fn take_due(&self, now: Nanos) -> Vec<(Arc<str>, Arc<str>)> {
        let mut vendors = self.lock();
        let due = vendors.iter_mut().filter(|(_, own)| !own.is_written && own.next_at <= now);
        let take = |(vendor, own): (&Arc<str>, &mut Own)| {
            (own.is_written, own.next_at) = (true, now.saturating_add(nanos(EVERY)));
            (vendor.clone(), own.error.clone())
        };
        due.map(take).collect()
    }

    fn is_left(&self) -> bool {
        self.lock().values().any(|own| !own.is_written)
    }

    fn key(&self, vendor: &str) -> String {
        format!("{}:{{{vendor}}}:last_error", self.prefix)
    }

    /// A panic under the lock leaves at worst an error that is not shown.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Own>> {
        self.vendors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_errors_within_a_second_the_last_is_written_when_the_second_is_over() {
        let (errors, acme) = (Errors::new("p"), Arc::from("acme"));
        let due = |now| errors.take_due(now).into_iter().map(|(_, error)| error.to_string()).collect::<Vec<_>>();
        errors.note(&acme, "a".into());
        assert_eq!(due(0), ["a"]);
        for error in ["b", "c"] {
            errors.note(&acme, error.into());
            assert!(due(999_999_999).is_empty() && errors.is_left(), "it is left for later");
        }
        assert_eq!(due(1_000_000_000), ["c"]);
        assert!(due(9_000_000_000).is_empty() && !errors.is_left(), "once");
    }
}
