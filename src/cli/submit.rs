//! `jobs submit`: one job from the arguments, or a file of jobs (see `batch`).

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::{ArgGroup, Args, builder::PossibleValuesParser};
use serde::Deserialize;
use serde_json::json;

use super::{
    Failure,
    batch::{self, Batch, MAX_JOB},
    client::{self, Call, JSON, Service, Talk},
    job, print, syntax,
    why::JobState,
};
use crate::job::Priority;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["payload", "payload_file", "batch"]))]
pub(super) struct SubmitArgs {
    /// The vendor to call; may be left out if the service has a default_vendor
    #[arg(long)]
    vendor: Option<String>,
    /// What the vendor gets: any JSON value, sent exactly as it is written here
    #[arg(long, value_name = "JSON")]
    payload: Option<String>,
    /// A file with the payload; - for stdin
    #[arg(long, value_name = "FILE")]
    payload_file: Option<PathBuf>,
    /// A file of whole jobs, one JSON object on each line, as for POST /jobs; - for stdin. Other options hold for jobs that do not say it themselves
    #[arg(long, value_name = "FILE")]
    batch: Option<PathBuf>,
    /// Who goes first among the waiting jobs [default: normal]
    #[arg(long, value_parser = PossibleValuesParser::new(Priority::ALL.map(Priority::as_str)))]
    priority: Option<String>,
    /// Do not call the vendor before this: a time, or a duration from now
    #[arg(long, value_name = "WHEN")]
    not_before: Option<String>,
    /// The job expires if it has not ended by then: a time, or a duration from now
    #[arg(long, value_name = "WHEN")]
    deadline: Option<String>,
    /// Who the job is for
    #[arg(long)]
    tenant: Option<String>,
    /// A word to find the job by; can be given more than once
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Where the job is POSTed when it has ended: an https URL
    #[arg(long, value_name = "URL")]
    callback_url: Option<String>,
    /// If the same job was submitted with this key before, no second job is made
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Waits up to this long for the end of the job, or of all jobs of a file; the exit code is 0 only if they are complete
    #[arg(long, value_name = "DURATION", value_parser = client::wait)]
    wait: Option<Duration>,
    #[command(flatten)]
    talk: Talk,
}

#[derive(Deserialize)]
struct Accepted {
    request_id: String,
}

pub(super) async fn run(args: &SubmitArgs) -> Result<(), Failure> {
    let service = Service::at(&args.talk.target)?;
    if let Some(file) = &args.batch {
        let (key, wait, output) = (args.idempotency_key.as_deref(), args.wait, args.talk.output);
        return batch::run(&service, open(file)?, Batch { defaults: args.fields(), key, wait, output }).await;
    }
    let text = payload(args)?;
    let body = Some((JSON, body(args, &text)?.into()));
    let call = Call { body, idempotency_key: args.idempotency_key.as_deref(), ..Call::post("/jobs") };
    let answer = service.call(call).await?;
    let id = answer.read::<Accepted>()?.request_id;
    let Some(wait) = args.wait else {
        return print::answer(answer.json(), args.talk.output, |_| Ok(id));
    };
    let waited = service.job(&id, false, wait).await;
    let job = waited.map_err(|failure| failure.context(format!("job {id} is accepted, but waiting for it failed")))?;
    job::show(job.json(), &args.talk)?;
    job.read::<JobState>()?.verdict()
}

impl SubmitArgs {
    /// The fields of a job that the options say, each with its JSON text.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let tags = (!self.tags.is_empty()).then(|| json!(self.tags).to_string());
        let text = |text: &Option<String>| text.as_ref().map(|text| json!(text).to_string());
        let fields = [
            ("vendor", text(&self.vendor)),
            ("priority", text(&self.priority)),
            ("not_before", text(&self.not_before)),
            ("deadline", text(&self.deadline)),
            ("tenant", text(&self.tenant)),
            ("tags", tags),
            ("callback_url", text(&self.callback_url)),
        ];
        fields.into_iter().filter_map(|(name, json)| Some((name, json?))).collect()
    }
}

/// The body of `POST /jobs`, with the payload as it is written.
fn body(args: &SubmitArgs, payload: &[u8]) -> Result<Vec<u8>, Failure> {
    // Checked here, because text that is not one JSON value could add other fields to the job.
    let payload = syntax::read(payload).map_err(|fault| Failure::Usage(anyhow!("the payload is {fault}")))?;
    let fields = args.fields().into_iter().map(|(name, json)| format!(r#","{name}":{json}"#)).collect::<String>();
    Ok(format!(r#"{{"payload":{payload}{fields}}}"#).into_bytes())
}

fn payload(args: &SubmitArgs) -> Result<Vec<u8>, Failure> {
    match &args.payload_file {
        Some(file) => read_file(file),
        None => Ok(args.payload.clone().unwrap_or_default().into_bytes()),
    }
}

/// A file's bytes, as many as a job can have; - is stdin.
pub(super) fn read_file(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let read = open(file)?.take(MAX_JOB as u64 + 1).read_to_end(&mut text);
    read.with_context(|| format!("{} cannot be read", file.display())).map_err(Failure::Usage)?;
    if text.len() > MAX_JOB {
        return Err(Failure::Usage(anyhow!(
            "{} is larger than the {MAX_JOB} bytes that a job can have",
            file.display()
        )));
    }
    Ok(text)
}

fn open(file: &Path) -> Result<Box<dyn Read>, Failure> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let opened = File::open(file).with_context(|| format!("{} cannot be read", file.display()));
    Ok(Box::new(opened.map_err(Failure::Usage)?))
}
