//! How one call is to be treated: the query string, read once into `Behave`.
//!
//! Never acts on it (see `calls`, `webhook`, `polling`). An unknown parameter is an error, because a mistyped fault that
//! is silently ignored makes a test prove nothing.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use crate::enforce::{Limit, LimitQuery};
use crate::faults::Fault;

/// Every parameter of the three kinds of call.
#[derive(Debug, Clone)]
pub(crate) struct Behave {
    // How the call itself is answered.
    pub(crate) latency: Duration,
    pub(crate) status: Option<u16>,
    pub(crate) body: Option<Bytes>,
    pub(crate) retry_after: Option<HeaderValue>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// So many calls are answered with these; those after them as if nothing had been said.
    pub(crate) first: Option<u64>,
    pub(crate) failed: bool,
    // How its body comes.
    pub(crate) gzip: bool,
    pub(crate) body_after: Duration,
    pub(crate) cut: bool,
    // When it is refused.
    pub(crate) fail_first: u64,
    pub(crate) fail_every: Option<u64>,
    pub(crate) throttle_first: u64,
    pub(crate) limit: Option<Limit>,
    /// How long an `Authorization` is good after its first call.
    pub(crate) token: Option<Duration>,
    // How it goes wrong.
    pub(crate) fault: Option<Fault>,
    pub(crate) fault_every: u64,
    pub(crate) accepted: bool,
    pub(crate) callback: CallbackPlan,
    // When polled work is ready; a poll's own query goes before that of the call that submitted the work.
    pub(crate) polls: Option<u64>,
    pub(crate) ready: Option<Duration>,
    // Logging in: how long a token is good, and whose tokens a call needs.
    pub(crate) expires_in: Duration,
    pub(crate) token_from: Option<String>,
}

/// When and how an async vendor calls back.
#[derive(Debug, Clone)]
pub(crate) struct CallbackPlan {
    pub(crate) url_at: String,
    pub(crate) request_id_at: String,
    pub(crate) after: Duration,
    pub(crate) times: u32,
    pub(crate) gap: Duration,
    pub(crate) early: bool,
    pub(crate) never: bool,
    pub(crate) forged: bool,
    pub(crate) retries: u32,
    pub(crate) sign_secret: Option<String>,
}

impl Default for Behave {
    fn default() -> Behave {
        Behave {
            latency: Duration::ZERO,
            status: None,
            body: None,
            retry_after: None,
            headers: Vec::new(),
            first: None,
            failed: false,
            gzip: false,
            body_after: Duration::ZERO,
            cut: false,
            fail_first: 0,
            fail_every: None,
            throttle_first: 0,
            limit: None,
            token: None,
            fault: None,
            fault_every: 1,
            accepted: false,
            callback: CallbackPlan {
                url_at: "/callback_url".into(),
                request_id_at: "/request_id".into(),
                after: Duration::from_millis(50),
                times: 1,
                gap: Duration::ZERO,
                early: false,
                never: false,
                forged: false,
                retries: 5,
                sign_secret: None,
            },
            polls: None,
            ready: None,
            expires_in: Duration::from_secs(3600),
            token_from: None,
        }
    }
}

impl Behave {
    /// Reads a query string. `+` stays `+`: signing secrets and literal bodies are full of them.
    pub(crate) fn parse(query: Option<&str>) -> Result<Behave, String> {
        let mut behave = Behave::default();
        let (mut limit, mut size) = (LimitQuery::default(), None);
        for (key, value) in pairs(query)? {
            match key.as_str() {
                "size" => size = Some(number(&key, &value, 2, 10_000_000_000)?),
                _ if limit.read(&key, &value)? => {}
                _ if behave.read_callback(&key, &value)? => {}
                _ => behave.read_call(&key, &value)?,
            }
        }
        behave.limit = limit.limit()?;
        match (size, behave.fault) {
            (None, _) => {}
            (Some(size), Some(Fault::Big { .. })) => behave.fault = Some(Fault::Big { size }),
            (Some(_), _) => return Err("`size` goes with `fault=big`".into()),
        }
        Ok(behave)
    }

