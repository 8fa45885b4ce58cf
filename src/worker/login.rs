//! A vendor's credentials, as the dispatcher, attempts and the janitor use them. The dispatcher gets a token before it claims jobs, an attempt
//! tells a refusal from an expired token, and the janitor reads secrets in files again.
//!
//! Never decides when a vendor is asked again (see `limit::breaker`) and never asks for a token itself (see `vendor::auth`).

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::task::JoinSet;

use super::context::Context;
use crate::{
    clock::Time,
    job::{AttemptOutcome, Failure, FailureCode, Job, lifecycle::Step},
    limit::breaker::Standing,
    vendor::{
        Vendor,
        auth::{Proof, oauth},
    },
};

/// How long nobody calls a vendor that has refused our credentials.
pub(super) const WAIT: Duration = Duration::from_secs(30);

/// What a call says about our credentials.
pub(super) enum Verdict {
    Taken,
    /// They are wrong: why, as the API shows it.
    Refused(Arc<str>),
    Unknown,
}

/// What a job's call with this proof, sent at `sent_at`, says about our credentials. A refusal also gets its `times`.
pub(super) fn verdict(
    vendor: &Vendor,
    step: &mut Step,
    job: &Job,
    status: Option<u16>,
    proof: Proof,
    (sent_at, now): (Time, Time),
) -> Verdict {
    match step {
        Step::Unauthorized { why, times } => {
            *times = times_refused(vendor, job);
            if *times >= Job::MOST_REFUSALS {
                return Verdict::Taken;
            }
            match vendor.login.refused(proof) {
                oauth::Refusal::TryNewer => Verdict::Unknown,
                // The vendor took a call that was sent after this one: the credentials are good.
                oauth::Refusal::Final if vendor.login.has_taken_since(sent_at) => Verdict::Unknown,
                oauth::Refusal::Final => Verdict::Refused(written(why, AttemptOutcome::Unauthorized, now)),
            }
        }
        // A vendor that is busy or broken may not have looked at them.
        Step::TryAgain { .. } | Step::SlowDown { .. } => Verdict::Unknown,
        _ if status.is_none() => Verdict::Unknown,
        _ => {
            vendor.login.taken(proof, sent_at);
            Verdict::Taken
        }
    }
}

/// How often in a row this job has now been refused. It stays one until a call of another job was accepted since the first refusal: until
/// then the vendor seems to refuse all.
fn times_refused(vendor: &Vendor, job: &Job) -> u32 {
    match job.in_a_row(FailureCode::VendorRefused) {
        1 if !vendor.login.has_taken_since(job.updated_at) => 1,
        before => before.saturating_add(1),
    }
}

/// Why an attempt had this outcome, as the API shows it.
pub(super) fn written(why: &Failure, outcome: AttemptOutcome, at: Time) -> Arc<str> {
    let mut error = json!({ "code": why.code.of_attempt(outcome), "message": why.message, "at": at.rfc3339() });
    if let Some(said) = &why.vendor {
        error["vendor"] = json!(said);
    }
    error.to_string().into()
}

/// The sentence in what [`written`] gives.
pub(super) fn message(written: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(written).unwrap_or_default();
    value["message"].as_str().unwrap_or_default().to_owned()
}

/// Makes sure that calls can be made: asks for a token if there is none. If the one in use expires soon, calls go on meanwhile.
pub(super) async fn ready(cx: &Arc<Context>, vendor: &Arc<Vendor>, renewing: &mut JoinSet<()>) -> Result<(), Verdict> {
    let Some(oauth) = vendor.login.oauth() else { return Ok(()) };
    while renewing.try_join_next().is_some() {}
    match oauth.standing(cx.clock.nanos()) {
        oauth::Standing::Good => Ok(()),
        oauth::Standing::EndsSoon => {
            if renewing.is_empty() {
                renewing.spawn(renew(cx.clone(), vendor.clone()));
            }
            Ok(())
        }
        oauth::Standing::Missing => {
            let asked = oauth.renew(vendor.token_client(&cx.client), &cx.clock).await;
            let refused = |why| Verdict::Refused(written(&why, AttemptOutcome::NoConnection, cx.clock.now()));
            asked.map_err(refused)
        }
    }
}

async fn renew(cx: Arc<Context>, vendor: Arc<Vendor>) {
    let Some(oauth) = vendor.login.oauth() else { return };
    if let Err(why) = oauth.renew(vendor.token_client(&cx.client), &cx.clock).await {
        tracing::debug!(vendor = %vendor.name(), why = why.message, "the token in use could not be renewed yet");
    }
}

