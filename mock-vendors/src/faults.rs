//! The ways a vendor can go wrong, and what each one puts on the wire.
//!
//! Never decides when a fault strikes (see `behave` and `calls`) and never touches a socket itself: what HTTP cannot say
//! becomes a `Cut`, which the connection's own task performs (see `server`).

use std::str::FromStr;

use bytes::Bytes;

use crate::reply::{Reply, json};

/// How a call goes wrong instead of being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Never answers; the connection stays open.
    Hang,
    /// Resets the connection (RST) before an answer.
    Reset,
    /// Announces more body than it sends, then closes.
    Truncate,
    /// 200 with JSON that breaks off.
    Garbage,
    /// 200 with the bytes ff fe.
    NotUtf8,
    /// 200 with no body.
    Empty,
    /// 200 with one JSON string of so many bytes, streamed.
    Big { size: u64 },
    /// Bytes that are not HTTP, then closes.
    BadHttp,
    /// 200 with 100,000 nested arrays.
    Deep,
    /// 200 with `hello` as text/plain.
    Text,
    /// 302 to another route of the same server.
    Redirect,
}

/// What `fault=big` sends unless `size=` says otherwise.
pub(crate) const BIG: u64 = 20_000_000;
const DEEP: usize = 100_000;

/// An end of a connection that HTTP has no words for.
pub(crate) enum Cut {
    Reset,
    /// These bytes as they are, then an orderly close.
    Raw(&'static [u8]),
}

/// What a fault comes to.
pub(crate) enum Strike {
    Answer(Reply),
    Cut(Cut),
    Hang,
}

impl Fault {
    pub(crate) fn strike(self) -> Strike {
        Strike::Answer(match self {
            Fault::Hang => return Strike::Hang,
            Fault::Reset => return Strike::Cut(Cut::Reset),
            Fault::Truncate => return Strike::Cut(Cut::Raw(TRUNCATED)),
            Fault::BadHttp => return Strike::Cut(Cut::Raw(b"\x16\x03\x01 this is not HTTP\r\n\r\n")),
            Fault::Garbage => json(200, r#"{"not json"#),
            Fault::NotUtf8 => json(200, Bytes::from_static(b"\xff\xfe")),
            Fault::Empty => json(200, ""),
            Fault::Big { size } => Reply::streamed(size),
            Fault::Deep => json(200, format!("{}{}", "[".repeat(DEEP), "]".repeat(DEEP))),
            Fault::Text => Reply::new(200, "hello").header("content-type", "text/plain"),
            Fault::Redirect => json(302, r#"{"error":"moved"}"#).header("location", "/sync/redirected"),
        })
    }
}

const TRUNCATED: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{\"vendor\":\"cut";

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Fault, String> {
        Ok(match name {
            "hang" => Fault::Hang,
            "reset" => Fault::Reset,
            "truncate" => Fault::Truncate,
            "garbage" => Fault::Garbage,
            "notutf8" => Fault::NotUtf8,
            "empty" => Fault::Empty,
            "big" => Fault::Big { size: BIG },
            "badhttp" => Fault::BadHttp,
            "deep" => Fault::Deep,
            "text" => Fault::Text,
            "redirect" => Fault::Redirect,
            _ => {
                return Err(format!(
                    "there is no fault `{name}`; there are hang, reset, truncate, garbage, notutf8, empty, big, badhttp, deep, text, redirect"
                ));
            }
        })
    }
}
