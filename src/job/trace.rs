//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): a place in a trace, as `traceparent` has it.
//!
//! Never makes anything up: a text that cannot be read is none.

use std::fmt;

/// A span of a trace: what is done next is a child of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// Never 0.
    pub id: u128,
    /// Never 0.
    pub span: u64,
    /// Whether whoever began the trace records it.
    pub is_sampled: bool,
}

impl Trace {
    /// Reads a `traceparent` of this version of the standard or a later one.
    pub fn parse(text: &str) -> Option<Trace> {
        let mut parts = text.splitn(5, '-');
        let mut next = |digits| hex(parts.next()?, digits);
        let (version, id, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        // Later versions may have more behind it; 255 is no version.
        let is_read = version != 255 && (version > 0 || parts.next().is_none());
        let span = u64::try_from(span).ok()?;
        (is_read && id != 0 && span != 0).then_some(Trace { id, span, is_sampled: flags & 1 == 1 })
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn with_span(self, span: u64) -> Trace {
        Trace { span, ..self }
    }
}

/// A number of so many digits, in lower case as the standard wants it.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.id, self.span, u8::from(self.is_sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_the_standard_says_and_written_the_same() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = Trace::parse(text).unwrap();
        assert_eq!((read.span, read.is_sampled), (0xb7ad_6b71_6920_3331, true));
        assert_eq!(read.to_string(), text);
        let later = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more";
        assert_eq!(Trace::parse(later), Some(Trace { is_sampled: false, ..read }));
        let none = [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-+7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319cé-b7ad6b716920333-01",
        ];
        for text in none {
            assert_eq!(Trace::parse(text), None, "{text}");
        }
    }
}
