//! How a vendor answers: at once, by callback, or when it is asked whether it is done, or for its data. The checked values.
//!
//! Never checks anything (see `webhook`, `polling` and `addresses`) and never builds a URL (see `vendor::address`).

use std::time::Duration;

use hyper::{Method, header::HeaderName};

use super::{LiveSecret, Match};
use crate::{
    json::Pointer,
    vendor::{
        body::Body,
        http::Origin,
        template::{Name, Template},
        verify::Verify,
    },
};

/// How the vendor answers.
#[derive(Debug, Clone)]
pub enum Kind {
    Sync,
    Webhook(Box<Webhook>),
    Polling(Box<Polling>),
}

impl Kind {
    /// The word for it in the config.
    pub fn as_str(&self) -> &'static str {
        match self {
            Kind::Sync => "sync",
            Kind::Webhook(_) => "webhook",
            Kind::Polling(_) => "polling",
        }
    }

    /// Where the data is, if it is not in the answer that says "done".
    pub fn result_url(&self) -> Option<&Address> {
        match self {
            Kind::Sync => None,
            Kind::Webhook(webhook) => webhook.result_url.as_ref(),
            Kind::Polling(polling) => polling.result_url.as_ref(),
        }
    }

    /// The origins that may be called besides the vendor's own.
    pub fn origins(&self) -> Vec<Origin> {
        let polls = match self {
            Kind::Polling(polling) => Some(&polling.url),
            Kind::Sync | Kind::Webhook(_) => None,
        };
        let of_url = |address: &Address| match address {
            Address::Url(url) => url.origin().and_then(Origin::of),
            Address::Ticket | Address::At(_) => None,
        };
        let urls = polls.into_iter().chain(self.result_url()).filter_map(of_url);
        urls.chain(self.hosts().iter().map(|host| host.origin.clone())).collect()
    }

    /// Where the vendor's answers have URLs, which may hold their own permission.
    pub fn urls_in_answers(&self) -> Vec<Pointer> {
        let of_data = match self.result_url() {
            Some(Address::At(at)) => Some(at),
            _ => None,
        };
        let is_ticket = |address: Option<&Address>| matches!(address, Some(Address::Ticket));
        let tickets = match self {
            Kind::Webhook(webhook) if is_ticket(self.result_url()) => {
                [webhook.ticket.as_ref(), webhook.ticket_in_callback.as_ref()]
            }
            Kind::Polling(polling) if is_ticket(Some(&polling.url)) || is_ticket(self.result_url()) => {
                [polling.ticket.as_ref(), None]
            }
            _ => [None, None],
        };
        of_data.into_iter().chain(tickets.into_iter().flatten()).cloned().collect()
    }

    /// The origins that the vendor's answers may lead to, besides its own.
    pub fn hosts(&self) -> &[Host] {
        match self {
            Kind::Sync => &[],
            Kind::Webhook(webhook) => &webhook.hosts,
            Kind::Polling(polling) => &polling.hosts,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Webhook {
    /// How a callback on the shared URL proves where it comes from.
    pub verify: Verify,
    /// Where a callback on the shared URL has our job's id; `None`: `/request_id`, after the ticket.
    pub request_id: Option<Pointer>,
    /// Where the result is; `None`: `/final_result`, then `/result`, then `/data`, then the whole body.
    pub result: Option<Pointer>,
    /// Where the vendor's acceptance has its own reference.
    pub ticket: Option<Pointer>,
    /// Where a callback on the shared URL repeats that reference; `None`: at the same place.
    pub ticket_in_callback: Option<Pointer>,
    /// Which callbacks, and acceptances, say that the work is done; `None`: every callback.
    pub done: Option<Match>,
    /// Where the data is; `None`: in what says "done".
    pub result_url: Option<Address>,
    pub hosts: Vec<Host>,
    /// Where a body has an array of callbacks.
    pub events: Option<Pointer>,
    /// A callback that is believed and for no job of ours is answered as if it were for one.
    pub accepts_unknown: bool,
    /// A GET is a callback too, with its query as the body.
    pub get: bool,
    /// What the vendor asks before it sends callbacks to a URL.
    pub challenge: Option<Challenge>,
}

/// How a vendor finds out whether a URL takes its callbacks: it wants a text back.
#[derive(Debug, Clone)]
pub enum Challenge {
    /// A POST whose body says `url_verification`, believed like a callback.
    Slack,
    /// `validationToken` in the query of a POST.
    Graph,
    /// `hub.challenge` in the query of a GET, beside one of these texts (W3C WebSub, 5.3).
    Hub(Vec<LiveSecret>),
}

/// At least one of `ticket` and `ticket_header` is there.
#[derive(Debug, Clone)]
pub struct Polling {
    /// Where the body of the vendor's acceptance has its reference. What is found there goes before the header.
    pub ticket: Option<Pointer>,
    pub ticket_header: Option<HeaderName>,
    pub url: Address,
    /// Besides the vendor's own, the origins that its answers may lead to.
    pub hosts: Vec<Host>,
    pub method: Method,
    /// `None`: none.
    pub body: Option<Body>,
    /// From the acceptance to the first poll.
    pub first: Duration,
    /// From a poll to the next.
    pub every: Duration,
    /// Waits double up to this; `None`: they stay the same.
    pub max: Option<Duration>,
    /// For so long after the acceptance a 404 means "pending".
    pub missing: Duration,
    /// `None`: `replies` says it.
    pub done: Option<Match>,
    /// `None`: the whole body.
    pub result: Option<Pointer>,
    /// Where the data is; `None`: in the answer that says "done".
    pub result_url: Option<Address>,
}

impl Polling {
    /// How long a 404 means "pending", if the config does not say.
    pub const MISSING: Duration = Duration::from_secs(30);
}

/// Where a vendor is asked whether it is done, or for its data.
#[derive(Debug, Clone)]
pub enum Address {
    /// At this URL.
    Url(Template),
    /// The ticket is the URL: `{{ ticket }}`.
    Ticket,
    /// Only for data: the answer that says "done" has the URL here.
    At(Pointer),
}

impl Address {
    /// The same as people may see it: what is secret in it is masked.
    pub(super) fn shown(&self) -> Address {
        match self {
            Address::Url(url) => Address::Url(url.shown().clone()),
            other => other.clone(),
        }
    }

    /// Whether it cannot be known without the vendor's ticket.
    pub fn needs_ticket(&self) -> bool {
        match self {
            Address::Url(url) => url.uses(Name::Ticket),
            Address::Ticket => true,
            Address::At(_) => false,
        }
    }
}

/// An origin that a vendor's answers may lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub origin: Origin,
    /// Whether `auth` and `headers` go there too.
    pub auth: bool,
}
