//! How calls prove who they come from: what is put on a request right before it goes out, so that a renewed secret is used at once.
//!
//! Never decides when a vendor's credentials are wrong (see `worker::login`), and never shows a secret.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use self::oauth::{OAuth, Refusal};
use super::outgoing::Credentials;
use crate::{
    clock::{Nanos, Time},
    config::{Auth, LiveSecret, Reread, Vendor as VendorConfig},
    job::JobId,
    limit::breakers::of_credentials,
};

pub mod oauth;
mod sigv4;

/// A job that is refused so often while others are taken is refused for good.
const MOST_REFUSALS: u32 = 3;
/// Shorter texts are not masked in the vendor's words: too many words have them in them.
const SHORTEST_MASKED: usize = 8;
const MASK: &str = "***";
/// Jobs whose refusals are counted at once; the one that was refused longest ago is forgotten first.
const MOST_JOBS: usize = 1000;

/// One vendor's credentials, and what came of them.
pub struct Login {
    vendor: Arc<str>,
    /// The name of the breaker that opens when they are refused.
    pub breaker: Arc<str>,
    /// Headers of the config whose files may change.
    headers: Vec<(HeaderName, LiveSecret)>,
    auth: Option<Auth>,
    oauth: Option<OAuth>,
    /// When the last call was sent that the vendor took for ours.
    taken_sent_at: AtomicI64,
    /// Jobs that were refused in this process, the latest last.
    refused: Mutex<VecDeque<RefusedJob>>,
}

struct RefusedJob {
    id: JobId,
    times: u32,
    last: Time,
}

/// What a request proves itself with: the number of its token, where there are tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof(Option<u64>);

/// There is no token now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoToken;

impl Login {
    pub(super) fn new(config: &VendorConfig) -> Login {
        let headers = config.headers.iter().filter(|(_, value)| value.is_in_files()).cloned().collect();
        let oauth = match &config.auth {
            Some(Auth::OAuth2(oauth)) => Some(OAuth::new((**oauth).clone())),
            _ => None,
        };
        let (vendor, auth) = (config.name.clone(), config.auth.clone());
        let breaker = of_credentials(&vendor);
        Login {
            vendor,
            breaker,
            headers,
            auth,
            oauth,
            taken_sent_at: AtomicI64::new(i64::MIN),
            refused: Mutex::default(),
        }
    }

    /// Where tokens come from, if there are any.
    pub fn oauth(&self) -> Option<&OAuth> {
        self.oauth.as_ref()
    }

    /// Puts the credentials on a request that is otherwise complete, if it may have them; says what it proves itself with.
    pub fn prove(
        &self,
        request: &mut Request<Full<Bytes>>,
        credentials: Credentials,
        now: Nanos,
        wall: Time,
    ) -> Result<Option<Proof>, NoToken> {
        if credentials == Credentials::Withheld {
            return Ok(None);
        }
        for (name, value) in &self.headers {
            set(request, name.clone(), &value.reveal());
        }
        match &self.auth {
            None => {}
            Some(Auth::Header { name, prefix, value }) => {
                set(request, name.clone(), &format!("{prefix}{}", value.reveal()));
            }
            Some(Auth::Basic { user, password }) => {
                let both = format!("{}:{}", user.reveal(), password.reveal());
                set(request, AUTHORIZATION, &format!("Basic {}", BASE64_STANDARD.encode(both)));
            }
            Some(Auth::Query { name, value }) => add_parameter(request, name, &value.reveal()),
            Some(Auth::OAuth2(_)) => {
                let (value, number) = self.oauth.as_ref().and_then(|oauth| oauth.header(now)).ok_or(NoToken)?;
                request.headers_mut().insert(AUTHORIZATION, value);
                return Ok(Some(Proof(Some(number))));
            }
            Some(Auth::SigV4(keys)) => {
                let body = request.body().clone().collect().now_or_never();
                let body = body.and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
                sigv4::sign(request, &body, keys, wall);
            }
        }
        Ok(Some(Proof(None)))
    }

    /// The vendor took a job's call for ours.
    pub fn taken(&self, job: JobId, proof: Proof, sent_at: Time) {
        self.refused_jobs().retain(|refused| refused.id != job);
        self.taken_sent_at.fetch_max(sent_at.0, Ordering::Relaxed);
        if let (Some(oauth), Some(number)) = (&self.oauth, proof.0) {
            oauth.taken(number);
        }
    }

