//! Why a job or a vendor does not go on, and what to do: one sentence for each reason that the service knows.
//!
//! Never asks the service: it reads what an answer says.

use anyhow::anyhow;
use serde::Deserialize;

use super::{Failure, print::shown, times::Times};
use crate::job::Status;

/// What commands need to know about a job.
#[derive(Debug, Deserialize)]
pub(super) struct JobState {
    pub(super) request_id: String,
    vendor: String,
    pub(super) status: Status,
    pub(super) error: Option<Error>,
    last_error: Option<Error>,
    pub(super) blocked_on: Option<String>,
    since: Option<String>,
    until: Option<String>,
    pub(super) eligible_at: Option<String>,
    pub(super) position: Option<u64>,
    pub(super) position_at_least: Option<u64>,
    pub(super) eta: Option<String>,
}

impl JobState {
    /// Why it has no result, and what to do; nothing for a job that is complete, or that is being called.
    pub(super) fn why(&self, times: &Times) -> Option<String> {
        let JobState { request_id, vendor, status, .. } = self;
        match (status, &self.blocked_on) {
            (Status::Complete, _) => None,
            (Status::Pending | Status::Processing, on) => {
                let (since, until) = (self.since.as_deref(), self.until.as_deref());
                let block = on.as_ref().map(|on| Block { on, vendor, job: Some(&**request_id), since, until });
                let now = block.map(|block| format!("why: {}", block.told(times)));
                let before = self.last_error.as_ref().map(|error| format!("before: {}", error.told(times)));
                let lines: Vec<String> = now.into_iter().chain(before).collect();
                (!lines.is_empty()).then(|| lines.join("\n"))
            }
            (Status::Failed | Status::Cancelled | Status::Expired, _) => {
                let error = self.error.as_ref();
                let reason = error.map(|error| error.told(times)).unwrap_or_else(|| status.as_str().to_owned());
                let mend = mend_of(*status, error.map(|error| &*error.code), request_id, vendor);
                Some(format!("why: {reason}\nnext: {mend}"))
            }
        }
    }

    /// The outcome for the exit code, for commands that wait for the end of a job.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        let JobState { request_id, status, .. } = self;
        let why = match (&self.error, &self.blocked_on) {
            (Some(error), _) => format!(": {} ({})", error.message, error.code),
            (None, Some(blocked_on)) => format!(", blocked on {blocked_on}"),
            (None, None) => String::new(),
        };
        let sentence = match status {
            Status::Complete => return Ok(()),
            Status::Pending | Status::Processing => {
                format!(
                    "the job has not ended yet: it is {}{why}; `fetchgate jobs watch {request_id}` follows it",
                    status.as_str()
                )
            }
            Status::Failed | Status::Cancelled | Status::Expired => format!("the job is {}{why}", status.as_str()),
        };
        Err(Failure::No(anyhow!(shown(&sentence))))
    }
}

/// What the last call that failed, or the end of a job, was about.
#[derive(Debug, Deserialize)]
pub(super) struct Error {
    pub(super) code: String,
    pub(super) message: String,
    pub(super) vendor: Option<VendorSaid>,
    /// Of a vendor's last error: when.
    pub(super) at: Option<String>,
}

/// The vendor's own words.
#[derive(Debug, Deserialize)]
pub(super) struct VendorSaid {
    status: Option<u16>,
    body: String,
}

impl Error {
    /// What happened, and below it the vendor's words, if there were any.
    pub(super) fn told(&self, times: &Times) -> String {
        let at = self.at.as_deref().map(|at| format!(", {}", times.short(at))).unwrap_or_default();
        let said = self.vendor.as_ref().map(VendorSaid::told).unwrap_or_default();
        format!("{} ({}{at}){said}", shown(&self.message), shown(&self.code))
    }
}

impl VendorSaid {
    fn told(&self) -> String {
        let status = self.status.map(|status| format!("{status} ")).unwrap_or_default();
        format!("\nthe vendor said: {status}{}", shown(self.body.trim()))
    }
}

/// What holds a job or a vendor back.
pub(super) struct Block<'a> {
    /// A value of `blocked_on`.
    pub(super) on: &'a str,
    pub(super) vendor: &'a str,
    /// The job, if it is one that waits.
    pub(super) job: Option<&'a str>,
    pub(super) since: Option<&'a str>,
    pub(super) until: Option<&'a str>,
}

