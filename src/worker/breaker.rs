//! A vendor's breakers, as its dispatcher and attempts use them: they check the state before a call and report the outcome after it.
//!
//! A vendor has up to two: one opens when its calls fail, the other when it refuses our credentials. Nobody calls while either is open.
//! Never decides when one opens (see `limit::breaker`).

use std::sync::Arc;

use super::{
    context::Context,
    login::{self, Verdict},
};
use crate::{
    job::lifecycle::Step,
    limit::{
        breaker::{ProbeEnd, Standing},
        breakers::Probe,
    },
    store::StoreError,
    telemetry::VendorMetrics,
    vendor::Vendor,
};

/// One vendor's breakers, as its dispatcher sees them.
pub(super) struct Breaker {
    cx: Arc<Context>,
    vendor: Arc<Vendor>,
    metrics: VendorMetrics,
    /// The states that were logged last.
    failing: Standing,
    credentials: Standing,
}

/// The probes of those breakers that are half open. Together they allow one call.
#[derive(Debug)]
pub(super) struct Probes {
    failing: Option<Probe>,
    credentials: Option<Probe>,
}

impl Breaker {
    pub(super) fn new(cx: Arc<Context>, vendor: Arc<Vendor>, metrics: VendorMetrics) -> Breaker {
        Breaker { cx, vendor, metrics, failing: Standing::Closed, credentials: Standing::Closed }
    }

    /// The stricter state of the two; changes are logged.
    pub(super) fn standing(&mut self) -> Standing {
        let failing = self.cx.breakers.standing(self.vendor.name());
        let credentials = self.cx.breakers.standing(&self.vendor.login.breaker);
        if failing.as_str() != self.failing.as_str() {
            self.metrics.breaker_state.set(number(failing));
            self.log_failing(failing);
        }
        if credentials.as_str() != self.credentials.as_str() {
            self.metrics.credentials_state.set(number(credentials));
            self.log_credentials(credentials);
        }
        (self.failing, self.credentials) = (failing, credentials);
        stricter(failing, credentials)
    }

    /// One line when the breaker opens and one when it closes, however many probes go out in between.
    fn log_failing(&self, standing: Standing) {
        let vendor = self.vendor.name();
        if standing == Standing::Closed {
            tracing::info!(%vendor, "the breaker is closed: the vendor is called again");
        } else if self.failing == Standing::Closed {
            tracing::warn!(%vendor, "the breaker is open: nearly all calls fail, so only a probe goes out now and then, until one succeeds");
        }
    }

    /// One line when the credentials fail and one when they work again, however many probes go out in between.
    fn log_credentials(&self, standing: Standing) {
        let vendor = self.vendor.name();
        if standing == Standing::Closed {
            tracing::info!(%vendor, "the vendor takes our credentials again");
        } else if self.credentials == Standing::Closed {
            let why = self.cx.breakers.opened(&self.vendor.login.breaker).and_then(|opened| opened.why);
            let why = why.as_deref().map(login::message).unwrap_or_default();
            tracing::error!(%vendor, why, "our credentials are refused: the vendor's jobs wait until they are mended");
        }
    }
}

/// Takes the probe of each breaker that is not closed; `None` if one cannot be had. Of each breaker there is one probe in all processes.
pub(super) async fn take_probes(cx: &Context, vendor: &Vendor) -> Result<Option<Probes>, StoreError> {
    let mut probes = Probes { failing: None, credentials: None };
    if cx.breakers.standing(vendor.name()) != Standing::Closed {
        probes.failing = cx.breakers.take_probe(vendor.name()).await?;
        if probes.failing.is_none() {
            return Ok(None);
        }
    }
    if cx.breakers.standing(&vendor.login.breaker) != Standing::Closed {
        probes.credentials = cx.breakers.take_probe(&vendor.login.breaker).await?;
        if probes.credentials.is_none() {
            report(cx, vendor, Some(probes), None, Verdict::Unknown).await;
            return Ok(None);
        }
    }
    Ok(Some(probes))
}

/// Reports an attempt's outcome to the breakers and returns its probes. `failed` is `None` if no call was made; `verdict` is what the reply
/// says about our credentials.
pub(super) async fn report(
    cx: &Context,
    vendor: &Vendor,
    probes: Option<Probes>,
    failed: Option<bool>,
    verdict: Verdict,
) {
    let (failing, credentials) = probes.map_or((None, None), |probes| (probes.failing, probes.credentials));
    let name = vendor.name();
    match (failing, failed) {
        (Some(probe), Some(true)) => cx.breakers.probed(name, probe, ProbeEnd::Failed { why: None }).await,
        (Some(probe), Some(false)) => cx.breakers.probed(name, probe, ProbeEnd::Good).await,
        (Some(probe), None) => cx.breakers.probed(name, probe, ProbeEnd::Unknown).await,
        (None, Some(failed)) => cx.breakers.ended(name, failed).await,
        (None, None) => {}
    }
    let name = &vendor.login.breaker;
    match (credentials, verdict) {
        (Some(probe), Verdict::Taken) => cx.breakers.probed(name, probe, ProbeEnd::Good).await,
        (Some(probe), Verdict::Refused(why)) => {
            cx.breakers.probed(name, probe, ProbeEnd::Failed { why: Some(why) }).await;
        }
        (Some(probe), Verdict::Unknown) => cx.breakers.probed(name, probe, ProbeEnd::Unknown).await,
        (None, Verdict::Refused(why)) => cx.breakers.trip(name, login::WAIT, why).await,
        (None, Verdict::Taken | Verdict::Unknown) => {}
    }
}

/// Whether an attempt counts as failed. "Slow down" does not (it closes the pool's gate), and neither does a refusal of the request.
pub(super) fn is_failure(step: &Step) -> bool {
    matches!(step, Step::TryAgain { .. })
}

fn stricter(a: Standing, b: Standing) -> Standing {
    match (a, b) {
        (Standing::Open { until: a }, Standing::Open { until: b }) => Standing::Open { until: a.max(b) },
        (open @ Standing::Open { .. }, _) | (_, open @ Standing::Open { .. }) => open,
        (Standing::HalfOpen, _) | (_, Standing::HalfOpen) => Standing::HalfOpen,
        (Standing::Closed, Standing::Closed) => Standing::Closed,
    }
}

fn number(standing: Standing) -> i64 {
    match standing {
        Standing::Closed => 0,
        Standing::HalfOpen => 1,
        Standing::Open { .. } => 2,
    }
}
