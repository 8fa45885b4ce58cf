//! What templates accept, refuse and render.

use hyper::http::uri::PathAndQuery;
use percent_encoding::percent_decode_str;
use proptest::prelude::*;

use super::*;
use crate::json::{Pointer, tests::documents};

fn scope(payload: &str) -> Scope<'_> {
    let payload = json::check(payload.as_bytes()).unwrap();
    let (request_id, callback_url) = ("0192-id", Some("http://us/hook?a=\"b\""));
    Scope { request_id, payload, callback_url, ticket: None, tenant: "acme & co" }
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
        Template::url("https://api.example:8443/v2/{{ payload.region | path }}/r?t={{tenant|query}}&x[]=%20").unwrap();
    assert_eq!(template.origin().unwrap().as_str(), "https://api.example:8443/");
    assert_eq!(
        template.render(&scope(r#"{"region":"eu/1 é?#%\r\n"}"#)).unwrap(),
        "/v2/eu%2F1%20%C3%A9%3F%23%25%0D%0A/r?t=acme%20%26%20co&x[]=%20"
    );
    assert_eq!(url("http://h", "1").unwrap(), "/");
    assert_eq!(url("http://h?a={{ payload | query }}", "1.10").unwrap(), "/?a=1.10");
    assert_eq!(url("http://[::1]:9000/{{ request_id | path }}", "1").unwrap(), "/0192-id");
    assert_eq!(url("http://h/{{ payload.a[0][\"b c]}}\"] | path }}", r#"{"a":[{"b c]}}":true}]}"#).unwrap(), "/true");
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
    let of = |letters| url("http://h/{{ payload | path }}", &format!("\"{}\"", "a".repeat(letters)));
    let too_long = "makes the URL too long: path and query may have 8192 bytes";
    assert_eq!(of(MAX_TARGET).unwrap_err().detail, too_long);
    assert_eq!(of(MAX_TARGET - 1).unwrap().len(), MAX_TARGET);
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
    assert_eq!(format!("{template:?}"), r#"Template(["{{ payload[\"a b\"].c | path }}"])"#);
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

#[test]
fn a_path_of_several_segments_keeps_its_slashes_and_leads_nowhere_else() {
    let target = |value: &str| {
        url("http://h/v1/{{ payload | path_all }}/x?a={{ payload | query }}", &serde_json::json!(value).to_string())
    };
    assert_eq!(
        target("projects/1/operations/a b").unwrap(),
        "/v1/projects/1/operations/a%20b/x?a=projects%2F1%2Foperations%2Fa%20b"
    );
    assert_eq!(target("/jobs/7").unwrap(), "/v1/jobs/7/x?a=%2Fjobs%2F7");
    assert_eq!(target("...").unwrap(), "/v1/.../x?a=...");
    for bad in
        ["", "/", "..", ".", "a/..", "../a", "a/./b", "a//b", "a/", "%2e%2e", "a/%2E./b", "a%2F..%2Fb", "a\\..\\b"]
    {
        let error = target(bad).unwrap_err();
        assert!(error.pointer == "/payload" && error.detail.contains("no segment"), "{bad}: {error}");
    }
}

#[test]
fn a_header_takes_what_stays_in_its_line() {
    let header = |payload: &str| {
        Template::header("a {{ payload | header }};{{tenant | header}}").unwrap().render(&scope(payload))
    };
    assert_eq!(header(r#""b \"c\"""#).unwrap(), "a b \"c\";acme & co");
    assert_eq!(header("1.10").unwrap(), "a 1.10;acme & co");
    for bad in [r#""a\r\nb: c""#, r#""\n""#, r#""\u0000""#, r#""\t""#, r#""é""#, r#""\u007f""#] {
        let error = header(bad).unwrap_err();
        assert!(error.pointer == "/payload" && error.detail.contains("visible ASCII"), "{bad}: {error}");
    }
    assert!(header(&format!("\"{}\"", "a".repeat(5000))).unwrap_err().detail.contains("4096 bytes"));
    for (bad, why) in [
        ("{{ tenant }}", "needs a filter: write `{{ tenant | header }}`"),
        ("{{ tenant | json }}", "does not fit here"),
        ("a\nb", "visible ASCII"),
        ("é{{ tenant | header }}", "visible ASCII"),
    ] {
        let error = Template::header(bad).unwrap_err().to_string();
        assert!(error.contains(why), "{bad}: {error}");
    }
}

#[test]
fn a_forms_field_has_no_value_one_or_several() {
    let field = |text: &str, payload: &str| Template::field(text).unwrap().render_field(&scope(payload));
    for (payload, values) in [
        ("{}", &[][..]),
        (r#"{"a": null}"#, &[]),
        (r#"{"a": []}"#, &[]),
        (r#"{"a": ""}"#, &[""]),
        (r#"{"a": 1.10}"#, &["1.10"]),
        (r#"{"a": ["x", 2, true]}"#, &["x", "2", "true"]),
    ] {
        assert_eq!(field("{{ payload.a }}", payload).unwrap(), values, "{payload}");
    }
    assert_eq!(field("Hi {{ payload.a }}!", r#"{"a": "B & C"}"#).unwrap(), ["Hi B & C!"]);
    assert_eq!(field("", "{}").unwrap(), [""]);
    assert_eq!(field("{{ ticket }}", "{}").unwrap(), [""; 0]);
    for (text, payload, why) in [
        ("Hi {{ payload.a }}!", "{}", "is missing"),
        ("Hi {{ payload.a }}!", r#"{"a": null}"#, "not null"),
        ("Hi {{ payload.a }}!", r#"{"a": [1]}"#, "not an array"),
        ("{{ payload.a }}", r#"{"a": {}}"#, "not an object"),
        ("{{ payload.a }}", r#"{"a": [null]}"#, "not null"),
        ("{{ payload.a }}", r#"{"a": [[1]]}"#, "not an array"),
    ] {
        let error = field(text, payload).unwrap_err();
        assert!(error.pointer == "/payload/a" && error.detail.contains(why), "{text} {payload}: {error}");
    }
    assert!(
        Template::field("{{ tenant | query }}")
            .unwrap_err()
            .to_string()
            .contains("takes no filter: write `{{ tenant }}`")
    );
}

#[test]
fn a_text_takes_the_filters_that_fit_its_type() {
    let text =
        |text: &str, kind: &str| Template::text(text, kind).map(|text| text.render(&scope(r#""<a \"b\">""#)).unwrap());
    for (template, kind, rendered) in [
        (
            "<q a='{{ payload | xml }}'>{{ payload | xml }}</q>",
            "text/xml",
            "<q a='&lt;a &quot;b&quot;&gt;'>&lt;a &quot;b&quot;&gt;</q>",
        ),
        ("<q>{{ payload | query }}</q>", "application/soap+xml", "<q>%3Ca%20%22b%22%3E</q>"),
        ("{\"a\": {{ payload | json }}}\n", "application/x-ndjson", "{\"a\": \"<a \\\"b\\\">\"}\n"),
        ("{{ payload }}, {{ payload | json }}", "text/plain", "<a \"b\">, \"<a \\\"b\\\">\""),
        ("{{ payload | query }}", "text/csv", "%3Ca%20%22b%22%3E"),
    ] {
        assert_eq!(text(template, kind).unwrap(), rendered, "{template}");
    }
    for (template, kind, why) in [
        ("<q>{{ payload }}</q>", "text/xml", "write `{{ payload | xml }}` or `{{ payload | query }}`"),
        ("<q>{{ payload | json }}</q>", "application/xml", "does not fit here"),
        ("<q {{ payload | xml }}/>", "text/xml", "stands inside of a tag"),
        ("<{{ payload | xml }}/>", "text/xml", "stands inside of a tag"),
        ("<!-- {{ payload | xml }} -->", "text/xml", "a comment"),
        ("<![CDATA[{{ payload | xml }}]]>", "text/xml", "CDATA"),
        ("<q a=\"{{ payload | xml }}>", "text/xml", "ends inside"),
        ("{\"a\": \"{{ payload | json }}\"}", "application/x-ndjson", "inside a JSON string"),
        ("{{ payload }}", "text/csv", "needs a filter"),
    ] {
        let error = text(template, kind).unwrap_err().to_string();
        assert!(error.contains(why), "{template}: {error}");
    }
    let control =
        Template::text("{{ payload | xml }}", "text/xml").unwrap().render(&scope(r#""a\u0001""#)).unwrap_err();
    assert_eq!((&*control.pointer, &*control.detail), ("/payload", "has the character U+0001, which XML cannot carry"));
}

#[test]
fn what_is_rendered_is_bounded() {
    let payload = format!("\"{}\"", "&".repeat(2 << 20));
    let error = Template::text("{{ payload | xml }}", "text/xml").unwrap().render(&scope(&payload)).unwrap_err();
    assert!(error.pointer == "/payload" && error.detail.contains("8 MiB"), "{error}");
    let five = Template::body("[{{payload|json}},{{payload|json}},{{payload|json}},{{payload|json}},1]").unwrap();
    assert!(five.render(&scope(&payload)).unwrap_err().detail.contains("8 MiB"));
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
    fn a_value_of_several_segments_stays_below_its_path(value in "([a-z/.%2eE]|\\PC){0,8}") {
        let template = Template::url("https://h/v1/{{ payload | path_all }}/x").unwrap();
        let Ok(target) = template.render(&scope(&serde_json::json!(value).to_string())) else { return Ok(()) };
        let read = Url::parse(&format!("https://h{target}")).unwrap();
        prop_assert_eq!((read.host_str(), read.path()), (Some("h"), &*target));
        prop_assert!(target.starts_with("/v1/") && target.ends_with("/x"));
        let decoded = percent_decode_str(&target).decode_utf8().unwrap();
        let path = decoded.strip_prefix("/v1/").unwrap().strip_suffix("/x").unwrap();
        prop_assert_eq!(path, value.strip_prefix('/').unwrap_or(&value));
    }

    #[test]
    fn an_xml_text_has_the_same_tags_whatever_the_job_brings(value: String) {
        let template = Template::text("<q a=\"{{ payload | xml }}\">{{ payload | xml }}</q>", "text/xml").unwrap();
        let Ok(text) = template.render(&scope(&serde_json::json!(value).to_string())) else { return Ok(()) };
        let count = |c| text.matches(c).count();
        prop_assert_eq!((count('<'), count('>'), count('"'), count('\'')), (2, 2, 2, 0));
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
