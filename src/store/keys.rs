//! Where callers' keys are kept: what is known of each, and never the key itself.
//!
//! Never decides who may do what (see `keys`).

use async_trait::async_trait;

use super::StoreError;
use crate::clock::Time;

/// What is stored of a key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRecord {
    pub id: String,
    /// SHA-256 of the whole key as its caller sends it.
    pub hash: [u8; 32],
    pub name: String,
    /// Whose jobs it is for; `None`: all.
    pub tenant: Option<String>,
    /// Names of scopes, with spaces between them.
    pub scopes: String,
    pub created_at: Time,
    /// The name of the key that made it.
    pub created_by: String,
    pub expires_at: Option<Time>,
    /// To the minute, and about a minute late.
    pub last_used_at: Option<Time>,
}

/// The keys of callers.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// All keys, expired ones too.
    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Stores a new key. When it returns, the key is durable and the change is announced to other processes.
    async fn add_key(&self, key: &KeyRecord) -> Result<(), StoreError>;

    /// Deletes a key and announces that; says whether there was one.
    async fn delete_key(&self, id: &str) -> Result<bool, StoreError>;

    /// Moves `last_used_at` of these keys forward.
    async fn note_uses(&self, uses: Vec<(String, Time)>) -> Result<(), StoreError>;
}
