//! The token in a job's own callback URL: it names the job and proves that we made it. Nothing is stored for it.
//!
//! Never says why a token is refused: nobody outside may learn from it.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::job::JobId;

const ID: usize = 16;
const RUN: usize = 4;
/// 128 bits of the MAC are kept.
const TAG: usize = 16;
const LENGTH: usize = ID + RUN + TAG;

/// Signs callback tokens and knows its own. Cheap to clone next to a store access; the secret is never shown.
#[derive(Clone)]
pub struct CallbackKey(Hmac<Sha256>);

impl CallbackKey {
    pub fn new(secret: &[u8]) -> CallbackKey {
        CallbackKey(Hmac::new_from_slice(secret).expect("HMAC takes keys of every length"))
    }

    /// base64url, without padding, of the job's id, its run and the MAC over both and the vendor: 48 characters.
    pub fn sign(&self, vendor: &str, id: JobId, run: u32) -> String {
        let mut token = [0; LENGTH];
        token[..ID].copy_from_slice(id.as_bytes());
        token[ID..ID + RUN].copy_from_slice(&run.to_be_bytes());
        let tag = self.mac(vendor, &token[..ID + RUN]).finalize().into_bytes();
        token[ID + RUN..].copy_from_slice(&tag[..TAG]);
        BASE64_URL_SAFE_NO_PAD.encode(token)
    }

    /// The job and run that a token of ours names; `None` for everything else, in time that does not depend on the MAC.
    pub fn verify(&self, vendor: &str, token: &str) -> Option<(JobId, u32)> {
        // Longer text is not worth decoding.
        if token.len() != LENGTH / 3 * 4 {
            return None;
        }
        let bytes: [u8; LENGTH] = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
        let (signed, tag) = bytes.split_at(ID + RUN);
        self.mac(vendor, signed).verify_truncated_left(tag).ok()?;
        let (id, run) = signed.split_at(ID);
        Some((JobId::from_bytes(id.try_into().ok()?), u32::from_be_bytes(run.try_into().ok()?)))
    }

    /// The vendor's length goes first, so that no other vendor and id give the same bytes.
    fn mac(&self, vendor: &str, id_and_run: &[u8]) -> Hmac<Sha256> {
        let length = u64::try_from(vendor.len()).expect("a length fits in 64 bits");
        self.0
            .clone()
            .chain_update(b"v1")
            .chain_update(length.to_be_bytes())
            .chain_update(vendor.as_bytes())
            .chain_update(id_and_run)
    }
}

impl fmt::Debug for CallbackKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallbackKey([secret])")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u128) -> JobId {
        JobId::from_bytes(n.to_be_bytes())
    }

    #[test]
    fn a_token_is_what_the_design_says_to_the_bit() {
        // Computed with Python's hmac and base64.
        let token = CallbackKey::new(b"a secret").sign("bureau", id(0x0192_0000_0000_7000_8000_0000_0000_002a), 7);
        assert_eq!(token, "AZIAAAAAcACAAAAAAAAAKgAAAAfZvyhFAJLG_lkbltJoaoAd");
    }

    #[test]
    fn a_token_is_for_one_vendor_and_one_key() {
        let key = CallbackKey::new(b"a secret");
        let token = key.sign("bureau", id(42), 0);
        assert_eq!(key.verify("bureau", &token), Some((id(42), 0)));
        assert_eq!(key.verify("burea", &token), None);
        assert_eq!(key.verify("", &token), None);
        assert_eq!(CallbackKey::new(b"another").verify("bureau", &token), None);
    }

    #[test]
    fn the_secret_is_not_in_debug() {
        assert_eq!(format!("{:?}", CallbackKey::new(b"a secret")), "CallbackKey([secret])");
    }

    proptest! {
        #[test]
        fn what_was_signed_is_read_back(n: u128, run: u32, vendor in ".{0,20}", secret: Vec<u8>) {
            let key = CallbackKey::new(&secret);
            prop_assert_eq!(key.verify(&vendor, &key.sign(&vendor, id(n), run)), Some((id(n), run)));
        }

        #[test]
        fn a_token_with_any_character_changed_is_refused(n: u128, run: u32, at in 0..48_usize, to in "[A-Za-z0-9_=+/é-]") {
            let key = CallbackKey::new(b"a secret");
            let token = key.sign("bureau", id(n), run);
            let mut other = token.clone();
            other.replace_range(at..=at, &to);
            prop_assume!(other != token);
            prop_assert_eq!(key.verify("bureau", &other), None);
        }

        #[test]
        fn anything_may_be_sent_as_a_token(text: String) {
            prop_assert_eq!(CallbackKey::new(b"a secret").verify("bureau", &text), None);
        }
    }
}
