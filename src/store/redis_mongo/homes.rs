//! Which worker is home to a vendor: it alone wakes up for the vendor's new jobs and looks after the vendor's index. The others help when it has
//! more to do than it can.
//!
//! Never needed for correctness: workers that disagree share jobs as any two workers do. A worker that stops is missed within four seconds, and
//! its vendors have another home then.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::{Core, index::words::Channel, lock};
use crate::{
    clock::{Nanos, Time, nanos},
    store::{Ready, StoreError},
};

/// A worker whose count has not changed for so long is not there.
const MISSED_AFTER: Duration = Duration::from_secs(3);
/// Its name is deleted then.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Helpers are called this often at most.
const HELP_EVERY: Duration = Duration::from_millis(500);
/// A quiet vendor is looked at this often, and whenever it has a job.
const QUIET_FOR: Duration = Duration::from_secs(600);
/// Changes when bells say something that earlier versions do not understand: their workers are no homes of ours then, nor we of theirs.
const BELLS: u8 = 2;
/// What a look or a claim has found is believed for so long, if nothing is known to have changed since.
const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// The workers with the same vendors, and whose home is where.
pub(super) struct Homes {
    me: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often this worker has said that it is there. 0: it never has, so this process may be no worker.
    count: u64,
    /// What each worker said last, and since when.
    seen: HashMap<String, (String, Nanos)>,
    /// The workers that are there. Empty while nobody knows: then each is home to all.
    live: Vec<String>,
    mine: HashSet<Arc<str>>,
    vendors: HashMap<Arc<str>, Known>,
}

/// What this worker knows of a vendor's index. Only believed while bells arrive, which say when it changes.
#[derive(Default)]
struct Known {
    /// Until when it needs no look: nothing was due, leased or expected in it.
    quiet_until: Option<Nanos>,
    /// How often it has changed.
    changes: u64,
    /// What the last look or claim found, and when.
    found: Option<(Ready, Nanos)>,
    /// When helpers were last called.
    helped_at: Option<Nanos>,
}

impl Known {
    /// Nothing that was found before is true any more, and what is being looked for now may be false.
    fn change(&mut self) {
        (self.quiet_until, self.found) = (None, None);
        self.changes += 1;
    }
}

