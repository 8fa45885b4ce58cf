//! How a callback on the shared URL proves where it comes from, checked: `webhook.verify` and the secrets that belong to it.
//!
//! Never repeats a secret.

use std::ops::Range;

use hyper::header::HeaderName;
use toml::Spanned;

use super::{
    LiveSecret,
    check::{Check, LONGEST, Whole, all, optional},
    raw,
    secret::{fits_header, fits_line},
};
use crate::vendor::verify::{
    Signed, Verify,
    hmac::{Encoding, Hash, Key, Scheme, Settings, TOLERANCE},
    named::NAMED,
};

/// More are never in use at once.
const MOST_SECRETS: usize = 8;
const TABLES: &str = r#"{ hmac = "sha256", header = "X-Signature", secret = "${SECRET}" }, { header = "X-Token", value = "${TOKEN}" } or { basic = { user = "u", password = "${PASSWORD}" } }"#;

pub(super) fn verify(cx: &mut Check<'_>, whole: &Whole<'_>, raw: &Spanned<raw::Webhook>) -> Option<Verify> {
    let table = raw.get_ref();
    let key = whole.key("webhook.verify");
    let Some(verify) = &table.verify else {
        return no_secret(cx, whole, table, r#"Write verify = "standard-webhooks" beside it, say, or remove it"#)
            .then_some(Verify::Off);
    };
    match verify.get_ref() {
        raw::TextOr::Text(word) => {
            let names = NAMED.map(|(name, _)| name).join("\", \"");
            let mend =
                format!(r#"Write "{names}" (each with secret), "none" to believe anybody, or a table: {TABLES}"#);
            let words = NAMED.map(|scheme| (scheme.0, Some(scheme)));
            let words = [words.as_slice(), &[("none", None)]].concat();
            let word = Spanned::new(verify.span(), word.clone());
            if let Some((name, settings)) = cx.word(&key, &word, &words, "there is no scheme", mend)? {
                return named(cx, whole, raw, name, settings);
            }
            let mend = r#"Write verify = "standard-webhooks" instead of "none", say, or remove it"#;
            no_secret(cx, whole, table, mend).then_some(Verify::None)
        }
        raw::TextOr::Table(scheme) => {
            let is_alone = no_secret(cx, whole, table, "Write it into verify = { ... }");
            let checked = Table { cx, key, raw: scheme, span: verify.span() }.check()?;
            is_alone.then_some(checked)
        }
    }
}

/// Whether there is no secret beside `verify`, where it would not be used.
fn no_secret(cx: &mut Check<'_>, whole: &Whole<'_>, table: &raw::Webhook, mend: &str) -> bool {
    if let Some(secret) = &table.secret {
        cx.problem(&whole.key("webhook.secret"), &secret.span(), "this secret would not be used", mend);
    }
    table.secret.is_none()
}

fn named(
    cx: &mut Check<'_>,
    whole: &Whole<'_>,
    raw: &Spanned<raw::Webhook>,
    name: &str,
    settings: &[Settings<'_>],
) -> Option<Verify> {
    let secret_key = whole.key("webhook.secret");
    let key = if name == "standard-webhooks" { Key::Whsec } else { Key::Text };
    let Some(secret) = &raw.get_ref().secret else {
        let mend = match key {
            Key::Whsec => "Write secret = \"${BUREAU_SECRET}\": what the vendor gave you, `whsec_` and base64",
            Key::Text => "Write secret = \"${BUREAU_SECRET}\": what the vendor gave you, or you gave the vendor",
        };
        return cx.refuse(&secret_key, &raw.span(), format!("this key is required with {name:?}"), mend);
    };
    let secrets = of_key(cx, &secret_key, secret, key)?;
    let schemes = settings.iter().map(|settings| Scheme::new(*settings, TOLERANCE).ok()).collect::<Option<_>>()?;
    Some(Verify::Signed(Signed { schemes, key, secrets }))
}

/// Secrets that become keys.
pub(super) fn of_key(cx: &mut Check<'_>, name: &str, raw: &Spanned<raw::Secrets>, key: Key) -> Option<Vec<LiveSecret>> {
    let fits: fn(&str) -> bool = match key {
        Key::Text => |text| !text.is_empty(),
        Key::Whsec => |text| Key::Whsec.fault(text).is_none(),
    };
    let checked = secrets(cx, name, raw, fits)?;
    for secret in &checked {
        if let Some(why) = key.fault(&secret.reveal()) {
            let mend = "Write what the vendor gave you, `whsec_` and base64";
            return cx.refuse(name, &raw.span(), format!("this secret cannot be used: {why}"), mend);
        }
    }
    Some(checked)
}

/// One secret, or several; each is there.
pub(super) fn secrets(
    cx: &mut Check<'_>,
    key: &str,
    raw: &Spanned<raw::Secrets>,
    fits: fn(&str) -> bool,
) -> Option<Vec<LiveSecret>> {
    let texts = match raw.get_ref() {
        raw::Secrets::One(text) => vec![(key.to_owned(), Spanned::new(raw.span(), text.clone()))],
        raw::Secrets::Several(texts) => {
            texts.iter().enumerate().map(|(i, text)| (format!("{key}[{i}]"), text.clone())).collect()
        }
    };
    if !(1..=MOST_SECRETS).contains(&texts.len()) {
        let mend = format!("Have 1 to {MOST_SECRETS}: the new one and the old one, say");
        return cx.refuse(key, &raw.span(), "these are none, or too many", mend);
    }
    all(texts.iter().map(|(key, text)| {
        let secret = cx.any_secret(key, text, fits)?;
        cx.not_empty(key, text, secret)
    }))
}

/// One `verify` table, being checked.
struct Table<'t, 'c, 's> {
    cx: &'t mut Check<'c>,
    key: String,
    raw: &'s raw::VerifyTable,
    span: Range<usize>,
}

impl Table<'_, '_, '_> {
    fn check(&mut self) -> Option<Verify> {
        let raw = self.raw;
        match (&raw.hmac, &raw.value, &raw.basic) {
            (Some(hash), None, None) => self.hmac(hash),
            (None, Some(value), None) => {
                self.has_only(&["header", "value"])?;
                let name = self.header();
                let key = self.name("value");
                let values = secrets(self.cx, &key, value, fits_header)?;
                self.can_be_sent("value", value, &values)?;
                Some(Verify::Header { name: name?, values })
            }
            (None, None, Some(basic)) => {
                self.has_only(&["basic"])?;
                self.basic(basic)
            }
            _ => {
                let what = "this table has none of hmac, value and basic, or more than one";
                self.cx.refuse(&self.key, &self.span, what, format!("Write {TABLES}"))
            }
        }
    }

    fn hmac(&mut self, hash: &raw::Text) -> Option<Verify> {
        self.has_only(&["hmac", "header", "encoding", "prefix", "signs", "timestamp", "tolerance", "secret"])?;
        let raw = self.raw;
        let hash = self.word("hmac", hash, Hash::ALL, Hash::as_str);
        let encoding =
            optional(raw.encoding.as_ref(), |text| self.word("encoding", text, Encoding::ALL, Encoding::as_str));
        let header = self.header();
        let prefix = self.text("prefix", &raw.prefix);
        let signs = self.text("signs", &raw.signs);
        let timestamp = self.text("timestamp", &raw.timestamp);
        let tolerance = optional(raw.tolerance.as_ref(), |text| {
            let key = self.name("tolerance");
            self.cx.duration(&key, text, LONGEST)
        });
        if let (None, Some(tolerance)) = (&raw.timestamp, &raw.tolerance) {
            let mend = "Write timestamp = \"X-Timestamp\" beside it, or remove it";
            return self.refuse("tolerance", &tolerance.span(), "nothing says when a callback was signed", mend);
        }
        let key = self.name("secret");
        let secrets = self.cx.needed(&key, &self.span, &raw.secret, "Write secret = \"${BUREAU_SECRET}\"");
        let secrets = secrets.and_then(|secret| of_key(self.cx, &key, secret, Key::Text));
        let (header, prefix, signs, timestamp) = (header?, prefix?, signs?, timestamp?);
        let settings = Settings {
            hash: hash?,
            encoding: encoding?.unwrap_or(Encoding::Hex),
            header: header.as_str(),
            prefix: prefix.as_deref().unwrap_or_default(),
            signs: signs.as_deref().unwrap_or("{{ body }}"),
            timestamp: timestamp.as_deref(),
        };
        match Scheme::new(settings, tolerance?.unwrap_or(TOLERANCE)) {
            Ok(scheme) => Some(Verify::Signed(Signed { schemes: vec![scheme], key: Key::Text, secrets: secrets? })),
            Err(fault) => {
                let written = if fault.key == "signs" { &raw.signs } else { &raw.timestamp };
                let span = written.as_ref().map_or(self.span.clone(), Spanned::span);
                self.refuse(fault.key, &span, fault.what, fault.mend)
            }
        }
    }

    fn basic(&mut self, raw: &Spanned<raw::Basic>) -> Option<Verify> {
        let (Some(user), Some(password)) = (&raw.get_ref().user, &raw.get_ref().password) else {
            let mend = r#"Write basic = { user = "u", password = "${PASSWORD}" }"#;
            return self.refuse("basic", &raw.span(), "it needs a user and a password", mend);
        };
        let (user_key, password_key) = (self.name("basic.user"), self.name("basic.password"));
        let passwords = secrets(self.cx, &password_key, password, fits_line);
        let user = self.cx.user(&user_key, user)?;
        Some(Verify::Basic { user, passwords: passwords? })
    }

    /// A header's value that cannot be one would never fit.
    fn can_be_sent(&mut self, name: &str, raw: &Spanned<raw::Secrets>, values: &[LiveSecret]) -> Option<()> {
        if values.iter().all(|value| fits_header(&value.reveal())) {
            return Some(());
        }
        let what = "its value has a character that cannot be sent (a line break, or not ASCII)";
        self.refuse(name, &raw.span(), what, "Use visible ASCII and spaces")
    }

    fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.key)
    }

    /// Notes what is wrong with a key; there is nothing then.
    fn refuse<T>(
        &mut self,
        name: &str,
        span: &Range<usize>,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Option<T> {
        let key = self.name(name);
        self.cx.refuse(&key, span, what, mend)
    }

    /// Whether no key is there that this scheme does not know.
    fn has_only(&mut self, known: &[&str]) -> Option<()> {
        let raw = self.raw;
        let text = |text: &Option<raw::Text>| text.as_ref().map(Spanned::span);
        let secrets = |secrets: &Option<Spanned<raw::Secrets>>| secrets.as_ref().map(Spanned::span);
        let written = [
            ("header", text(&raw.header)),
            ("encoding", text(&raw.encoding)),
            ("prefix", text(&raw.prefix)),
            ("signs", text(&raw.signs)),
            ("timestamp", text(&raw.timestamp)),
            ("tolerance", text(&raw.tolerance)),
            ("secret", secrets(&raw.secret)),
        ];
        let others = written.into_iter().filter(|(name, _)| !known.contains(name));
        let Some((name, span)) = others.into_iter().find_map(|(name, span)| Some((name, span?))) else {
            return Some(());
        };
        let mend = format!("Remove it; its keys are {}", known.join(", "));
        self.refuse(name, &span, "this scheme has no such key", mend)
    }

    fn header(&mut self) -> Option<HeaderName> {
        let key = self.name("header");
        let raw = self.cx.needed(&key, &self.span, &self.raw.header, r#"Write header = "X-Signature", say"#)?;
        self.cx.header(&key, raw, "X-Signature")
    }

    fn text(&mut self, name: &str, raw: &Option<raw::Text>) -> Option<Option<String>> {
        let key = self.name(name);
        optional(raw.as_ref(), |raw| self.cx.text(&key, raw).map(|text| text.text))
    }

    fn word<T: Copy, const N: usize>(
        &mut self,
        name: &str,
        raw: &raw::Text,
        all: [T; N],
        as_str: fn(T) -> &'static str,
    ) -> Option<T> {
        let (key, mend) = (self.name(name), format!("Write \"{}\"", all.map(as_str).join("\" or \"")));
        self.cx.word(&key, raw, &all.map(|one| (as_str(one), one)), "there is nothing here by the name of", mend)
    }
}
