//! Who asks, and whether they may: every request is looked at here, once, before its handler sees it.
//!
//! Never reads a body, and never says why a key is refused.

use std::sync::Arc;

use axum::{
    Router,
    extract::{FromRequestParts, MatchedPath, Request, State},
    handler::Handler,
    http::{HeaderMap, Method, StatusCode, Uri, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodFilter, on},
};
use url::{Host, Url};

use super::{App, error::ApiError};
use crate::{
    config::Server,
    keys::{Caller, Keys, Scope},
    store::Sees,
};

/// What a caller needs for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// No key.
    Nothing,
    /// A key with one of these scopes.
    OneOf(&'static [Scope]),
}

impl Need {
    fn is_open(self) -> bool {
        self == Need::Nothing
    }
}

/// Routes, each with what it needs: there is no way to add one without.
pub(super) struct Routes {
    router: Router<Arc<App>>,
    needs: Vec<(&'static str, Method, Need)>,
}

impl Routes {
    pub(super) fn new() -> Routes {
        Routes { router: Router::new(), needs: Vec::new() }
    }

    pub(super) fn at<H, T>(mut self, need: Need, method: Method, path: &'static str, handler: H) -> Routes
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        let filter = MethodFilter::try_from(method.clone()).expect("a method that routes know");
        self.needs.push((path, method, need));
        Routes { router: self.router.route(path, on(filter, handler)), ..self }
    }

    /// The routes and these answers to everything else, behind the look at who asks.
    pub(super) fn guarded<A, M, T, U>(self, app: &Arc<App>, unknown_path: A, wrong_method: M) -> Router<Arc<App>>
    where
        A: Handler<T, Arc<App>>,
        M: Handler<U, Arc<App>>,
        T: 'static,
        U: 'static,
    {
        let router = self.router.fallback(unknown_path).method_not_allowed_fallback(wrong_method);
        router.layer(middleware::from_fn_with_state((app.clone(), Arc::<[_]>::from(self.needs)), guard))
    }
}

type Needs = Arc<[(&'static str, Method, Need)]>;

/// Refuses, or lets the handler know who asks.
async fn guard(State((app, needs)): State<(Arc<App>, Needs)>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    let of_path = || needs.iter().filter(|(of, ..)| Some(*of) == path);
    // With another method a path stays open; what there is not, only callers hear.
    let found = of_path().find(|(_, with, _)| *with == method).or_else(|| of_path().find(|(.., need)| need.is_open()));
    let need = found.map_or(Need::OneOf(&Scope::ALL), |(.., need)| *need);
    match app.access.caller(need, &request) {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(By(caller));
            }
            next.run(request).await
        }
        Err(refused) => refused.into_response(),
    }
}

/// What the look at who asks needs to know. Built once.
pub struct Access {
    pub keys: Arc<Keys>,
    public_url: Url,
    /// The `Host` that most callers on this machine send.
    listen: String,
    /// Origins whose pages may call the API.
    cors: Vec<String>,
    /// Only this machine reaches the API, and needs no key: a page in a browser must not reach it by another name.
    is_for_this_machine: bool,
}

impl Access {
    pub fn new(keys: Arc<Keys>, server: &Server) -> Access {
        let is_loopback = server.listen.ip().to_canonical().is_loopback();
        let is_for_this_machine = is_loopback && !keys.are_needed();
        let (public_url, listen, cors) = (server.public_url.clone(), server.listen.to_string(), server.cors.clone());
        Access { keys, public_url, listen, cors, is_for_this_machine }
    }