impl Homes {
    /// Workers with other vendors have other homes, so that each vendor of a config has one that knows it; so have workers that hear other bells.
    pub(super) fn new<'a>(process: &str, vendors: impl Iterator<Item = &'a Arc<str>>) -> Homes {
        let mut all = Sha256::new_with_prefix([BELLS]);
        vendors.for_each(|vendor| {
            all.update(&**vendor);
            all.update([0]);
        });
        let digest = all.finalize();
        let group: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Homes { me: format!("{group}:{process}"), state: Mutex::default() }
    }

    /// Whether this worker is home to the vendor, as far as it knows.
    pub(super) fn is_home_to(&self, vendor: &str) -> bool {
        let state = lock(&self.state);
        state.live.is_empty() || state.mine.contains(vendor)
    }

    /// Whether the vendor's index needs no look now: nothing was due, leased or expected in it, and no job has come since.
    pub(super) fn is_quiet(&self, vendor: &str, now: Nanos) -> bool {
        lock(&self.state).vendors.get(vendor).and_then(|known| known.quiet_until).is_some_and(|until| now < until)
    }

    /// A sweep that began when the index had changed so often has found that nothing is going on at the vendor.
    pub(super) fn note_quiet(&self, vendor: &Arc<str>, changes: u64, now: Nanos) {
        let mut state = lock(&self.state);
        let is_as_it_was = state.vendors.get(vendor).map_or(0, |known| known.changes) == changes;
        if !state.live.is_empty() && is_as_it_was {
            // Spread, so that they do not all end at once.
            let until = now + nanos(QUIET_FOR) / 2 + fastrand::i64(0..nanos(QUIET_FOR) / 2);
            state.vendors.entry(vendor.clone()).or_default().quiet_until = Some(until);
        }
    }

    /// How often the vendor's index has changed.
    pub(super) fn changes(&self, vendor: &str) -> u64 {
        lock(&self.state).vendors.get(vendor).map_or(0, |known| known.changes)
    }

    /// The vendor's index changes, or has changed.
    pub(super) fn note_change(&self, vendor: &str) {
        let mut state = lock(&self.state);
        if let Some(known) = state.vendors.get_mut(vendor) {
            known.change();
        } else {
            state.vendors.insert(vendor.into(), Known { changes: 1, ..Known::default() });
        }
    }

    /// Bells may have been missed: any vendor's index may have changed.
    pub(super) fn note_all_changed(&self) {
        lock(&self.state).vendors.values_mut().for_each(Known::change);
    }

    /// A bell said that something is due: the vendor's index has changed, and no look is needed before the next claim.
    pub(super) fn note_due(&self, vendor: &Arc<str>, now: Nanos) {
        self.note_change(vendor);
        // Long ago: due by any clock.
        let ready = Ready { next_due: Some(Time(0)), ..Ready::default() };
        self.note_found(vendor, self.changes(vendor), ready, now);
    }

    /// What a look would find, if that is known.
    pub(super) fn found(&self, vendor: &str, now: Nanos) -> Option<Ready> {
        let state = lock(&self.state);
        let found = state.vendors.get(vendor).and_then(|known| known.found);
        let is_fresh = |at: Nanos| !state.live.is_empty() && now - at < nanos(BELIEVED_FOR);
        found.filter(|(_, at)| is_fresh(*at)).map(|(found, _)| found)
    }

    /// What a look or a claim has found that began when the index had changed so often.
    pub(super) fn note_found(&self, vendor: &Arc<str>, changes: u64, found: Ready, now: Nanos) {
        let mut state = lock(&self.state);
        let known = state.vendors.entry(vendor.clone()).or_default();
        known.found = Some((found, now)).filter(|_| known.changes == changes);
    }

    fn has_quiet(&self) -> bool {
        lock(&self.state).vendors.values().any(|known| known.quiet_until.is_some())
    }

    /// What to say this time.
    fn next_count(&self) -> u64 {
        let mut state = lock(&self.state);
        state.count += 1;
        state.count
    }

    /// What all workers have said. Gives those to forget, and the vendors that have come home.
    fn heard(
        &self,
        said: Vec<(String, String)>,
        vendors: impl Iterator<Item = Arc<str>>,
        now: Nanos,
    ) -> (Vec<String>, Vec<Arc<str>>) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        state.seen = said
            .into_iter()
            .map(|(name, count)| {
                let since = match state.seen.get(&name) {
                    Some((before, since)) if *before == count => *since,
                    _ => now,
                };
                (name, (count, since))
            })
            .collect();
        let silent = |since: Nanos, time: Duration| now - since >= nanos(time);
        let gone = state.seen.iter().filter(|(_, (_, since))| silent(*since, FORGOTTEN_AFTER));
        let gone = gone.map(|(name, _)| name.clone()).collect();
        let group = self.me.split_once(':').map_or("", |(group, _)| group);
        let is_live = |name: &str, since| {
            name == self.me || name.split_once(':').is_some_and(|(of, _)| of == group) && !silent(since, MISSED_AFTER)
        };
        let mut live: Vec<String> = state
            .seen
            .iter()
            .filter(|(name, (_, since))| is_live(name, *since))
            .map(|(name, _)| name.clone())
            .collect();
        live.sort_unstable();
        if live == state.live {
            return (gone, Vec::new());
        }
        let mine: HashSet<Arc<str>> = vendors.filter(|vendor| home_of(vendor, &live) == Some(&self.me)).collect();
        let come: Vec<Arc<str>> = mine.difference(&state.mine).cloned().collect();
        for (vendor, known) in &mut state.vendors {
            if !mine.contains(vendor) {
                known.change();
            }
        }
        for vendor in &come {
            state.vendors.entry(vendor.clone()).or_default().change();
        }
        (state.live, state.mine) = (live, mine);
        (gone, come)
    }

    /// Nobody knows who is there.
    fn lost(&self) {
        let mut state = lock(&self.state);
        state.vendors.values_mut().for_each(Known::change);
        (state.seen, state.live, state.mine) = Default::default();
    }

    /// Whether helpers can be called now.
    fn may_call(&self, vendor: &Arc<str>, now: Nanos) -> bool {
        let mut state = lock(&self.state);
        let are_others = state.live.len() > 1;
        let known = state.vendors.entry(vendor.clone()).or_default();
        let may = are_others && known.helped_at.is_none_or(|at| now - at >= nanos(HELP_EVERY));
        if may {
            known.helped_at = Some(now);
        }
        may
    }
}

