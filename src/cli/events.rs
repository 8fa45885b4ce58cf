//! `events`: jobs that their vendors accepted or that ended, one line each, as they happen.
//!
//! Never leaves out an event by itself: after an interruption it goes on behind the last one that it has printed.

use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, builder::PossibleValuesParser};
use serde::Deserialize;
use serde_json::json;

use super::{
    Failure, Output,
    client::{Call, Service, Talk},
    print::{self, shown},
    times::Times,
};
use crate::job::Status;

/// The waits before the stream is opened again: the first, and the longest. Each is twice the one before.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Bytes of one event at most.
const MAX_EVENT: usize = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Only jobs for this vendor
    #[arg(long)]
    vendor: Option<String>,
    /// Only jobs that get this status
    #[arg(long, value_parser = PossibleValuesParser::new(statuses()))]
    status: Option<String>,
    /// Only jobs of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only jobs that have this tag
    #[arg(long)]
    tag: Option<String>,
    /// Begins behind the event with this id (of -o json) instead of now
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    #[command(flatten)]
    talk: Talk,
}

/// There is no event before the vendor has accepted a job.
fn statuses() -> impl Iterator<Item = &'static str> {
    Status::ALL.into_iter().filter(|status| *status != Status::Pending).map(Status::as_str)
}

/// Runs until it is stopped, or the service refuses.
pub(super) async fn run(args: &EventsArgs) -> Result<(), Failure> {
    let service = Service::at(&args.talk.target)?;
    let path = path(args);
    let mut reader = Reader { last_id: args.after.clone(), ..Reader::default() };
    let (mut is_known, mut wait) = (false, WAITS.0);
    loop {
        let after = reader.last_id.clone();
        let mut stop = None;
        reader.begin();
        let call = Call { last_event_id: after.as_deref(), ..Call::get(&*path) };
        let outcome = service.stream(call, |piece| {
            (is_known, wait) = (true, WAITS.0);
            let printed = reader.take(piece).and_then(|events| {
                events.iter().try_for_each(|event| print::line(&event.shown(args.talk.output, &args.talk.times())))
            });
            stop = printed.err();
            stop.is_none()
        });
        let outcome = outcome.await;
        if let Some(failure) = stop {
            return Err(failure);
        }
        match outcome {
            Ok(()) => {}
            // It was there before, so it will be again.
            Err(Failure::Unreachable(error)) if is_known => {
                eprintln!("{error:#}\nthe stream is opened again in {} s", wait.as_secs());
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WAITS.1);
    }
}

fn path(args: &EventsArgs) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let EventsArgs { vendor, status, tenant, tag, .. } = args;
    for (name, value) in [("vendor", vendor), ("status", status), ("tenant", tenant), ("tag", tag)] {
        query.extend_pairs(value.iter().map(|value| (name, value)));
    }
    format!("/events?{}", query.finish()).trim_end_matches('?').to_owned()
}

/// One event of the stream.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    id: Option<String>,
    name: String,
    data: String,
}

#[derive(Deserialize)]
struct JobEvent {
    request_id: String,
    vendor: String,
    tenant: String,
    status: String,
    at: String,
}

impl Event {
    fn shown(&self, output: Output, times: &Times) -> String {
        let Event { id, name, data } = self;
        if output == Output::Json {
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(data).is_ok();
            let data = if is_json { data.replace('\n', " ") } else { json!(data).to_string() };
            return format!(r#"{{"id":{},"event":{},"data":{data}}}"#, json!(id), json!(name));
        }
        match serde_json::from_str::<JobEvent>(data) {
            Ok(job) => {
                let fill = 10_usize.saturating_sub(job.status.len());
                let status = print::state(&shown(&job.status));
                let [id, vendor, tenant] = [&job.request_id, &job.vendor, &job.tenant].map(|text| shown(text));
                format!("{}  {status}{:fill$}  {id}  {vendor}  {tenant}", times.exact(&job.at), "")
            }
            Err(_) => format!("{}  {}  {}", times.stamp(), shown(name), shown(data)),
        }
    }
}

/// Reads events from the pieces of a stream, as the HTML standard has it (9.2, server-sent events).
#[derive(Default)]
struct Reader {
    /// The beginning of a line.
    rest: Vec<u8>,
    id: Option<String>,
    name: String,
    data: String,
    /// The id of the last whole event.
    last_id: Option<String>,
}

impl Reader {
    /// A new stream: what was not whole is forgotten.
    fn begin(&mut self) {
        *self = Reader { last_id: self.last_id.take(), ..Reader::default() };
    }

    /// The events that this piece completes.
    fn take(&mut self, piece: &[u8]) -> Result<Vec<Event>, Failure> {
        let mut events = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            if self.rest.len() + self.data.len() > MAX_EVENT {
                return Err(Failure::No(anyhow!("an event is larger than {MAX_EVENT} bytes; is the URL right?")));
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.rest);
                events.extend(self.line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])));
            }
        }
        Ok(events)
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            return self.end();
        }
        // A line that begins with a colon is a comment: its field has no name.
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "id" => self.id = Some(value.to_owned()),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            _ => {}
        }
        None
    }

    fn end(&mut self) -> Option<Event> {
        let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        let id = self.id.take();
        if id.is_some() {
            self.last_id.clone_from(&id);
        }
        (!name.is_empty() || !data.is_empty()).then_some(Event { id, name, data })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::times::ZoneArgs, *};

    const STREAM: &str = ": hello\n\nid: 7\nevent: job\ndata: {\"request_id\":\"a\",\"vendor\":\"v\",\"tenant\":\"t\",\"status\":\"failed\",\ndata: \"at\":\"2026-11-22T12:00:00.000Z\"}\r\n\r\nevent: lag\ndata: {\"count\":3}\n\nid: 8\ndata: half";

    #[test]
    fn events_are_whole_however_the_stream_is_cut() {
        for size in 1..STREAM.len() {
            let mut reader = Reader::default();
            let events: Vec<Event> =
                STREAM.as_bytes().chunks(size).flat_map(|piece| reader.take(piece).expect("events")).collect();
            assert_eq!(events.len(), 2, "{events:?}");
            assert_eq!(events[1], Event { id: None, name: "lag".into(), data: r#"{"count":3}"#.into() });
            assert_eq!(reader.last_id.as_deref(), Some("7"), "the last whole one");
            reader.begin();
            assert_eq!((reader.id, reader.data.len(), reader.last_id.as_deref()), (None, 0, Some("7")));
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let events = Reader::default().take(STREAM.as_bytes()).expect("events");
        let times = ZoneArgs::default().times();
        let line = events[0].shown(Output::Table, &times);
        assert_eq!(line, "2026-11-22T12:00:00.000Z  failed      a  v  t");
        assert!(events[1].shown(Output::Table, &times).ends_with("  lag  {\"count\":3}"));
        let json = events[0].shown(Output::Json, &times);
        let read: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((json.lines().count(), &read["id"], &read["data"]["vendor"]), (1, &json!("7"), &json!("v")));
    }
}
