//! JSON documents made at random, for the tests of everything that works on JSON as text, and the tests of this module.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn raw(text: &str) -> &RawValue {
    check(text.as_bytes()).unwrap()
}

fn find<'a>(pointer: &str, doc: &'a str) -> Option<&'a str> {
    Pointer::parse(pointer).unwrap().find(raw(doc)).map(RawValue::get)
}

/// Valid JSON as text, with odd numbers, escapes, empty keys and (unless told otherwise) duplicates.
pub(crate) fn documents() -> impl Strategy<Value = String> {
    let space = prop::sample::select(vec!["", "", "", " ", "\n", "\t \r\n"]);
    let string = prop::sample::select(vec![
        r#""""#,
        r#""a""#,
        r#""b""#,
        r#""0""#,
        r#""1""#,
        r#""a/b""#,
        r#""m~n""#,
        r#"" a ""#,
        r#""\n\\n""#,
        r#""\" ""#,
        r#""[{\\""#,
        r#""\u0061""#,
        r#""\ud83d\ude00""#,
        r#""\ud83d""#,
        r#""é 漢\u00a0""#,
        r#""{{ payload }}""#,
        "\"\u{3000}x\"",
    ]);
    let number = prop::sample::select(vec![
        "0",
        "-0",
        "1.10",
        "1e400",
        "-1E-400",
        "123456789012345678901234567890",
        "0.1000",
        "1E+2",
        "17",
    ]);
    let word = prop::sample::select(vec!["null", "null", "true", "false"]);
    let leaf = prop_oneof![string.clone(), number, word].prop_map(str::to_owned);
    leaf.prop_recursive(6, 60, 5, move |inner| {
        let member = (string.clone(), space.clone(), inner.clone(), space.clone())
            .prop_map(|(key, s, value, t)| format!("{t}{key}{s}:{t}{value}{s}"));
        let element = (space.clone(), inner, space.clone()).prop_map(|(s, value, t)| format!("{s}{value}{t}"));
        prop_oneof![
            prop::collection::vec(member, 0..5).prop_map(|items| format!("{{{}}}", items.join(","))),
            prop::collection::vec(element, 0..5).prop_map(|items| format!("[{}]", items.join(","))),
        ]
    })
}

/// Without whitespace between the parts, by the plainest means.
pub(crate) fn squeezed(doc: &str) -> String {
    let mut out = String::new();
    let (mut in_string, mut escaped) = (false, false);
    for c in doc.chars() {
        if !in_string && c.is_ascii_whitespace() {
            continue;
        }
        out.push(c);
        in_string = if in_string { escaped || c != '"' } else { c == '"' };
        escaped = in_string && !escaped && c == '\\';
    }
    out
}

/// Every place in a document, as pointers made by hand, with the text there.
fn places(doc: &RawValue, here: String, out: &mut Vec<(String, String)>) {
    for (key, value) in members(doc).unwrap_or_default() {
        places(value, format!("{here}/{}", key.replace('~', "~0").replace('/', "~1")), out);
    }
    for (i, value) in elements(doc).unwrap_or_default().into_iter().enumerate() {
        places(value, format!("{here}/{i}"), out);
    }
    out.push((here, doc.get().to_owned()));
}

fn has_duplicates(doc: &RawValue) -> bool {
    let members = members(doc).unwrap_or_default();
    let mut keys: Vec<_> = members.iter().map(|(key, _)| key.clone()).collect();
    keys.sort();
    keys.windows(2).any(|pair| pair[0] == pair[1])
        || members.iter().any(|(_, value)| has_duplicates(value))
        || elements(doc).unwrap_or_default().into_iter().any(has_duplicates)
}

#[test]
fn the_text_comes_back_as_it_was_written() {
    let doc = r#"{"n":123456789012345678901234567890,"m":1.10,"x":1e400,"a":null,"a" : [ ]}"#;
    assert_eq!(raw(&format!(" \n{doc}\t")).get(), doc);
}

