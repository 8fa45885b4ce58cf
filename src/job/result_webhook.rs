//! Where the end of a job is announced, and how far that is.
//!
//! Never sends anything, and never decides where may be sent (see `result_webhooks`).

use std::{fmt, sync::Arc, time::Duration};

use super::retry::{Retry, backoff};
use crate::clock::Time;

/// The waits between tries: up to 5 s, then twice as long each time, up to an hour.
const RETRY: Retry =
    Retry { attempts: u32::MAX, first: Duration::from_secs(5), max: Duration::from_secs(3600), unanswered: 0 };
/// No try follows another sooner, whatever the receiver says.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// What is known of the one announcement that a job with a `callback_url` owes for its end.
#[derive(Clone, PartialEq, Eq)]
pub struct ResultWebhook {
    /// At most [`ResultWebhook::MAX_URL`] bytes.
    pub url: Arc<str>,
    /// The origin of `url`, with the job's tenant: what one tenant's URLs do holds up no other tenant, at the same host either.
    pub receiver: Arc<str>,
    pub status: DeliveryStatus,
    /// When it is sent next; while it is being sent, when somebody else may. `None` before the job's end, and when it is settled.
    pub next_at: Option<Time>,
    /// Since when it is to be sent: the job's end, or a wish to send it again.
    pub since: Option<Time>,
    /// Tries since then.
    pub attempts: u32,
    /// The HTTP status of the last answer.
    pub last_status: Option<u16>,
    /// Why the last try failed, if it did.
    pub last_error: Option<String>,
    /// The result is too large to be sent.
    pub omits_result: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryStatus {
    /// Its job has not ended, or it is not delivered yet.
    Pending,
    Delivered,
    /// It is not tried again by itself.
    GaveUp,
}

impl DeliveryStatus {
    pub const ALL: [DeliveryStatus; 3] = [DeliveryStatus::Pending, DeliveryStatus::Delivered, DeliveryStatus::GaveUp];

    /// The word in the API and in the stores.
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryStatus::Pending => "pending",
            DeliveryStatus::Delivered => "delivered",
            DeliveryStatus::GaveUp => "gave_up",
        }
    }
}

/// What came of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// A 2xx.
    Delivered { status: u16 },
    /// 410: the receiver wants no more.
    Gone,
    Failed {
        status: Option<u16>,
        /// For people; never the URL.
        why: String,
        /// For how long the receiver asked us to wait.
        wait: Option<Duration>,
    },
}

impl ResultWebhook {
    pub const MAX_URL: usize = 2048;
    /// Bytes of a result that are sent at most.
    pub const MAX_RESULT: usize = 256 << 10;

    /// Of a job that has not ended.
    pub fn new(url: Arc<str>, receiver: Arc<str>) -> ResultWebhook {
        ResultWebhook {
            url,
            receiver,
            status: DeliveryStatus::Pending,
            next_at: None,
            since: None,
            attempts: 0,
            last_status: None,
            last_error: None,
            omits_result: false,
        }
    }

    /// The same for a job of this tenant.
    #[must_use]
    pub fn of(self, tenant: &str) -> ResultWebhook {
        ResultWebhook { receiver: format!("{} {tenant}", self.receiver).into(), ..self }
    }

    /// The same before anything was sent: the job runs, or runs again.
    #[must_use]
    pub fn unsent(&self) -> ResultWebhook {
        ResultWebhook::new(self.url.clone(), self.receiver.clone())
    }

    /// The same when the job has ended with so many bytes of result, or is to be announced again.
    #[must_use]
    pub fn owed(&self, result_bytes: usize, now: Time) -> ResultWebhook {
        let omits_result = result_bytes > Self::MAX_RESULT;
        ResultWebhook { next_at: Some(now), since: Some(now), omits_result, ..self.unsent() }
    }

    /// The same for one more round of tries, although it is settled.
    #[must_use]
    pub fn again(&self, now: Time) -> ResultWebhook {
        ResultWebhook { omits_result: self.omits_result, ..self.owed(0, now) }
    }

    /// The same after a try that ended `now`. `jitter` is in `0.0..1.0`.
    #[must_use]
    pub fn after(&self, tried: Tried, give_up_after: Duration, jitter: f64, now: Time) -> ResultWebhook {
        let attempts = self.attempts.saturating_add(1);
        let settled = |status, last_status, last_error| {
            let base = self.clone();
            ResultWebhook { status, next_at: None, attempts, last_status, last_error, ..base }
        };
        match tried {
            Tried::Delivered { status } => settled(DeliveryStatus::Delivered, Some(status), None),
            Tried::Gone => {
                let why = "the receiver answered 410: it wants no more".to_owned();
                settled(DeliveryStatus::GaveUp, Some(410), Some(why))
            }
            Tried::Failed { status, why, wait } => {
                let gives_up_at = self.since.unwrap_or(now).plus(give_up_after);
                if gives_up_at <= now {
                    return settled(DeliveryStatus::GaveUp, status, Some(why));
                }
                let wait = wait.unwrap_or_else(|| backoff(&RETRY, attempts, jitter)).max(LEAST_WAIT);
                let next_at = Some(now.plus(wait).min(gives_up_at));
                ResultWebhook { next_at, ..settled(DeliveryStatus::Pending, status, Some(why)) }
            }
        }
    }
}

/// People put secrets into URLs.
impl fmt::Debug for ResultWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ResultWebhook { receiver, status, next_at, attempts, .. } = self;
        write!(f, "result webhook to {receiver}, {}, next at {next_at:?}, {attempts} attempts", status.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn owed() -> ResultWebhook {
        ResultWebhook::new("https://a.example/hook".into(), "https://a.example".into()).owed(0, Time(0))
    }

    fn failed(status: u16, wait: Option<u64>) -> Tried {
        Tried::Failed { status: Some(status), why: "no".to_owned(), wait: wait.map(Duration::from_secs) }
    }

    #[test]
    fn waits_double_from_five_seconds_to_an_hour_and_the_last_try_is_at_the_end_of_the_time() {
        let (mut webhook, mut now, mut waits) = (owed(), Time(0), Vec::new());
        while let Some(at) = webhook.next_at {
            waits.push(at.since(now).as_secs());
            now = at;
            webhook = webhook.after(failed(500, None), DAY, 1.0, now);
        }
        assert_eq!(waits[..5], [0, 5, 10, 20, 40]);
        assert_eq!(waits.iter().max(), Some(&3600));
        assert_eq!((now, webhook.status, webhook.last_status), (Time(0).plus(DAY), DeliveryStatus::GaveUp, Some(500)));
        let again = webhook.again(now);
        assert_eq!((again.status, again.next_at, again.attempts), (DeliveryStatus::Pending, Some(now), 0));
    }

    #[test]
    fn what_the_receiver_says_decides() {
        let now = Time(1_000);
        let after = |tried| owed().after(tried, DAY, 0.0, now);
        assert_eq!(after(Tried::Delivered { status: 204 }).status, DeliveryStatus::Delivered);
        let gone = after(Tried::Gone);
        assert_eq!((gone.status, gone.next_at), (DeliveryStatus::GaveUp, None));
        assert_eq!(after(failed(429, Some(90))).next_at, Some(Time(91_000)));
        assert_eq!(after(failed(503, Some(0))).next_at, Some(Time(2_000)), "never at once");
        assert_eq!(after(failed(503, None)).next_at, Some(Time(3_500)));
    }
}
