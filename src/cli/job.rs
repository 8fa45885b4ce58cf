//! One job: its name among the arguments, `jobs get`, and how a job is shown.

use std::{fmt::Write as _, time::Duration};

use clap::{Args, builder::NonEmptyStringValueParser};
use serde_json::value::RawValue;

use super::{
    Failure,
    client::{self, Call, Service, Talk},
    print,
    why::JobState,
};
use crate::json;

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    job: OneJob,
    /// Shows also what the job was submitted with
    #[arg(long)]
    payload: bool,
    /// Waits up to this long for the job's end; the exit code is then 0 only if it is complete
    #[arg(long, value_name = "DURATION", value_parser = client::wait)]
    wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct OneJob {
    /// The job's request_id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(super) id: String,
    #[command(flatten)]
    pub(super) talk: Talk,
}

pub(super) async fn get(args: &GetArgs) -> Result<(), Failure> {
    let OneJob { id, talk } = &args.job;
    let service = Service::at(&talk.target)?;
    let answer = service.job(id, args.payload, args.wait.unwrap_or_default()).await?;
    show(answer.json(), talk)?;
    if args.wait.is_some() { answer.read::<JobState>()?.verdict() } else { Ok(()) }
}

/// Does something to one job that the service answers with the job.
pub(super) async fn act(id: &str, what: &str, talk: &Talk) -> Result<(), Failure> {
    let service = Service::at(&talk.target)?;
    let answer = service.call(Call::post(format!("/jobs/{}/{what}", client::segment(id)))).await?;
    show(answer.json(), talk)
}

/// A whole job: below its fields why it has no result, which has its errors too, then its payload and its result.
pub(super) fn show(job: &RawValue, talk: &Talk) -> Result<(), Failure> {
    const APART: [&str; 2] = ["payload", "result"];
    print::answer(job, talk.output, |job| {
        let times = talk.times();
        let mut view = print::fields(job, &["payload", "result", "error", "last_error"], &times);
        // Writing to a string cannot fail.
        if let Some(why) = client::read::<JobState>(job)?.why(&times) {
            let _ = write!(view, "\n\n{why}");
        }
        let members = json::members(job).unwrap_or_default();
        for name in APART {
            if let Some((_, part)) = members.iter().find(|(member, part)| *member == name && part.get() != "null") {
                let _ = write!(view, "\n\n{name}\n{}", print::pretty(part));
            }
        }
        Ok(view)
    })
}
