//! What signs announcements: the tenant's own secret, that of all tenants, or one made for each.
//!
//! Never shows a secret by itself: whoever asks for one has been looked at before.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::{
    config::{LiveSecret, Tenants},
    vendor::verify::hmac::{Hash, Key},
};

/// The secrets of all tenants.
pub struct Secrets {
    named: BTreeMap<Arc<str>, Vec<LiveSecret>>,
    others: Vec<LiveSecret>,
    /// Where nothing is configured, each tenant's secret is made from this and its name. Kept in the book.
    master: [u8; 32],
}

impl Secrets {
    /// `general` are those of `[result_webhooks]`.
    pub fn new(tenants: &Tenants, general: &[LiveSecret], master: [u8; 32]) -> Secrets {
        let or_general = |own: &[LiveSecret]| if own.is_empty() { general.to_vec() } else { own.to_vec() };
        let named = tenants.named.iter().map(|(name, tenant)| (name.clone(), or_general(&tenant.webhook_secret)));
        Secrets { named: named.collect(), others: or_general(&tenants.others.webhook_secret), master }
    }

    /// A tenant's secrets, as receivers' libraries take them: `whsec_` and base64. All of them sign; each is enough to verify.
    pub fn of(&self, tenant: &str) -> Vec<String> {
        let configured = self.named.get(tenant).unwrap_or(&self.others);
        if configured.is_empty() {
            let made = Hash::Sha256.tag(&self.master, &[b"result webhooks of ", tenant.as_bytes()]);
            return vec![format!("whsec_{}", BASE64_STANDARD.encode(made))];
        }
        configured.iter().map(|secret| secret.reveal().to_string()).collect()
    }

    /// `webhook-signature` of a body, by each secret of its tenant (Standard Webhooks, "Signature scheme").
    pub(super) fn sign(&self, tenant: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
        let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
        let keys = self.of(tenant).into_iter().filter_map(|secret| Key::Whsec.bytes(&secret));
        let signatures = keys.map(|key| format!("v1,{}", BASE64_STANDARD.encode(Hash::Sha256.tag(&key, &signed))));
        signatures.collect::<Vec<_>>().join(" ")
    }
}
