//! Secrets: a text that is never shown, and one that stands in files and may change. That is read when the config is, and again whenever
//! somebody asks.
//!
//! Never shows a content, and never gives up a good one: a file that is gone or unusable leaves the text as it was.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper::header::HeaderValue;

use super::fill::{self, Complaint, Piece};

/// Text that is never shown: not in logs, not in errors, not in `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The text itself, for the wire or a key, never for people.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A secret text, parts of which may stand in files. Clones share what was last read.
#[derive(Clone)]
pub struct LiveSecret(Arc<Live>);

struct Live {
    pieces: Vec<Piece>,
    fits: fn(&str) -> bool,
    text: RwLock<Arc<str>>,
    /// The last look at the files failed.
    is_failing: AtomicBool,
}

/// What a look at the files of a secret came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Reread {
    Same,
    Changed,
    /// The text is what it was. `is_new`: the look before did not fail.
    Failed {
        why: String,
        is_new: bool,
    },
}

impl LiveSecret {
    /// Reads the files; `fits` says which texts can be used.
    pub(super) fn read(pieces: Vec<Piece>, fits: fn(&str) -> bool) -> Result<LiveSecret, Complaint> {
        let text = RwLock::new(fill::join(&pieces)?.into());
        Ok(LiveSecret(Arc::new(Live { pieces, fits, text, is_failing: AtomicBool::new(false) })))
    }

    /// A text that stands in no file.
    #[cfg(test)]
    pub(crate) fn of(text: &str) -> LiveSecret {
        LiveSecret::read(vec![Piece::Text(text.to_owned())], |_| true).expect("there is no file to read")
    }

    /// The text itself, for the wire, never for people.
    pub fn reveal(&self) -> Arc<str> {
        self.0.text.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it can be used as it is.
    pub(super) fn fits(&self) -> bool {
        (self.0.fits)(&self.reveal())
    }

    /// Whether any of it stands in a file.
    pub fn is_in_files(&self) -> bool {
        self.0.pieces.iter().any(|piece| matches!(piece, Piece::File(_)))
    }

    /// Reads the files again. Whole contents are compared: secrets are short, and a time stamp can miss a change.
    pub fn reread(&self) -> Reread {
        if !self.is_in_files() {
            return Reread::Same;
        }
        let fresh = match fill::join(&self.0.pieces) {
            Ok(fresh) if (self.0.fits)(&fresh) => fresh,
            Ok(_) => return self.failed("a secret's file has a text that cannot be used".to_owned()),
            Err((why, _)) => return self.failed(why),
        };
        self.0.is_failing.store(false, Ordering::Relaxed);
        let mut text = self.0.text.write().unwrap_or_else(PoisonError::into_inner);
        if **text == fresh {
            return Reread::Same;
        }
        *text = fresh.into();
        Reread::Changed
    }

    fn failed(&self, why: String) -> Reread {
        Reread::Failed { why, is_new: !self.0.is_failing.swap(true, Ordering::Relaxed) }
    }
}

impl fmt::Debug for LiveSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Whether a header can have this value.
pub(super) fn fits_header(text: &str) -> bool {
    text.is_ascii() && HeaderValue::from_str(text).is_ok()
}

/// Whether it is one line of text. For what is encoded before it is sent.
pub(super) fn fits_line(text: &str) -> bool {
    !text.chars().any(char::is_control)
}
