//! `init`: writes a first config for one vendor, after three questions or from flags.
//!
//! Never overwrites a file, never calls the vendor, and writes nothing that `check` would refuse.

use std::{
    fs::OpenOptions,
    io::{self, BufRead, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use clap::{Args, ValueEnum};

use super::{Failure, print};
use crate::config;

/// How often a question is asked again on a terminal.
const TRIES: usize = 5;
/// Characters of one answer.
const MAX_ANSWER: u64 = 4096;

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The file to write; it must not exist
    #[arg(default_value = config::HERE)]
    file: PathBuf,
    /// What the vendor is called, such as bureau
    #[arg(long, value_name = "NAME")]
    vendor: Option<String>,
    /// The vendor's URL; it may have {{ payload.NAME | path }} and ${SECRET} in it
    #[arg(long)]
    url: Option<String>,
    /// How the vendor answers
    #[arg(long, value_enum)]
    kind: Option<Answers>,
    /// How many calls it allows: 10/s, several with commas (10/s,20000/d), or none
    #[arg(long, value_name = "LIMIT")]
    limit: Option<String>,
}

/// How a vendor answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Answers {
    /// In the reply
    Sync,
    /// By webhook
    Webhook,
    /// When it is asked again
    Polling,
}

/// What is known of the vendor; what is not known yet is a value that is right.
struct Draft {
    vendor: String,
    url: String,
    kind: Answers,
    limit: String,
}

pub(super) fn run(args: InitArgs) -> Result<(), Failure> {
    let InitArgs { file, vendor, url, kind, limit } = args;
    if file.exists() {
        return Err(Failure::Usage(exists(&file)));
    }
    let mut draft = Draft {
        vendor: "vendor".to_owned(),
        url: "https://vendor.example/".to_owned(),
        kind: Answers::Sync,
        limit: "10/s".to_owned(),
    };
    // One reader for all questions: it reads ahead.
    let mut answers = io::stdin().lock();
    let named = vendor.is_some() || url.is_some();
    match (vendor, url) {
        (Some(vendor), Some(url)) => (draft.vendor, draft.url) = (vendor, url),
        (vendor, url) => {
            draft.vendor = vendor.clone().unwrap_or(draft.vendor);
            draft.url = url.clone().unwrap_or(draft.url);
            let question = match (&vendor, &url) {
                (Some(_), _) => "What is the vendor's URL? For example https://api.example.com/v2/people",
                (_, Some(_)) => "What is the vendor called? For example bureau",
                _ => {
                    "What is the vendor called, and what is its URL? For example: bureau https://api.example.com/v2/people"
                }
            };
            ask(&mut answers, &mut draft, question, |draft, answer| {
                let mut words = answer.split_whitespace();
                if vendor.is_none() {
                    draft.vendor = words.next().unwrap_or_default().to_owned();
                }
                if url.is_none() {
                    draft.url = words.collect::<Vec<_>>().join(" ");
                }
                Ok(())
            })?;
        }
    }
    if named {
        draft.check().map_err(Failure::Usage)?;
    }
    match kind {
        Some(kind) => draft.kind = kind,
        None => {
            let question =
                "How does it answer? sync: in the reply; webhook: it calls back; polling: when it is asked again";
            ask(&mut answers, &mut draft, question, |draft, answer| {
                draft.kind = Answers::from_str(answer, true).map_err(|_| anyhow!("write sync, webhook or polling"))?;
                Ok(())
            })?;
        }
    }
    match limit {
        Some(limit) => draft.limit = limit,
        None => {
            let question = "How many calls does it allow? For example 10/s, or 10/s,20000/d, or none";
            ask(&mut answers, &mut draft, question, |draft, answer| {
                answer.clone_into(&mut draft.limit);
                Ok(())
            })?;
        }
    }
    draft.check().map_err(Failure::Usage)?;
    write(&file, &draft.text())?;
    let named = if file == Path::new(config::HERE) { String::new() } else { format!(" --config {}", file.display()) };
    print::line(&print::shown(&format!("Wrote {}.", file.display())))?;
    print::line(&format!(
        "Next: `fetchgate check{named}` says what it means, `fetchgate doctor{named}` what is missing, `fetchgate serve{named}` runs it."
    ))
}

fn exists(file: &Path) -> anyhow::Error {
    anyhow!("{} exists and is not overwritten; name another file: `fetchgate init FILE`", file.display())
}

/// Only if there is no such file, even if one has appeared since the first question.
fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let written = OpenOptions::new().write(true).create_new(true).open(file);
    match written.and_then(|mut opened| opened.write_all(text.as_bytes())) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::Usage(exists(file))),
        Err(error) => Err(Failure::No(anyhow!("{} cannot be written: {error}", file.display()))),
    }
}

