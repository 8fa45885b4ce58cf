//! `/sync/{name}`: the data in the answer itself. Also the data that the other kinds give later.

use bytes::Bytes;

use crate::behave::Behave;
use crate::reply::{Reply, json, quote};
use crate::text;
use crate::vendor::Visit;

/// What a credit bureau might say: spaces and nulls to clean, a secret to redact, a number whose text matters.
const DATA: &str = r#"{"score":700,"name":"  Ada Lovelace ","email":null,"ssn":"078-05-1120","balance":1250.10,"accounts":[{"kind":"loan","open":true},{"kind":"card","open":false}]}"#;

pub(crate) fn answer(visit: &Visit, behave: &Behave, body: &Bytes) -> Reply {
    let echo = text::echo(body);
    let mut answer = Vec::with_capacity(echo.len() + 300);
    if behave.failed {
        let name = quote(&visit.vendor.name);
        let head =
            format!(r#"{{"vendor":{name},"call":{},"status":"error","error":"no record found","echo":"#, visit.call);
        answer.extend_from_slice(head.as_bytes());
        answer.extend_from_slice(&echo);
        answer.push(b'}');
    } else {
        write_data(&mut answer, &visit.vendor.name, visit.call, &echo);
    }
    json(200, answer)
}

/// `{"vendor": …, "call": n, "data": {…}, "echo": …}` with the echo's own text.
pub(crate) fn write_data(out: &mut Vec<u8>, vendor: &str, call: u64, echo: &[u8]) {
    let head = format!(r#"{{"vendor":{},"call":{call},"data":{DATA},"echo":"#, quote(vendor));
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(echo);
    out.push(b'}');
}
