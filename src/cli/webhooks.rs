//! `webhooks`: result webhooks at a running service.

use clap::Subcommand;

use super::{
    Failure,
    job::{OneJob, act},
};

#[derive(Debug, Subcommand)]
pub(super) enum WebhooksCommand {
    /// Sends the result webhook of a job that has ended again
    Resend(OneJob),
}

pub(super) async fn run(command: WebhooksCommand) -> Result<(), Failure> {
    match command {
        WebhooksCommand::Resend(job) => act(&job.id, "result-webhook", &job.talk).await,
    }
}
