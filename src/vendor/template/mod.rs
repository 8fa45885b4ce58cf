//! Templates in vendor URLs and bodies: literal text with `{{ name | filter }}` in it.
//!
//! What a job brings can never change where a call goes: scheme, host and port are literal, a value in a path stays one
//! segment, a value in a body stays one JSON value. Errors never repeat literal text, because it may hold secrets.

use std::{borrow::Cow, fmt, sync::Arc};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::value::RawValue;
use url::Url;

pub(crate) use self::read::ends_in_string;
use self::read::{Part, check_target, fail, has_dot_segment, is_plain, parse, split_origin};
use crate::json::{self, Pointer};

mod read;

/// Everything but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The longest path and query that we send; RFC 9110 asks servers to take 8,000 bytes.
pub const MAX_TARGET: usize = 8 * 1024;
const TOO_LONG: &str = "makes the URL too long: path and query may have 8192 bytes";

/// What a template may speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Payload,
    RequestId,
    CallbackUrl,
    Ticket,
    Tenant,
}

impl Name {
    pub const ALL: [Name; 5] = [Name::Payload, Name::RequestId, Name::CallbackUrl, Name::Ticket, Name::Tenant];

    pub fn as_str(self) -> &'static str {
        match self {
            Name::Payload => "payload",
            Name::RequestId => "request_id",
            Name::CallbackUrl => "callback_url",
            Name::Ticket => "ticket",
            Name::Tenant => "tenant",
        }
    }
}

/// What the names stand for in one call.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub request_id: &'a str,
    pub payload: &'a RawValue,
    pub callback_url: Option<&'a str>,
    pub ticket: Option<&'a str>,
    pub tenant: &'a str,
}

/// Why a template is refused, for the person who writes the config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

/// Why a job cannot be put into a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pointer} {detail}")]
pub struct RenderError {
    /// The value, such as `/payload/region` or `/ticket`.
    pub pointer: String,
    pub detail: String,
}

/// A checked template. `{:?}` shows no literal text.
#[derive(Clone)]
pub struct Template {
    pieces: Vec<Piece>,
    /// Scheme, host and port; a body has none.
    origin: Option<Url>,
    /// The same with its secrets masked, where it has some.
    shown: Option<Arc<Template>>,
}

#[derive(Clone)]
enum Piece {
    Literal(String),
    Value { expr: Expr, filter: Filter },
}

/// A name and, for the payload, a place in it.
#[derive(Clone)]
struct Expr {
    name: Name,
    at: Pointer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Path,
    Query,
    Json,
}

impl Filter {
    fn as_str(self) -> &'static str {
        match self {
            Filter::Path => "path",
            Filter::Query => "query",
            Filter::Json => "json",
        }
    }
}

impl Template {
    /// Reads a URL: `http` or `https`, literal up to the path, `| path` in the path, `| query` after the question mark.
    pub fn url(text: &str) -> Result<Template, TemplateError> {
        let (origin, target) = split_origin(text)?;
        let mut pieces = Vec::new();
        if !target.starts_with('/') {
            pieces.push(Piece::Literal("/".to_owned()));
        }
        let mut needed = Filter::Path;
        for part in parse(target)? {
            if let Part::Literal(literal) = part {
                check_target(literal)?;
                if literal.contains('?') {
                    needed = Filter::Query;
                }
            }
            pieces.push(part.checked(needed)?);
        }
        let template = Template { pieces, origin: Some(origin), shown: None };
        // Dots that are wrong around a letter are wrong around every value.
        if has_dot_segment(&template.filled_with("x")) {
            return fail("a URL's path must not have `.` or `..` as a segment");
        }
        if template.filled_with("").len() > MAX_TARGET {
            return fail(TOO_LONG);
        }
        Ok(template)
    }

