//! How calls prove who they come from: what is put on a request right before it goes out, so that a renewed secret is used at once.
//!
//! Never decides when a vendor's credentials are wrong (see `worker::login`), and never shows a secret.

use std::{
    cmp::Reverse,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request,
    header::{AUTHORIZATION, HeaderName},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use self::oauth::{OAuth, Refusal};
use super::outgoing::{Credentials, basic, sensitive};
use crate::{
    clock::{Nanos, Time},
    config::{Auth, LiveSecret, Reread, Secret, Vendor as VendorConfig},
    limit::breakers::of_credentials,
};

pub mod oauth;
mod sigv4;

/// Shorter texts are not masked in the vendor's words: too many words have them in them.
const SHORTEST_MASKED: usize = 8;
const MASK: &str = "***";

/// One vendor's credentials, and what came of them.
pub struct Login {
    vendor: Arc<str>,
    /// The name of the breaker that opens when they are refused.
    pub breaker: Arc<str>,
    /// Headers of the config whose files may change.
    headers: Vec<(HeaderName, LiveSecret)>,
    auth: Option<Auth>,
    oauth: Option<OAuth>,
    /// What came from variables and files anywhere in the vendor's table, as the config was read.
    secrets: Vec<Secret>,
    /// When the last call was sent that the vendor took for ours.
    taken_sent_at: AtomicI64,
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
        let (vendor, auth, secrets) = (config.name.clone(), config.auth.clone(), config.secrets.clone());
        let breaker = of_credentials(&vendor);
        Login { vendor, breaker, headers, auth, oauth, secrets, taken_sent_at: AtomicI64::new(i64::MIN) }
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
                set(request, AUTHORIZATION, &basic(&user.reveal(), &password.reveal()));
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

    /// The vendor took a call for ours.
    pub fn taken(&self, proof: Proof, sent_at: Time) {
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

    /// Whether the vendor took a call that was sent after this.
    pub fn has_taken_since(&self, then: Time) -> bool {
        self.taken_sent_at.load(Ordering::Relaxed) > then.0
    }

    /// Reads the files of all secrets again; says whether any has changed.
    pub(super) fn reread(&self) -> bool {
        let secrets = self.headers.iter().map(|(_, value)| value).chain(self.auth.iter().flat_map(Auth::secrets));
        // All of them, also after one that has changed.
        secrets.filter(|secret| self.has_changed(secret.reread())).count() > 0
    }

    /// A file that cannot be read is logged once.
    pub(super) fn has_changed(&self, reread: Reread) -> bool {
        if let Reread::Failed { why, is_new: true } = &reread {
            let vendor = &self.vendor;
            tracing::warn!(%vendor, why, "a secret or a certificate cannot be read again; calls go on with the last one");
        }
        reread == Reread::Changed
    }

    /// A token was given for secrets or a certificate that have changed: the next one is asked for when there is something to call.
    pub(super) fn renew_soon(&self) {
        if let Some(oauth) = &self.oauth {
            oauth.renew_soon();
        }
    }

    /// The vendor's words without our secrets: some vendors repeat the header or the URL that they were called with.
    pub(super) fn masked(&self, words: String) -> String {
        let mut secrets: Vec<String> = self.secrets.iter().map(|one| one.reveal().to_owned()).collect();
        // Those of `auth` even if they are written out, and those in files as they are now.
        let live = self.auth.iter().flat_map(Auth::secrets).chain(self.headers.iter().map(|(_, value)| value));
        secrets.extend(live.map(|one| one.reveal().to_string()));
        secrets.extend(self.oauth.as_ref().and_then(OAuth::token));
        if let Some(Auth::Basic { user, password }) = &self.auth {
            secrets.push(basic(&user.reveal(), &password.reveal()));
        }
        without(words, secrets.iter().flat_map(|secret| secret.split_whitespace()))
    }

    /// Whether any secret is in a file.
    pub fn is_in_files(&self) -> bool {
        !self.headers.is_empty() || self.auth.iter().flat_map(Auth::secrets).any(LiveSecret::is_in_files)
    }
}

/// Words with these secrets masked, as they are, in a URL, and in JSON by those who write a slash as \/ there. Short ones are left.
pub(super) fn without<'s>(words: String, secrets: impl Iterator<Item = &'s str>) -> String {
    let mut secrets: Vec<&str> = secrets.filter(|secret| secret.len() >= SHORTEST_MASKED).collect();
    // One may be the beginning of another.
    secrets.sort_unstable_by_key(|secret| Reverse(secret.len()));
    secrets.into_iter().fold(words, |words, secret| {
        let in_url = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
        let forms = [secret.to_owned(), in_url, secret.replace('/', "\\/")];
        forms.iter().fold(words, |words, form| words.replace(form, MASK))
    })
}

fn set(request: &mut Request<Full<Bytes>>, name: HeaderName, value: &str) {
    // What cannot be a header is refused when the secret is read.
    if let Some(value) = sensitive(value) {
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

#[cfg(test)]
mod tests {
    use crate::{config, vendor::Registry};

    #[test]
    fn whatever_came_from_variables_is_masked_and_nothing_else() {
        let text = r#"
[vendors.one]
kind = "polling"
url = "${WHOLE}"
limits = []
headers = { x-key = "key ${HEADER}", x-product = "${SHORT}" }
body = '{"key": "${BODY}"}'
polling = { ticket = "/id", url = "https://one.example/${PATH}/{{ ticket | path }}", every = "2s", done = { at = "/state", is = ["done"] } }
[vendors.two]
kind = "sync"
url = "https://two.example/${OTHER}"
limits = []
"#;
        let env = [
            ("WHOLE", "https://one.example/jobs?q=1&key=in-a-parameter"),
            ("HEADER", "in-a-header"),
            ("BODY", "in-a-header-and-more"),
            ("PATH", "in-a-path"),
            ("SHORT", "seven77"),
            ("OTHER", "of-another-vendor"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = config::parse(text, "test", env).unwrap_or_else(|error| panic!("{error}"));
        let registry = Registry::new(&config, b"secret");
        let masked = |words: &str| registry.get("one").unwrap().login.masked(words.to_owned());
        for (words, wanted) in [
            ("key in-a-header!", "key ***!"),
            ("in-a-header-and-more", "***"),
            ("/in%2Da%2Dpath/7", "/***/7"),
            ("GET /jobs?q=1&key=in-a-parameter", "GET /jobs?q=1&key=***"),
            ("seven77 of-another-vendor /jobs", "seven77 of-another-vendor /jobs"),
        ] {
            assert_eq!(masked(words), wanted);
        }
        assert!(!format!("{config:?}").contains("in-a-"), "nor are they shown by accident");
    }
}
