//! Settings of the kernel for this process, made before its first thread starts, so that no thread is later delayed for as long as a guard.
//!
//! Never fails: a setting that the kernel does not know or does not allow is left as it is.

use std::io::stdin;

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::disable_transparent_huge_pages,
};

/// Open files and connections for which the table has room from the start; more are possible, but then the table has to grow.
const DESCRIPTORS: u64 = 16_384;

/// Three settings: no huge pages, because the first touch of one zeroes 2 MiB (decision 10); as many open files as the process is allowed;
/// and a table of open files that is large from the start, because in a process with threads each growth waits for all cores, 8 to 16 ms
/// (decision 11).
pub fn avoid_stalls() {
    let _ = disable_transparent_huge_pages(true);
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS);
    // A table never shrinks, so one descriptor at its end, closed at once, is enough.
    let last = allowed.min(DESCRIPTORS).saturating_sub(1);
    let _ = fcntl_dupfd_cloexec(stdin(), last as i32);
}
