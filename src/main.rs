//! The binary: parses the command line, runs the command, and turns its outcome into an exit code.

use std::process::ExitCode;

use clap::Parser;
use fetchgate::{
    cli::{Cli, run},
    kernel,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kernel::avoid_stalls();
    run(Cli::parse())
}
