//! Finding jobs by their ids: those that are asked for at the same time are read in one statement.
//!
//! Never decides what is shown of a job.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::oneshot;

use super::{Core, docs::Found};
use crate::{
    job::JobId,
    store::{StoreError, With},
};

/// A job that somebody wants to see.
pub(super) struct Request {
    pub(super) id: JobId,
    pub(super) with: With,
    pub(super) reply: oneshot::Sender<Result<Option<Found>, StoreError>>,
}

/// Reads all of them, by what is wanted of them, and answers each.
pub(super) async fn run(core: Arc<Core>, requests: Vec<Request>) {
    let mut by_want: HashMap<(bool, bool), Vec<Request>> = HashMap::new();
    for request in requests {
        by_want.entry((request.with.payload, request.with.result)).or_default().push(request);
    }
    for ((payload, result), requests) in by_want {
        let with = With { payload, result };
        // One by its id is a simpler statement than several.
        let found = match &*requests {
            [one] => core
                .mongo
                .find(one.id, with)
                .await
                .map(|found| found.map(|found| (one.id, Ok(found))).into_iter().collect()),
            many => core.mongo.find_each(&many.iter().map(|one| one.id).collect::<Vec<_>>(), with).await,
        };
        for request in requests {
            let answer = match &found {
                // The same job may be asked for twice.
                Ok(found) => found.get(&request.id).cloned().transpose(),
                Err(error) => Err(error.clone()),
            };
            // A caller that has gone away does not mind.
            let _ = request.reply.send(answer);
        }
    }
}
