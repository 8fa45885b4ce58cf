//! `make bench`: what Fetchgate costs on this machine, as tables, and with `--write` as pages and a chart.
//!
//! Runs `fetchgate serve` as processes of their own (`site`), loads them over HTTP (`load`), and reads what they and their servers used
//! from the operating system and from Redis (`usage`, `wire`). `rates`, `growth` and `idle` fill docs/lab/benchmarks.md; `machines`, `scripts` and
//! `vendors` fill docs/lab/scale.md. Judges nothing: absolute numbers drift with the machine, so compare runs made one after the other.

mod chart;
mod growth;
mod idle;
mod load;
mod machines;
mod rates;
mod report;
mod scripts;
#[allow(dead_code, reason = "the tests need more of it")]
#[path = "../../tests/it/support/servers.rs"]
mod servers;
mod site;
mod usage;
mod vendors;
mod wire;

use std::cell::OnceCell;

use clap::Parser as _;
use servers::Server;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(clap::Parser)]
struct Args {
    /// A tenth of the jobs and of the seconds
    #[arg(long)]
    quick: bool,
    /// Only rows whose table and name contain this, such as `rates` or `growth embedded`
    #[arg(long)]
    only: Option<String>,
    /// Puts tables that ran whole into docs/lab/benchmarks.md and docs/lab/scale.md, and draws docs/lab/benchmarks.svg
    #[arg(long)]
    write: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// What every measurement needs.
pub(crate) struct Bench {
    args: Args,
    servers: OnceCell<Servers>,
}

/// The servers of the second backend; each site has a database and an empty Redis for itself.
pub(crate) struct Servers {
    pub(crate) redis: Server,
    pub(crate) mongo: Server,
}

impl Bench {
    pub(crate) fn wants(&self, table: &str, row: &str) -> bool {
        self.args.only.as_ref().is_none_or(|only| format!("{table} {row}").contains(only.as_str()))
    }

    /// So many, or a tenth of them.
    pub(crate) fn size(&self, whole: usize) -> usize {
        if self.args.quick { whole / 10 } else { whole }
    }

    pub(crate) fn servers(&self) -> &Servers {
        self.servers.get_or_init(|| Servers { redis: Server::redis(), mongo: Server::mongo() })
    }
}

fn main() -> anyhow::Result<()> {
    let bench = Bench { args: Args::parse(), servers: OnceCell::new() };
    let mut machine = report::machine();
    if bench.args.quick {
        machine.push_str(" A quick run: a tenth of the jobs and seconds.");
    }
    println!("{machine}");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            done = measure(&bench, &machine) => done,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    })
}

/// Writes each table as soon as it is there: what comes later may fail.
async fn measure(bench: &Bench, machine: &str) -> anyhow::Result<()> {
    let write = |table: &report::Table| if bench.args.write { report::write(table, machine) } else { Ok(()) };
    let rates = rates::measure(bench).await?;
    write(&rates)?;
    let growth = growth::measure(bench).await?;
    write(&growth)?;
    if bench.args.write {
        chart::write(&[rates, growth])?;
    }
    write(&idle::measure(bench).await?)?;
    write(&machines::measure(bench).await?)?;
    write(&scripts::measure(bench).await?)?;
    write(&vendors::measure(bench).await?)
}