#[test]
fn what_is_not_json_is_said_with_its_place() {
    for bad in [
        "",
        " ",
        "{",
        "[1,]",
        "{\"a\":1,}",
        "01",
        "1.",
        "+1",
        "nul",
        "\"a",
        "\"\n\"",
        "\"\\x\"",
        "1 2",
        "]",
        "NaN",
        "'a'",
    ] {
        let Err(JsonFault::Malformed(why)) = check(bad.as_bytes()) else { panic!("{bad:?}") };
        assert!(why.contains("line") && why.contains("column"), "{why}");
    }
    for bad in [&b"\"\xff\""[..], b"\"\xed\xa0\x80\"", b"\xef\xbb\xbf1", b"1\xff", b"\"\xc3"] {
        assert!(matches!(check(bad), Err(JsonFault::Malformed(_))), "{bad:?}");
    }
}

#[test]
fn depth_ends_at_128() {
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert!(check(nested(128).as_bytes()).is_ok());
    assert!(matches!(check(nested(129).as_bytes()), Err(JsonFault::TooDeep)));
    assert!(matches!(check("[".repeat(1_000_000).as_bytes()), Err(JsonFault::TooDeep)));
    assert!(matches!(check("{\"a\":".repeat(129).as_bytes()), Err(JsonFault::TooDeep)));
    // Brackets in strings and beside each other are not depth.
    assert!(check(format!("\"{}\\\"{}\"", "[".repeat(200), "{".repeat(200)).as_bytes()).is_ok());
    assert!(check(format!("[{}[]]", "[],".repeat(1000)).as_bytes()).is_ok());
    assert_eq!(JsonFault::TooDeep.to_string(), "nested more than 128 levels deep");
}

