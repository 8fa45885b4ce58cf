//! The pretend vendors as a process of their own, for Compose and benchmarks.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use mock_vendors::MockVendors;
use rustix::io::fcntl_dupfd_cloexec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Pretend vendors with real sockets: faults by query parameter, callbacks, and a journal of what arrived when.
#[derive(Parser)]
#[command(version, after_help = mock_vendors::HELP)]
struct Args {
    /// Where to listen.
    #[arg(long, env = "MOCK_VENDORS_LISTEN", default_value = "127.0.0.1:9000", global = true)]
    listen: String,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// For containers: ends with 0 when the server on that address answers.
    Healthcheck,
}

#[tokio::main]
async fn main() -> Result<()> {
    stamp_at_once();
    let args = Args::parse();
    match args.command {
        None => serve(&args.listen).await,
        Some(Command::Healthcheck) => healthcheck(&args.listen).await,
    }
}

/// A call is stamped when it arrives, not when the kernel has zeroed a huge page or doubled a table of open files: each takes
/// about as long as a guard. One descriptor at its end, closed at once, makes the table large from the beginning.
fn stamp_at_once() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let _ = [16_383, 1_023].into_iter().find(|last| fcntl_dupfd_cloexec(std::io::stdin(), *last).is_ok());
}

async fn serve(listen: &str) -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let vendors = MockVendors::start(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("mock vendors on {}", vendors.url());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    vendors.stop().await;
    Ok(())
}

async fn healthcheck(listen: &str) -> Result<()> {
    let (host, port) = listen.rsplit_once(':').context("--listen is host:port")?;
    let host = match host {
        "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        host => host,
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), async {
        let mut stream = TcpStream::connect(format!("{host}:{port}")).await?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: mock-vendors\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    });
    let answer = answer.await.context("no answer within 2 s")?.context("cannot reach it")?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "it answers {}", answer.lines().next().unwrap_or("nothing"));
    Ok(())
}
