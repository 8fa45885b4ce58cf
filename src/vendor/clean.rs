//! Tidies a vendor's data before it is kept: trims strings, drops nulls, redacts what must not be stored.
//!
//! Works on the text and touches nothing else: numbers, escapes, the order of keys and duplicates stay as they were written.
//! Only whitespace between the parts is lost.

use serde_json::value::RawValue;

use crate::json::{self, Pointer};

const REDACTED: &str = r#""[redacted]""#;

/// What to tidy. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clean {
    /// Takes whitespace (Unicode's, escaped or not) off both ends of string values. Keys stay.
    pub trim: bool,
    /// Drops object members that are null. In arrays nulls stay, because the others would move up.
    pub drop_null: bool,
    /// Puts `"[redacted]"` in place of these values, nulls included. Of members with the same key all are redacted.
    pub redact: Vec<Pointer>,
}

impl Clean {
    /// Nothing to do: callers can keep the bytes they have.
    pub fn is_noop(&self) -> bool {
        !self.trim && !self.drop_null && self.redact.is_empty()
    }

    /// The tidied text. One pass, whose cost grows with the length of the document and the number of pointers.
    pub fn apply(&self, doc: &RawValue) -> String {
        let mut rewrite = Rewrite {
            clean: self,
            rest: Rest(doc.get()),
            out: String::with_capacity(doc.get().len()),
            open: Vec::new(),
            matched: vec![0; self.redact.len()],
        };
        rewrite.run();
        rewrite.out
    }
}

struct Rewrite<'a> {
    clean: &'a Clean,
    rest: Rest<'a>,
    out: String,
    /// The objects and arrays around the place we are at, outermost first.
    open: Vec<Open>,
    /// For each pointer, how many of its steps the place we are at has taken. May lag behind for what has been closed.
    matched: Vec<usize>,
}

struct Open {
    /// The next element's index; `None` in an object.
    index: Option<usize>,
    /// Something has been written here, so that the next one needs a comma.
    has_items: bool,
    /// A pointer leads into this.
    is_watched: bool,
}

impl<'a> Rewrite<'a> {
    fn run(&mut self) {
        let is_whole_redacted = self.clean.redact.iter().any(|pointer| pointer.steps().is_empty());
        self.value(is_whole_redacted);
        while let Some(open) = self.open.last() {
            let is_object = open.index.is_none();
            match self.rest.peek() {
                b']' | b'}' => {
                    self.out.push_str(self.rest.take(1));
                    self.open.pop();
                }
                b',' => _ = self.rest.take(1),
                _ if is_object => self.member(),
                _ => self.element(),
            }
        }
    }

    fn member(&mut self) {
        let key = self.rest.string();
        self.rest.peek();
        self.rest.take(1); // the colon
        let is_redacted = self.step(|step| step.key == json::decode(key));
        if self.clean.drop_null && !is_redacted && self.rest.peek() == b'n' {
            self.rest.scalar();
            return;
        }
        self.comma();
        self.out.push_str(key);
        self.out.push(':');
        self.value(is_redacted);
    }

    fn element(&mut self) {
        let index = self.open.last_mut().and_then(|open| open.index.replace(open.index? + 1));
        let is_redacted = self.step(|step| step.index == index);
        self.comma();
        self.value(is_redacted);
    }

    /// Steps into the next item of the innermost object or array; `true` when a pointer ends there.
    fn step(&mut self, fits: impl Fn(&json::Step) -> bool) -> bool {
        let Some(depth) = self.open.len().checked_sub(1) else { return false };
        if !self.open[depth].is_watched {
            return false;
        }
        let mut is_end = false;
        for (matched, pointer) in self.matched.iter_mut().zip(&self.clean.redact) {
            *matched = (*matched).min(depth); // we may have come back up
            if *matched == depth && pointer.steps().get(depth).is_some_and(&fits) {
                *matched += 1;
                is_end |= pointer.steps().len() == *matched;
            }
        }
        is_end
    }

    fn comma(&mut self) {
        if let Some(open) = self.open.last_mut() {
            if open.has_items {
                self.out.push(',');
            }
            open.has_items = true;
        }
    }

    /// Writes a value, or for an object or array its beginning: the loop writes the rest.
    fn value(&mut self, is_redacted: bool) {
        if is_redacted {
            self.rest.value();
            self.out.push_str(REDACTED);
            return;
        }
        match self.rest.peek() {
            bracket @ (b'{' | b'[') => {
                self.out.push_str(self.rest.take(1));
                let depth = self.open.len();
                let is_watched = self.matched.contains(&depth);
                let index = (bracket == b'[').then_some(0);
                self.open.push(Open { index, has_items: false, is_watched });
            }
            b'"' if self.clean.trim => {
                let string = self.rest.string();
                self.out.push('"');
                self.out.push_str(trimmed(&string[1..string.len() - 1]));
                self.out.push('"');
            }
            b'"' => self.out.push_str(self.rest.string()),
            _ => self.out.push_str(self.rest.scalar()),
        }
    }
}

