//! All integration tests, in one binary: what the service promises, shown from outside.

mod support;

/// The HTTP API, black box: what clients send and see.
mod api;
/// What was really sent, and whether the limits were kept.
mod audit;
/// Secrets that must be seen nowhere.
mod canaries;
/// What `check` says of a config, and of a request that would go out.
mod check;
/// The command line: the real binary against a real service.
mod cli;
/// The command line for many jobs, and for people who look at a terminal.
mod cli_many;
/// The command line before there is a service.
mod cli_more;
/// The config: every mistake is named with its key, its line and the mend.
mod config;
/// The documents: their commands run, their links lead somewhere, their tables have everything.
mod docs;
/// What must hold when things break: processes, vendors, callbacks.
mod failure;
/// What people see of vendors whose calls fail.
mod failures;
/// The file of the embedded store, under the real binary.
mod file;
/// SIGHUP: secrets are read again, and the process goes on.
mod hangup;
/// Documents that tell the truth, licences, dependencies.
mod house;
/// The limiter: the arithmetic, and the limiter of one process, in virtual time.
mod limit;
/// What is owed to receivers of result webhooks while processes are killed.
mod owed;
/// What answers mean, whatever they are.
mod readings;
/// The recipes for real vendors, word for word.
mod recipes;
/// Processes with one role, and what is told of the things that they depend on.
mod roles;
/// What a dispatcher holds goes out at its time while a round waits for an answer.
mod rounds;
/// Many processes over Redis and MongoDB, killed, stopped and emptied under load.
mod scaled;
/// The store's promises that HTTP cannot show.
mod store;
/// `top` in a terminal, and without one.
mod top;
/// The worker is woken for all that it has to do.
mod worker;
