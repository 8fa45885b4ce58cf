//! Logs, on standard error; and the id of an HTTP request in each line that is about it.
//!
//! Not a span of `tracing`: making one for every request costs more than all else that is done around a handler, and most requests log nothing.

use std::{fmt, io::IsTerminal as _};

use hyper::header::HeaderValue;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{DefaultFields, Writer},
    },
    registry::LookupSpan,
};

tokio::task_local! {
    /// The id of the HTTP request that this task works on: visible ASCII.
    pub(crate) static HTTP_REQUEST_ID: HeaderValue;
}

/// Sends logs to standard error: `RUST_LOG` says how much (default `info`), JSON when standard error is no terminal.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call, for example in a test binary, changes nothing.
    let _ = if std::io::stderr().is_terminal() {
        logs.with_target(false).fmt_fields(WithId(DefaultFields::new())).try_init()
    } else {
        logs.json().flatten_event(true).with_span_list(false).map_event_format(WithId).try_init()
    };
}

/// The same fields, or the same line of JSON, with `http_request_id` at the end if there is one.
struct WithId<F>(F);

impl<'writer> FormatFields<'writer> for WithId<DefaultFields> {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        self.0.format_fields(writer.by_ref(), fields)?;
        match http_request_id() {
            Some(id) => write!(writer, " http_request_id={id}"),
            None => Ok(()),
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for WithId<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, cx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(id) = http_request_id() else { return self.0.format_event(cx, writer, event) };
        let mut line = String::new();
        self.0.format_event(cx, Writer::new(&mut line), event)?;
        let members = line.trim_end().strip_suffix('}').ok_or(fmt::Error)?;
        writeln!(writer, r#"{members},"http_request_id":{}}}"#, serde_json::Value::from(id))
    }
}

fn http_request_id() -> Option<String> {
    HTTP_REQUEST_ID.try_with(|id| id.to_str().map(str::to_owned).ok()).ok().flatten()
}
