//! Metrics of one vendor that are counted by words of the API: how its jobs ended, and what keeps its calls back.
//!
//! Never decides which word it is.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    exposition::family,
    job::{End, FailureCode, Status},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    vendor: String,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    vendor: String,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    vendor: String,
    reason: &'static str,
}

const STATUSES: [Status; 4] = [Status::Complete, Status::Failed, Status::Cancelled, Status::Expired];

/// How the jobs of a vendor ended.
#[derive(Clone)]
pub struct Ends {
    by_status: [Counter; STATUSES.len()],
    /// Those without a result.
    by_code: [Counter; FailureCode::ALL.len()],
}

impl Ends {
    /// Registers the metrics of all vendors; gives those of each.
    pub(crate) fn register(registry: &mut Registry) -> impl Fn(&str) -> Ends + use<> {
        let ended: Family<ByStatus, Counter> = family(registry, "jobs_ended", "Jobs ended, by how");
        let help = "Jobs ended without a result, by the code of their error";
        let failed: Family<ByCode, Counter> = family(registry, "jobs_failed", help);
        move |name| {
            let status = |status: Status| ByStatus { vendor: name.to_owned(), status: status.as_str() };
            let code = |code: FailureCode| ByCode { vendor: name.to_owned(), code: code.as_str() };
            Ends {
                by_status: STATUSES.map(|one| ended.get_or_create_owned(&status(one))),
                by_code: FailureCode::ALL.map(|one| failed.get_or_create_owned(&code(one))),
            }
        }
    }

    pub fn count(&self, end: &End) {
        if let Some(at) = STATUSES.iter().position(|status| *status == end.status) {
            self.by_status[at].inc();
        }
        if let Some(at) = FailureCode::ALL.iter().position(|code| Some(*code) == end.code) {
            self.by_code[at].inc();
        }
    }
}

/// What can keep back all calls of a vendor, in the words of `blocked_on`.
const REASONS: [&str; 4] = ["vendor_paused", "credentials", "breaker", "slowed_by_vendor"];

/// Which reasons there are now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocked {
    pub is_paused: bool,
    pub by_credentials: bool,
    pub by_breaker: bool,
    pub is_slowed: bool,
}

/// What keeps back the calls of a vendor, as gauges of 0 and 1.
#[derive(Clone)]
pub struct Blocks([Gauge; REASONS.len()]);

impl Blocks {
    /// Registers the metrics of all vendors; gives those of each.
    pub(crate) fn register(registry: &mut Registry) -> impl Fn(&str) -> Blocks + use<> {
        let help = "1 while this keeps back all calls of the vendor, as far as this process knows";
        let blocks: Family<ByReason, Gauge> = family(registry, "vendor_blocked", help);
        let reason = |name: &str, reason| ByReason { vendor: name.to_owned(), reason };
        move |name| Blocks(REASONS.map(|one| blocks.get_or_create_owned(&reason(name, one))))
    }

    pub fn set(&self, now: Blocked) {
        let all = [now.is_paused, now.by_credentials, now.by_breaker, now.is_slowed];
        for (gauge, is_so) in self.0.iter().zip(all) {
            gauge.set(i64::from(is_so));
        }
    }
}
