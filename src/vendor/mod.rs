//! How to talk to vendors: what a call looks like on the wire (`request`, `outgoing`), and what its reply means (`reading`). The only module that calls
//! vendors.
//!
//! Never waits for a limit, never stores anything, never retries: a reply becomes a [`Reading`], and others act on it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicI64},
};

use bytes::Bytes;
use hyper::HeaderMap;
use serde_json::value::RawValue;

use self::{
    auth::Login,
    clean::Clean,
    http::{Client, MAX_REPLY_BYTES, Origin},
    outgoing::Credentials,
    proxy::Proxy,
    replies::Rule,
    tls::LiveTls,
    token::CallbackKey,
};
use crate::{
    config::{Config, Kind, Vendor as VendorConfig},
    job::{AttemptKind, Failure, FailureCode, JobId, Stage, lifecycle::Policy},
    json::{self, Pointer},
};

mod address;
pub mod auth;
pub mod body;
mod challenge;
pub mod clean;
mod coding;
pub(crate) mod dial;
pub mod error;
pub mod form;
pub mod http;
pub mod outgoing;
mod polling;
pub mod proxy;
mod quota;
mod reading;
pub mod replies;
mod request;
mod steps;
pub mod template;
pub mod tls;
pub mod token;
pub mod value;
pub mod verify;
pub(crate) mod waits;
mod webhook;

pub use challenge::{Challenged, MAX_CHALLENGE};
pub use reading::{Reading, Silence};
pub use request::span_of;
pub use webhook::{Callback, MAX_EVENTS, TooManyEvents};

/// Bytes of a vendor's ticket at most.
const MAX_TICKET_BYTES: usize = 4096;

/// All vendors of the config, by name.
pub struct Registry {
    vendors: BTreeMap<Arc<str>, Arc<Vendor>>,
    key: CallbackKey,
}