    /// How this call of the name is treated: of the answers that are for the first calls nothing is left later.
    pub(crate) fn for_call(self, call: u64) -> Behave {
        if self.first.is_none_or(|first| call <= first) {
            return self;
        }
        Behave { status: None, body: None, retry_after: None, headers: Vec::new(), ..self }
    }

    fn read_call(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "latency_ms" => self.latency = millis(key, value)?,
            "status" => self.status = Some(number(key, value, 200, 599)? as u16),
            "body" => self.body = Some(Bytes::copy_from_slice(value.as_bytes())),
            "retry_after" => self.retry_after = Some(header_value(key, value)?),
            "header" => self.headers.push(header(key, value)?),
            "first" => self.first = Some(number(key, value, 0, u64::MAX)?),
            "failed" => self.failed = flag(key, value)?,
            "gzip" => self.gzip = flag(key, value)?,
            "body_ms" => self.body_after = millis(key, value)?,
            "cut" => self.cut = flag(key, value)?,
            "token_ms" => self.token = Some(millis(key, value)?),
            "fail_first" => self.fail_first = number(key, value, 0, u64::MAX)?,
            "fail_every" => self.fail_every = Some(number(key, value, 1, u64::MAX)?),
            "throttle_first" => self.throttle_first = number(key, value, 0, u64::MAX)?,
            "fault" => self.fault = Some(Fault::from_str(value)?),
            "fault_every" => self.fault_every = number(key, value, 1, u64::MAX)?,
            "accepted" => self.accepted = flag(key, value)?,
            "polls" => self.polls = Some(number(key, value, 0, u64::MAX)?),
            "ready_ms" => self.ready = Some(millis(key, value)?),
            "expires_in" => self.expires_in = Duration::from_secs(number(key, value, 1, DAY_MS)?),
            "token_from" => self.token_from = Some(value.into()),
            _ => return Err(format!("there is no parameter `{key}`; GET / lists them")),
        }
        Ok(())
    }

    /// Says whether the parameter was one of the callback's.
    fn read_callback(&mut self, key: &str, value: &str) -> Result<bool, String> {
        let plan = &mut self.callback;
        match key {
            "callback_ptr" => plan.url_at = pointer(key, value)?,
            "request_id_ptr" => plan.request_id_at = pointer(key, value)?,
            "callback_ms" | "late_ms" => plan.after = millis(key, value)?,
            "callback_times" => plan.times = number(key, value, 0, 1000)? as u32,
            "callback_gap_ms" => plan.gap = millis(key, value)?,
            "callback_retries" => plan.retries = number(key, value, 0, 1000)? as u32,
            "sign_secret" => plan.sign_secret = Some(value.into()),
            "never" => plan.never = flag(key, value)?,
            "forged" => plan.forged = flag(key, value)?,
            "callback" => match value {
                "early" => plan.early = true,
                "never" => plan.never = true,
                "forged" => plan.forged = true,
                "failed" => self.failed = true,
                _ => return Err(format!("`callback` is early, never, forged or failed, not `{value}`")),
            },
            _ => return Ok(false),
        }
        Ok(true)
    }
}

pub(crate) const DAY_MS: u64 = 86_400_000;

/// The decoded parameters of a query string, in order.
pub(crate) fn pairs(query: Option<&str>) -> Result<Vec<(String, String)>, String> {
    let decode = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded.map(|text| text.into_owned()).map_err(|_| format!("`{text}` is not UTF-8"))
    };
    let parts = query.unwrap_or_default().split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode(key)?, decode(value)?))
        })
        .collect()
}