#[test]
fn pointers_find_what_rfc_6901_says() {
    let doc = r#"{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8}"#;
    let expected = [
        ("", doc),
        ("/foo", r#"["bar", "baz"]"#),
        ("/foo/0", r#""bar""#),
        ("/", "0"),
        ("/a~1b", "1"),
        ("/c%d", "2"),
        ("/e^f", "3"),
        ("/g|h", "4"),
        ("/i\\j", "5"),
        ("/k\"l", "6"),
        ("/ ", "7"),
        ("/m~0n", "8"),
    ];
    for (pointer, value) in expected {
        assert_eq!(find(pointer, doc), Some(value), "{pointer}");
        assert_eq!(Pointer::parse(pointer).unwrap().to_string(), pointer);
    }
    for missing in [
        "/foo/2",
        "/foo/00",
        "/foo/01",
        "/foo/-",
        "/foo/+1",
        "/foo/",
        "/foo/99999999999999999999999",
        "/foo/0/0",
        "/x",
        "//x",
        "/a",
    ] {
        assert_eq!(find(missing, doc), None, "{missing}");
    }
}

#[test]
fn pointers_are_written_with_a_slash_and_right_escapes() {
    for bad in ["a", "a/b", "/~", "/a~2", "/~~0", "/é~é", " /a"] {
        assert!(Pointer::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(Pointer::parse("/~01"), Ok(Pointer::from_keys(["~1"])));
    assert_eq!(Pointer::from_keys(["a/b", "~"]).to_string(), "/a~1b/~0");
}

#[test]
fn of_equal_keys_the_last_one_counts() {
    assert_eq!(find("/a", r#"{"a":1,"\u0061":2.0,"b":3}"#), Some("2.0"));
    assert_eq!(find("/a/b", r#"{"a":{"b":1},"a":{}}"#), None);
    let doc = raw(r#"{"a":1,"b":2,"a":3}"#);
    let all: Vec<_> = members(doc).unwrap().into_iter().map(|(key, value)| (key.into_owned(), value.get())).collect();
    assert_eq!(all, [("a".to_owned(), "1"), ("b".to_owned(), "2"), ("a".to_owned(), "3")]);
}

#[test]
fn half_a_surrogate_pair_hides_nothing() {
    let doc = r#"{"\ud800":1,"a":"x\udc00\u00e9\n","b":[2]}"#;
    assert_eq!(find("/b/0", doc), Some("2"));
    assert_eq!(find("/\u{fffd}", doc), Some("1"));
    assert_eq!(text(raw(find("/a", doc).unwrap())), "x\u{fffd}é\n");
    assert_eq!(text(raw(r#""\ud800 \"\\\/\b\f\n\r\t\ud83d\ude00 漢""#)), "\u{fffd} \"\\/\u{8}\u{c}\n\r\t😀 漢");
    assert_eq!(members(raw(doc)).unwrap().len(), 3);
}

#[test]
fn text_is_a_strings_content_or_the_json_itself() {
    for (json, expected) in [
        (r#""a\nb""#, "a\nb"),
        (r#""""#, ""),
        ("1.10", "1.10"),
        ("1e400", "1e400"),
        ("null", "null"),
        ("[ 1 ]", "[ 1 ]"),
    ] {
        assert_eq!(text(raw(json)), expected);
    }
    assert!(members(raw("[]")).is_none());
    assert!(elements(raw("{}")).is_none());
    assert!(elements(raw("\"[]\"")).is_none());
}

proptest! {
    #[test]
    fn the_depth_scan_agrees_with_a_naive_one(doc in documents(), max in 0..8_usize) {
        fn naive(doc: &RawValue) -> usize {
            let inner = members(doc).map(|m| m.into_iter().map(|(_, value)| value).collect()).or_else(|| elements(doc));
            inner.map_or(0, |inner: Vec<_>| 1 + inner.into_iter().map(naive).max().unwrap_or(0))
        }
        prop_assert_eq!(depth_exceeds(doc.as_bytes(), max), naive(raw(&doc)) > max);
    }

    #[test]
    fn check_says_what_serde_json_says(bytes in prop::collection::vec(prop::sample::select(b"[]{},:\"\\ \n01.-eEntrufalsu\xc3\xa9\x00".to_vec()), 0..40)) {
        prop_assert_eq!(check(&bytes).ok().map(RawValue::get), serde_json::from_slice::<&RawValue>(&bytes).ok().map(RawValue::get));
    }

    #[test]
    fn every_place_is_found_to_the_letter(doc in documents()) {
        let root = raw(&doc);
        let mut all = Vec::new();
        places(root, String::new(), &mut all);
        for (at, value) in &all {
            let found = Pointer::parse(at).unwrap().find(root).map(RawValue::get);
            if has_duplicates(root) {
                prop_assert!(found.is_none_or(|found| doc.contains(found)));
            } else {
                prop_assert_eq!(found, Some(value.as_str()));
            }
        }
    }

    #[test]
    fn find_agrees_with_a_tree(doc in documents(), steps in prop::collection::vec("[ab01]|m~0n|a~1b|[ -~]{0,3}", 0..4)) {
        // Trees keep the last of equal keys, too. They cannot hold 1e400 or half a surrogate pair.
        let Ok(tree) = serde_json::from_str::<Value>(&doc) else { return Ok(()) };
        let at = steps.iter().map(|step| format!("/{step}")).collect::<String>();
        let Ok(pointer) = Pointer::parse(&at) else { return Ok(()) };
        let found = pointer.find(raw(&doc)).map(|found| serde_json::from_str::<Value>(found.get()).unwrap());
        prop_assert_eq!(found.as_ref(), tree.pointer(&at));
        prop_assert_eq!(pointer.to_string(), at);
    }

    #[test]
    fn members_and_elements_lose_nothing(doc in documents()) {
        let root = raw(&doc);
        if let Some(elements) = elements(root) {
            let all: Vec<_> = elements.iter().map(|e| squeezed(e.get())).collect();
            prop_assert_eq!(format!("[{}]", all.join(",")), squeezed(&doc));
        }
        if let Some(members) = members(root) {
            let values: String = members.iter().map(|(_, value)| squeezed(value.get())).collect();
            prop_assert!(values.len() <= squeezed(&doc).len());
        }
    }

    #[test]
    fn text_decodes_like_serde_json(s: String) {
        let json = serde_json::to_string(&s).unwrap();
        prop_assert_eq!(text(raw(&json)), s.as_str());
        prop_assert_eq!(decode_lossy(&json[1..json.len() - 1]), s);
    }

    #[test]
    fn nothing_panics(bytes: Vec<u8>, pointer: String) {
        let _ = check(&bytes);
        let _ = depth_exceeds(&bytes, 1);
        let _ = Pointer::parse(&pointer).map(|p| p.find(raw("{\"a\":[1]}")).is_some());
    }
}
