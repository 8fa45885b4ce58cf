//! Many requests, one statement: those that come while a statement runs share the next one.
//!
//! Never waits for more requests, never runs two statements at once, and is bounded in requests and bytes.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
};

use futures_util::FutureExt as _;
use tokio::{sync::mpsc, task::JoinSet};

use crate::store::StoreError;

/// Requests in the queue at most; further senders wait.
const MOST_QUEUED: usize = 4096;
/// Requests in one statement at most.
const MOST_TOGETHER: usize = 512;
/// Bytes in one statement, about; a request of more goes alone. Well under the 16 MiB that MongoDB takes.
const MOST_BYTES: usize = 6 << 20;

/// Where requests are handed in.
pub(super) struct Group<R> {
    queue: Mutex<Option<mpsc::Sender<R>>>,
}

impl<R: Send + 'static> Group<R> {
    /// Requests handed in are given to `run`, many at a time, by a task in `tasks` that ends when the group is closed. With one statement under
    /// way at a time they are large, and cost everybody less. `bytes` says how much a request weighs.
    pub(super) fn new<F>(
        tasks: &mut JoinSet<()>,
        bytes: impl Fn(&R) -> usize + Send + 'static,
        run: impl Fn(Vec<R>) -> F + Send + 'static,
    ) -> Group<R>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (queue, mut requests) = mpsc::channel::<R>(MOST_QUEUED);
        tasks.spawn(async move {
            let mut next: Option<R> = None;
            loop {
                let first = match next.take() {
                    Some(first) => Some(first),
                    None => requests.recv().await,
                };
                let Some(first) = first else { break };
                let mut weight = bytes(&first);
                let mut together = vec![first];
                while together.len() < MOST_TOGETHER {
                    let Ok(request) = requests.try_recv() else { break };
                    weight += bytes(&request);
                    if weight > MOST_BYTES {
                        next = Some(request);
                        break;
                    }
                    together.push(request);
                }
                // Those who sent these requests get an error; later requests are served.
                if AssertUnwindSafe(run(together)).catch_unwind().await.is_err() {
                    tracing::error!("a statement panicked; its requests get an error");
                }
            }
        });
        Group { queue: Mutex::new(Some(queue)) }
    }

    /// Hands a request in; gives it back when the group is closed.
    pub(super) async fn send(&self, request: R) -> Result<(), R> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match queue {
            Some(queue) => queue.send(request).await.map_err(|unsent| unsent.0),
            None => Err(request),
        }
    }

    /// Takes no more; what is queued is still done.
    pub(super) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

pub(super) fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}