    /// Reads a JSON body, in which every `{{ name | json }}` stands where a JSON value can.
    pub fn body(text: &str) -> Result<Template, TemplateError> {
        let mut pieces = Vec::new();
        let mut is_in_string = false;
        for part in parse(text)? {
            match &part {
                Part::Literal(literal) => is_in_string = ends_in_string(literal, is_in_string),
                Part::Expr { expr, .. } if is_in_string => {
                    return fail(format!(
                        "`{expr}` stands inside a JSON string; `| json` writes the quotes itself, so leave them out"
                    ));
                }
                Part::Expr { .. } => {}
            }
            pieces.push(part.checked(Filter::Json)?);
        }
        let template = Template { pieces, origin: None, shown: None };
        match json::check(template.filled_with("null").as_bytes()) {
            Ok(_) => Ok(template),
            Err(e) => fail(format!("with null in place of every expression the body is {e}")),
        }
    }

    /// Scheme, host and port of a URL template, with `/` as its path. A body has none.
    pub fn origin(&self) -> Option<&Url> {
        self.origin.as_ref()
    }

    /// Shows nothing but the host: for a template whose masked text is none.
    pub fn hidden(&self) -> Template {
        let text = if self.origin.is_some() { "/***" } else { "\"***\"" };
        Template { pieces: vec![Piece::Literal(text.to_owned())], origin: self.origin.clone(), shown: None }
    }

    /// The same template, which people see as `shown`.
    #[must_use]
    pub fn shown_as(self, shown: Template) -> Template {
        Template { shown: Some(Arc::new(shown)), ..self }
    }

    /// The template as people may see it, and what it renders to: every secret is masked.
    pub fn shown(&self) -> &Template {
        self.shown.as_deref().unwrap_or(self)
    }

    /// Whether the name occurs.
    pub fn uses(&self, name: Name) -> bool {
        self.expressions().any(|(expr, _)| expr.name == name)
    }

    /// A URL's path and query, which starts with a slash and is visible ASCII throughout; or the body.
    ///
    /// In a URL every value must be there and be a string, a number or a boolean; together they must fit into
    /// [`MAX_TARGET`]. In a body what is missing becomes `null`, and payload values are written as they came.
    pub fn render(&self, scope: &Scope<'_>) -> Result<String, RenderError> {
        let mut out = String::new();
        let mut room = match self.origin {
            Some(_) => MAX_TARGET.saturating_sub(self.filled_with("").len()),
            None => usize::MAX,
        };
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => out.push_str(literal),
                Piece::Value { expr, filter: Filter::Json } => out.push_str(&expr.json(scope)),
                Piece::Value { expr, filter } => {
                    let text = expr.scalar(scope)?;
                    // A dot segment would lead to another place; one with a value in it has nothing but dots in the value.
                    if *filter == Filter::Path && matches!(&*text, "" | "." | "..") {
                        return Err(
                            expr.fault("must not be empty, `.` or `..`, because it is part of the vendor's path")
                        );
                    }
                    let start = out.len();
                    // No megabyte is encoded only to be refused.
                    out.extend(utf8_percent_encode(&text, ENCODED).take(room.saturating_add(1)));
                    room = room.checked_sub(out.len() - start).ok_or_else(|| expr.fault(TOO_LONG))?;
                }
            }
        }
        Ok(out)
    }

    fn filled_with(&self, stand_in: &str) -> String {
        let texts = self.pieces.iter().map(|piece| match piece {
            Piece::Literal(literal) => literal,
            Piece::Value { .. } => stand_in,
        });
        texts.collect()
    }

    fn expressions(&self) -> impl Iterator<Item = (&Expr, Filter)> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Literal(_) => None,
            Piece::Value { expr, filter } => Some((expr, *filter)),
        })
    }
}

/// As it can be written, with its literal text: only of what [`Template::shown`] gives may this be shown.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.origin.as_ref().map_or("", |origin| origin.as_str().trim_end_matches('/')))?;
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => f.write_str(literal)?,
                Piece::Value { expr, filter } => write!(f, "{{{{ {expr} | {} }}}}", filter.as_str())?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expressions = self.expressions().map(|(expr, filter)| format!("{expr} | {}", filter.as_str()));
        f.debug_tuple("Template").field(&expressions.collect::<Vec<_>>()).finish()
    }
}

