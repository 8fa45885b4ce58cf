//! A vendor's credentials, as its dispatcher, its attempts and the janitor meet them: a token is there before jobs are claimed, a refusal is
//! distinguished from a token that has expired, and secrets in files are read again.
//!
//! Never decides when a vendor is asked again (see `limit::breaker`) and never asks for a token itself (see `vendor::auth`).

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::task::JoinSet;

use super::Context;
use crate::{
    clock::Time,
    job::{Failure, JobId, lifecycle::Step},
    limit::breaker::Standing,
    vendor::{
        Vendor,
        auth::{Proof, oauth},
    },
};

/// How long nobody calls a vendor that has refused our credentials.
const WAIT: Duration = Duration::from_secs(30);
/// A refusal so soon after a call that was taken may be one job's own: one other call goes out at once to see.
const IN_DOUBT: Duration = Duration::from_secs(60);

/// What a call says about our credentials.
pub(super) enum Verdict {
    Taken,
    /// They are wrong: why, as the API shows it, and how long nobody calls.
    Refused {
        why: Arc<str>,
        wait: Duration,
    },
    Unknown,
}

/// What a job's call with this proof, sent at `sent_at`, says about our credentials. A refusal that is the job's own is marked as such.
pub(super) fn verdict(
    vendor: &Vendor,
    step: &mut Step,
    job: JobId,
    status: Option<u16>,
    proof: Proof,
    (sent_at, now): (Time, Time),
) -> Verdict {
    match step {
        Step::Unauthorized { why, is_alone } => {
            *is_alone = vendor.login.is_alone(job, now);
            if *is_alone {
                return Verdict::Taken;
            }
            match vendor.login.refused(proof) {
                oauth::Refusal::TryNewer => Verdict::Unknown,
                oauth::Refusal::Final => refused(vendor, why, now),
            }
        }
        // A vendor that is busy or broken may not have looked at them.
        Step::TryAgain { .. } | Step::SlowDown { .. } => Verdict::Unknown,
        _ if status.is_none() => Verdict::Unknown,
        _ => {
            vendor.login.taken(job, proof, sent_at);
            Verdict::Taken
        }
    }
}

fn refused(vendor: &Vendor, why: &Failure, now: Time) -> Verdict {
    let is_in_doubt = vendor.login.has_taken_since(Time(now.0 - i64::try_from(IN_DOUBT.as_millis()).unwrap_or(0)));
    let wait = if is_in_doubt { Duration::ZERO } else { WAIT };
    Verdict::Refused { why: written(why, now), wait }
}

/// A failure as the API shows it.
pub(super) fn written(why: &Failure, at: Time) -> Arc<str> {
    let mut error = json!({ "code": why.code.as_str(), "message": why.message, "at": at.rfc3339() });
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

/// Sees to it that calls can be made: asks for a token if there is none, and beside the calls if the one in use ends soon.
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
            let asked = oauth.renew(&cx.client, &cx.clock).await;
            asked.map_err(|why| Verdict::Refused { why: written(&why, cx.clock.now()), wait: WAIT })
        }
    }
}

async fn renew(cx: Arc<Context>, vendor: Arc<Vendor>) {
    let Some(oauth) = vendor.login.oauth() else { return };
    if let Err(why) = oauth.renew(&cx.client, &cx.clock).await {
        tracing::debug!(vendor = %vendor.name(), why = why.message, "the token in use could not be renewed yet");
    }
}

/// Reads secrets in files again. A vendor that waits because of its credentials is asked at once if one of them has changed.
pub(super) async fn reread(cx: &Context) {
    for vendor in cx.vendors.iter().filter(|vendor| vendor.login.is_in_files()) {
        // Reading a file can take its time, on a file system of another machine say.
        let reading = vendor.clone();
        if !tokio::task::spawn_blocking(move || reading.login.reread()).await.unwrap_or(false) {
            continue;
        }
        tracing::info!(vendor = %vendor.name(), "a secret has changed and is used from now on");
        if cx.breakers.standing(&vendor.login.breaker) != Standing::Closed {
            if let Err(error) = cx.breakers.hurry(&vendor.login.breaker).await {
                tracing::debug!(vendor = %vendor.name(), %error, "the vendor is asked again when its wait is over");
            }
            cx.store.signals().ring(vendor.name());
        }
    }
}