    /// The vendor refused a call's credentials.
    pub fn refused(&self, proof: Proof) -> Refusal {
        match (&self.oauth, proof.0) {
            (Some(oauth), Some(number)) => oauth.refused(number),
            _ => Refusal::Final,
        }
    }

    /// Counts that a job was refused now; says whether that is the job's own fault: it was refused three times, and between the first two of
    /// them others were taken.
    pub fn is_alone(&self, job: JobId, now: Time) -> bool {
        let mut jobs = self.refused_jobs();
        let before = jobs.iter().position(|refused| refused.id == job).and_then(|at| jobs.remove(at));
        let times = match before {
            None => 1,
            Some(RefusedJob { times: 1, last, .. }) if !self.has_taken_since(last) => 1,
            Some(RefusedJob { times, .. }) => times + 1,
        };
        if times >= MOST_REFUSALS {
            return true;
        }
        if jobs.len() == MOST_JOBS {
            jobs.pop_front();
        }
        jobs.push_back(RefusedJob { id: job, times, last: now });
        false
    }

    fn refused_jobs(&self) -> MutexGuard<'_, VecDeque<RefusedJob>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the vendor took a call that was sent after this.
    pub fn has_taken_since(&self, then: Time) -> bool {
        self.taken_sent_at.load(Ordering::Relaxed) > then.0
    }

    /// Reads the files of all secrets again; says whether any has changed. A file that cannot be read is logged once.
    pub fn reread(&self) -> bool {
        let mut has_changed = false;
        let of_auth = self.auth.iter().flat_map(Auth::secrets);
        for secret in self.headers.iter().map(|(_, value)| value).chain(of_auth) {
            match secret.reread() {
                Reread::Changed => has_changed = true,
                Reread::Failed { why, is_new: true } => {
                    let vendor = &self.vendor;
                    tracing::warn!(%vendor, why, "a secret cannot be read again; calls go on with the last one");
                }
                Reread::Failed { .. } | Reread::Same => {}
            }
        }
        if has_changed && let Some(oauth) = &self.oauth {
            oauth.renew_soon();
        }
        has_changed
    }

    /// The vendor's words without our secrets: some vendors repeat the header or the URL that they were called with.
    pub(super) fn masked(&self, words: String) -> String {
        let mut secrets: Vec<String> =
            self.auth.iter().flat_map(Auth::secrets).map(|one| one.reveal().to_string()).collect();
        secrets.extend(self.headers.iter().map(|(_, value)| value.reveal().to_string()));
        secrets.extend(self.oauth.as_ref().and_then(OAuth::token));
        if let Some(Auth::Basic { user, password }) = &self.auth {
            secrets.push(BASE64_STANDARD.encode(format!("{}:{}", user.reveal(), password.reveal())));
        }
        let parts = secrets.iter().flat_map(|secret| secret.split_whitespace());
        parts.filter(|part| part.len() >= SHORTEST_MASKED).fold(words, |words, part| {
            let encoded = utf8_percent_encode(part, NON_ALPHANUMERIC).to_string();
            words.replace(part, MASK).replace(&encoded, MASK)
        })
    }

    /// Whether any secret is in a file.
    pub fn is_in_files(&self) -> bool {
        !self.headers.is_empty() || self.auth.iter().flat_map(Auth::secrets).any(LiveSecret::is_in_files)
    }
}

fn set(request: &mut Request<Full<Bytes>>, name: HeaderName, value: &str) {
    // What cannot be a header is refused when the secret is read.
    if let Ok(mut value) = HeaderValue::from_str(value) {
        value.set_sensitive(true);
        request.headers_mut().insert(name, value);
    }
}

fn add_parameter(request: &mut Request<Full<Bytes>>, name: &str, value: &str) {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let separator = if target.contains('?') { '&' } else { '?' };
    let (name, value) = (utf8_percent_encode(name, NON_ALPHANUMERIC), utf8_percent_encode(value, NON_ALPHANUMERIC));
    if let Ok(uri) = format!("{target}{separator}{name}={value}").parse() {
        *request.uri_mut() = uri;
    }
}
