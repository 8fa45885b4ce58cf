//! Content codings of a body, undone: gzip and deflate (RFC 9110, 8.4), also where they are not declared.
//!
//! Never gives more decoded bytes than a bound.

use std::io::Read;

use bytes::Bytes;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use hyper::{HeaderMap, header::CONTENT_ENCODING};

use super::{http::MAX_REPLY_BYTES, value::ValueFault};

/// Codings on top of each other that are undone; nobody needs two.
const MAX_CODINGS: usize = 3;

/// Undoes the content codings.
pub(super) fn decode(headers: &HeaderMap, body: Bytes) -> Result<Bytes, ValueFault> {
    let codings = codings(headers, &body);
    if codings.len() > MAX_CODINGS {
        return Err(ValueFault::unknown_coding(&codings.join(", ")));
    }
    let mut body = body;
    for coding in codings.iter().rev() {
        let name = if coding.contains("gzip") { "gzip" } else { "deflate" };
        let mut decoded = Vec::new();
        let Some(reader) = decoder(coding, &body) else { return Err(ValueFault::unknown_coding(coding)) };
        reader
            .take(MAX_REPLY_BYTES as u64 + 1)
            .read_to_end(&mut decoded)
            .map_err(|error| ValueFault::BadCoding { coding: name, why: error.to_string() })?;
        if decoded.len() > MAX_REPLY_BYTES {
            return Err(ValueFault::TooLarge);
        }
        body = decoded.into();
    }
    Ok(body)
}

/// So many decoded bytes at most, as far as the body can be decoded; nothing of one with several codings.
pub(super) fn beginning(headers: &HeaderMap, body: &[u8], most: usize) -> Vec<u8> {
    let mut decoded = Vec::new();
    match codings(headers, body).as_slice() {
        [] => decoded.extend_from_slice(&body[..body.len().min(most)]),
        // What was decoded before the damage stays.
        [coding] => drop(decoder(coding, body).map(|reader| reader.take(most as u64).read_to_end(&mut decoded))),
        _ => {}
    }
    decoded
}

/// The content codings of a body, in the order in which they were applied. Some servers send gzip and do not say so, and some proxies
/// undo it and leave the header: the first bytes tell.
fn codings(headers: &HeaderMap, body: &[u8]) -> Vec<String> {
    let is_gzip = body.starts_with(b"\x1f\x8b");
    let named = headers.get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|value| value.split(',')).map(|coding| coding.trim().to_ascii_lowercase());
    let mut codings: Vec<String> = named.filter(|coding| !coding.is_empty() && coding != "identity").collect();
    if body.is_empty() {
        return Vec::new();
    }
    match codings.last() {
        None if is_gzip => codings.push("gzip".to_owned()),
        Some(last) if last.contains("gzip") && !is_gzip => drop(codings.pop()),
        _ => {}
    }
    codings
}

/// Nothing for a coding that we do not know.
fn decoder<'a>(coding: &str, body: &'a [u8]) -> Option<Box<dyn Read + 'a>> {
    match coding {
        "gzip" | "x-gzip" => Some(Box::new(MultiGzDecoder::new(body))),
        // Zlib by the standard (RFC 9110, 8.4.1.2); many send it without the wrapper.
        "deflate" if is_zlib(body) => Some(Box::new(ZlibDecoder::new(body))),
        "deflate" => Some(Box::new(DeflateDecoder::new(body))),
        _ => None,
    }
}

fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [first, second, ..] if first & 0x0f == 8 && (usize::from(*first) << 8 | usize::from(*second)) % 31 == 0)
}
