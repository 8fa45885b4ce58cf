//! `jobs attempts`: the calls that were made for a job, and what the vendor said to each that failed.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure,
    client::{self, Call},
    job::OneJob,
    print::{self, shown},
    times::Times,
};
use crate::json;

#[derive(Deserialize)]
struct List {
    attempts: Vec<Attempt>,
    omitted: u64,
}

#[derive(Deserialize)]
struct Attempt {
    n: u64,
    kind: String,
    sent_at: Option<String>,
    status: Option<u16>,
    latency_ms: Option<u64>,
    /// Absent while the call is under way.
    outcome: Option<String>,
    detail: Option<String>,
    response: Option<String>,
}

pub(super) async fn run(job: &OneJob) -> Result<(), Failure> {
    let times = job.talk.times();
    let call = Call::get(format!("/jobs/{}/attempts", client::segment(&job.id)));
    job.talk.ask(call, |answer| view(answer, &times)).await
}

fn view(answer: &RawValue, times: &Times) -> Result<String, Failure> {
    let List { attempts, omitted } = client::read(answer)?;
    if attempts.is_empty() {
        return Ok("no call was made for this job yet".to_owned());
    }
    let head = ["N", "KIND", "SENT", "STATUS", "MS", "OUTCOME", "DETAIL"];
    let rows = attempts.iter().map(|attempt| {
        let none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
        let is_under_way = attempt.outcome.is_none();
        [
            attempt.n.to_string(),
            attempt.kind.clone(),
            attempt.sent_at.as_deref().map_or_else(|| "not sent".to_owned(), |at| times.short(at)),
            none(attempt.status.map(|status| status.to_string())),
            none(attempt.latency_ms.filter(|_| !is_under_way).map(|ms| ms.to_string())),
            attempt.outcome.clone().unwrap_or_else(|| "under way".to_owned()),
            none(attempt.detail.clone()),
        ]
    });
    let mut text = print::table(head, &["KIND", "MS", "SENT"], rows);
    // Writing to a string cannot fail.
    if omitted > 0 {
        let _ = write!(text, "\n\n{omitted} attempts after the first ones are not kept");
    }
    for attempt in &attempts {
        let Some(response) = &attempt.response else { continue };
        let status = attempt.status.map(|status| format!(" with status {status}")).unwrap_or_default();
        let _ = write!(text, "\n\nthe vendor answered attempt {}{status}:\n{}", attempt.n, words(response));
    }
    Ok(text)
}

/// A body as the vendor wrote it; JSON with a line for each member.
fn words(body: &str) -> String {
    match json::check(body.as_bytes()) {
        Ok(json) => print::pretty(json),
        Err(_) => body.lines().map(shown).collect::<Vec<_>>().join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::times::ZoneArgs, *};

    #[test]
    fn attempts_are_rows_with_the_vendors_words_below() {
        let answer = r#"{"attempts":[
            {"n":1,"kind":"call","sent_at":"2026-11-22T12:00:00.000Z","permit_at":"2026-11-22T12:00:00.000Z","status":422,"latency_ms":7,
             "outcome":"refused","detail":"the vendor answered 422","response":"{\"code\":\"E-17\"}"},
            {"n":61,"kind":"poll","sent_at":null,"status":null,"latency_ms":0,"outcome":"no_connection","response":"<b>\u001b[2J\r\nno"},
            {"n":62,"kind":"call","sent_at":"2026-11-22T12:00:00.000Z"}],"omitted":59}"#;
        let answer = RawValue::from_string(answer.to_owned()).expect("JSON");
        let text = view(&answer, &ZoneArgs::default().times()).expect("attempts");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("N   KIND  SENT"), "{text}");
        assert!(lines[1].ends_with("422     7     refused        the vendor answered 422"), "{text}");
        assert!(lines[2].starts_with("61  poll  not sent") && lines[3].contains("under way"), "{text}");
        assert!(text.contains("\n\n59 attempts after the first ones are not kept\n\n"), "{text}");
        assert!(
            text.contains("the vendor answered attempt 1 with status 422:\n{\n  \"code\": \"E-17\"\n}\n"),
            "{text}"
        );
        assert!(text.ends_with("the vendor answered attempt 61:\n<b>\\u{1b}[2J\nno"), "{text}");
    }
}