/// The inside of a JSON string without whitespace at its ends; what is left keeps its escapes.
fn trimmed(inside: &str) -> &str {
    if !inside.contains('\\') {
        return inside.trim();
    }
    // Forwards only: read from the back, the `n` of an escaped newline looks like any other.
    let (mut at, mut start, mut end) = (0, None, 0);
    while let Some((unit, length)) = json::unit(&inside[at..]) {
        if !unit.is_whitespace() {
            start.get_or_insert(at);
            end = at + length;
        }
        at += length;
    }
    &inside[start.unwrap_or(end)..end]
}

/// What has not been read yet of a valid document. Takes its parts off the front.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    /// Skips whitespace; the byte behind it, zero at the end.
    fn peek(&mut self) -> u8 {
        self.0 = self.0.trim_ascii_start();
        self.0.as_bytes().first().copied().unwrap_or(0)
    }

    /// The string that comes next, with its quotes.
    fn string(&mut self) -> &'a str {
        self.take(string_length(self.0.as_bytes()))
    }

    /// The number or word that comes next.
    fn scalar(&mut self) -> &'a str {
        let is_end = |b: u8| matches!(b, b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r');
        self.take(self.0.bytes().position(is_end).unwrap_or(self.0.len()))
    }

    /// Skips the value that comes next, of any kind.
    fn value(&mut self) {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                b'"' => _ = self.string(),
                b'[' | b'{' => {
                    self.take(1);
                    depth += 1;
                }
                b']' | b'}' => {
                    self.take(1);
                    depth -= 1;
                }
                b',' | b':' => _ = self.take(1),
                _ => _ = self.scalar(),
            }
            if depth == 0 {
                return;
            }
        }
    }
}

