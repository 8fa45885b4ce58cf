//! The leases of this process: the entries of the streams, and the fence of each.
//!
//! Never uses a server: these are only in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    super::{lock, truth::updates::attempts_size},
    words::Entry,
};
use crate::{
    clock::Nanos,
    job::{Attempts, Job, JobId},
    store::Lease,
};

/// What a lease is made of here.
#[derive(Debug, Clone)]
pub(crate) struct LeasedEntry {
    pub(crate) vendor: Arc<str>,
    pub(crate) entry: Entry,
    /// The fence.
    pub(crate) version: i64,
    /// So far, so that the settle writes them whole.
    pub(crate) attempts: Attempts,
    /// Its outcome is known and wants to be stored.
    pub(crate) settling: bool,
    /// Its call is on record: nobody else may make it.
    pub(crate) called: bool,
}

/// By job and number of the attempt.
#[derive(Default)]
pub(crate) struct Leases(Mutex<HashMap<(JobId, u32), LeasedEntry>>);

impl Leases {
    fn all(&self) -> MutexGuard<'_, HashMap<(JobId, u32), LeasedEntry>> {
        lock(&self.0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// A new lease on this job. Its number is no other's that this process still has in hand: after a loss, or after a change from
    /// outside that did not know of the lease, an earlier one may have the number that would be next.
    pub(crate) fn add(&self, job: Job, leased: LeasedEntry, until: Nanos) -> Lease {
        let mut all = self.all();
        let mut attempt = job.attempt + 1;
        while all.contains_key(&(job.id, attempt)) {
            attempt += 1;
        }
        all.insert((job.id, attempt), leased);
        Lease { job, attempt, called_at: None, until }
    }

    /// The fence of a lease, if it is leased.
    pub(crate) fn version(&self, lease: &Lease) -> Option<i64> {
        self.all().get(&(lease.job.id, lease.attempt)).map(|leased| leased.version)
    }

    /// The call of a lease is on record, which has changed the document.
    pub(crate) fn mark(&self, lease: &Lease) {
        if let Some(leased) = self.all().get_mut(&(lease.job.id, lease.attempt)) {
            (leased.version, leased.called) = (leased.version + 1, true);
        }
    }

    pub(crate) fn remove(&self, lease: &Lease) -> Option<LeasedEntry> {
        self.all().remove(&(lease.job.id, lease.attempt))
    }

    /// Everything that is leased and that others may have, which is then leased no more.
    pub(crate) fn remove_all(&self) -> Vec<LeasedEntry> {
        let mut all = self.all();
        // A stale lease of ours may be on the same entry.
        let called: HashSet<Entry> =
            all.values().filter(|leased| leased.called).map(|leased| leased.entry.clone()).collect();
        all.drain().map(|(_, leased)| leased).filter(|leased| !called.contains(&leased.entry)).collect()
    }

    /// From here on the lease is kept until it is let go.
    pub(crate) fn begin_settling(&self, lease: &Lease) -> Option<LeasedEntry> {
        let mut all = self.all();
        let leased = all.get_mut(&(lease.job.id, lease.attempt))?;
        leased.settling = true;
        Some(leased.clone())
    }

    /// What the attempts of this lease's job weigh so far.
    pub(crate) fn weight(&self, lease: &Lease) -> usize {
        let all = self.all();
        all.get(&(lease.job.id, lease.attempt)).map_or(0, |leased| attempts_size(&leased.attempts))
    }

    /// Whether a later lease of this process is on the same entry.
    pub(crate) fn has_later(&self, lease: &Lease, leased: &LeasedEntry) -> bool {
        let id = lease.job.id;
        self.all()
            .iter()
            .any(|((other, attempt), later)| *other == id && *attempt > lease.attempt && later.entry == leased.entry)
    }

    pub(crate) fn of(&self, vendor: &str, only_settling: bool) -> Vec<Entry> {
        let all = self.all();
        let of = all.values().filter(|leased| &*leased.vendor == vendor && (leased.settling || !only_settling));
        of.map(|leased| leased.entry.clone()).collect()
    }

    /// Of entries that were registered again, under these names, those that are not leased any more.
    pub(crate) fn gone(&self, entries: &[Entry], names: &[String]) -> Vec<Entry> {
        let again = entries.iter().zip(names).filter(|(_, name)| !name.is_empty());
        let again = again.map(|(entry, name)| Entry { name: name.clone(), ..entry.clone() });
        let leased: HashSet<Entry> = self.all().values().map(|leased| leased.entry.clone()).collect();
        again.filter(|entry| !leased.contains(entry)).collect()
    }

    /// Entries that were registered again have new names.
    pub(crate) fn rename(&self, entries: &[Entry], names: &[String]) {
        let renamed: HashMap<&Entry, &String> =
            entries.iter().zip(names).filter(|(_, name)| !name.is_empty()).collect();
        if renamed.is_empty() {
            return;
        }
        for leased in self.all().values_mut() {
            if let Some(name) = renamed.get(&leased.entry) {
                leased.entry.name.clone_from(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::words::StreamNo, *};

    #[test]
    fn what_was_settled_while_it_was_registered_again_is_known() {
        let leases = Leases::default();
        let entry = |number: u8, name: &str| Entry {
            stream: StreamNo(1),
            name: name.to_owned(),
            id: JobId::from_slice(&[number; 16]).expect("sixteen bytes"),
        };
        let leased = [1, 2, 3].map(|number| entry(number, "old"));
        for entry in leased.clone() {
            let (key, vendor, attempts) = ((entry.id, 1), "v".into(), Attempts::default());
            leases
                .all()
                .insert(key, LeasedEntry { vendor, entry, version: 0, attempts, settling: false, called: false });
        }
        // The first is settled while all of them are registered, two of them under new names.
        leases.all().remove(&(leased[0].id, 1));
        let names = ["new".to_owned(), "new".to_owned(), String::new()];
        leases.rename(&leased, &names);
        assert_eq!(leases.gone(&leased, &names), [entry(1, "new")]);
    }
}
