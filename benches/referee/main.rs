//! `make referee`: are the limits kept at the vendor's side, at full rate, in real time, whatever breaks?
//!
//! Starts `fetchgate serve` as users do and looks at nothing but when calls arrived at the mock vendors, which count by a clock of
//! their own. `plan` says what is tried, `site` runs the processes, `faults` breaks them, `measure` judges, `noise` tells what the
//! machine itself does to a call's time. Never judges by what Fetchgate says about itself: its metrics fill columns, not verdicts.

mod faults;
mod measure;
mod noise;
mod plan;
#[allow(dead_code, reason = "the tests need more of it")]
#[path = "../../tests/it/support/servers.rs"]
mod servers;
mod site;

use std::{
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use clap::Parser as _;
use mock_vendors::MockVendors;
use servers::Server;

use crate::{plan::Scenario, site::Site};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(clap::Parser)]
struct Args {
    /// Fewer seconds for each scenario
    #[arg(long)]
    quick: bool,
    /// Only scenarios whose backend and name contain this, such as `scaled paced`
    #[arg(long)]
    only: Option<String>,
    /// Judges another build
    #[arg(long, default_value = env!("CARGO_BIN_EXE_fetchgate"))]
    binary: PathBuf,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// The servers behind many processes.
pub(crate) struct Servers {
    pub(crate) redis: Server,
    pub(crate) mongo: Server,
}

fn main() -> anyhow::Result<ExitCode> {
    // The vendors stamp a call when it arrives, not when the kernel has had its time.
    fetchgate::kernel::avoid_stalls();
    let args = Args::parse();
    let vendors_runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(noise::go_first)
        .build()?;
    let vendors = vendors_runtime.block_on(MockVendors::start("127.0.0.1:0"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let broken = runtime.block_on(async {
        tokio::select! {
            broken = judge(&args, &vendors) => broken,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    })?;
    if broken == 0 {
        println!("\nno breach, no refusal but those while the machine stood still");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\n{broken} rows with a breach or a refusal");
    Ok(ExitCode::FAILURE)
}

/// How many rows broke a promise.
async fn judge(args: &Args, vendors: &MockVendors) -> anyhow::Result<usize> {
    noise::print(vendors).await;
    let scenarios = plan::all(args.quick);
    measure::print_head();
    let mut broken = 0;
    for scenario in chosen(&scenarios, "embedded", args) {
        broken += faults::play(scenario, Site::embedded(&args.binary, vendors, scenario)?).await?;
    }
    let missing = ["redis-server", mongo_program()].into_iter().find(|program| !is_installed(program));
    if let Some(program) = missing {
        println!("scaled: skipped, because {program} is not installed");
        return Ok(broken);
    }
    let mut servers = None;
    for scenario in chosen(&scenarios, "scaled", args) {
        let servers = servers.get_or_insert_with(|| Servers { redis: Server::redis(), mongo: Server::mongo() });
        broken += faults::play(scenario, Site::scaled(&args.binary, vendors, scenario, servers)?).await?;
    }
    Ok(broken)
}

fn chosen<'a>(all: &'a [Scenario], backend: &'static str, args: &'a Args) -> impl Iterator<Item = &'a Scenario> {
    all.iter().filter(move |scenario| {
        let name = format!("{backend} {}", scenario.name);
        let wanted = args.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
        wanted && (backend == "scaled" || !scenario.fault.is_only_scaled())
    })
}

fn mongo_program() -> &'static str {
    if is_installed("mongod") { "mongod" } else { "secantusd-rs" }
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}
