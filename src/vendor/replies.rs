//! What answers mean, as data: rules with conditions, of which the first that fits decides. A vendor has those of its config, and after
//! them the built-in table.
//!
//! Never reads an answer (see `reading`): a rule only says whether it fits.

use std::time::Duration;

use hyper::{
    HeaderMap, Method, StatusCode,
    header::{HeaderName, LOCATION, RETRY_AFTER},
};
use serde_json::value::RawValue;

use crate::{
    config::{Kind, Match, Vendor},
    json::{self, Pointer},
};

/// The status whose meaning depends on whether an earlier call of the job may have been done (see [`Condition::MayBeDone`]).
pub const IN_USE: u16 = 409;

/// What was answered: a call, a poll or a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Call,
    Poll,
    /// A poll for the data of a job that is done. Rules of the config for polls are for these too.
    Fetch,
    Callback,
}

/// What an answer means for the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    Done,
    /// The vendor took the job. Only in the built-in table.
    Accepted,
    /// The vendor is done, and its data is where a header says. Only in the built-in table.
    Elsewhere,
    Pending,
    SlowDown,
    TryAgain,
    Refused,
    Unauthorized,
}

impl Means {
    /// The word for it in the config.
    pub fn as_str(self) -> &'static str {
        match self {
            Means::Done => "done",
            Means::Accepted => "accepted",
            Means::Elsewhere => "elsewhere",
            Means::Pending => "pending",
            Means::SlowDown => "slow_down",
            Means::TryAgain => "try_again",
            Means::Refused => "refused",
            Means::Unauthorized => "unauthorized",
        }
    }
}

/// One rule: all its conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Empty: whatever was answered.
    pub on: Vec<On>,
    pub conditions: Vec<Condition>,
    pub means: Means,
    /// How long to wait, if the vendor does not ask for more.
    pub wait: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Its status is in one of these ranges, both ends included.
    Status(Vec<(u16, u16)>),
    Value {
        at: Pointer,
        test: Test,
    },
    Header {
        name: HeaderName,
        test: Test,
    },
    /// Its headers say that nothing is left of the vendor's limit.
    NothingLeft,
    /// An earlier call of the job may have been done.
    MayBeDone,
    /// The vendor accepted the job so shortly before that it may not know it everywhere yet.
    JustAccepted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// Equals one of these texts (a string's content, else the JSON as written).
    Is(Vec<String>),
    /// Is there and neither null nor empty; with `false`, the contrary.
    Exists(bool),
}

/// What is known of an answer.
#[derive(Clone, Copy)]
pub(super) struct Answer<'a> {
    pub(super) on: On,
    /// Nothing for a callback.
    pub(super) status: Option<StatusCode>,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: Body<'a>,
    /// Whether its headers say that nothing is left: read only for the rules that look at it.
    pub(super) nothing_left: &'a dyn Fn() -> bool,
    pub(super) may_be_done: bool,
    pub(super) just_accepted: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Body<'a> {
    /// Not read yet.
    Unread,
    /// There is none that could be read.
    Unreadable,
    Json(&'a RawValue),
}

/// Whether a rule fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    No,
    /// That depends on the body, which has not been read yet.
    Maybe,
    Yes,
}

impl Rule {
    pub(super) fn fit(&self, answer: &Answer<'_>) -> Fit {
        if !self.on.is_empty() && !self.on.contains(&answer.on) {
            return Fit::No;
        }
        self.conditions.iter().map(|condition| condition.fit(answer)).min().unwrap_or(Fit::Yes)
    }

    /// Whether it can be for an answer of status 2xx.
    fn may_be_of_success(&self, on: On) -> bool {
        let may_be = |condition: &Condition| match condition {
            Condition::Status(ranges) => ranges.iter().any(|(from, to)| *from <= 299 && *to >= 200),
            _ => true,
        };
        (self.on.is_empty() || self.on.contains(&on)) && self.conditions.iter().all(may_be)
    }

