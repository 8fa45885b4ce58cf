//! The one error of everything that is kept outside the process: the store, the book, and Redis behind the limiter.
//!
//! Never says which backend runs. It has a module of its own because `limit` and `redis_link` fail with it and know no store.

/// What a caller of the store can do about its error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Try again later: the store cannot be reached, is full, or is stopping. Nothing was stored, or that is not known.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// What is stored cannot be read: a bug or a damaged file.
    #[error("stored data cannot be read: {0}")]
    Corrupt(String),
}
