//! The processes of one service, as each describes itself in its heartbeat.
//!
//! Never decides whether a process counts for the limits (see `in_force`): these are words for people.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    book::Book,
    clock::{Clock, Time},
    roles::Roles,
    store_error::StoreError,
};

/// A process that was not seen for so long is not alive. Heartbeats are five seconds apart.
const ALIVE: Duration = Duration::from_secs(15);
/// Processes are listed for so long after they were last seen.
const LISTED: Duration = Duration::from_secs(3600);

/// What a process says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    pub roles: Vec<String>,
    /// Of Fetchgate.
    pub version: String,
    pub started_at: Time,
    /// The hash of its config.
    pub config: String,
}

/// The same as it is kept in a heartbeat. Later versions may write more.
#[derive(Serialize, Deserialize)]
struct Written {
    roles: Vec<String>,
    version: String,
    started_at: i64,
    config: String,
}

impl About {
    pub fn new(roles: Roles, started_at: Time, config: &str) -> About {
        let roles = roles.names().iter().map(|role| (*role).to_owned()).collect();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        About { roles, version, started_at, config: config.to_owned() }
    }

    /// As text, for the heartbeat.
    pub fn write(&self) -> String {
        let About { roles, version, started_at, config } = self.clone();
        let written = Written { roles, version, started_at: started_at.0, config };
        serde_json::to_string(&written).expect("our own plain structs always serialize")
    }

    /// `None` for what this version cannot read.
    fn read(text: &str) -> Option<About> {
        let Written { roles, version, started_at, config } = serde_json::from_str(text).ok()?;
        Some(About { roles, version, started_at: Time(started_at), config })
    }
}

/// A process, for people.
#[derive(Debug, Clone, Serialize)]
pub struct Process {
    pub id: String,
    roles: Vec<String>,
    version: String,
    pub started_at: Time,
    last_seen: Time,
    /// The hash of its config.
    config: String,
    alive: bool,
}

impl Process {
    fn new(id: &str, about: About, last_seen: Time, now: Time) -> Process {
        let About { roles, version, started_at, config } = about;
        Process {
            id: id.to_owned(),
            roles,
            version,
            started_at,
            last_seen,
            config,
            alive: now.since(last_seen) <= ALIVE,
        }
    }
}

/// All processes of the service, read from the book.
pub struct Processes {
    book: Arc<dyn Book>,
    clock: Clock,
    id: String,
    about: About,
}

impl Processes {
    /// `id` is the name under which this process reports.
    pub fn new(book: Arc<dyn Book>, clock: Clock, id: &str, about: About) -> Processes {
        Processes { book, clock, id: id.to_owned(), about }
    }

    /// This process.
    pub fn this(&self) -> Process {
        let now = self.clock.now();
        Process::new(&self.id, self.about.clone(), now, now)
    }

    /// The processes that were seen lately, the oldest first. Those that stopped in good order are not among them.
    pub async fn all(&self) -> Result<Vec<Process>, StoreError> {
        let (now, mut all) = (self.clock.now(), vec![self.this()]);
        let listed = i64::try_from(LISTED.as_millis()).unwrap_or(i64::MAX);
        for filed in self.book.processes(Time(now.0.saturating_sub(listed))).await? {
            // This one is there already, and what a later version wrote may not be readable.
            if let (true, Some(seen), Some(about)) =
                (filed.process != self.id, filed.seen_at, About::read(&filed.about))
            {
                all.push(Process::new(&filed.process, about, seen, now));
            }
        }
        all.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
        Ok(all)
    }
}
