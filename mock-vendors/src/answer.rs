//! Scripted answers: what a test wants the next calls of a name to get, whatever their query says.

use std::time::Duration;

use bytes::Bytes;

use crate::faults::{Fault, Strike};
use crate::reply::Reply;

/// One scripted answer, used for one call.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// How long the call waits for it.
    pub latency: Duration,
    /// Strikes instead of status, headers and body.
    pub fault: Option<Fault>,
}

impl Answer {
    /// A status with an empty body.
    pub fn status(status: u16) -> Answer {
        Answer { status, headers: Vec::new(), body: Bytes::new(), latency: Duration::ZERO, fault: None }
    }

    /// This text, byte for byte, as application/json.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Answer {
        Answer { body: body.into(), ..Answer::status(status) }.header("content-type", "application/json")
    }

    pub fn fault(fault: Fault) -> Answer {
        Answer { fault: Some(fault), ..Answer::status(200) }
    }

    pub fn hang() -> Answer {
        Answer::fault(Fault::Hang)
    }

    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(self, body: impl Into<Bytes>) -> Answer {
        Answer { body: body.into(), ..self }
    }

    pub fn after(self, latency: Duration) -> Answer {
        Answer { latency, ..self }
    }

    /// # Panics
    /// When HTTP cannot carry it. Called where a test hands its script in, so that the mistake shows there.
    pub(crate) fn check(&self) {
        assert!((200..600).contains(&self.status), "a vendor answers 200 to 599, not {}", self.status);
        drop(self.reply());
    }

    pub(crate) fn strike(&self) -> Strike {
        self.fault.map_or_else(|| Strike::Answer(self.reply()), Fault::strike)
    }

    fn reply(&self) -> Reply {
        let reply = Reply::new(self.status, self.body.clone());
        self.headers.iter().fold(reply, |reply, (name, value)| reply.header(name, value))
    }
}
