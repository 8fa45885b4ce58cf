//! The breakers of all vendors, and the last error of each vendor. Dispatchers check the breakers, and attempts report to them. This file keeps
//! both for one process, `redis` for many.
//!
//! Never decides by itself when one opens (see [`breaker`](super::breaker)), and never keeps them over a restart: calls soon show
//! whether a vendor still fails.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::breaker::{Breaker, Opened, ProbeEnd, Standing, Tally, Terms};
use crate::{clock::Clock, store_error::StoreError};

/// Permission for the one call that may go while a breaker is half open. It must be returned with [`Breakers::probed`], used or not.
#[derive(Debug)]
pub struct Probe(pub(super) u64);

/// The name of the breaker that opens when a vendor refuses our credentials. No vendor has such a name.
pub fn of_credentials(vendor: &str) -> Arc<str> {
    format!("{vendor}#credentials").into()
}

/// The vendor of a breaker of this name.
pub fn vendor_of(breaker: &str) -> &str {
    breaker.strip_suffix("#credentials").unwrap_or(breaker)
}

/// Stops calls to vendors that fail. A vendor has a breaker of its own name if the config wants one, and always one
/// [`of_credentials`]. What there is no breaker for is always [`Standing::Closed`].
#[async_trait]
pub trait Breakers: Send + Sync {
    /// The state of the breaker, as far as this process knows.
    fn standing(&self, vendor: &str) -> Standing;

    /// The state of the breaker where it is kept, for people and for a process that has just started.
    async fn look(&self, vendor: &str) -> Standing;

    /// The probe, if nobody else has it. There is one in all processes.
    async fn take_probe(&self, vendor: &str) -> Result<Option<Probe>, StoreError>;

    /// Returns the probe, with its outcome.
    async fn probed(&self, vendor: &str, probe: Probe, end: ProbeEnd);

    /// A call has ended, and failed or not.
    async fn ended(&self, vendor: &str, failed: bool);

    /// Opens a closed breaker for this long.
    async fn trip(&self, vendor: &str, wait: Duration, why: Arc<str>);

    /// Makes an open breaker half open at once.
    async fn hurry(&self, vendor: &str) -> Result<(), StoreError>;

    /// Since when it is not closed and why, as far as this process knows.
    fn opened(&self, vendor: &str) -> Option<Opened>;

    /// Notes what was wrong with a call to the vendor, as the API shows it. Every process can read it a second later at most.
    fn note_error(&self, vendor: &Arc<str>, error: Arc<str>);

    /// What was noted last, in any process.
    async fn last_error(&self, vendor: &str) -> Option<Arc<str>>;

    /// Ends what runs in the background.
    async fn stop(&self);
}

/// The breakers of one process.
pub struct LocalBreakers {
    breakers: HashMap<Arc<str>, Mutex<Breaker>>,
    /// The last error of each vendor that had one.
    errors: Mutex<HashMap<Arc<str>, Arc<str>>>,
    clock: Clock,
}

impl LocalBreakers {
    pub fn new(terms: impl IntoIterator<Item = (Arc<str>, Terms)>, clock: Clock) -> LocalBreakers {
        let breakers = terms.into_iter().map(|(vendor, terms)| (vendor, Mutex::new(Breaker::new(terms)))).collect();
        LocalBreakers { breakers, errors: Mutex::default(), clock }
    }

    fn errors(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<str>>> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A panic under the lock leaves at worst a call that is not counted.
    fn lock(&self, vendor: &str) -> Option<MutexGuard<'_, Breaker>> {
        self.breakers.get(vendor).map(|breaker| breaker.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Breakers for LocalBreakers {
    fn standing(&self, vendor: &str) -> Standing {
        self.lock(vendor).map_or(Standing::Closed, |breaker| breaker.standing(self.clock.nanos()))
    }

    async fn look(&self, vendor: &str) -> Standing {
        self.standing(vendor)
    }

    async fn take_probe(&self, vendor: &str) -> Result<Option<Probe>, StoreError> {
        let name = fastrand::u64(..);
        let taken = self.lock(vendor).is_some_and(|mut breaker| breaker.take_probe(name, self.clock.nanos()));
        Ok(taken.then_some(Probe(name)))
    }

    async fn probed(&self, vendor: &str, probe: Probe, end: ProbeEnd) {
        if let Some(mut breaker) = self.lock(vendor) {
            breaker.probed(probe.0, &end, self.clock.nanos());
        }
    }

    async fn ended(&self, vendor: &str, failed: bool) {
        if let Some(mut breaker) = self.lock(vendor) {
            breaker.report(Tally { ended: 1, failed: u64::from(failed) }, self.clock.nanos());
        }
    }

    async fn trip(&self, vendor: &str, wait: Duration, why: Arc<str>) {
        if let Some(mut breaker) = self.lock(vendor) {
            breaker.trip(wait, why, self.clock.nanos());
        }
    }

    async fn hurry(&self, vendor: &str) -> Result<(), StoreError> {
        if let Some(mut breaker) = self.lock(vendor) {
            breaker.hurry(self.clock.nanos());
        }
        Ok(())
    }

    fn opened(&self, vendor: &str) -> Option<Opened> {
        self.lock(vendor).and_then(|breaker| breaker.opened())
    }

    fn note_error(&self, vendor: &Arc<str>, error: Arc<str>) {
        self.errors().insert(vendor.clone(), error);
    }

    async fn last_error(&self, vendor: &str) -> Option<Arc<str>> {
        self.errors().get(vendor).cloned()
    }

    async fn stop(&self) {}
}
