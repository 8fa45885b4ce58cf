//! A request to a vendor, complete but for the credentials of `auth`: where it goes, with which headers and body.
//!
//! Never sends anything (see `http`). What may know who we are is decided here: headers of the config and credentials go with a request, or
//! both stay away.

use std::sync::LazyLock;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT},
};

use super::{
    Vendor,
    http::Origin,
    template::{RenderError, Scope},
};

/// The headers of every call, unless the config has others of these names.
pub(super) static EVERY_CALL: LazyLock<HeaderMap> = LazyLock::new(|| {
    let agent = concat!("fetchgate/", env!("CARGO_PKG_VERSION"));
    let headers = [(USER_AGENT, agent), (ACCEPT, "application/json"), (ACCEPT_ENCODING, "gzip")];
    headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
});

/// A request, and where it goes.
pub struct Outgoing {
    pub origin: Origin,
    pub request: Request<Full<Bytes>>,
    pub credentials: Credentials,
}

/// Whether a request says who we are: by the headers of the vendor's config and by its `auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    Sent,
    /// It goes to another origin than the vendor's own.
    Withheld,
}

/// Where a request goes: path and query are percent-encoded as they go out.
pub(super) struct To<'a> {
    pub(super) origin: &'a Origin,
    pub(super) path: &'a str,
    pub(super) credentials: Credentials,
}

/// A body and what it is.
pub struct Content {
    pub bytes: Bytes,
    /// `Content-Type`, unless the config has a header of that name.
    pub kind: HeaderValue,
}

impl Content {
    pub(super) fn none() -> Content {
        Content::json(Bytes::new())
    }

    pub(super) fn json(bytes: Bytes) -> Content {
        Content { bytes, kind: HeaderValue::from_static("application/json") }
    }
}

impl Vendor {
    /// A request with the headers that every call to this vendor has.
    pub(super) fn outgoing(
        &self,
        scope: &Scope<'_>,
        method: Method,
        to: To<'_>,
        content: Content,
    ) -> Result<Outgoing, RenderError> {
        let mut headers = match to.credentials {
            Credentials::Sent => self.own_headers(scope)?,
            Credentials::Withheld => EVERY_CALL.clone(),
        };
        set(&mut headers, HOST, &to.origin.authority());
        if !content.bytes.is_empty() {
            headers.entry(CONTENT_TYPE).or_insert(content.kind);
        }
        let mut request = Request::new(Full::new(content.bytes));
        *request.method_mut() = method;
        // The template has percent-encoded whatever is not allowed in a path.
        *request.uri_mut() = to.path.parse().unwrap_or_default();
        *request.headers_mut() = headers;
        Ok(Outgoing { origin: to.origin.clone(), request, credentials: to.credentials })
    }

    /// The headers of the config, except those whose values are in files: they are put on right before the call.
    fn own_headers(&self, scope: &Scope<'_>) -> Result<HeaderMap, RenderError> {
        let mut headers = self.headers.clone();
        for (name, template) in &self.config.header_templates {
            set(&mut headers, name.clone(), &template.render(scope)?);
        }
        Ok(headers)
    }
}

/// Sets a header whose value is known to be one.
pub(super) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The value of a header that is never shown; nothing for a text that no header can have.
pub(super) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What proves a user by name and password (RFC 7617).
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}
