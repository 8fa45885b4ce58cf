//! The leases of this process: which entries of the streams it holds, and by which fence each of them settles.
//!
//! Never asks a server: what is held is in memory, and a process that dies holds nothing.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    super::{lock, truth::updates::attempts_weigh},
    words::Entry,
};
use crate::{
    clock::Nanos,
    job::{Attempts, Job, JobId},
    store::Lease,
};

/// What a lease is made of here.
#[derive(Debug, Clone)]
pub(crate) struct HeldEntry {
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
pub(crate) struct Holds(Mutex<HashMap<(JobId, u32), HeldEntry>>);

impl Holds {
    fn all(&self) -> MutexGuard<'_, HashMap<(JobId, u32), HeldEntry>> {
        lock(&self.0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// A new lease on this job. Its number is no other's that this process still has in hand: after a loss, or after a change from
    /// outside that did not know of the lease, an earlier one may have the number that would be next.
    pub(crate) fn lease(&self, job: Job, hold: HeldEntry, until: Nanos) -> Lease {
        let mut all = self.all();
        let mut attempt = job.attempt + 1;
        while all.contains_key(&(job.id, attempt)) {
            attempt += 1;
        }
        all.insert((job.id, attempt), hold);
        Lease { job, attempt, called_at: None, until }
    }

    /// The fence of a lease, if it is held.
    pub(crate) fn version(&self, lease: &Lease) -> Option<i64> {
        self.all().get(&(lease.job.id, lease.attempt)).map(|hold| hold.version)
    }

    /// The call of a lease is on record, which has changed the document.
    pub(crate) fn mark(&self, lease: &Lease) {
        if let Some(hold) = self.all().get_mut(&(lease.job.id, lease.attempt)) {
            (hold.version, hold.called) = (hold.version + 1, true);
        }
    }

    pub(crate) fn let_go(&self, lease: &Lease) -> Option<HeldEntry> {
        self.all().remove(&(lease.job.id, lease.attempt))
    }

    /// Everything that is held and that others may have, which is then held no more.
    pub(crate) fn let_all_go(&self) -> Vec<HeldEntry> {
        let mut all = self.all();
        // A stale lease of ours may be on the same entry.
        let called: HashSet<Entry> = all.values().filter(|hold| hold.called).map(|hold| hold.entry.clone()).collect();
        all.drain().map(|(_, hold)| hold).filter(|hold| !called.contains(&hold.entry)).collect()
    }

    /// From here on the lease is kept until it is let go.
    pub(crate) fn begin_settling(&self, lease: &Lease) -> Option<HeldEntry> {
        let mut all = self.all();
        let hold = all.get_mut(&(lease.job.id, lease.attempt))?;
        hold.settling = true;
        Some(hold.clone())
    }

    /// What the attempts of this lease's job weigh so far.
    pub(crate) fn weight(&self, lease: &Lease) -> usize {
        let all = self.all();
        all.get(&(lease.job.id, lease.attempt)).map_or(0, |hold| attempts_weigh(&hold.attempts))
    }

    /// Whether a later lease of this process is on the same entry.
    pub(crate) fn has_later(&self, lease: &Lease, hold: &HeldEntry) -> bool {
        let id = lease.job.id;
        self.all()
            .iter()
            .any(|((other, attempt), held)| *other == id && *attempt > lease.attempt && held.entry == hold.entry)
    }

    pub(crate) fn of(&self, vendor: &str, only_settling: bool) -> Vec<Entry> {
        let all = self.all();
        let of = all.values().filter(|hold| &*hold.vendor == vendor && (hold.settling || !only_settling));
        of.map(|hold| hold.entry.clone()).collect()
    }

    /// Of entries that were entered anew, under these names, those that nobody here holds any more.
    pub(crate) fn gone(&self, entries: &[Entry], names: &[String]) -> Vec<Entry> {
        let anew = entries.iter().zip(names).filter(|(_, name)| !name.is_empty());
        let anew = anew.map(|(entry, name)| Entry { name: name.clone(), ..entry.clone() });
        let held: HashSet<Entry> = self.all().values().map(|hold| hold.entry.clone()).collect();
        anew.filter(|entry| !held.contains(entry)).collect()
    }

    /// Entries that were entered anew have new names.
    pub(crate) fn rename(&self, entries: &[Entry], names: &[String]) {
        let renamed: HashMap<&Entry, &String> =
            entries.iter().zip(names).filter(|(_, name)| !name.is_empty()).collect();
        if renamed.is_empty() {
            return;
        }
        for hold in self.all().values_mut() {
            if let Some(name) = renamed.get(&hold.entry) {
                hold.entry.name.clone_from(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::words::Line, *};

    #[test]
    fn what_was_let_go_while_it_was_entered_anew_is_known() {
        let holds = Holds::default();
        let entry = |number: u8, name: &str| Entry {
            line: Line(1),
            name: name.to_owned(),
            id: JobId::from_slice(&[number; 16]).expect("sixteen bytes"),
        };
        let held = [1, 2, 3].map(|number| entry(number, "old"));
        for entry in held.clone() {
            let (key, vendor, attempts) = ((entry.id, 1), "v".into(), Attempts::default());
            holds.all().insert(key, HeldEntry { vendor, entry, version: 0, attempts, settling: false, called: false });
        }
        // The first is settled while the index is told of all of them, and has two of them anew.
        holds.all().remove(&(held[0].id, 1));
        let names = ["new".to_owned(), "new".to_owned(), String::new()];
        holds.rename(&held, &names);
        assert_eq!(holds.gone(&held, &names), [entry(1, "new")]);
    }
}
