//! The binary: parses the command line, runs the command, and turns its outcome into an exit code.

use std::process::ExitCode;

use clap::Parser;
use fetchgate::cli::{Cli, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Zeroing a huge page holds up a thread for longer than a guard is long (decision 10). A kernel that has none says so; that is as good.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    run(Cli::parse())
}
