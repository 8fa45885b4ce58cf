//! Connections opened ahead of the permits that will use them, so that a permit is not spent on connecting.
//!
//! Never calls. A connection that cannot be opened shows when the call needs one.

use tokio::task::JoinSet;

use crate::{
    job::Stage,
    vendor::{Vendor, http::Client},
};

pub(super) struct Warmer {
    client: Client,
    opening: JoinSet<()>,
}

impl Warmer {
    pub(super) fn new(client: Client) -> Warmer {
        Warmer { client, opening: JoinSet::new() }
    }

    /// Opens connections, so that this many are ready for calls of this stage; never more than the vendor may be called at once.
    pub(super) fn warm(&mut self, vendor: &Vendor, stage: Stage, wanted: usize) {
        while self.opening.try_join_next().is_some() {}
        let origin = vendor.origin(stage);
        let client = vendor.client(&self.client, &origin);
        let ready = client.idle_connections(&origin) + self.opening.len();
        for _ in ready..wanted.min(vendor.config.concurrency) {
            let (client, origin, timeout) = (client.clone(), origin.clone(), vendor.config.timeout);
            self.opening.spawn(async move {
                if let Ok(Ok(connection)) = tokio::time::timeout(timeout, client.connect(&origin)).await {
                    client.keep(connection);
                }
            });
        }
    }
}