/// Reads secrets in files again. A vendor that waits because of its credentials is asked at once if one of them has changed.
pub async fn reread_secrets(cx: &Context) {
    for vendor in cx.vendors.iter().filter(|vendor| vendor.is_in_files()) {
        // Reading a file can take its time, on a file system of another machine say.
        let reading = vendor.clone();
        if !tokio::task::spawn_blocking(move || reading.reread()).await.unwrap_or(false) {
            continue;
        }
        tracing::info!(vendor = %vendor.name(), "a secret has changed, or a certificate; it is used from now on");
        if cx.breakers.standing(&vendor.login.breaker) != Standing::Closed {
            if let Err(error) = cx.breakers.hurry(&vendor.login.breaker).await {
                tracing::debug!(vendor = %vendor.name(), %error, "the vendor is asked again when its wait is over");
            }
            cx.store.signals().ring(vendor.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::Request;

    use super::*;
    use crate::{
        config,
        job::{
            JobId, Lane, NewJob, Priority,
            lifecycle::{Change, Next},
        },
        vendor::{Registry, outgoing::Credentials},
    };

    /// A vendor, and what every call to it proves itself with.
    fn vendor() -> (Arc<Vendor>, Proof) {
        let text = "[vendors.one]\nkind = \"sync\"\nurl = \"http://127.0.0.1:9/\"\nlimits = []\n";
        let config = config::parse(text, "test", std::iter::empty()).unwrap_or_else(|error| panic!("{error}"));
        let vendor = Registry::new(&config, b"secret").get("one").unwrap().clone();
        let mut request = Request::new(Full::new(Bytes::new()));
        let proof = vendor.login.prove(&mut request, Credentials::Sent, 0, Time(0)).unwrap().unwrap();
        (vendor, proof)
    }

    /// A job whose last answers, the last one at `at`, were of this kind so many times in a row.
    fn answered(code: FailureCode, times: u32, at: Time) -> Job {
        let lane = Lane { vendor: "one".into(), priority: Priority::Normal, tenant: "t".into() };
        let job = Job::from(NewJob::new(JobId::first_at(Time(1)), lane, "1", Time(1)));
        let last_error = Some(Failure::new(code, "answered"));
        Change { slowed: times, last_error, ..Change::of(&job, Next::Call { due_at: at }) }.apply(&job, times, at)
    }

    /// The number in a row of a refusal of this job's call that was sent at `sent_at`, and whether it stops the vendor's calls.
    fn refused((vendor, proof): &(Arc<Vendor>, Proof), job: &Job, sent_at: Time) -> (u32, bool) {
        let why = Failure::new(FailureCode::VendorRefused, "the vendor answered 401");
        let mut step = Step::Unauthorized { why, times: 1 };
        let verdict = verdict(vendor, &mut step, job, Some(401), *proof, (sent_at, sent_at.plus(WAIT)));
        let Step::Unauthorized { times, .. } = step else { panic!("{step:?}") };
        (times, matches!(verdict, Verdict::Refused(_)))
    }

    #[test]
    fn a_job_is_to_blame_for_its_third_refusal_only_if_others_were_taken_after_the_first() {
        let vendor = vendor();
        let once = answered(FailureCode::VendorRefused, 1, Time(1_000));
        assert_eq!(refused(&vendor, &once, Time(2_000)), (1, true), "as far as anybody knows all are refused");
        vendor.0.login.taken(vendor.1, Time(500));
        assert_eq!(refused(&vendor, &once, Time(2_000)), (1, true), "that was before");
        vendor.0.login.taken(vendor.1, Time(1_500));
        assert_eq!(refused(&vendor, &once, Time(2_000)), (2, true));
        let twice = answered(FailureCode::VendorRefused, 2, Time(2_000));
        assert_eq!(
            refused(&vendor, &twice, Time(3_000)),
            (Job::MOST_REFUSALS, false),
            "the vendor does not wait for it"
        );
        let slowed = answered(FailureCode::AttemptsExhausted, 2, Time(1_000));
        assert_eq!(refused(&vendor, &slowed, Time(2_000)), (1, true), "slow-downs are no refusals");
    }

    #[test]
    fn a_refusal_stops_nobody_if_a_call_was_taken_that_was_sent_later() {
        let vendor = vendor();
        let job = answered(FailureCode::AttemptsExhausted, 0, Time(1_000));
        vendor.0.login.taken(vendor.1, Time(2_000));
        assert_eq!(refused(&vendor, &job, Time(1_999)), (1, false));
        assert_eq!(refused(&vendor, &job, Time(2_000)), (1, true));
    }
}
