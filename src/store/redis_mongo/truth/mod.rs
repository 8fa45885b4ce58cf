//! What MongoDB has: the jobs and the book as documents, and the statements that read and write them.
//!
//! Never asks Redis.

mod book;
mod calls;
pub(super) mod docs;
mod events;
mod keys;
pub(super) mod mongo;
mod schema;
mod unreadable;
pub(super) mod updates;
mod webhooks;

pub use self::schema::SCHEMA;
