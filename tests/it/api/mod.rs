//! The HTTP API, black box.

mod answers;
mod callbacks;
mod description;
mod jobs;
mod letters;
mod position;
mod refusals;
mod vendors;