impl Expr {
    /// The value as JSON, `null` when there is none.
    fn json<'a>(&self, scope: &Scope<'a>) -> Cow<'a, str> {
        match self.plain(scope) {
            Some(text) => Cow::Owned(serde_json::Value::from(text).to_string()),
            None if self.name == Name::Payload => {
                Cow::Borrowed(self.at.find(scope.payload).map_or("null", RawValue::get))
            }
            None => Cow::Borrowed("null"),
        }
    }

    /// The value as text, if it is one that can stand in a URL.
    fn scalar<'a>(&self, scope: &Scope<'a>) -> Result<Cow<'a, str>, RenderError> {
        if self.name != Name::Payload {
            return self.plain(scope).map(Cow::Borrowed).ok_or_else(|| self.fault("is not known yet"));
        }
        let value = self.at.find(scope.payload).ok_or_else(|| self.fault("is missing"))?;
        let kind = match value.get().as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'n') => "null",
            _ => return Ok(json::text(value)),
        };
        Err(self.fault(&format!("must be a string, a number or a boolean, not {kind}")))
    }

    /// The value of any name but the payload.
    fn plain<'a>(&self, scope: &Scope<'a>) -> Option<&'a str> {
        match self.name {
            Name::Payload => None,
            Name::RequestId => Some(scope.request_id),
            Name::CallbackUrl => scope.callback_url,
            Name::Ticket => scope.ticket,
            Name::Tenant => Some(scope.tenant),
        }
    }

    fn fault(&self, detail: &str) -> RenderError {
        RenderError { pointer: format!("/{}{}", self.name.as_str(), self.at), detail: detail.to_owned() }
    }
}

