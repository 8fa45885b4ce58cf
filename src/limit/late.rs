//! Calls that went out late: by how much those after them have to be put off.
//!
//! Pure: who counts calls puts them off. A call that is late by d takes room for d longer; the N-th call after it is to come as much later.

use crate::clock::Nanos;

/// No call puts off others by more. One that comes later still was stopped between its last look and its first byte, alone: the others
/// of the time in which it was to go were called without it.
pub(super) const MOST: Nanos = 500_000_000;

/// By how much calls have been put off of late.
#[derive(Debug, Default)]
pub(super) struct PutOff {
    /// The newest permit when they began to be.
    newest: Nanos,
    by: Nanos,
}

impl PutOff {
    /// A call with a permit at `at` went out `late`; `newest` is the newest permit that was given. Says by how much more those that are given
    /// from now on have to be put off: all that were after this one's permit was given count.
    pub(super) fn more(&mut self, at: Nanos, late: Nanos, newest: Nanos) -> Nanos {
        if at > self.newest {
            *self = PutOff { newest, by: late };
            return late;
        }
        let more = late.saturating_sub(self.by).max(0);
        self.by += more;
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_put_off_once_for_all_that_were_given_before() {
        let mut put_off = PutOff::default();
        assert_eq!(put_off.more(10, 3, 40), 3);
        assert_eq!(put_off.more(20, 2, 50), 0, "what was given after it has been put off by more");
        assert_eq!(put_off.more(30, 5, 50), 2);
        assert_eq!(put_off.more(50, 1, 60), 1, "given after that");
    }
}
