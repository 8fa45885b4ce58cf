//! The HTTP API, black box.

mod access;
mod admission;
mod answers;
mod asks;
mod breaker;
mod callbacks;
mod credentials;
mod description;
mod edge;
mod elsewhere;
mod erase;
mod jobs;
mod letters;
mod limits;
mod once;
mod position;
mod refusals;
mod replies;
mod retries;
mod schemes;
mod shapes;
mod vendors;