pub(crate) fn number(key: &str, value: &str, min: u64, max: u64) -> Result<u64, String> {
    let number: u64 = value.parse().map_err(|_| format!("`{key}` is a whole number, not `{value}`"))?;
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(format!("`{key}` is from {min} to {max}, not {number}"))
    }
}

/// A wait of at most a day: more is a slip, and tokio's timers end after two years.
fn millis(key: &str, value: &str) -> Result<Duration, String> {
    Ok(Duration::from_millis(number(key, value, 0, DAY_MS)?))
}

fn flag(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("`{key}` is true or false, not `{value}`")),
    }
}

fn header_value(key: &str, value: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(value).map_err(|_| format!("`{key}` has a character that headers cannot have"))
}

/// `name:value`
fn header(key: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let parts = value.split_once(':').and_then(|(name, value)| Some((name.parse().ok()?, value.trim())));
    let (name, value) = parts.ok_or_else(|| format!("`{key}` is name:value, not `{value}`"))?;
    Ok((name, header_value(key, value)?))
}

fn pointer(key: &str, value: &str) -> Result<String, String> {
    let right = value.is_empty() || value.starts_with('/');
    if right {
        Ok(value.into())
    } else {
        Err(format!("`{key}` is a JSON pointer such as /callback_url, not `{value}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_parameter_is_named_in_the_error() {
        let error = Behave::parse(Some("latncy_ms=5")).expect_err("refused");
        assert!(error.contains("`latncy_ms`"), "{error}");
    }

    #[test]
    fn every_parameter_is_read_and_told_of() {
        let index = include_str!("index.json");
        for (parameter, value) in [
            ("latency_ms", "1"),
            ("status", "403"),
            ("body", "x"),
            ("failed", ""),
            ("retry_after", "1"),
            ("header", "a:b"),
            ("first", "1"),
            ("gzip", ""),
            ("body_ms", "1"),
            ("cut", ""),
            ("fail_first", "1"),
            ("fail_every", "1"),
            ("throttle_first", "1"),
            ("token_ms", "1"),
            ("fault", "hang"),
            ("fault_every", "1"),
            ("accepted", ""),
            ("callback", "early"),
            ("callback_ms", "1"),
            ("polls", "1"),
            ("ready_ms", "1"),
        ] {
            assert!(Behave::parse(Some(&format!("{parameter}={value}"))).is_ok(), "{parameter}");
            assert!(index.contains(parameter) && crate::HELP.contains(parameter), "{parameter}");
        }
    }

    #[test]
    fn headers_are_names_and_values() {
        let behave = Behave::parse(Some(
            "header=x-left:%203&header=date:Sun,%2006%20Nov%201994%2008:49:37%20GMT&retry_after=2.0",
        ));
        let behave = behave.expect("parses");
        let values: Vec<_> = behave.headers.iter().map(|(_, value)| value.to_str().expect("text")).collect();
        assert_eq!(
            (values, behave.retry_after.expect("one")),
            (vec!["3", "Sun, 06 Nov 1994 08:49:37 GMT"], "2.0".parse().unwrap())
        );
        for wrong in ["header=x-left", "header=:1", "header=a%20b:1", "retry_after=%0A"] {
            assert!(Behave::parse(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn half_a_limit_is_refused() {
        assert!(Behave::parse(Some("max=5")).is_err());
        assert!(Behave::parse(Some("max=5&per_ms=100")).is_ok());
    }

    #[test]
    fn plus_signs_and_escapes_reach_the_body_as_they_are_meant() {
        let behave = Behave::parse(Some("body=%7B%22a%22%3A1.10e+5%7D")).expect("parses");
        assert_eq!(behave.body.expect("a body"), r#"{"a":1.10e+5}"#);
    }

    #[test]
    fn flags_need_no_value() {
        let behave = Behave::parse(Some("never&forged=1&callback=failed")).expect("parses");
        assert!(behave.callback.never && behave.callback.forged && behave.failed);
    }
}
