//! XML in templates: where a value may stand, and how it is written there.
//!
//! Never checks that the XML is well-formed: it only knows tags, quotes, comments, CDATA sections and instructions apart.

/// Where in an XML text something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Content,
    /// Between `<` and `>`, outside of quotes.
    Tag,
    /// In an attribute's value, between these quotes.
    Quoted(char),
    /// In a comment, a CDATA section or an instruction, which ends so.
    Literal(&'static str),
}

/// What begins with `<` and is no tag, and how it ends.
const LITERALS: [(&str, &str); 3] = [("!--", "-->"), ("![CDATA[", "]]>"), ("?", "?>")];

impl At {
    /// Where the end of this text stands, which begins here.
    pub(super) fn after(mut self, text: &str) -> At {
        let mut rest = text;
        loop {
            let end = match self {
                At::Content => rest.split_once('<').map(|(_, inside)| At::opened(inside)),
                At::Tag => rest.find(['>', '"', '\'']).map(|at| {
                    let found = char::from(rest.as_bytes()[at]);
                    (if found == '>' { At::Content } else { At::Quoted(found) }, &rest[at + 1..])
                }),
                At::Quoted(quote) => rest.split_once(quote).map(|(_, rest)| (At::Tag, rest)),
                At::Literal(end) => rest.split_once(end).map(|(_, rest)| (At::Content, rest)),
            };
            match end {
                Some(next) => (self, rest) = next,
                None => return self,
            }
        }
    }

    /// What `<` begins, and what follows.
    fn opened(inside: &str) -> (At, &str) {
        let literal = LITERALS.iter().find_map(|(begin, end)| Some((At::Literal(end), inside.strip_prefix(begin)?)));
        literal.unwrap_or((At::Tag, inside))
    }

    /// Whether an escaped value stays a value here.
    pub(super) fn takes_values(self) -> bool {
        matches!(self, At::Content | At::Quoted(_))
    }
}

/// Writes a text so that it reads back the same in content and in attributes. Fails with the first character that XML 1.0 cannot carry
/// (its production `Char`).
pub(super) fn escape(text: &str, out: &mut String) -> Result<(), char> {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // Readers would turn these into spaces or line feeds.
            '\t' => out.push_str("&#9;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\0'..' ' | '\u{FFFE}' | '\u{FFFF}' => return Err(c),
            c => out.push(c),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_stand_in_content_and_in_quotes_only() {
        for (text, at) in [
            ("", At::Content),
            ("<a>", At::Content),
            ("<a b=\"", At::Quoted('"')),
            ("<a b='\">", At::Quoted('\'')),
            ("<a b=\"'>\" ", At::Tag),
            ("<", At::Tag),
            ("<!-- <a b=\"", At::Literal("-->")),
            ("<!-- ' --><a>", At::Content),
            ("<![CDATA[ <a> \"", At::Literal("]]>")),
            ("<?xml version=\"1.0\"?><a/>", At::Content),
            ("a > b \" '", At::Content),
        ] {
            assert_eq!(At::Content.after(text), at, "{text}");
        }
    }

    #[test]
    fn what_xml_cannot_carry_is_refused() {
        let mut out = String::new();
        assert_eq!(escape("a<b>&\"'\r\n\té\u{1F600}\u{FFFD}\u{7F}", &mut out), Ok(()));
        assert_eq!(out, "a&lt;b&gt;&amp;&quot;&apos;&#13;&#10;&#9;é\u{1F600}\u{FFFD}\u{7F}");
        for c in ['\0', '\u{1}', '\u{B}', '\u{1F}', '\u{FFFE}', '\u{FFFF}'] {
            assert_eq!(escape(&format!("a{c}"), &mut out), Err(c));
        }
    }
}
