//! The schemes that have names, as settings.
//!
//! Never has code of its own: what a vendor does that cannot be written here is a new setting of `hmac`.

use super::hmac::{Encoding, Hash, Settings};

/// What vendors with a way of their own do, by the word for it in the config. Sources:
/// - Standard Webhooks: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md. Svix sends the same under its own names.
/// - GitHub: docs.github.com, "Validating webhook deliveries".
/// - Stripe: docs.stripe.com/webhooks, "Verify webhook signatures manually".
/// - Slack: docs.slack.dev, "Verifying requests from Slack".
/// - Shopify: shopify.dev, "Validate the origin of your webhook".
pub const NAMED: [(&str, &[Settings<'static>]); 5] = [
    (
        "standard-webhooks",
        &[
            Settings {
                hash: Hash::Sha256,
                encoding: Encoding::Base64,
                header: "webhook-signature",
                prefix: "v1,",
                signs: "{{ header.webhook-id }}.{{ header.webhook-timestamp }}.{{ body }}",
                timestamp: Some("webhook-timestamp"),
            },
            Settings {
                hash: Hash::Sha256,
                encoding: Encoding::Base64,
                header: "svix-signature",
                prefix: "v1,",
                signs: "{{ header.svix-id }}.{{ header.svix-timestamp }}.{{ body }}",
                timestamp: Some("svix-timestamp"),
            },
        ],
    ),
    (
        "github",
        &[Settings {
            hash: Hash::Sha256,
            encoding: Encoding::Hex,
            header: "x-hub-signature-256",
            prefix: "sha256=",
            signs: "{{ body }}",
            timestamp: None,
        }],
    ),
    (
        "stripe",
        &[Settings {
            hash: Hash::Sha256,
            encoding: Encoding::Hex,
            header: "stripe-signature",
            prefix: "v1=",
            signs: "{{ header.stripe-signature.t }}.{{ body }}",
            timestamp: Some("stripe-signature.t"),
        }],
    ),
    (
        "slack",
        &[Settings {
            hash: Hash::Sha256,
            encoding: Encoding::Hex,
            header: "x-slack-signature",
            prefix: "v0=",
            signs: "v0:{{ header.x-slack-request-timestamp }}:{{ body }}",
            timestamp: Some("x-slack-request-timestamp"),
        }],
    ),
    (
        "shopify",
        &[Settings {
            hash: Hash::Sha256,
            encoding: Encoding::Base64,
            header: "x-shopify-hmac-sha256",
            prefix: "",
            signs: "{{ body }}",
            timestamp: None,
        }],
    ),
];