impl Block<'_> {
    /// The reason, how long it has been so, what comes next and when, and what to do.
    pub(super) fn told(&self, times: &Times) -> String {
        let until = self.until.map(|at| format!("{} {}", self.what_comes(), times.short(at)));
        let spans = [self.since.map(|at| times.since(at)), until];
        let spans = spans.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let spans = if spans.is_empty() { spans } else { format!(" ({spans})") };
        format!("{}{spans}. {}", self.reason(), self.mend())
    }

    /// What happens at `until`.
    fn what_comes(&self) -> &'static str {
        match self.on {
            "not_before" | "retry_backoff" => "due",
            "vendor_paused" => "ends",
            "credentials" | "breaker" => "next probe",
            "slowed_by_vendor" => "calls go on",
            "next_poll" => "asked",
            "awaiting_callback" => "its time is up",
            _ => "next call",
        }
    }

    fn reason(&self) -> String {
        let vendor = shown(self.vendor);
        match self.on {
            "not_before" => "waits for the time in its not_before".to_owned(),
            "vendor_paused" => format!("{vendor} is paused"),
            "credentials" => format!("{vendor} refuses our credentials, or no token can be had"),
            "breaker" => format!("nearly all calls to {vendor} fail, so only a probe goes out now and then"),
            "slowed_by_vendor" => format!("{vendor} asked for fewer calls"),
            "retry_backoff" => "the last attempt failed, and the next one has to wait".to_owned(),
            "next_poll" => format!("{vendor} works on it and is asked again"),
            "awaiting_callback" => format!("{vendor} has accepted it and will call back"),
            "concurrency" => format!("as many calls to {vendor} are in flight as its concurrency allows"),
            "queue" => format!("it waits in line for {vendor}"),
            other => match other.strip_prefix("limit:") {
                Some(limit) => format!("the limit {} of {vendor} is used up", shown(limit)),
                None => format!("it is blocked on {}", shown(other)),
            },
        }
    }

    fn mend(&self) -> String {
        let vendor = shown(self.vendor);
        match self.on {
            "not_before" => "Nothing to do.".to_owned(),
            "vendor_paused" => format!("`fetchgate vendors resume {vendor}` ends the pause."),
            "credentials" => {
                format!(
                    "Correct the secret. In a file it is used within seconds, in a variable it needs a restart. `fetchgate vendors resume {vendor}` sends the probe at once."
                )
            }
            "breaker" => match self.job {
                Some(_) => format!("`fetchgate vendors show {vendor}` shows the last error."),
                None => format!("Once it works again, `fetchgate vendors resume {vendor}` sends the probe at once."),
            },
            "slowed_by_vendor" => {
                format!("It goes on by itself. If this repeats, lower the limit: `fetchgate vendors limits {vendor}`.")
            }
            "retry_backoff" => match self.job {
                Some(id) => format!("`fetchgate jobs attempts {}` shows what went wrong.", shown(id)),
                None => format!("`fetchgate jobs list --vendor {vendor}` shows its jobs."),
            },
            "awaiting_callback" => {
                format!("If {vendor} says that it has called back, compare the ticket, and look at the service's log.")
            }
            "concurrency" => format!("If the vendor allows more, raise vendors.{vendor}.concurrency in the config."),
            limit if limit.starts_with("limit:") => {
                format!("Nothing to do, unless the vendor allows more: `fetchgate vendors limits {vendor}`.")
            }
            _ => "Nothing to do.".to_owned(),
        }
    }
}

/// What to do about a job that ended without a result.
fn mend_of(status: Status, code: Option<&str>, id: &str, vendor: &str) -> String {
    let (id, vendor) = (shown(id), shown(vendor));
    let attempts = format!("`fetchgate jobs attempts {id}` shows each call");
    let replay = format!("`fetchgate jobs replay {id}` runs it again");
    match (status, code) {
        (_, Some("vendor_refused")) => {
            format!("If the payload is wrong, submit a corrected job. If the vendor was wrong, {replay}.")
        }
        (_, Some("attempts_exhausted" | "crashed")) => format!("{attempts}. Once the vendor works again, {replay}."),
        (_, Some("timeout")) => format!("If the vendor needs longer, raise vendors.{vendor}.timeout; then {replay}."),
        (_, Some("no_answer")) => {
            format!(
                "If the vendor needs longer, raise vendors.{vendor}.answer_within; then {replay}, which may be paid twice."
            )
        }
        (_, Some("bad_response" | "response_too_large")) => {
            format!("{attempts}. Correct how vendors.{vendor} reads answers, or ask the vendor; then {replay}.")
        }
        (_, Some("unknown_outcome")) => {
            format!("The call may have been made. Ask the vendor; if it was not, {replay}.")
        }
        (Status::Expired, _) => format!("`fetchgate vendors show {vendor}` shows whether it was held back; {replay}."),
        _ => format!("{replay}."),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::times::ZoneArgs, *};
    use crate::job::FailureCode;

    #[test]
    fn every_reason_comes_with_what_to_do() {
        let times = ZoneArgs::default().times();
        let reasons = ["not_before", "vendor_paused", "credentials", "breaker", "slowed_by_vendor", "retry_backoff"];
        for on in reasons.into_iter().chain(["next_poll", "awaiting_callback", "limit:50/s", "concurrency", "queue"]) {
            let block = Block { on, vendor: "bureau", job: Some("an-id"), since: None, until: None };
            let told = block.told(&times);
            assert!(!told.contains("blocked on") && told.ends_with('.') && told.matches(". ").count() >= 1, "{told}");
        }
        let told = |on| Block { on, vendor: "v", job: None, since: None, until: Some("soon") }.told(&times);
        assert!(told("limit:50/s").starts_with("the limit 50/s of v is used up (next call soon). Nothing to do"));
        assert!(told("breaker").contains("now and then (next probe soon). Once"), "{}", told("breaker"));
        assert!(told("awaiting_callback").contains("will call back (its time is up soon). If v says"));
    }

    #[test]
    fn every_error_code_comes_with_what_to_do() {
        for code in FailureCode::ALL {
            let status = if code == FailureCode::Deadline { Status::Expired } else { Status::Failed };
            let told = mend_of(status, Some(code.as_str()), "an-id", "bureau");
            assert!(told.contains("`fetchgate jobs replay an-id`"), "{}: {told}", code.as_str());
        }
    }
}
