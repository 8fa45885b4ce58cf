//! What the process asks of the kernel before its first thread starts, so that no thread is held up later for as long as a guard.
//!
//! Never fails: what a kernel does not know or does not allow stays as it was.

use std::io::stdin;

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::disable_transparent_huge_pages,
};

/// Open files and connections that find their room ready; more are possible, and each doubling then takes its time.
const DESCRIPTORS: u64 = 16_384;

/// No huge pages, whose first touch zeroes 2 MiB (decision 10); as many open files as may be asked for; and a table for them that is
/// large from the beginning, because in a process with threads each doubling waits for all cores, 8 to 16 ms long (decision 11).
pub fn avoid_stalls() {
    let _ = disable_transparent_huge_pages(true);
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS);
    // A table never shrinks, so one descriptor at its end, closed at once, is enough.
    let last = allowed.min(DESCRIPTORS).saturating_sub(1);
    let _ = fcntl_dupfd_cloexec(stdin(), last as i32);
}