/// Asks until the answer is right; only once if nobody sits at a terminal.
fn ask(
    answers: &mut impl BufRead,
    draft: &mut Draft,
    question: &str,
    take: impl Fn(&mut Draft, &str) -> anyhow::Result<()>,
) -> Result<(), Failure> {
    let tries = if io::stdin().is_terminal() { TRIES } else { 1 };
    let mut wrong = None;
    for _ in 0..tries {
        if let Some(wrong) = wrong.take() {
            eprintln!("{wrong:#}");
        }
        eprint!("{question}\n> ");
        let mut line = String::new();
        let read = answers.by_ref().take(MAX_ANSWER).read_line(&mut line);
        if read.map_err(|error| Failure::Usage(error.into()))? == 0 {
            let why = "the answers ended; answer all three questions, or give --vendor, --url, --kind and --limit";
            return Err(Failure::Usage(anyhow!(why)));
        }
        match take(draft, line.trim()).and_then(|()| draft.check()) {
            Ok(()) => return Ok(()),
            Err(error) => wrong = Some(error),
        }
    }
    Err(Failure::Usage(wrong.unwrap_or_else(|| anyhow!("there was no answer"))))
}

impl Draft {
    /// Whether `check` accepts it as it is.
    fn check(&self) -> anyhow::Result<()> {
        config::parse(&self.text(), "the new config", config::environment())?;
        Ok(())
    }

    /// The config, with what to look at next beside each setting.
    fn text(&self) -> String {
        let (name, url) = (quoted(&self.vendor), quoted(&self.url));
        let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let key = if self.vendor.chars().all(is_bare) { &self.vendor } else { &name };
        let limits: Vec<String> = match self.limit.trim() {
            "none" => Vec::new(),
            limits => limits.split(',').map(|limit| quoted(limit.trim())).collect(),
        };
        let (server, way) = match self.kind {
            Answers::Sync => (String::new(), String::new()),
            Answers::Webhook => (self.server(), WEBHOOK.to_owned()),
            Answers::Polling => (String::new(), self.polling()),
        };
        let kind = self.kind.to_possible_value().map(|kind| kind.get_name().to_owned()).unwrap_or_default();
        format!(
            r#"# A first config of Fetchgate, by `fetchgate init`. What it does not say has the default of fetchgate.example.toml.
# `fetchgate check` says what it means, and `fetchgate check --vendor NAME --payload JSON` shows a request.

default_vendor = {name}                # for jobs that name no vendor
{server}
[store]
url = "sqlite:data/fetchgate.db"       # one file, for one process; its folder is made when it is missing

[vendors.{key}]
kind = "{kind}"                        # sync: it answers in its reply; webhook: it calls back; polling: it is asked again
url = {url}                            # {{{{ payload.person | path }}}} takes a part of the payload; ${{NAME}} takes a variable of the environment
limits = [{limits}]                    # such as "10/s", "600/m"; [] says that there are none
# method = "GET"                       # POST by default, with the payload as its body
# auth = {{ kind = "bearer", token = "${{VENDOR_KEY}}" }} # how it knows us; set the variable before you start
# timeout = "10s"                      # of one call
# concurrency = 32                     # calls in flight at once
{way}"#,
            limits = limits.join(", ")
        )
    }

    /// A vendor on this machine can call back to this machine; another one needs a public URL.
    fn server(&self) -> String {
        let host = url::Url::parse(&self.url).ok().and_then(|url| url.host_str().map(str::to_owned));
        let is_here = matches!(host.as_deref(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let public = if is_here { "http://127.0.0.1:8000" } else { "https://fetchgate.example" };
        format!("\n[server]\npublic_url = \"{public}\" # CHANGE THIS: where the vendor reaches us for its callbacks\n")
    }

    fn polling(&self) -> String {
        let base = self.url.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let url = quoted(&format!("{base}/{{{{ ticket | path }}}}"));
        format!(
            r#"# CHANGE THIS to what the vendor says: where its first answer has the ticket, where to ask, and which state is the end.
polling = {{ ticket = "/id", url = {url}, every = "2s", done = {{ at = "/status", is = ["done"] }}, result = "/result" }}
"#
        )
    }
}

const WEBHOOK: &str = r#"# The vendor gets {request_id, payload, callback_url}, and calls back to callback_url. A body of your own puts it elsewhere:
# body = '{"query": {{ payload | json }}, "notify": {{ callback_url | json }}}'
# answer_within = "10m"                # how long it may take to call back
"#;

/// Text as TOML has it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
