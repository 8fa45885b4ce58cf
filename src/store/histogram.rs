//! How many jobs of a lane are due when: a number for each second, and for longer stretches where there are many seconds.
//!
//! Never grows with the jobs in it. How many there are is exact; where they lie inside a piece is not known, and taken to be even.

use std::collections::BTreeMap;

use crate::clock::Time;

/// Pieces of a lane at most: so many for few jobs, and so many however many they are.
const FEW: usize = 16;
const MOST: usize = 512;

/// Jobs by the second in which they are due.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Histogram {
    /// By its first second. Pieces do not overlap.
    pieces: BTreeMap<i64, Piece>,
    jobs: u64,
}

/// The seconds up to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    last: i64,
    jobs: u64,
}

/// The piece that a job lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Around {
    /// Jobs in earlier pieces.
    pub(super) before: u64,
    /// When the piece begins.
    pub(super) from: Time,
    /// Jobs in the piece.
    pub(super) jobs: u64,
    /// How much of the piece's time lies before the job, of 1,000.
    pub(super) share: u64,
}

impl Histogram {
    /// So many jobs more that are due then.
    pub(super) fn add(&mut self, due_at: Time, jobs: u64) {
        let second = second(due_at);
        self.add_piece(second, second, jobs);
    }

    /// So many jobs more that are due within these seconds; they must not overlap what is there in part.
    pub(super) fn add_piece(&mut self, first: i64, last: i64, jobs: u64) {
        if jobs == 0 {
            return;
        }
        self.jobs += jobs;
        let most = usize::try_from(self.jobs / 16).unwrap_or(MOST).clamp(FEW, MOST);
        let large = self.jobs / (most as u64 / 4);
        match self.pieces.range_mut(..=first).next_back().filter(|(_, piece)| piece.last >= first) {
            Some((first, piece)) => {
                piece.jobs += jobs;
                let first = *first;
                if piece.jobs > large && piece.last > first {
                    let (middle, last, half) = (first.midpoint(piece.last), piece.last, piece.jobs / 2);
                    (piece.last, piece.jobs) = (middle, piece.jobs - half);
                    self.pieces.insert(middle + 1, Piece { last, jobs: half });
                }
            }
            None => drop(self.pieces.insert(first, Piece { last, jobs })),
        }
        if self.pieces.len() > most {
            self.join_neighbours(large);
        }
    }

    /// So many jobs fewer: of their own piece, and where that has no more of those nearest to it, so that the whole stays right.
    pub(super) fn take(&mut self, due_at: Time, mut jobs: u64) {
        let second = second(due_at);
        while jobs > 0 {
            let before = self.pieces.range(..=second).next_back();
            let Some(first) = before.or_else(|| self.pieces.range(second..).next()).map(|(first, _)| *first) else {
                return;
            };
            let Some(piece) = self.pieces.get_mut(&first) else { return };
            let taken = jobs.min(piece.jobs);
            (piece.jobs, self.jobs, jobs) = (piece.jobs - taken, self.jobs - taken, jobs - taken);
            if piece.jobs == 0 {
                self.pieces.remove(&first);
            }
        }
    }

    pub(super) fn jobs(&self) -> u64 {
        self.jobs
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs == 0
    }

    /// How many are due by then, about.
    pub(super) fn due_by(&self, at: Time) -> u64 {
        let second = second(at);
        let due = self.pieces.range(..=second).map(|(first, piece)| {
            if piece.last <= second {
                return piece.jobs;
            }
            let (passed, length) = (second.abs_diff(*first) + 1, piece.last.abs_diff(*first) + 1);
            (u128::from(piece.jobs) * u128::from(passed) / u128::from(length)) as u64
        });
        due.sum()
    }

    /// The time before which the first so many are due, if there are so many: the end of a piece, so there may be more of them.
    pub(super) fn first(&self, jobs: u64) -> Option<Time> {
        let mut before = 0;
        let mut pieces = self.pieces.values();
        let last = pieces.find(|piece| {
            before += piece.jobs;
            before >= jobs
        });
        last.map(|piece| Time((piece.last + 1).saturating_mul(1000)))
    }

