//! The command line: one file for each group of commands. It uses a running service over HTTP, like any other client.
//!
//! Never decides anything about jobs or vendors: it reads arguments, makes requests, and prints answers.

use std::{fmt, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

mod attempts;
mod batch;
mod bulk;
mod check;
mod client;
mod connect;
mod dev;
mod doctor;
mod events;
mod failures;
mod healthcheck;
mod init;
mod jobs;
mod keys;
mod limits;
mod listing;
mod man;
mod print;
mod problem;
mod serve;
mod submit;
mod syntax;
mod system;
mod times;
mod top;
mod vendor_words;
mod vendors;
mod watch;
mod webhooks;
mod why;

/// What all commands share; `docs/cli.md` says the same.
const AFTER_HELP: &str = "\
Exit codes:
  0  done, and what was waited for is complete
  1  the service refused, or a job that was waited for is not complete
  2  the arguments or the config are wrong; nothing was sent
  3  no service could be reached

Environment:
  FETCHGATE_URL     where the service is, as --url
  FETCHGATE_KEY     the key, as --key
  FETCHGATE_CONFIG  the config file, as --config
  NO_COLOR          if it is set, no output has colours
  COLUMNS           the width of tables; by default that of the terminal";

pub(crate) use self::check::vendors_in_words;

/// Calls outside vendors as fast as their limits allow, and never faster.
#[derive(Debug, Parser)]
#[command(name = "fetchgate", version, about, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs everything without a config: the service, a store, and mock vendors to call
    Dev(dev::DevArgs),
    /// Runs the service from its config
    Serve(serve::ServeArgs),
    /// Reads the config, says what is wrong, and what it means for each vendor
    Check(check::CheckArgs),
    /// Writes a first config after three questions: the vendor, how it answers, its limit
    Init(init::InitArgs),
    /// Looks at all that a service needs: config, connections, versions, clocks, permissions, disk, ports
    Doctor(doctor::DoctorArgs),
    /// Jobs of a running service
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Follows the jobs that their vendors accept and that end, one line each
    Events(events::EventsArgs),
    /// Shows why jobs failed lately: how many for each reason, with an example
    Failures(failures::FailuresArgs),
    /// Shows all vendors, again each second: why each waits, what is sent, what waits
    Top(top::TopArgs),
    /// Vendors of a running service
    #[command(subcommand)]
    Vendors(vendors::VendorsCommand),
    /// Result webhooks of a running service
    #[command(subcommand)]
    Webhooks(webhooks::WebhooksCommand),
    /// Keys of callers, for a service that wants one
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Shows the processes of a running service, and the state of its store
    System(client::Talk),
    /// For containers: exit code 0 when the service is ready
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Prints the API's description (OpenAPI 3.1)
    Openapi,
    /// Prints a manual page: `fetchgate man | man -l -`
    Man(man::ManArgs),
    /// Prints what a shell needs to complete these commands
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs: what the service answered
    Json,
}

/// Where the config is.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// The config file; else FETCHGATE_CONFIG, else ./fetchgate.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Each kind has its exit code: see `AFTER_HELP`.
#[derive(Debug)]
enum Failure {
    /// The answer is no: a failed job, an error of the service.
    No(anyhow::Error),
    /// The arguments, or the config, are wrong.
    Usage(anyhow::Error),
    Unreachable(anyhow::Error),
}

impl Failure {
    /// Adds what the command was doing.
    fn context(self, what: String) -> Failure {
        match self {
            Failure::No(error) => Failure::No(error.context(what)),
            Failure::Usage(error) => Failure::Usage(error.context(what)),
            Failure::Unreachable(error) => Failure::Unreachable(error.context(what)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::No(error) | Failure::Usage(error) | Failure::Unreachable(error)) = self;
        write!(f, "{error:#}")
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::No(error)
    }
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            return ExitCode::from(1);
        }
    };
    let outcome = runtime.block_on(execute(cli.command));
    let (code, error) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        // The reader has closed the pipe: `fetchgate jobs list --all | head`.
        Err(Failure::No(error)) if is_broken_pipe(&error) => return ExitCode::SUCCESS,
        Err(Failure::No(error)) => (1, error),
        Err(Failure::Usage(error)) => (2, error),
        Err(Failure::Unreachable(error)) => (3, error),
    };
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

async fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Dev(args) => dev::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Check(args) => check::run(&args).await,
        Command::Init(args) => init::run(args),
        Command::Doctor(args) => doctor::run(&args).await,
        Command::Jobs(command) => jobs::run(command).await,
        Command::Top(args) => top::run(&args).await,
        Command::Vendors(command) => vendors::run(command).await,
        Command::Webhooks(command) => webhooks::run(command).await,
        Command::Keys(command) => keys::run(command).await,
        Command::Healthcheck(args) => healthcheck::run(&args).await,
        Command::Events(args) => events::run(&args).await,
        Command::Failures(args) => failures::run(&args).await,
        Command::System(talk) => system::run(&talk).await,
        Command::Man(args) => man::page(&args),
        Command::Completions { shell } => man::completions(shell),
        Command::Openapi => print::line(crate::api::OPENAPI.trim_end()),
    }
}
