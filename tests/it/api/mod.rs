//! The HTTP API, black box.

mod access;
mod admission;
mod answers;
mod asks;
mod breaker;
mod callbacks;
mod connecting;
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
mod receivers;
mod refusals;
mod replies;
mod result_webhooks;
mod retries;
mod schemes;
mod sent;
mod shapes;
mod vendors;