    /// Where in the body the rule looks, if it does.
    pub(super) fn looks_at(&self) -> Option<&Pointer> {
        self.conditions.iter().find_map(|condition| match condition {
            Condition::Value { at, .. } => Some(at),
            _ => None,
        })
    }
}

impl Condition {
    fn fit(&self, answer: &Answer<'_>) -> Fit {
        let fits = match self {
            Condition::Status(ranges) => answer
                .status
                .is_some_and(|status| ranges.iter().any(|(from, to)| (*from..=*to).contains(&status.as_u16()))),
            Condition::Value { at, test } => match answer.body {
                Body::Unread => return Fit::Maybe,
                Body::Unreadable => false,
                Body::Json(body) => test.fits_value(at.find(body)),
            },
            Condition::Header { name, test } => test.fits_header(answer.headers, name),
            Condition::NothingLeft => (answer.nothing_left)(),
            Condition::MayBeDone => answer.may_be_done,
            Condition::JustAccepted => answer.just_accepted,
        };
        if fits { Fit::Yes } else { Fit::No }
    }
}

impl Test {
    pub(super) fn fits_value(&self, found: Option<&RawValue>) -> bool {
        match self {
            Test::Is(texts) => found.is_some_and(|found| texts.iter().any(|text| *text == json::text(found))),
            Test::Exists(wanted) => found.is_some_and(|found| !is_nothing(found)) == *wanted,
        }
    }

    fn fits_header(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        let values = || headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::trim);
        match self {
            Test::Is(texts) => values().any(|value| texts.iter().any(|text| text == value)),
            Test::Exists(wanted) => values().any(|value| !value.is_empty()) == *wanted,
        }
    }
}

/// Null, an empty string, array or object.
fn is_nothing(found: &RawValue) -> bool {
    let text = found.get().as_bytes();
    let is_empty = |open, close| {
        text.first() == Some(&open) && text.last() == Some(&close) && text[1..text.len() - 1].trim_ascii().is_empty()
    };
    text == b"null" || text == b"\"\"" || is_empty(b'[', b']') || is_empty(b'{', b'}')
}

/// All rules of a vendor, in the order in which they count: those it has, the short forms `failed` and `done`, the built-in table.
pub(super) fn of(vendor: &Vendor) -> Vec<Rule> {
    let mut rules = vendor.replies.clone();
    if let Some(failed) = &vendor.failed {
        rules.extend([
            rule(&[On::Call, On::Poll, On::Fetch], vec![success(), of_match(failed)], Means::Refused),
            rule(&[On::Callback], vec![of_match(failed)], Means::Refused),
        ]);
    }
    match &vendor.kind {
        Kind::Sync => {}
        Kind::Polling(polling) => rules.extend(
            polling.done.as_ref().map(|done| rule(&[On::Call, On::Poll], vec![success(), of_match(done)], Means::Done)),
        ),
        Kind::Webhook(webhook) => rules.extend(webhook.done.iter().flat_map(|done| {
            [
                rule(&[On::Call], vec![success(), of_match(done)], Means::Done),
                rule(&[On::Callback], vec![of_match(done)], Means::Done),
                rule(&[On::Callback], vec![], Means::Pending),
            ]
        })),
    }
    let polls = match &vendor.kind {
        Kind::Polling(polling) if polling.done.is_none() => says_when_done(&vendor.replies),
        _ => None,
    };
    rules.extend(built_in(&vendor.kind, &vendor.method, polls.unwrap_or(Means::Pending)));
    rules
}

/// What a successful answer to a poll means that none of these rules is for: they say which are done, or which are pending. `None`: neither.
pub(crate) fn says_when_done(rules: &[Rule]) -> Option<Means> {
    let any = |means| rules.iter().any(|rule| rule.means == means && rule.may_be_of_success(On::Poll));
    if any(Means::Done) {
        return Some(Means::Pending);
    }
    any(Means::Pending).then_some(Means::Done)
}

fn of_match(found: &Match) -> Condition {
    Condition::Value { at: found.at.clone(), test: found.test.clone() }
}

/// A status from one to another.
fn status(from: u16, to: u16) -> Condition {
    Condition::Status(vec![(from, to)])
}