impl Registry {
    pub fn new(config: &Config, callback_secret: &[u8]) -> Registry {
        let key = CallbackKey::new(callback_secret);
        let public_url = config.server.public_url.as_str().trim_end_matches('/');
        let vendor = |vendor: &VendorConfig| {
            let callback_base = format!("{public_url}/vendor-webhook/{}/", vendor.name);
            (vendor.name.clone(), Arc::new(Vendor::new(vendor.clone(), callback_base, key.clone())))
        };
        Registry { vendors: config.vendors.iter().map(vendor).collect(), key }
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Vendor>> {
        self.vendors.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Vendor>> {
        self.vendors.values()
    }

    /// The job and run that a callback token was made for; `None` for a token that we did not make.
    pub fn read_token(&self, vendor: &str, token: &str) -> Option<(JobId, u32)> {
        self.key.verify(vendor, token)
    }
}

/// One vendor, ready to be called.
pub struct Vendor {
    pub config: VendorConfig,
    origin: Origin,
    headers: HeaderMap,
    pub login: Login,
    /// For a vendor with a TLS configuration or a proxy of its own.
    clients: Option<Clients>,
    /// What its answers mean, in the order in which the rules count.
    rules: Vec<Rule>,
    /// What is redacted in a whole body of its own words.
    redacted: Clean,
    /// The same with the URLs that it gives, for answers that may have them.
    redacted_with_urls: Clean,
    callback_base: String,
    key: CallbackKey,
    /// When the files of secrets that prove callbacks are to be read again.
    reread_at: AtomicI64,
}

/// The ways to one vendor.
struct Clients {
    own: Client,
    /// To where credentials do not go: the same without our certificate.
    elsewhere: Client,
}

impl Vendor {
    fn new(config: VendorConfig, callback_base: String, key: CallbackKey) -> Vendor {
        // Those whose files may change are put on each request anew.
        let fixed = config.headers.iter().filter(|(_, value)| !value.is_in_files());
        let mut headers = outgoing::EVERY_CALL.clone();
        for (name, value) in fixed {
            if let Some(value) = outgoing::sensitive(&value.reveal()) {
                headers.insert(name, value);
            }
        }
        let origin = Origin::of_template(&config.url);
        let (rules, redacted) = (replies::of(&config), redacted(&config.clean, &config.kind));
        let with_urls = redacted.redact.iter().cloned().chain(config.kind.urls_in_answers()).collect();
        let redacted_with_urls = Clean { redact: with_urls, ..redacted.clone() };
        let login = Login::new(&config);
        let clients = (config.tls.is_some() || config.proxy.is_some()).then(|| {
            let tls = config.tls.clone().unwrap_or_else(LiveTls::of_machine);
            let client = |credentials| Client::through(tls.clone(), config.proxy.clone(), credentials);
            Clients { own: client(Credentials::Sent), elsewhere: client(Credentials::Withheld) }
        });
        Vendor {
            origin,
            headers,
            login,
            clients,
            rules,
            redacted,
            redacted_with_urls,
            callback_base,
            key,
            reread_at: AtomicI64::new(i64::MIN),
            config,
        }
    }

    /// What calls to this origin are made by. Our certificate is shown only where credentials go.
    pub fn client<'a>(&'a self, shared: &'a Client, origin: &Origin) -> &'a Client {
        let is_trusted = self.credentials_for(origin) == Some(Credentials::Sent);
        self.clients.as_ref().map_or(shared, |clients| if is_trusted { &clients.own } else { &clients.elsewhere })
    }

    /// What tokens are asked for by: identity providers may want our certificate (RFC 8705).
    pub fn token_client<'a>(&'a self, shared: &'a Client) -> &'a Client {
        self.clients.as_ref().map_or(shared, |clients| &clients.own)
    }

    /// Whether any secret or certificate is in a file.
    pub fn is_in_files(&self) -> bool {
        let proxy = self.config.proxy.as_ref().is_some_and(Proxy::is_in_files);
        proxy || self.config.tls.is_some() || self.login.is_in_files()
    }

    /// Reads all of these files again; says whether any has changed.
    pub fn reread(&self) -> bool {
        let tls = self.config.tls.as_ref().map(LiveTls::reread);
        let proxy = self.config.proxy.as_ref().map(Proxy::reread);
        let mut has_changed = self.login.reread();
        for reread in [tls, proxy].into_iter().flatten() {
            has_changed |= self.login.has_changed(reread);
        }
        if has_changed {
            self.login.renew_soon();
        }
        has_changed
    }

    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// The rules that the state machine needs.
    pub fn policy(&self) -> Policy {
        Policy {
            retry: self.config.retry,
            answer_within: self.config.answer_within,
            at_most_once: self.config.at_most_once,
        }
    }

    /// Vendor data as we keep it.
    fn cleaned(&self, data: &RawValue) -> Result<Bytes, Failure> {
        if self.config.clean.is_noop() {
            return Ok(Bytes::copy_from_slice(data.get().as_bytes()));
        }
        let cleaned = self.config.clean.apply(data);
        if cleaned.len() > MAX_REPLY_BYTES {
            return Err(too_large("cleaned as its config wants it, the vendor's answer"));
        }
        Ok(Bytes::from(cleaned))
    }
}

/// What to redact in a whole body: the places of the config, in the body itself and in the part of it that is the result.
fn redacted(clean: &Clean, kind: &Kind) -> Clean {
    let results: Vec<Pointer> = match kind {
        Kind::Sync => Vec::new(),
        Kind::Polling(polling) => polling.result.iter().cloned().collect(),
        Kind::Webhook(webhook) => match &webhook.result {
            Some(at) => vec![at.clone()],
            None => webhook::DEFAULT_RESULTS.iter().map(|key| Pointer::from_keys([*key])).collect(),
        },
    };
    let inside = results.iter().flat_map(|result| clean.redact.iter().map(move |at| result.join(at)));
    Clean { redact: clean.redact.iter().cloned().chain(inside).collect(), ..Clean::default() }
}

fn too_large(what: &str) -> Failure {
    let message = format!("{what} is larger than {MAX_REPLY_BYTES} bytes");
    Failure::new(FailureCode::ResponseTooLarge, message)
}

/// The vendor's own reference to what it has accepted. It is kept with the job and looked up by callbacks, so it is bounded; null and an empty
/// text are none, because the answers for many jobs may have them.
fn ticket_at(at: &Pointer, answer: &RawValue) -> Result<Option<String>, Failure> {
    let found = at.find(answer).map(json::text).filter(|text| !text.is_empty() && text != "null");
    found.map(|text| bounded(text.into_owned())).transpose()
}

/// A reference that the vendor gave, if it is short enough to be kept.
fn bounded(text: String) -> Result<String, Failure> {
    if text.len() <= MAX_TICKET_BYTES {
        return Ok(text);
    }
    let message =
        format!("the vendor's own reference to the job has {} bytes; at most {MAX_TICKET_BYTES} are kept", text.len());
    Err(Failure::new(FailureCode::BadResponse, message))
}

/// What kind of call a job's next one is.
pub fn attempt_kind(stage: Stage) -> AttemptKind {
    if stage == Stage::Poll { AttemptKind::Poll } else { AttemptKind::Call }
}
