//! `auth` of a vendor, checked: how calls prove who they come from.
//!
//! Never repeats a secret, and never looks whether the vendor takes it.

use std::ops::Range;

use hyper::header::{AUTHORIZATION, HeaderName};
use toml::Spanned;
use url::Url;

use super::{
    Auth, ClientIn, OAuth2, SigV4,
    check::{Check, Whole, optional, quoted_key, shown},
    raw::{Login, Text},
    secret::{LiveSecret, fits_header, fits_line},
};

/// Headers that belong to the connection or to us.
pub(super) const OUR_HEADERS: [&str; 11] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "traceparent",
];

const KINDS: [&str; 6] = ["bearer", "basic", "header", "query", "oauth2", "sigv4"];

/// The keys that a kind needs and those that it may have.
fn keys_of(kind: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match kind {
        "bearer" => (&["token"], &[]),
        "basic" => (&["user", "password"], &[]),
        "header" | "query" => (&["name", "value"], &[]),
        "oauth2" => (&["token_url", "client_id", "client_secret"], &["scope", "audience", "send"]),
        _ => (&["region", "service", "access_key", "secret_key"], &[]),
    }
}

/// One `auth` table, being checked.
struct Table<'t, 'c, 's> {
    cx: &'t mut Check<'c>,
    key: String,
    raw: &'s Login,
    span: Range<usize>,
}

pub(super) fn auth(cx: &mut Check<'_>, whole: &Whole<'_>, raw: &Spanned<Login>) -> Option<Auth> {
    let mut table = Table { cx, key: whole.key("auth"), raw: raw.get_ref(), span: raw.span() };
    let kind = table.kind()?;
    if !table.has_the_keys_of(kind) {
        return None;
    }
    let auth = table.of_kind(kind)?;
    table.refuse_headers_of_ours(whole, &auth)?;
    Some(auth)
}