    /// Who asks, where that matters.
    fn caller(&self, need: Need, request: &Request) -> Result<Option<Arc<Caller>>, ApiError> {
        let (headers, uri) = (request.headers(), request.uri());
        if self.is_for_this_machine && !self.is_own_host(headers, uri) {
            let detail = "this service is for its own machine, and this Host is none of its names; if callers use that name, write it into server.public_url, and turn keys on if they are elsewhere";
            return Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, "foreign_host", detail));
        }
        if !request.method().is_safe() && !self.is_own_origin(headers) {
            let detail = "a page of another origin sent this from a browser, which may not change anything here";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", detail));
        }
        let Need::OneOf(scopes) = need else { return Ok(None) };
        let caller = self.keys.caller(bearer(headers)).ok_or_else(unauthenticated)?;
        if scopes.iter().any(|scope| caller.may(*scope)) { Ok(Some(caller)) } else { Err(forbidden(scopes)) }
    }

    /// Whether a request without an `Origin`, or from a page that we may have sent. Browsers send the header with whatever changes something.
    fn is_own_origin(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let Some(origin) = origin.to_str().ok().and_then(|origin| Url::parse(origin).ok()) else { return false };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        // A proxy may have taken TLS off: the scheme is the page's.
        let own = host.and_then(|host| Url::parse(&format!("{}://{host}", origin.scheme())).ok());
        let is_at =
            |url: &Url| url.host() == origin.host() && url.port_or_known_default() == origin.port_or_known_default();
        let is_known = || self.cors.contains(&origin.origin().ascii_serialization());
        origin.has_host() && (own.is_some_and(|own| is_at(&own)) || is_at(&self.public_url) || is_known())
    }

    fn is_own_host(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let named = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
        // Of a whole URL in the first line, or else of the header (RFC 9112, 3.2.2). Only old clients send neither, and no browser.
        let Some(host) = uri.authority().map(|authority| authority.as_str()).or(named) else { return true };
        if host == self.listen {
            return true;
        }
        let Ok(url) = Url::parse(&format!("http://{host}")) else { return false };
        let is_loopback = match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => {
                // With or without the dot of the root.
                let name = name.strip_suffix('.').unwrap_or(name);
                name == "localhost" || name.ends_with(".localhost")
            }
            None => false,
        };
        is_loopback || url.host() == self.public_url.host()
    }
}

/// The key that a request came with; empty if there is none. Of two, a proxy may have checked the other one.
fn bearer(headers: &HeaderMap) -> &str {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none());
    let value = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
    match value.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim_matches(' '),
        _ => "",
    }
}

pub(super) fn unauthenticated() -> ApiError {
    let detail = "this needs a key that is good: send it as Authorization: Bearer KEY";
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail).header("www-authenticate", "Bearer".to_owned())
}

fn forbidden(scopes: &[Scope]) -> ApiError {
    let names: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    let detail = format!("this needs a key with the scope {}", names.join(" or "));
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail)
}

/// Who asks.
#[derive(Clone)]
pub(super) struct By(pub(super) Arc<Caller>);

impl<S: Send + Sync> FromRequestParts<S> for By {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<By, ApiError> {
        let unguarded = || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "nobody looked who asks");
        parts.extensions.get::<By>().cloned().ok_or_else(unguarded)
    }
}

impl By {
    pub(super) fn sees(&self) -> &Sees {
        &self.0.sees
    }

    /// Refuses who may not submit a job now whatever it is, before its body is read.
    pub(super) fn may_submit(&self, app: &App) -> Result<(), ApiError> {
        match &self.0.sees {
            Sees::Tenant(own) => Ok(app.admission.check(own)?),
            Sees::All => Ok(()),
        }
    }

    /// For which tenant the caller acts, given the one that it names: its own, or any if it sees all. `None`: it sees all and names none.
    pub(super) fn tenant(&self, named: Option<&str>) -> Result<Option<Arc<str>>, ApiError> {
        match (&self.0.sees, named) {
            (Sees::Tenant(own), Some(named)) if **own != *named => {
                let detail = "this key is for another tenant; leave tenant out";
                Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail))
            }
            (Sees::Tenant(own), _) => Ok(Some(own.clone())),
            (Sees::All, named) => Ok(named.map(Arc::from)),
        }
    }
}