/// As it could be written in a template.
impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_str())?;
        self.at.steps().iter().try_for_each(|step| {
            if !step.key.is_empty() && step.key.chars().all(is_plain) {
                write!(f, ".{}", step.key)
            } else {
                write!(f, "[{}]", serde_json::Value::from(step.key.as_str()))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use hyper::http::uri::PathAndQuery;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;
    use crate::json::tests::documents;

    fn scope(payload: &str) -> Scope<'_> {
        let payload = json::check(payload.as_bytes()).unwrap();
        Scope {
            request_id: "0192-id",
            payload,
            callback_url: Some("http://us/hook?a=\"b\""),
            ticket: None,
            tenant: "acme & co",
        }
    }

    fn url(text: &str, payload: &str) -> Result<String, RenderError> {
        Template::url(text).unwrap().render(&scope(payload))
    }

    fn body(text: &str, payload: &str) -> String {
        Template::body(text).unwrap().render(&scope(payload)).unwrap()
    }

    #[test]
    fn a_url_is_its_origin_and_a_rendered_path_and_query() {
        let template =
            Template::url("https://api.example:8443/v2/{{ payload.region | path }}/r?t={{tenant|query}}&x[]=%20")
                .unwrap();
        let origin = template.origin().unwrap();
        assert_eq!(
            (origin.scheme(), origin.host_str(), origin.port_or_known_default()),
            ("https", Some("api.example"), Some(8443))
        );
        assert_eq!(
            template.render(&scope(r#"{"region":"eu/1 é?#%\r\n"}"#)).unwrap(),
            "/v2/eu%2F1%20%C3%A9%3F%23%25%0D%0A/r?t=acme%20%26%20co&x[]=%20"
        );
        assert_eq!(url("http://h", "1").unwrap(), "/");
        assert_eq!(url("http://h?a={{ payload | query }}", "1.10").unwrap(), "/?a=1.10");
        assert_eq!(url("http://[::1]:9000/{{ request_id | path }}", "1").unwrap(), "/0192-id");
        assert_eq!(
            url("http://h/{{ payload.a[0][\"b c]}}\"] | path }}", r#"{"a":[{"b c]}}":true}]}"#).unwrap(),
            "/true"
        );
        assert_eq!(url("http://h/?q={{ payload.q | query }}", r#"{"q":""}"#).unwrap(), "/?q=");
    }

    #[test]
    fn numbers_in_urls_keep_their_text() {
        for number in ["123456789012345678901234567890", "1.10", "-0"] {
            assert_eq!(
                url("http://h/{{ payload.n | path }}", &format!(r#"{{"n":{number}}}"#)).unwrap(),
                format!("/{number}")
            );
        }
    }

    #[test]
    fn a_value_that_cannot_stand_in_a_url_is_named() {
        for (payload, detail) in [
            ("{}", "is missing"),
            ("7", "is missing"),
            (r#"{"region":null}"#, "not null"),
            (r#"{"region":{}}"#, "not an object"),
            (r#"{"region":[1]}"#, "not an array"),
            (r#"{"region":""}"#, "empty"),
            (r#"{"region":".."}"#, "empty, `.` or `..`"),
            (r#"{"region":"\u002e"}"#, "empty, `.` or `..`"),
        ] {
            let error = url("http://h/{{ payload.region | path }}/x", payload).unwrap_err();
            assert_eq!(error.pointer, "/payload/region");
            assert!(error.detail.contains(detail), "{error}");
        }
        let error = url("http://h/?t={{ ticket | query }}", "1").unwrap_err();
        assert_eq!((error.pointer.as_str(), error.detail.as_str()), ("/ticket", "is not known yet"));
        let long = format!("\"{}\"", "é".repeat(3000));
        assert_eq!(url("http://h/{{ payload | path }}", &long).unwrap_err().pointer, "/payload");
        assert_eq!(
            url("http://h/{{ payload | path }}", &format!("\"{}\"", "a".repeat(MAX_TARGET))).unwrap_err().detail,
            TOO_LONG
        );
        assert_eq!(
            url("http://h/{{ payload | path }}", &format!("\"{}\"", "a".repeat(MAX_TARGET - 1))).unwrap().len(),
            MAX_TARGET
        );
    }

    #[test]
    fn urls_that_could_lead_elsewhere_are_refused() {
        for (bad, why) in [
            ("{{ payload.url | path }}", "starts with"),
            ("ftp://h/", "starts with"),
            ("//h/", "starts with"),
            ("", "starts with"),
            ("http://{{ payload.h | path }}/", "literal"),
            ("http://h{{ payload.h | path }}/", "literal"),
            ("http://h:{{ tenant | path }}", "literal"),
            ("http://h\\@evil/", "literal"),
            ("http://h\t/", "literal"),
            ("http://u:p@h/", "user"),
            ("http://@h/", "user"),
            ("http:///x", "host"),
            ("http://", "host"),
            ("http://h:99999/", "port"),
            ("http://a b/", "literal"),
            ("http://h/../x", "segment"),
            ("http://h/%2E./x", "segment"),
            ("http://h/.", "segment"),
            ("http://h/a#b", "fragment"),
            ("http://h#b", "fragment"),
            ("http://h/a b", "%20"),
            ("http://h/\r\nx", "%0D"),
            ("http://h/é", "%C3"),
            ("http://h/100%", "%25"),
            ("http://h/%4{{ tenant | path }}", "%25"),
            ("http://h/{x}", "%7B"),
            ("http://h/a}}", "%7D"),
            ("http://h/{{ tenant }}", "write `{{ tenant | path }}`"),
            ("http://h/{{ tenant | query }}", "write `{{ tenant | path }}`"),
            ("http://h/?{{ tenant | path }}", "write `{{ tenant | query }}`"),
            ("http://h/?{{ tenant | json }}", "write `{{ tenant | query }}`"),
            ("http://h?{{ payload.a[\"b c\"] }}", "write `{{ payload.a[\"b c\"] | query }}`"),
            (
                "http://h/{{ tennant | path }}",
                "unknown name `tennant`; known are `payload`, `request_id`, `callback_url`, `ticket`, `tenant`",
            ),
            ("http://h/{{ }}", "one of `payload`"),
            ("http://h/{{ tenant | path", "`}}`"),
            ("http://h/{{ tenant.x | path }}", "no parts"),
            ("http://h/{{ payload. | path }}", "payload.key"),
            ("http://h/{{ payload[x] | path }}", "payload.key"),
            ("http://h/{{ payload[0 | path }}", "payload.key"),
            ("http://h/{{ payload[null] | path }}", "payload.key"),
            ("http://h/{{ tenant | path | path }}", "`}}`"),
            ("http://h/{{ tenant | path }}/{{ tennant | path }}", "(in expression 2)"),
        ] {
            let error = Template::url(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(Template::url(&format!("http://h/{}", "a".repeat(MAX_TARGET))).is_err());
        assert!(Template::url("http://h/...?a=../..").is_ok());
    }

    #[test]
    fn a_body_takes_values_as_they_came() {
        let text = r#"{"ref": {{ request_id | json }}, "who": {{ payload.who | json }}, "notify": {{callback_url|json}}, "t": {{ ticket | json }}}"#;
        let rendered = body(text, r#"{"who": {"n": 1.10, "a": 1e400, "a": null, "s": "\u0061"}}"#);
        assert_eq!(
            rendered,
            r#"{"ref": "0192-id", "who": {"n": 1.10, "a": 1e400, "a": null, "s": "\u0061"}, "notify": "http://us/hook?a=\"b\"", "t": null}"#
        );
        assert_eq!(body("{{ payload.missing | json }}", "{}"), "null");
        assert_eq!(body(r#"{"a":"literal \" {x}}"}"#, "{}"), r#"{"a":"literal \" {x}}"}"#);
        assert_eq!(body(r#"[{{ payload[1] | json }}]"#, "[1, 2.00 ]"), "[2.00]");
        assert_eq!(body(r#"["a",{{ payload[1].b | json }},"c\\"]"#, r#"[1,{"b":"\"}}"}]"#), r#"["a","\"}}","c\\"]"#);
        assert_eq!(Template::body("1").unwrap().origin(), None);
    }

    #[test]
    fn a_body_that_could_break_is_refused() {
        for (bad, why) in [
            (r#"{"a": "{{ tenant | json }}"}"#, "inside a JSON string"),
            (r#"{"a": "\"{{ tenant | json }}"}"#, "inside a JSON string"),
            (r#"{"a": {{ tenant }}}"#, "write `{{ tenant | json }}`"),
            (r#"{"a": {{ tenant | query }}}"#, "write `{{ tenant | json }}`"),
            (r#"{"a": {{ tenant | json }}"#, "line 1"),
            (r#"{ {{ tenant | json }}: 1}"#, "line 1"),
            ("{{ tenant | json }}{{ tenant | json }}", "line 1"),
            ("-{{ payload | json }}", "line 1"),
            ("{{ payload | json }}5", "line 1"),
            ("", "line 1"),
            (r#"{"a": {{ nope | json }}}"#, "unknown name `nope`"),
            (r#"{"a": "{{"}"#, "one of"),
        ] {
            let error = Template::body(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_template_knows_what_it_uses() {
        let template = Template::body("[{{ payload.callback_url | json }}, {{ ticket | json }}]").unwrap();
        assert_eq!(Name::ALL.map(|name| template.uses(name)), [true, false, false, true, false]);
    }

    #[test]
    fn secrets_in_literals_are_not_shown() {
        let template = Template::url("https://h/s3cret/{{ payload[\"a b\"].c | path }}?key=s3cret").unwrap();
        assert_eq!(format!("{template:?}"), r#"Template(["payload[\"a b\"].c | path"])"#);
        for bad in [
            "https://h/s3cret/{{ x }}",
            "https://h/s3cret {{ tenant | path }}",
            "https://u:s3cret@h/",
            "https://s3cret{/",
            "s3cret",
        ] {
            assert!(!Template::url(bad).unwrap_err().to_string().contains("s3cret"), "{bad}");
        }
        assert!(!Template::body(r#"{"k": "s3cret", {{ tenant | json }}}"#).unwrap_err().to_string().contains("s3cret"));
    }

    proptest! {
        #[test]
        fn a_value_stays_one_segment_and_reads_back(value: String, other: String) {
            let template = Template::url("https://h/v1/{{ payload.a | path }}/x?q={{ payload.b | query }}&r=1").unwrap();
            let payload = serde_json::json!({"a": value, "b": other}).to_string();
            let Ok(target) = template.render(&scope(&payload)) else {
                prop_assert!(matches!(&*value, "" | "." | ".."));
                return Ok(());
            };
            prop_assert!(target.bytes().all(|b| b.is_ascii_graphic()));
            let parsed: PathAndQuery = target.parse().unwrap();
            let segments: Vec<_> = parsed.path().split('/').collect();
            prop_assert_eq!(segments.len(), 4);
            prop_assert_eq!(percent_decode_str(segments[2]).decode_utf8().unwrap(), value.as_str());
            let query = parsed.query().unwrap().strip_prefix("q=").unwrap().strip_suffix("&r=1").unwrap();
            prop_assert_eq!(percent_decode_str(query).decode_utf8().unwrap(), other.as_str());
            // A strict reader sees the same path: nothing in it is a dot segment, a second host or a fragment.
            let read = Url::parse(&format!("https://h{target}")).unwrap();
            prop_assert_eq!((read.host_str(), read.path()), (Some("h"), parsed.path()));
        }

        #[test]
        fn what_is_accepted_can_be_sent(text in "http://[a-z:0-9]{0,4}([/?&=.%2eE]|\\[|\\]|[ -~]|\\{\\{ (payload|tenant) \\| (path|query) }}){0,12}", payload in "[ -~&&[^\"\\\\]]{0,8}") {
            let Ok(template) = Template::url(&text) else { return Ok(()) };
            let Ok(target) = template.render(&scope(&format!("\"{payload}\""))) else { return Ok(()) };
            prop_assert!(target.starts_with('/'));
            let parsed: PathAndQuery = target.parse().unwrap();
            prop_assert_eq!(parsed.as_str(), target.as_str());
            if !target.starts_with("//") {
                let read = template.origin().unwrap().join(&target).unwrap();
                prop_assert_eq!(read.path(), target.split('?').next().unwrap());
            }
        }

        #[test]
        fn a_payload_survives_a_body_to_the_letter(doc in documents()) {
            let payload = json::check(doc.as_bytes()).unwrap();
            prop_assert_eq!(body("{{ payload | json }}", &doc), payload.get());
            let wrapped = format!("{{\"in\": [{doc}]}}");
            let rendered = body(r#"{"a":{{ payload.in[0] | json }},"b":{{ payload.in.0 | json }}}"#, &wrapped);
            prop_assert_eq!(&rendered, &format!(r#"{{"a":{},"b":{}}}"#, payload.get(), payload.get()));
            prop_assert!(json::check(rendered.as_bytes()).is_ok());
        }

        #[test]
        fn a_body_is_json_whatever_the_job_brings(text in "([\\[\\]{}:,\"\\\\ 1a-]|\\{\\{ payload(\\.a)? \\| json }}){0,10}", doc in documents()) {
            let Ok(template) = Template::body(&text) else { return Ok(()) };
            prop_assert!(json::check(template.render(&scope(&doc)).unwrap().as_bytes()).is_ok());
        }

        #[test]
        fn an_expression_is_shown_as_it_can_be_written(keys in prop::collection::vec("[a-z0-9]{0,3}|\\PC{0,3}", 0..4)) {
            let shown = Expr { name: Name::Payload, at: Pointer::from_keys(keys.clone()) }.to_string();
            let template = Template::body(&format!("{{{{ {shown} | json }}}}")).unwrap();
            let (expr, _) = template.expressions().next().unwrap();
            prop_assert_eq!(&expr.at, &Pointer::from_keys(keys));
        }

        #[test]
        fn no_text_panics(text in "(\\PC|[{}|\"\\[\\] .]|payload|json){0,12}") {
            let _ = Template::url(&text);
            let _ = Template::url(&format!("http://h/{text}"));
            let _ = Template::body(&text);
            let _ = Template::body(&format!("{{{{{text}"));
        }
    }
}
