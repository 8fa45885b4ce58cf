//! How a vendor is connected to, checked: `tls` and `proxy`.
//!
//! Never repeats what is in a file, nor a proxy's URL.

use std::path::PathBuf;

use super::{
    check::{Check, Whole, optional},
    raw,
};
use crate::vendor::{
    proxy::{Proxy, ProxyAt},
    tls::{LiveTls, TlsFiles},
};

/// Reads the files, so that one that cannot be used is found at the start.
pub(super) fn tls(cx: &mut Check<'_>, whole: &Whole<'_>) -> Option<Option<LiveTls>> {
    let Some(raw) = &whole.raw.tls else { return Some(None) };
    let table = raw.get_ref();
    let key = |name: &str| whole.key(&format!("tls.{name}"));
    let mut file = |name: &str, raw: &Option<raw::Text>| {
        optional(raw.as_ref(), |raw| cx.text(&key(name), raw).map(|text| PathBuf::from(text.text)))
    };
    let (ca, cert, private_key) = (file("ca", &table.ca)?, file("cert", &table.cert)?, file("key", &table.key)?);
    let identity = match (cert, private_key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) if ca.is_some() => None,
        (None, None) => {
            let mend =
                r#"Write tls = { ca = "ca.pem" }, tls = { cert = "client.pem", key = "client.key" }, or all three"#;
            return cx.refuse(&whole.key("tls"), &raw.span(), "this table names no file", mend);
        }
        (cert, _) => {
            let (name, of) = if cert.is_some() { ("key", "cert") } else { ("cert", "key") };
            return cx.refuse(&key(name), &raw.span(), format!("this key is required with {of}"), "Name both files");
        }
    };
    match LiveTls::read(TlsFiles { ca, identity }) {
        Ok(tls) => Some(Some(tls)),
        Err(fault) => {
            let of = [("ca", &table.ca), ("cert", &table.cert), ("key", &table.key)];
            let named = of.into_iter().find(|(name, _)| *name == fault.key).and_then(|(_, text)| text.as_ref());
            let span = named.map_or(raw.span(), toml::Spanned::span);
            cx.refuse(&key(fault.key), &span, fault.what, fault.mend)
        }
    }
}

pub(super) fn proxy(cx: &mut Check<'_>, whole: &Whole<'_>) -> Option<Option<Proxy>> {
    let Some(raw) = &whole.raw.proxy else { return Some(None) };
    let key = whole.key("proxy");
    let text = cx.text(&key, raw)?;
    if let Err(why) = ProxyAt::read(&text.text) {
        let mend = r#"Write "http://user:${PASSWORD}@proxy:3128"; in user and password write @ : / ? # and % as %40 %3A %2F %3F %23 and %25"#;
        return cx.refuse(&key, &text.span, format!("this proxy cannot be used: {why}"), mend);
    }
    cx.secret(&key, raw, |url| ProxyAt::read(url).is_ok()).map(Proxy::new).map(Some)
}
