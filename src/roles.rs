//! What a process does: takes requests, calls vendors, or both.
//!
//! Never builds anything: [`service`](crate::service) builds the parts that a role needs.

/// The roles of one process, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roles {
    Both,
    /// Accepts jobs, answers questions about them and receives callbacks.
    Api,
    /// Calls vendors. Never binds the API's port.
    Worker,
}

impl Roles {
    pub fn has_api(self) -> bool {
        self != Roles::Worker
    }

    pub fn has_worker(self) -> bool {
        self != Roles::Api
    }

    /// As `--role` and `readyz` write them.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Roles::Both => &["api", "worker"],
            Roles::Api => &["api"],
            Roles::Worker => &["worker"],
        }
    }
}
