//! The `[server]` section, checked: where the API listens, how it proves itself, and which web pages may call it.
//!
//! Never repeats a secret, nor a URL that may hold one.

use toml::Spanned;

use super::{
    Secret, Server, TlsFiles,
    check::{Check, optional},
    raw,
};

pub(super) fn server(cx: &mut Check<'_>, raw: &raw::Server) -> Option<Server> {
    let listen = cx.address("server.listen", &raw.listen);
    let public_url = public_url(cx, &raw.public_url);
    let callback_secret = optional(raw.callback_secret.as_ref(), |secret| {
        let key = "server.callback_secret";
        let text = cx.text(key, secret)?;
        if text.text.is_empty() {
            let mend = "Write one, or remove the key: then one is made and kept in the store";
            return cx.refuse(key, &text.span, "this secret is empty", mend);
        }
        if text.text.len() < 16 {
            let advice = "Use 16 characters or more, or remove it: then one is made and kept in the store.";
            cx.warnings.push(format!("{key} is short enough to be guessed. {advice}"));
        }
        Some(Secret::new(text.text))
    });
    let tls = optional(raw.tls.as_ref(), |tls| tls_files(cx, tls));
    let cors: Vec<String> = raw.cors.iter().flatten().filter_map(|origin| browser_origin(cx, origin)).collect();
    let most = optional(raw.max_connections_per_address.as_ref(), |most| {
        cx.number("server.max_connections_per_address", most, 1..=10_000)
    });
    let max_connections_per_address = most?.and_then(|most| usize::try_from(most).ok());
    Some(Server {
        listen: listen?,
        public_url: public_url?,
        callback_secret: callback_secret?,
        tls: tls?,
        cors,
        max_connections_per_address,
    })
}

fn tls_files(cx: &mut Check<'_>, raw: &Spanned<raw::Tls>) -> Option<TlsFiles> {
    let tls = raw.get_ref();
    let (Some(cert), Some(key)) = (&tls.cert, &tls.key) else {
        let mend = r#"Write tls = { cert = "cert.pem", key = "key.pem" }"#;
        return cx.refuse("server.tls", &raw.span(), "both cert and key are needed", mend);
    };
    let cert = cx.text("server.tls.cert", cert)?.text.into();
    let key = cx.text("server.tls.key", key)?;
    if key.text.contains("-----BEGIN") {
        let mend = "Put the key into a file, and its path here";
        return cx.refuse("server.tls.key", &key.span, "this is a key, and not the path of a file", mend);
    }
    Some(TlsFiles { cert, key: key.text.into() })
}

/// An origin as browsers write it: scheme, host, and the port if it is not the scheme's own.
fn browser_origin(cx: &mut Check<'_>, raw: &raw::Text) -> Option<String> {
    let text = cx.text("server.cors", raw)?;
    let origin = url::Url::parse(&text.text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    match origin.map(|url| url.origin().ascii_serialization()) {
        Some(origin) if origin == text.text => Some(origin),
        Some(origin) if !text.is_filled => {
            let what = format!("{} is not an origin as browsers write it", text.shown);
            cx.refuse("server.cors", &text.span, what, format!("Write {origin:?}"))
        }
        _ => {
            let what = format!("{} is not the origin of a web page", text.shown);
            cx.refuse("server.cors", &text.span, what, r#"Write "https://app.example", without a path or a * in it"#)
        }
    }
}

/// Never repeats the URL: people put passwords into them.
fn public_url(cx: &mut Check<'_>, raw: &raw::Text) -> Option<url::Url> {
    let key = "server.public_url";
    let text = cx.text(key, raw)?;
    let mut wrong = |what: &str, mend: &str| cx.refuse(key, &text.span, what, mend);
    let form = r#"Write "https://host/path", as vendors on the internet reach us"#;
    let Ok(mut url) = url::Url::parse(&text.text) else { return wrong("this is not a URL", form) };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return wrong("this is not an http or https URL", form);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return wrong("this URL holds a user name or password", "Remove the part before the @");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong("this URL has a ? or a #, and paths are added at its end", "Remove what follows the path");
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Some(url)
}
