//! The HTTP API, black box.

mod access;
mod admission;
mod answers;
mod breaker;
mod callbacks;
mod credentials;
mod description;
mod edge;
mod erase;
mod jobs;
mod letters;
mod limits;
mod once;
mod position;
mod refusals;
mod replies;
mod retries;
mod vendors;
