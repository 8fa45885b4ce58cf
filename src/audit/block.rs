//! A block of calls as bytes: who called, and the times as distances, about three bytes each at 50 calls a second.
//!
//! Never panics, whatever the bytes are.

use std::{collections::HashMap, sync::Arc};

use crate::store::{StoreError, calls::CallBlock};

/// One call that went out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// When, in microseconds on the limiter's clock.
    pub at: i64,
    pub vendor: Arc<str>,
    pub tenant: Arc<str>,
}

/// The layout of the bytes: this version, the names, then for each call its distance from the one before and, if there are several names, the
/// number of its own.
const VERSION: u64 = 1;

/// Makes a block of at least one call; the calls come in the order of their times.
pub fn encode(pool: &str, id: i64, calls: &[Call]) -> CallBlock {
    let mut names: Vec<(&Arc<str>, &Arc<str>)> = Vec::new();
    let mut numbers = HashMap::new();
    let who: Vec<usize> = calls
        .iter()
        .map(|call| {
            *numbers.entry((&call.vendor, &call.tenant)).or_insert_with(|| {
                names.push((&call.vendor, &call.tenant));
                names.len() - 1
            })
        })
        .collect();
    let mut body = Vec::with_capacity(calls.len() * 3 + 64);
    put(&mut body, VERSION);
    put(&mut body, names.len() as u64);
    for name in names.iter().flat_map(|(vendor, tenant)| [vendor, tenant]) {
        put(&mut body, name.len() as u64);
        body.extend(name.as_bytes());
    }
    let first = calls.first().map_or(0, |call| call.at);
    let mut before = first;
    for (call, who) in calls.iter().zip(who) {
        put(&mut body, call.at.saturating_sub(before).unsigned_abs());
        if names.len() > 1 {
            put(&mut body, who as u64);
        }
        before = call.at;
    }
    CallBlock { id, pool: pool.to_owned(), first, last: before, count: calls.len() as u64, body }
}

/// Appends the calls of a block.
pub fn decode(block: &CallBlock, into: &mut Vec<Call>) -> Result<(), StoreError> {
    read(block, into).ok_or_else(|| StoreError::Corrupt("a block of calls is damaged".into()))
}

fn read(block: &CallBlock, into: &mut Vec<Call>) -> Option<()> {
    let mut rest = block.body.as_slice();
    if take(&mut rest)? != VERSION {
        return None;
    }
    let mut names: Vec<(Arc<str>, Arc<str>)> = Vec::new();
    for _ in 0..take(&mut rest)? {
        names.push((take_name(&mut rest)?, take_name(&mut rest)?));
    }
    let mut at = block.first;
    for _ in 0..block.count {
        at = at.checked_add_unsigned(take(&mut rest)?)?;
        let who = if names.len() > 1 { usize::try_from(take(&mut rest)?).ok()? } else { 0 };
        let (vendor, tenant) = names.get(who)?.clone();
        into.push(Call { at, vendor, tenant });
    }
    Some(())
}

/// A number, seven bits to a byte, the lowest first.
fn put(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, more) = rest.split_first()?;
        *rest = more;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn take_name(rest: &mut &[u8]) -> Option<Arc<str>> {
    let length = usize::try_from(take(rest)?).ok()?;
    let (name, more) = rest.split_at_checked(length)?;
    *rest = more;
    std::str::from_utf8(name).ok().map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(at: i64, tenant: &str) -> Call {
        Call { at, vendor: "v".into(), tenant: tenant.into() }
    }

    #[test]
    fn a_block_gives_back_its_calls() {
        for calls in [
            vec![call(-5, "a")],
            vec![call(1_768_464_000_000_000, "a"), call(1_768_464_000_000_000, "b"), call(1_768_464_009_000_001, "a")],
        ] {
            let (block, mut read) = (encode("pool", 7, &calls), Vec::new());
            decode(&block, &mut read).unwrap();
            assert_eq!(read, calls);
            assert_eq!(
                (block.first, block.last, block.count),
                (calls[0].at, calls[calls.len() - 1].at, calls.len() as u64)
            );
        }
    }

    #[test]
    fn a_second_of_fifty_calls_takes_three_bytes_a_call() {
        let calls: Vec<Call> = (0..50).map(|n| call(n * 20_100, "default")).collect();
        let bytes = encode("pool", 7, &calls).body.len();
        assert!(bytes <= 50 * 3 + 16, "{bytes}");
    }

    #[test]
    fn bytes_that_are_damaged_are_refused() {
        let block = encode("pool", 7, &[call(1, "a"), call(300, "b")]);
        for length in 0..block.body.len() {
            let cut = CallBlock { body: block.body[..length].to_vec(), ..block.clone() };
            assert!(decode(&cut, &mut Vec::new()).is_err(), "{length}");
        }
    }
}
