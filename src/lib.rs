//! Fetchgate calls outside vendors as fast as their limits allow, and never faster.
//!
//! The modules in the order in which a job travels:
//!
//! - [`api`]: HTTP in. A submission is checked, stored, and answered with an id.
//! - [`job`]: the words and the rules, without I/O: what a job is, and what each step makes of it.
//! - [`store`]: where jobs live; [`store::sqlite`] keeps them in one file, [`store::redis_mongo`] in MongoDB and Redis.
//! - [`worker`]: jobs out. One dispatcher for each vendor, one attempt for each call.
//! - [`limit`]: may we call this vendor, and when?
//! - [`audit`]: what was really sent, and whether the limits were kept.
//! - [`vendor`]: how to talk to vendors, and what their replies mean.
//! - [`result_webhooks`]: the ends of jobs, announced to those who asked for it.
//!
//! Below them: [`book`] (what is durable besides jobs), [`store_error`], [`redis_link`], [`guard`] (where result webhooks may go), [`json`] and [`clock`].
//! Around them: [`config`], [`in_force`] (which limits are in force), [`pauses`], [`keys`] (who asks, and what they may do), [`events`] (for those who listen), [`admission`] (how fast tenants submit), [`service`] (the wiring), [`roles`], [`kernel`], [`logs`], [`telemetry`], [`outcomes`] and [`exposition`] (metrics), [`spans`] (traces), [`recent`] and [`stats`] (the last minute), [`processes`],
//! [`shutdown`] and [`cli`]. `ARCHITECTURE.md` follows one job through the code.

pub mod admission;
pub mod api;
pub mod audit;
pub mod book;
pub mod cli;
pub mod clock;
pub mod config;
pub mod events;
pub mod exposition;
pub mod guard;
pub mod in_force;
pub mod job;
pub mod json;
pub mod kernel;
pub mod keys;
pub mod limit;
pub mod logs;
mod otlp;
pub mod outcomes;
pub mod pauses;
pub mod processes;
pub mod recent;
pub mod redis_link;
pub mod result_webhooks;
pub mod roles;
pub mod service;
mod shown;
pub mod shutdown;
pub mod spans;
pub mod stats;
pub mod store;
pub mod store_error;
pub mod telemetry;
pub mod vendor;
pub mod worker;
