//! `man` and `completions`: what a machine needs to explain and to complete the commands.

use anyhow::{Context as _, anyhow};
use clap::{Args, CommandFactory as _};

use super::{Cli, Failure, print};

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The page of this command, such as `jobs list`; by default that of fetchgate
    #[arg(value_name = "COMMAND")]
    path: Vec<String>,
}

pub(super) fn page(args: &ManArgs) -> Result<(), Failure> {
    let mut cli = Cli::command();
    cli.build();
    let mut command = &cli;
    for name in &args.path {
        let unknown = || Failure::Usage(anyhow!("there is no command {}", print::shown(&args.path.join(" "))));
        command = command.find_subcommand(name).ok_or_else(unknown)?;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page).context("the page could not be made")?;
    print::part(&String::from_utf8_lossy(&page))
}

pub(super) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "fetchgate", &mut script);
    print::part(&String::from_utf8_lossy(&script))
}