    /// When the last is due, about.
    pub(super) fn last_due(&self) -> Option<Time> {
        self.pieces.last_key_value().map(|(_, piece)| Time(piece.last.saturating_mul(1000)))
    }

    /// What is known of the place of a job that is due then.
    pub(super) fn around(&self, due_at: Time) -> Around {
        let second = second(due_at);
        let (first, piece) = match self.pieces.range(..=second).next_back() {
            Some((first, piece)) if piece.last >= second => (*first, *piece),
            // Its own piece has run out before its time.
            _ => (second, Piece { last: second, jobs: 0 }),
        };
        let before = self.pieces.range(..first).map(|(_, piece)| piece.jobs).sum();
        let from = first.saturating_mul(1000);
        let length = (piece.last.abs_diff(first) + 1).saturating_mul(1000);
        let share = due_at.0.abs_diff(from).saturating_mul(1000) / length;
        Around { before, from: Time(from), jobs: piece.jobs, share }
    }

    /// Joins neighbours that have few jobs together, so that each piece is a small part of the whole.
    fn join_neighbours(&mut self, most: u64) {
        let mut joined: BTreeMap<i64, Piece> = BTreeMap::new();
        for (first, piece) in std::mem::take(&mut self.pieces) {
            match joined.last_entry() {
                Some(mut last) if last.get().jobs + piece.jobs <= most => {
                    let last = last.get_mut();
                    (last.last, last.jobs) = (piece.last, last.jobs + piece.jobs);
                }
                _ => drop(joined.insert(first, piece)),
            }
        }
        self.pieces = joined;
    }
}

fn second(at: Time) -> i64 {
    at.0.div_euclid(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_jobs_over_a_day_are_few_pieces_and_each_place_is_about_right() {
        let mut histogram = Histogram::default();
        let mut random = fastrand::Rng::with_seed(3);
        let mut dues: Vec<i64> = (0..100_000).map(|_| random.i64(..86_400_000)).collect();
        // And a burst in one second.
        dues.extend(std::iter::repeat_n(40_000_500, 50_000));
        random.shuffle(&mut dues);
        dues.iter().for_each(|due| histogram.add(Time(*due), 1));
        assert!(histogram.pieces.len() <= MOST, "{} pieces", histogram.pieces.len());
        dues.sort_unstable();
        for i in [20_000, 45_000, 100_000, 149_999] {
            let around = histogram.around(Time(dues[i]));
            let place = around.before + around.jobs * around.share / 1000;
            let is_burst = dues[i] == 40_000_500;
            assert!(is_burst || place.abs_diff(i as u64) * 50 < 150_000, "{place} for {i}");
            assert!(is_burst || histogram.due_by(Time(dues[i])).abs_diff(i as u64) * 50 < 150_000);
        }
        random.shuffle(&mut dues);
        dues.iter().for_each(|due| histogram.take(Time(*due), 1));
        assert!(histogram.is_empty() && histogram.pieces.is_empty());
    }

    #[test]
    fn few_jobs_are_counted_by_the_second() {
        let mut histogram = Histogram::default();
        for due in [0, 400, 2_000, 3_000] {
            histogram.add(Time(due), 1);
        }
        assert_eq!(histogram.due_by(Time(1_999)), 2);
        assert_eq!(histogram.due_by(Time(2_000)), 3);
        assert_eq!(histogram.last_due(), Some(Time(3_000)));
        assert_eq!(
            [1, 2, 3, 5].map(|jobs| histogram.first(jobs)),
            [Some(1_000), Some(1_000), Some(3_000), None].map(|at| at.map(Time))
        );
        assert_eq!(histogram.around(Time(2_000)).before, 2);
        histogram.take(Time(2_000), 2);
        assert_eq!((histogram.jobs(), histogram.around(Time(2_000)).jobs), (2, 0), "one was taken from its neighbour");
    }
}
