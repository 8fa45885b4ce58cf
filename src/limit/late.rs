//! Calls that went out late: by how much later ones have to be put off.
//!
//! Pure: it moves no count itself. A call that is late by d takes up room for d longer, so the N-th call after it has to be later by d too.

use crate::clock::Nanos;

/// No call puts off later ones by more. One that is even later was stopped by itself between its last look and its first byte: the other
/// calls of its time were made without it.
pub(super) const MOST: Nanos = 500_000_000;

/// By how much calls have been put off already.
#[derive(Debug, Default)]
pub(super) struct PutOff {
    /// The newest permit at the time when that began.
    newest: Nanos,
    by: Nanos,
}

impl PutOff {
    /// A call with a permit at `at` went out `late`; `newest` is the newest permit that was given. Gives by how much more permits from now on have
    /// to be put off: several late calls put off no more than the latest of them, until a permit was given after that.
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