fn success() -> Condition {
    status(200, 299)
}

fn rule(on: &[On], conditions: Vec<Condition>, means: Means) -> Rule {
    Rule { on: on.to_vec(), conditions, means, wait: None }
}

/// What an answer means without a rule of the vendor's, a poll's 2xx `polls`. The last rules fit whatever no other does.
fn built_in(kind: &Kind, method: &Method, polls: Means) -> Vec<Rule> {
    let is = |one| status(one, one);
    let asks_to_wait = || Condition::Header { name: RETRY_AFTER, test: Test::Exists(true) };
    let located = || Condition::Header { name: LOCATION, test: Test::Exists(true) };
    let mut table = Vec::new();
    if matches!(kind, Kind::Sync) && method == Method::GET {
        table.push(rule(&[], vec![is(202)], Means::Pending));
    }
    let after_call = if matches!(kind, Kind::Sync) { Means::Done } else { Means::Accepted };
    table.extend([
        rule(&[On::Call], vec![success()], after_call),
        rule(&[On::Poll], vec![success()], polls),
        rule(&[On::Fetch], vec![success()], Means::Done),
        rule(&[On::Poll], vec![is(303), located()], Means::Elsewhere),
        rule(&[On::Poll, On::Fetch], vec![is(404), Condition::JustAccepted], Means::Pending),
        rule(&[On::Callback], vec![], Means::Done),
        rule(&[], vec![is(429)], Means::SlowDown),
        rule(&[], vec![is(403), asks_to_wait()], Means::SlowDown),
        rule(&[], vec![is(418), asks_to_wait()], Means::SlowDown),
        rule(&[], vec![is(403), Condition::NothingLeft], Means::SlowDown),
        rule(&[], vec![is(401)], Means::Unauthorized),
        rule(&[], vec![is(408)], Means::TryAgain),
        rule(&[], vec![is(425)], Means::TryAgain),
        rule(&[], vec![is(IN_USE), Condition::MayBeDone], Means::TryAgain),
        rule(&[], vec![status(500, 599)], Means::TryAgain),
        rule(&[], vec![], Means::Refused),
    ]);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(kind: &Kind, method: Method, answer: Answer<'_>) -> Means {
        built_in(kind, &method, Means::Pending)
            .into_iter()
            .find(|rule| rule.fit(&answer) == Fit::Yes)
            .map(|rule| rule.means)
            .unwrap()
    }

    fn answer(status: u16, headers: &HeaderMap) -> Answer<'_> {
        let (status, body) = (StatusCode::from_u16(status).ok(), Body::Unread);
        let nothing_left = &|| false;
        Answer { on: On::Call, status, headers, body, nothing_left, may_be_done: false, just_accepted: false }
    }

    #[test]
    fn the_built_in_table_is_that_of_the_contract() {
        let (none, mut waits) = (HeaderMap::new(), HeaderMap::new());
        waits.insert(RETRY_AFTER, "5".parse().unwrap());
        let sync = |answer| means(&Kind::Sync, Method::POST, answer);
        for (statuses, wanted) in [
            (vec![200, 201, 202, 204, 206, 299], Means::Done),
            (vec![429], Means::SlowDown),
            (vec![401], Means::Unauthorized),
            (vec![408, 425, 500, 501, 502, 503, 504, 529, 599], Means::TryAgain),
            (vec![300, 301, 303, 304, 400, 402, 403, 404, 409, 410, 418, 422, 451, 499], Means::Refused),
        ] {
            for status in statuses {
                assert_eq!(sync(answer(status, &none)), wanted, "{status}");
            }
        }
        for (status, wanted) in [
            (403, Means::SlowDown),
            (418, Means::SlowDown),
            (429, Means::SlowDown),
            (503, Means::TryAgain),
            (404, Means::Refused),
        ] {
            assert_eq!(sync(answer(status, &waits)), wanted, "{status} with Retry-After");
        }
        assert_eq!(sync(Answer { nothing_left: &|| true, ..answer(403, &none) }), Means::SlowDown);
        assert_eq!(sync(Answer { may_be_done: true, ..answer(409, &none) }), Means::TryAgain);
        let mut located = HeaderMap::new();
        located.insert(LOCATION, "/result".parse().unwrap());
        let on = |on, answer| sync(Answer { on, ..answer });
        assert_eq!(on(On::Poll, answer(200, &none)), Means::Pending);
        assert_eq!(on(On::Fetch, answer(200, &none)), Means::Done);
        assert_eq!(on(On::Poll, answer(303, &located)), Means::Elsewhere);
        for (which, status, headers) in [(On::Poll, 303, &none), (On::Fetch, 303, &located), (On::Call, 303, &located)]
        {
            assert_eq!(on(which, answer(status, headers)), Means::Refused, "{which:?}");
        }
        for which in [On::Poll, On::Fetch, On::Call] {
            let wanted = if which == On::Call { Means::Refused } else { Means::Pending };
            assert_eq!(on(which, Answer { just_accepted: true, ..answer(404, &none) }), wanted, "{which:?}");
            assert_eq!(on(which, answer(404, &none)), Means::Refused, "{which:?}");
        }
        assert_eq!(means(&Kind::Sync, Method::GET, answer(202, &none)), Means::Pending);
        assert_eq!(means(&Kind::Sync, Method::GET, answer(200, &none)), Means::Done);
    }

    #[test]
    fn a_rule_fits_when_all_its_conditions_do() {
        let mut headers = HeaderMap::new();
        headers.append("x-state", "busy".parse().unwrap());
        headers.append("x-state", "very".parse().unwrap());
        let at = |at: &str, test| Condition::Value { at: Pointer::parse(at).unwrap(), test };
        let header = |name: &'static str, test| Condition::Header { name: HeaderName::from_static(name), test };
        let is = |texts: &[&str]| Test::Is(texts.iter().map(|text| (*text).to_owned()).collect());
        let body = r#"{"a": 7, "s": "x", "none": null, "empty": "", "no": [ ], "o": {}, "full": [0]}"#;
        let body: &RawValue = serde_json::from_str(body).unwrap();
        let known = Answer { body: Body::Json(body), ..answer(403, &headers) };
        let fit = |conditions: Vec<Condition>, answer: Answer<'_>| rule(&[], conditions, Means::Done).fit(&answer);
        let status = || Condition::Status(vec![(200, 299), (403, 403)]);
        for (condition, wanted) in [
            (at("/a", is(&["8", "7"])), true),
            (at("/s", is(&["x"])), true),
            (at("/s", is(&["\"x\""])), false),
            (at("/b", is(&["null"])), false),
            (at("/none", is(&["null"])), true),
            (at("/full", Test::Exists(true)), true),
            (at("/none", Test::Exists(true)), false),
            (at("/empty", Test::Exists(true)), false),
            (at("/no", Test::Exists(true)), false),
            (at("/o", Test::Exists(true)), false),
            (at("/b", Test::Exists(false)), true),
            (at("/a", Test::Exists(false)), false),
            (header("x-state", is(&["very"])), true),
            (header("x-state", is(&["very busy"])), false),
            (header("x-state", Test::Exists(true)), true),
            (header("x-other", Test::Exists(false)), true),
        ] {
            let fits = fit(vec![status(), condition.clone()], known) == Fit::Yes;
            assert_eq!(fits, wanted, "{condition:?}");
        }
        let depends = || vec![status(), at("/a", is(&["7"]))];
        assert_eq!(fit(depends(), Answer { body: Body::Unread, ..known }), Fit::Maybe);
        assert_eq!(fit(depends(), Answer { body: Body::Unreadable, ..known }), Fit::No);
        assert_eq!(fit(depends(), Answer { status: None, ..known }), Fit::No);
        let on_polls = rule(&[On::Poll], vec![status()], Means::Done);
        assert_eq!(on_polls.fit(&known), Fit::No);
        assert_eq!(on_polls.fit(&Answer { on: On::Poll, ..known }), Fit::Yes);
    }
}
