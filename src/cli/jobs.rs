//! `jobs`: the list of its commands, each of which is in a file of its own.

use clap::Subcommand;

use super::{
    Failure, attempts,
    bulk::{self, BulkArgs, Change},
    job::{self, GetArgs, OneJob},
    listing::{self, ListArgs},
    submit::{self, SubmitArgs},
    watch::{self, WatchArgs},
};

#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// Submits a job, or a file of jobs, and prints its id
    Submit(Box<SubmitArgs>),
    /// Shows a job: why it waits or failed and what to do, and its result once it is complete
    Get(GetArgs),
    /// Lists jobs, newest first
    List(Box<ListArgs>),
    /// Follows a job until it ends, or all jobs until they have ended
    Watch(WatchArgs),
    /// Shows the calls that were made for a job, and what the vendor said
    Attempts(OneJob),
    /// Ends a job that has not ended yet, or all such jobs that fit a filter
    Cancel(Box<BulkArgs>),
    /// Runs a failed, expired or cancelled job again, under the same id, or all such jobs that fit a filter
    Replay(Box<BulkArgs>),
    /// Deletes a job that has ended, with its payload, its result and its attempts, or all such jobs that fit a filter
    Erase(Box<BulkArgs>),
}

pub(super) async fn run(command: JobsCommand) -> Result<(), Failure> {
    match command {
        JobsCommand::Submit(args) => submit::run(&args).await,
        JobsCommand::Get(args) => job::get(&args).await,
        JobsCommand::List(args) => listing::run(&args).await,
        JobsCommand::Watch(args) => watch::run(&args).await,
        JobsCommand::Attempts(job) => attempts::run(&job).await,
        JobsCommand::Cancel(args) => bulk::run(Change::Cancel, &args).await,
        JobsCommand::Replay(args) => bulk::run(Change::Replay, &args).await,
        JobsCommand::Erase(args) => bulk::run(Change::Erase, &args).await,
    }
}
