//! How many jobs of a lane are due when: a number for each second, and for longer stretches where there are many seconds.
//!
//! Never grows with the jobs in it. How many there are is exact; where they lie inside a piece is not known, and taken to be even.

use crate::clock::Time;

/// Pieces of a lane at most: so many for few jobs, and so many however many they are.
const FEW: usize = 16;
const MOST: usize = 512;

/// Jobs by the second in which they are due.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Histogram {
    /// By their seconds. Pieces do not overlap. Not a tree, of which the smallest node has room for many more than most lanes have.
    pieces: Vec<Piece>,
    jobs: u64,
}

/// The seconds from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    first: i64,
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
        if self.pieces.is_empty() {
            self.pieces.reserve_exact(1);
        }
        let after = self.after(first);
        match self.pieces[..after].last_mut().filter(|piece| piece.last >= first) {
            Some(piece) => {
                piece.jobs += jobs;
                if piece.jobs > large && piece.last > piece.first {
                    let (middle, last, half) = (piece.first.midpoint(piece.last), piece.last, piece.jobs / 2);
                    (piece.last, piece.jobs) = (middle, piece.jobs - half);
                    self.pieces.insert(after, Piece { first: middle + 1, last, jobs: half });
                }
            }
            None => self.pieces.insert(after, Piece { first, last, jobs }),
        }
        if self.pieces.len() > most {
            self.join_neighbours(large);
        }
    }

    /// So many jobs fewer: of their own piece, and where that has no more of those nearest to it, so that the whole stays right.
    pub(super) fn take(&mut self, due_at: Time, mut jobs: u64) {
        let second = second(due_at);
        while jobs > 0 {
            let nearest = self.after(second).saturating_sub(1);
            let Some(piece) = self.pieces.get_mut(nearest) else { return };
            let taken = jobs.min(piece.jobs);
            (piece.jobs, self.jobs, jobs) = (piece.jobs - taken, self.jobs - taken, jobs - taken);
            if piece.jobs == 0 {
                self.pieces.remove(nearest);
            }
        }
    }

    /// Where the pieces begin that begin after this second.
    fn after(&self, second: i64) -> usize {
        self.pieces.partition_point(|piece| piece.first <= second)
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
        let due = self.pieces[..self.after(second)].iter().map(|piece| {
            if piece.last <= second {
                return piece.jobs;
            }
            let (passed, length) = (second.abs_diff(piece.first) + 1, piece.last.abs_diff(piece.first) + 1);
            (u128::from(piece.jobs) * u128::from(passed) / u128::from(length)) as u64
        });
        due.sum()
    }

    /// The time before which the first so many are due, if there are so many: the end of a piece, so there may be more of them.
    pub(super) fn first(&self, jobs: u64) -> Option<Time> {
        let mut before = 0;
        let mut pieces = self.pieces.iter();
        let last = pieces.find(|piece| {
            before += piece.jobs;
            before >= jobs
        });
        last.map(|piece| Time((piece.last + 1).saturating_mul(1000)))
    }

    /// When the last is due, about.
    pub(super) fn last_due(&self) -> Option<Time> {
        self.pieces.last().map(|piece| Time(piece.last.saturating_mul(1000)))
    }

    /// What is known of the place of a job that is due then.
    pub(super) fn around(&self, due_at: Time) -> Around {
        let second = second(due_at);
        let own = self.pieces[..self.after(second)].last().filter(|piece| piece.last >= second);
        // Its own piece may have run out before its time.
        let piece = own.copied().unwrap_or(Piece { first: second, last: second, jobs: 0 });
        let before = self.pieces.iter().take_while(|other| other.first < piece.first).map(|piece| piece.jobs).sum();
        let from = piece.first.saturating_mul(1000);
        let length = (piece.last.abs_diff(piece.first) + 1).saturating_mul(1000);
        let share = due_at.0.abs_diff(from).saturating_mul(1000) / length;
        Around { before, from: Time(from), jobs: piece.jobs, share }
    }

    /// Joins neighbours that have few jobs together, so that each piece is a small part of the whole.
    fn join_neighbours(&mut self, most: u64) {
        self.pieces.dedup_by(|piece, before| {
            let is_few = before.jobs + piece.jobs <= most;
            if is_few {
                (before.last, before.jobs) = (piece.last, before.jobs + piece.jobs);
            }
            is_few
        });
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