/// Rendezvous hashing (Thaler and Ravishankar, 1996): when a worker comes or goes, only its own vendors move. Not with a hash of the standard
/// library, which may differ between versions.
fn home_of<'a>(vendor: &str, live: &'a [String]) -> Option<&'a String> {
    live.iter()
        .max_by_key(|worker| Sha256::new().chain_update(worker).chain_update([0]).chain_update(vendor).finalize())
}

impl Core {
    /// Says that this worker is there, and learns who else is. To be called once a second.
    pub(super) async fn roll_call(&self) -> Result<(), StoreError> {
        let key = format!("{}:work:workers", self.index.database());
        let redis = self.index.redis();
        let said = async {
            let count = self.homes.next_count();
            redis.command::<i64>(redis::cmd("HSET").arg(&key).arg(&self.homes.me).arg(count)).await?;
            redis.command::<Vec<(String, String)>>(redis::cmd("HGETALL").arg(&key)).await
        };
        let said = match said.await {
            Ok(said) if !self.signals.is_unsubscribed() => said,
            unknown => {
                self.homes.lost();
                self.signals.ring_all();
                return unknown.map(drop);
            }
        };
        let (gone, come) = self.homes.heard(said, self.vendors.keys().cloned(), self.clock.nanos());
        for vendor in come {
            self.signals.ring(&vendor);
            // Nobody waits for it: most vendors turn out to be quiet.
            drop(self.sweep_soon(&vendor));
        }
        if !gone.is_empty() {
            redis.command::<i64>(redis::cmd("HDEL").arg(&key).arg(gone)).await?;
        }
        Ok(())
    }

    /// Takes this worker off the list, so that its vendors have another home at once.
    pub(super) async fn leave(&self) {
        let key = format!("{}:work:workers", self.index.database());
        let leaving = self.index.redis();
        // If Redis is unavailable, this worker is missed soon.
        let _ = leaving.command::<i64>(redis::cmd("HDEL").arg(key).arg(&self.homes.me)).await;
    }

    /// Wakes all workers for a vendor that has more due than this one can claim.
    pub(super) async fn call_helpers(&self, vendor: &str) {
        let Some(vendor) = self.vendors.get(vendor) else { return };
        if self.homes.may_call(&vendor.name, self.clock.nanos()) {
            let body = [b"+", vendor.name.as_bytes()].concat();
            // If this is lost, helpers are called again soon.
            let _ = self.briefly(self.index.publish(Channel::Bells, &body)).await;
        }
    }

