//! The URLs of polls and fetches: URLs of the config, and URLs that a vendor's answers contain.
//!
//! No answer can send a call elsewhere: only the vendor's own origin and its `hosts` are called, and that is checked whenever a URL is used.
//! Headers of the config and credentials go to the vendor's own origin, and to hosts with `auth = true`. Messages show only the origin of a URL
//! that a vendor gave, because the rest may contain a secret.

use hyper::http::uri::PathAndQuery;
use percent_encoding::percent_decode_str;
use url::{Position, Url};

use super::{
    MAX_TICKET_BYTES, Vendor, auth,
    error::bad,
    http::Origin,
    outgoing::{Credentials, To},
    reading::Received,
    replies::On,
    request::unfit,
    template::{MAX_TARGET, Scope},
    value,
};
use crate::{
    config::{Address, Kind},
    job::{Failure, Fetch, Job},
};

/// Bytes of an origin that a message shows at most; no host's name is longer.
const MAX_NAMED: usize = 300;

/// Where a request goes.
pub(super) struct Target {
    pub(super) origin: Origin,
    path: String,
    pub(super) credentials: Credentials,
}

impl Target {
    pub(super) fn to(&self) -> To<'_> {
        To { origin: &self.origin, path: &self.path, credentials: self.credentials }
    }

    fn whole(&self) -> String {
        format!("{}{}", self.origin, self.path)
    }

    /// The base of a relative URL in the answer from this target.
    fn base(&self) -> Result<Url, Failure> {
        self.whole().parse().map_err(|_| bad("the URL that was called is no base for the one in its answer"))
    }
}

impl Vendor {
    /// Where the job's next poll goes, or the fetch of its data.
    pub(super) fn target(&self, job: &Job, scope: &Scope<'_>) -> Result<Target, Failure> {
        let address = match (&job.fetch, &self.config.kind) {
            (Some(Fetch::At(url)), _) => return self.led_to(&self.call(scope)?.base()?, url),
            (Some(Fetch::ByConfig), kind) => kind.result_url(),
            (None, Kind::Polling(polling)) => Some(&polling.url),
            (None, _) => None,
        };
        let address =
            address.ok_or_else(|| bad("the config no longer says where this vendor's data is: see result_url"))?;
        let Some(ticket) = scope.ticket.or((!address.needs_ticket()).then_some("")) else {
            return Err(bad(
                "the vendor is done and gave no ticket to fetch its data by: see ticket and ticket_in_callback",
            ));
        };
        match address {
            Address::Url(url) => {
                let (origin, path) = (Origin::of_template(url), url.render(scope).map_err(unfit)?);
                let credentials = self.credentials_for(&origin).unwrap_or(Credentials::Withheld);
                Ok(Target { origin, path, credentials })
            }
            Address::Ticket => self.led_to(&self.call(scope)?.base()?, ticket),
            Address::At(_) => {
                Err(bad("the config has changed: it no longer takes the URL of this vendor's data from the answer"))
            }
        }
    }

    /// Where the submitting call goes, without what credentials add to it.
    fn call(&self, scope: &Scope<'_>) -> Result<Target, Failure> {
        let path = self.config.url.render(scope).map_err(unfit)?;
        Ok(Target { origin: self.origin.clone(), path, credentials: Credentials::Sent })
    }

    /// The absolute form of a URL in the answer to a job's call or poll, if it may be called.
    pub(super) fn url_in_answer(&self, job: &Job, found: &str) -> Result<String, Failure> {
        self.with_scope(job, |scope| {
            let asked = if self.on(job) == On::Call { self.call(scope)? } else { self.target(job, scope)? };
            Ok(self.led_to(&asked.base()?, found)?.whole())
        })
    }

    /// The origin of this answer to a poll, if credentials do not go there.
    pub(super) fn stranger(&self, received: &Received<'_>) -> Option<Origin> {
        let job = received.job.filter(|_| received.on != On::Call)?;
        let target = self.with_scope(job, |scope| self.target(job, scope)).ok()?;
        (target.credentials == Credentials::Withheld).then_some(target.origin)
    }

    /// The target of a URL that the vendor gave, absolute or relative to `base` (RFC 3986, 5), if it may be called.
    fn led_to(&self, base: &Url, found: &str) -> Result<Target, Failure> {
        if found.len() > MAX_TICKET_BYTES {
            return Err(bad(format!("the vendor's answer leads to a URL of over {MAX_TICKET_BYTES} bytes")));
        }
        let url = base.join(found).map_err(|_| bad("the vendor's answer has no URL where one should be"))?;
        let Some(origin) = Origin::of(&url) else {
            return Err(bad("the vendor's answer leads to a URL that is neither http nor https"));
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("the vendor's answer leads to a URL with a user or a password in it"));
        }
        let Some(credentials) = self.credentials_for(&origin) else {
            let (origin, table) = (origin.to_string(), self.config.kind.as_str());
            let origin = value::cut(&origin, MAX_NAMED);
            let mend = format!("if it is to be called, write {table}.hosts = [\"{origin}\"] in the config");
            return Err(bad(format!(
                "the vendor's answer leads to {origin}, which is not the vendor's own origin: {mend}"
            )));
        };
        // A fragment is not sent.
        let path = &url[Position::BeforePath..Position::AfterQuery];
        if path.len() > MAX_TARGET || path.parse::<PathAndQuery>().is_err() {
            return Err(bad("the vendor's answer leads to a URL that is too long to be called, or not well-formed"));
        }
        Ok(Target { origin, path: path.to_owned(), credentials })
    }

    /// Whether credentials go to an origin; `None` if it must not be called.
    pub(super) fn credentials_for(&self, origin: &Origin) -> Option<Credentials> {
        let mut hosts = self.config.kind.hosts().iter().filter(|host| host.origin == *origin).peekable();
        let is_known = *origin == self.origin || hosts.peek().is_some();
        let is_trusted = *origin == self.origin || hosts.any(|host| host.auth);
        is_known.then_some(if is_trusted { Credentials::Sent } else { Credentials::Withheld })
    }
}

/// The vendor's words, with the path and the query values of the URL of the data masked.
pub(super) fn masked(words: String, fetch: Option<&Fetch>) -> String {
    let Some(Fetch::At(url)) = fetch else { return words };
    let (whole, query) = url.split_once('?').unwrap_or((url, ""));
    let path = whole.splitn(4, '/').nth(3).unwrap_or_default();
    let values = query.split('&').filter_map(|pair| Some(pair.split_once('=')?.1));
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let secrets = [path].into_iter().chain(values).flat_map(|text| [text.to_owned(), decoded(text)]);
    let secrets: Vec<String> = secrets.collect();
    auth::without(words, secrets.iter().map(String::as_str))
}
