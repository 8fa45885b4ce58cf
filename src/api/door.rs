//! A port: what differs from one to another, and how long a client may keep a connection of it waiting.
//!
//! Never accepts a connection (see `server`).

use std::{sync::Arc, time::Duration};

use super::{
    memory::{Budget, Memory},
    tls::Tls,
};

/// Bytes of a request's head at most: what ten thousand clients can send before anybody knows who they are.
pub(super) const MAX_HEAD: usize = 16 << 10;

/// How long a client may keep its connection waiting. Longer, and it is closed.
#[derive(Debug, Clone, Copy)]
pub struct TimeOuts {
    /// To end a TLS handshake.
    pub handshake: Duration,
    /// To send a request's head, and the next request on a connection that is kept alive.
    pub head: Duration,
    /// To take 16 KiB of an answer, or the rest of it. A second while other answers wait for memory.
    pub answer: Duration,
}

impl Default for TimeOuts {
    fn default() -> TimeOuts {
        let secs = Duration::from_secs;
        TimeOuts { handshake: secs(10), head: secs(30), answer: secs(30) }
    }
}

/// What differs from one port to another.
pub struct Door {
    /// Unset: plain HTTP.
    pub tls: Option<Tls>,
    /// Connections at most from one IPv4 address, or one /64 of IPv6. Unset: no bound, for ports that a proxy connects to.
    pub max_per_address: Option<usize>,
    /// The memory of answers that clients have not read yet: while it is short, slow readers are given up sooner.
    pub answers: Arc<Budget>,
    /// The memory for large heads.
    pub heads: Arc<Budget>,
    pub times: TimeOuts,
}

impl Door {
    /// Plain HTTP, without a bound for each address.
    pub fn plain(memory: &Memory) -> Door {
        let (answers, heads) = (memory.answers.clone(), memory.heads.clone());
        Door { tls: None, max_per_address: None, answers, heads, times: TimeOuts::default() }
    }
}