    /// Ends the quiet of vendors that have jobs in MongoDB of which the index said nothing.
    pub(super) async fn wake_quiet(&self) -> Result<(), StoreError> {
        if self.homes.has_quiet() {
            for vendor in self.mongo.vendors_with_jobs().await? {
                self.homes.note_change(&vendor);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn vendors(count: usize) -> Vec<Arc<str>> {
        (0..count).map(|i| format!("v{i}").into()).collect()
    }

    fn homes(names: &[&str], all: &[Arc<str>]) -> Vec<Homes> {
        names.iter().map(|name| Homes::new(name, all.iter())).collect()
    }

    fn call(homes: &Homes, said: &[(&Homes, u64)], all: &[Arc<str>], now: Nanos) -> usize {
        let said = said.iter().map(|(of, count)| (of.me.clone(), count.to_string())).collect();
        homes.heard(said, all.iter().cloned(), now).1.len()
    }

    #[test]
    fn each_vendor_has_one_home_and_only_those_of_a_worker_that_goes_move() {
        let all = vendors(300);
        let workers = homes(&["a", "b", "c"], &all);
        let [a, b, c] = &workers[..] else { unreachable!() };
        assert!(workers.iter().all(|worker| worker.is_home_to("v0")), "nobody knows anything yet");
        for worker in &workers {
            call(worker, &[(a, 1), (b, 1), (c, 1)], &all, 0);
        }
        let count = |of: &Homes| all.iter().filter(|vendor| of.is_home_to(vendor)).count();
        assert_eq!(count(a) + count(b) + count(c), 300);
        assert!(workers.iter().all(|worker| count(worker) > 60), "they share evenly");
        let before: Vec<bool> = all.iter().map(|vendor| a.is_home_to(vendor)).collect();
        assert_eq!(call(a, &[(a, 4), (b, 4), (c, 1)], &all, 3 * SECOND - 1), 0, "not missed yet");
        let of_c = count(c);
        let come = call(a, &[(a, 5), (b, 5), (c, 1)], &all, 3 * SECOND) + call(b, &[(a, 5), (b, 5)], &all, 3 * SECOND);
        assert_eq!(come, of_c, "only its vendors move");
        assert!(all.iter().zip(before).all(|(vendor, was)| !was || a.is_home_to(vendor)));
    }

    #[test]
    fn workers_with_other_vendors_are_no_homes_of_ours() {
        let (few, many) = (vendors(1), vendors(200));
        let (old, new) = (Homes::new("old", few.iter()), Homes::new("new", many.iter()));
        call(&new, &[(&old, 1), (&new, 1)], &many, 0);
        assert!(many.iter().all(|vendor| new.is_home_to(vendor)));
    }

    #[test]
    fn a_vendor_is_quiet_until_something_happens_there_or_ten_minutes_have_passed() {
        let all = vendors(1);
        let home = Homes::new("a", all.iter());
        home.note_quiet(&all[0], 0, 0);
        assert!(!home.is_quiet("v0", 1), "not before it is known who is there");
        call(&home, &[(&home, 1)], &all, 0);
        home.note_quiet(&all[0], home.changes("v0"), 0);
        assert!(home.is_quiet("v0", 299 * SECOND) && !home.is_quiet("v0", 600 * SECOND));
        home.note_change("v0");
        assert!(!home.is_quiet("v0", 1));
    }

    #[test]
    fn what_a_bell_says_is_believed_for_a_second_or_until_the_next_change() {
        let all = vendors(1);
        let home = Homes::new("a", all.iter());
        home.note_due(&all[0], 0);
        assert!(home.found("v0", 1).is_none(), "not before it is known who is there");
        call(&home, &[(&home, 1)], &all, 0);
        home.note_due(&all[0], 0);
        assert!(home.found("v0", SECOND - 1).is_some_and(|ready| ready.next_due == Some(Time(0))));
        assert!(home.found("v0", SECOND).is_none());
        home.note_due(&all[0], SECOND);
        home.note_change("v0");
        assert!(home.found("v0", SECOND).is_none());
        home.note_due(&all[0], SECOND);
        home.note_all_changed();
        assert!(home.found("v0", SECOND).is_none(), "bells may have been missed");
    }

    #[test]
    fn what_is_found_while_bells_are_missed_is_not_believed() {
        let all = vendors(1);
        let home = Homes::new("a", all.iter());
        call(&home, &[(&home, 1)], &all, 0);
        let before = home.changes("v0");
        home.lost();
        call(&home, &[(&home, 2)], &all, 1);
        home.note_found(&all[0], before, Ready::default(), 1);
        home.note_quiet(&all[0], before, 1);
        assert!(home.found("v0", 2).is_none() && !home.is_quiet("v0", 2));
    }
}
