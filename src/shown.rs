//! The config in force as people may see it, and its hash, by which they see whether processes have the same.
//!
//! Never shows a secret: vendors are written as `check` writes them, and of the rest only what [`Config::settings`] chooses.

use serde_json::{json, value::RawValue};
use sha2::{Digest as _, Sha256};

use crate::{cli, config::Config};

/// What `GET /system` shows of a config.
pub(crate) struct Shown {
    /// Eight digits. Secrets are not in it.
    pub(crate) hash: String,
    pub(crate) json: Box<RawValue>,
}

impl Shown {
    pub(crate) fn of(config: &Config) -> Shown {
        let (settings, vendors) = (config.settings(), cli::vendors_in_words(config));
        // What is not in words is in the debug form, which masks secrets too.
        let digest = Sha256::digest(format!("{settings:?}{vendors:?}{config:?}"));
        let hash: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let shown = json!({ "hash": hash, "settings": settings, "vendors": vendors, "warnings": config.warnings });
        Shown { json: serde_json::value::to_raw_value(&shown).expect("a JSON value is JSON"), hash }
    }
}