/// From the opening quote to the closing one.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::json::tests::{documents, squeezed};

    fn apply(clean: &Clean, doc: &str) -> String {
        clean.apply(json::check(doc.as_bytes()).unwrap())
    }

    fn trim() -> Clean {
        Clean { trim: true, ..Clean::default() }
    }

    fn drop_null() -> Clean {
        Clean { drop_null: true, ..Clean::default() }
    }

    fn redact(pointers: &[&str]) -> Clean {
        Clean { redact: pointers.iter().map(|p| Pointer::parse(p).unwrap()).collect(), ..Clean::default() }
    }

    #[test]
    fn numbers_order_duplicates_and_escapes_stay() {
        let doc = r#"{"z":1.10,"a":123456789012345678901234567890,"z":1e400,"s":"\u0061\/ \ud800"}"#;
        for clean in [Clean::default(), trim(), drop_null(), redact(&["/b"])] {
            assert_eq!(apply(&clean, &format!(" {} ", doc.replace(',', " ,\n "))), doc);
        }
    }

    #[test]
    fn trim_takes_whitespace_off_values_however_it_is_written() {
        for (from, to) in [
            (r#"" a b ""#, r#""a b""#),
            (r#""   ""#, r#""""#),
            (r#""""#, r#""""#),
            (r#""\n\t a\u0020\u00A0\r""#, r#""a""#),
            (r#"" \\n ""#, r#""\\n""#),
            (r#""\\\n""#, r#""\\""#),
            (r#""\n""#, r#""""#),
            (r#"" \" ""#, r#""\"""#),
            ("\"\u{3000}x\u{2003}\"", r#""x""#),
            (r#"" \ud83d\ude00 ""#, r#""\ud83d\ude00""#),
            (r#""\u0085é\\""#, r#""é\\""#),
            (r#"{" k ":[" v "," 1"]}"#, r#"{" k ":["v","1"]}"#),
        ] {
            assert_eq!(apply(&trim(), from), to, "{from}");
        }
    }

    #[test]
    fn drop_null_takes_members_and_leaves_elements() {
        for (from, to) in [
            (r#"{"a":null}"#, "{}"),
            (r#"{"a":null,"b":1,"c":null,"d":{"e": null },"f":null}"#, r#"{"b":1,"d":{}}"#),
            ("[null,1,null]", "[null,1,null]"),
            ("null", "null"),
            (r#"[{"a":null},{}]"#, "[{},{}]"),
            (r#"{"a":"null","b":[null]}"#, r#"{"a":"null","b":[null]}"#),
        ] {
            assert_eq!(apply(&drop_null(), from), to, "{from}");
        }
    }

    #[test]
    fn redact_replaces_what_is_there_and_only_that() {
        let doc = r#"{"ssn":"1","a":{"email":["x",{"y":"]"}],"ssn":2,"":3},"list":[{"ssn":4},{"ssn":5}],"ssn":6}"#;
        for (at, to) in [
            (
                vec!["/ssn"],
                doc.replace(r#""ssn":"1""#, r#""ssn":"[redacted]""#).replace(r#""ssn":6"#, r#""ssn":"[redacted]""#),
            ),
            (vec!["/a/email"], doc.replace(r#"["x",{"y":"]"}]"#, r#""[redacted]""#)),
            (vec!["/a", "/a/email"], r#"{"ssn":"1","a":"[redacted]","list":[{"ssn":4},{"ssn":5}],"ssn":6}"#.to_owned()),
            (vec!["/list/1/ssn", "/list/1"], doc.replace(r#"{"ssn":5}"#, r#""[redacted]""#)),
            (vec!["/list/0/ssn", "/a/"], doc.replace("4", r#""[redacted]""#).replace(r#""":3"#, r#""":"[redacted]""#)),
            (vec!["/nothing", "/a/email/7", "/list/00", "/ssn/x"], doc.to_owned()),
            (vec![""], r#""[redacted]""#.to_owned()),
        ] {
            assert_eq!(apply(&redact(&at), doc), to, "{at:?}");
        }
        assert_eq!(apply(&redact(&["/a"]), r#"{"\u0061":1,"b":{"a":1}}"#), r#"{"\u0061":"[redacted]","b":{"a":1}}"#);
        assert_eq!(
            apply(&redact(&["/a/b"]), r#"{"a":[],"a":{"b":[[]]},"c":{"b":1},"a":{"b":2}}"#),
            r#"{"a":[],"a":{"b":"[redacted]"},"c":{"b":1},"a":{"b":"[redacted]"}}"#
        );
    }

    #[test]
    fn a_null_that_is_redacted_does_not_show_that_it_was_one() {
        let clean = Clean { drop_null: true, ..redact(&["/a"]) };
        assert_eq!(apply(&clean, r#"{"a":null,"b":null}"#), r#"{"a":"[redacted]"}"#);
    }

    #[test]
    fn only_the_default_is_a_noop() {
        assert!(Clean::default().is_noop());
        assert!(!trim().is_noop() && !drop_null().is_noop() && !redact(&[""]).is_noop());
    }

    /// The same on a tree, with what trees can hold.
    fn model(value: Value, at: &str, clean: &Clean, redact: &[String]) -> Value {
        if redact.iter().any(|r| r == at) {
            return Value::from("[redacted]");
        }
        match value {
            Value::String(s) if clean.trim => Value::from(s.trim()),
            Value::Array(items) => items
                .into_iter()
                .enumerate()
                .map(|(i, item)| model(item, &format!("{at}/{i}"), clean, redact))
                .collect(),
            Value::Object(items) => {
                let kept = items.into_iter().map(|(key, item)| {
                    let below = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                    (key, model(item, &below, clean, redact))
                });
                Value::Object(kept.filter(|(_, item)| !(clean.drop_null && item.is_null())).collect())
            }
            other => other,
        }
    }

    proptest! {
        #[test]
        fn nothing_set_changes_only_whitespace(doc in documents()) {
            prop_assert_eq!(apply(&Clean::default(), &doc), squeezed(&doc));
            prop_assert_eq!(apply(&redact(&["/nowhere/at/all"]), &doc), squeezed(&doc));
        }

        #[test]
        fn it_agrees_with_a_tree(doc in documents(), trim: bool, drop_null: bool, at in prop::collection::vec("(/([ab01]|m~0n|a~1b|))(/([ab01]|)){0,2}", 0..4)) {
            // Without numbers and surrogates that trees refuse. Trees also have no duplicates, so only unique keys are compared.
            let Ok(tree) = serde_json::from_str::<Value>(&doc) else { return Ok(()) };
            prop_assume!(doc.matches(':').count() == tree.to_string().matches(':').count());
            let clean = Clean { trim, drop_null, redact: at.iter().map(|p| Pointer::parse(p).unwrap()).collect() };
            let tidied: Value = serde_json::from_str(&apply(&clean, &doc)).unwrap();
            prop_assert_eq!(tidied, model(tree, "", &clean, &at));
        }

        #[test]
        fn it_stays_json_and_twice_is_once(doc in documents(), trim: bool, drop_null: bool, at in prop::collection::vec("(/[ab01]){0,3}", 0..3)) {
            let clean = Clean { trim, drop_null, redact: at.iter().map(|p| Pointer::parse(p).unwrap()).collect() };
            let once = apply(&clean, &doc);
            prop_assert_eq!(apply(&clean, &once), once);
        }
    }
}