impl Table<'_, '_, '_> {
    fn kind(&mut self) -> Option<&'static str> {
        let (key, mend) = (format!("{}.kind", self.key), format!("Write one of {}", KINDS.join(", ")));
        let raw = self.cx.needed(&key, &self.span, &self.raw.kind, &*mend)?;
        self.cx.word(&key, raw, &KINDS.map(|kind| (kind, kind)), "there is no kind", mend)
    }

    fn has_the_keys_of(&mut self, kind: &str) -> bool {
        let (needed, optional) = keys_of(kind);
        let mut is_good = true;
        for (name, text) in self.raw.keys() {
            let key = format!("{}.{name}", self.key);
            match text {
                None if needed.contains(&name) => {
                    let mend = format!("Write it: kind = {kind:?} needs {}", needed.join(" and "));
                    self.cx.problem(&key, &self.span, "this key is required", mend);
                    is_good = false;
                }
                Some(text) if !needed.contains(&name) && !optional.contains(&name) => {
                    let known = [needed, optional].concat().join(", ");
                    let mend = format!("Remove it; the keys of this kind are {known}");
                    self.cx.problem(&key, &text.span(), format!("kind = {kind:?} has no such key"), mend);
                    is_good = false;
                }
                _ => {}
            }
        }
        is_good
    }

    fn of_kind(&mut self, kind: &str) -> Option<Auth> {
        let raw = self.raw;
        match kind {
            "bearer" => {
                let value = self.secret("token", raw.token.as_ref()?, fits_header)?;
                Some(Auth::Header { name: AUTHORIZATION, prefix: "Bearer ", value })
            }
            "basic" => {
                let (user_key, user) = (format!("{}.user", self.key), raw.user.as_ref()?);
                let checked = self.cx.user(&user_key, user);
                let password = self.secret("password", raw.password.as_ref()?, fits_line);
                Some(Auth::Basic { user: self.cx.not_empty(&user_key, user, checked?)?, password: password? })
            }
            "header" => {
                let name = self.header_name(raw.name.as_ref()?);
                let value = self.secret("value", raw.value.as_ref()?, fits_header);
                Some(Auth::Header { name: name?, prefix: "", value: value? })
            }
            "query" => {
                let name = self.plain("name", raw.name.as_ref()?);
                let value = self.secret("value", raw.value.as_ref()?, fits_line);
                Some(Auth::Query { name: name?, value: value? })
            }
            "oauth2" => self.oauth2().map(|oauth| Auth::OAuth2(Box::new(oauth))),
            _ => {
                let region = self.plain("region", raw.region.as_ref()?);
                let service = self.plain("service", raw.service.as_ref()?);
                let access_key = self.secret("access_key", raw.access_key.as_ref()?, fits_header);
                let secret_key = self.secret("secret_key", raw.secret_key.as_ref()?, fits_line);
                let (access_key, secret_key) = (access_key?, secret_key?);
                Some(Auth::SigV4(Box::new(SigV4 { region: region?, service: service?, access_key, secret_key })))
            }
        }
    }

    fn oauth2(&mut self) -> Option<OAuth2> {
        let raw = self.raw;
        let token_url = self.token_url(raw.token_url.as_ref()?);
        let client_id = self.secret("client_id", raw.client_id.as_ref()?, fits_line);
        let client_secret = self.secret("client_secret", raw.client_secret.as_ref()?, fits_line);
        let mut maybe = |name, text: &Option<Text>| optional(text.as_ref(), |text| self.plain(name, text));
        let (scope, audience) = (maybe("scope", &raw.scope), maybe("audience", &raw.audience));
        let send = optional(raw.send.as_ref(), |text| {
            let words = [("basic", ClientIn::Basic), ("body", ClientIn::Body)];
            let mend = r#"Write "basic" (the Authorization header) or "body""#;
            self.cx.word(&format!("{}.send", self.key), text, &words, "the client is not sent by", mend)
        });
        Some(OAuth2 {
            token_url: token_url?,
            client_id: client_id?,
            client_secret: client_secret?,
            scope: scope?,
            audience: audience?,
            client_in: send?.unwrap_or(ClientIn::Basic),
        })
    }

    /// Never repeats the URL: people put keys into queries.
    fn token_url(&mut self, raw: &Text) -> Option<Url> {
        let key = format!("{}.token_url", self.key);
        let text = self.cx.text(&key, raw)?;
        let mut wrong = |what: &str, mend: &str| self.cx.refuse(&key, &text.span, what, mend);
        let Ok(url) = Url::parse(&text.text) else {
            return wrong("this is not a URL", r#"Write "https://id.example/token", say"#);
        };
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return wrong("this is not an http or https URL", r#"Write "https://id.example/token", say"#);
        }
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return wrong(
                "this URL has a user, a password or a #",
                "Remove it; client_id and client_secret say who asks",
            );
        }
        Some(url)
    }

    fn secret(&mut self, name: &str, raw: &Text, fits: fn(&str) -> bool) -> Option<LiveSecret> {
        let key = format!("{}.{name}", self.key);
        let secret = self.cx.secret(&key, raw, fits)?;
        self.cx.not_empty(&key, raw, secret)
    }

    /// A text that is no secret and has to be there.
    fn plain(&mut self, name: &str, raw: &Text) -> Option<String> {
        let key = format!("{}.{name}", self.key);
        let text = self.cx.text(&key, raw)?;
        if text.text.is_empty() || !fits_header(&text.text) {
            return self.cx.refuse(&key, &text.span, format!("{} cannot be used", text.shown), "Use visible ASCII");
        }
        Some(text.text)
    }

    fn header_name(&mut self, raw: &Text) -> Option<HeaderName> {
        let key = format!("{}.name", self.key);
        let name = self.cx.header(&key, raw, "X-API-Key")?;
        if OUR_HEADERS.contains(&name.as_str()) {
            return self.cx.refuse(&key, &raw.span(), "this header is set by Fetchgate", "Name another header");
        }
        Some(name)
    }

    /// Two values for one header are a contradiction.
    fn refuse_headers_of_ours(&mut self, whole: &Whole<'_>, auth: &Auth) -> Option<()> {
        let mut is_good = true;
        for (name, value) in &whole.raw.headers {
            if auth.headers().iter().any(|ours| ours.as_str().eq_ignore_ascii_case(name)) {
                let what = format!("auth sets the header {} too", shown(name));
                let key = format!("{}.{}", whole.key("headers"), quoted_key(name));
                self.cx.problem(&key, &value.span(), what, "Remove one of the two");
                is_good = false;
            }
        }
        is_good.then_some(())
    }
}
