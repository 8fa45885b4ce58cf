//! A store for which time passes while it answers: each verb moves the test's clock.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use fetchgate::{
    clock::{Clock, Time},
    job::{Attempt, Attempts, Idempotency, Job, JobId, Lane, NewJob, lifecycle::Change},
    store::{
        Ahead, Amended, Backlog, Claim, Decide, Erased, Filter, Lease, Overdue, Page, Ready, Sees, Settled, Slice,
        Store, StoreError, Submitted, Unsettled, Which, With, failures::Failures, signals::Signals,
    },
};

pub(crate) struct SlowStore {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Clock,
    /// What each verb takes.
    pub(crate) takes: Duration,
}

impl SlowStore {
    async fn takes<T>(&self, verb: impl Future<Output = T>) -> T {
        let answer = verb.await;
        self.clock.advance(self.takes);
        answer
    }
}

#[async_trait]
impl Store for SlowStore {
    async fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, StoreError> {
        self.takes(self.store.submit(jobs)).await
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Lease>, StoreError> {
        self.takes(self.store.claim(claim)).await
    }

    async fn mark(&self, leases: Vec<Lease>) -> Result<Vec<Lease>, StoreError> {
        self.takes(self.store.mark(leases)).await
    }

    async fn release(&self, leases: Vec<(Lease, Option<Time>)>) {
        self.takes(self.store.release(leases)).await;
    }

    async fn wake(&self, vendor: &str) -> Result<(), StoreError> {
        self.takes(self.store.wake(vendor)).await
    }

    async fn settle(&self, lease: Lease, change: Change, attempt: Attempt) -> Result<Settled, Unsettled> {
        self.takes(self.store.settle(lease, change, attempt)).await
    }

    async fn amend(&self, sees: &Sees, which: Which, now: Time, decide: Decide) -> Result<Amended, StoreError> {
        self.takes(self.store.amend(sees, which, now, decide)).await
    }

    async fn amend_all(
        &self,
        sees: &Sees,
        jobs: &[JobId],
        now: Time,
        decide: Decide,
    ) -> Result<Vec<Amended>, StoreError> {
        self.takes(self.store.amend_all(sees, jobs, now, decide)).await
    }

    async fn erase(&self, sees: &Sees, id: JobId) -> Result<Erased, StoreError> {
        self.takes(self.store.erase(sees, id)).await
    }

    async fn overdue(&self, now: Time, most: usize) -> Result<Overdue, StoreError> {
        self.takes(self.store.overdue(now, most)).await
    }

    async fn reclaim(&self) -> Result<usize, StoreError> {
        self.takes(self.store.reclaim()).await
    }

    async fn find(&self, sees: &Sees, id: JobId, with: With) -> Result<Option<Job>, StoreError> {
        self.takes(self.store.find(sees, id, with)).await
    }

    async fn attempts(&self, sees: &Sees, id: JobId) -> Result<Option<Attempts>, StoreError> {
        self.takes(self.store.attempts(sees, id)).await
    }

    async fn recall(&self, tenant: &str, key: &Idempotency) -> Result<Option<Submitted>, StoreError> {
        self.takes(self.store.recall(tenant, key)).await
    }

    async fn list(&self, sees: &Sees, filter: &Filter, slice: Slice) -> Result<Page, StoreError> {
        self.takes(self.store.list(sees, filter, slice)).await
    }

    async fn failures(&self, sees: &Sees, vendor: Option<&str>, since: Time) -> Result<Failures, StoreError> {
        self.takes(self.store.failures(sees, vendor, since)).await
    }

    async fn prune(&self, before: Time) -> Result<bool, StoreError> {
        self.takes(self.store.prune(before)).await
    }

    async fn ready(&self, vendor: &str) -> Result<Ready, StoreError> {
        self.takes(self.store.ready(vendor)).await
    }

    async fn backlog(&self, vendor: &str) -> Backlog {
        self.takes(self.store.backlog(vendor)).await
    }

    async fn backlog_of(&self, vendor: &str, tenant: &Arc<str>) -> Backlog {
        self.takes(self.store.backlog_of(vendor, tenant)).await
    }

    async fn ahead(&self, job: &Job) -> Result<Option<Ahead>, StoreError> {
        self.takes(self.store.ahead(job)).await
    }

    async fn due_in_lane(&self, lane: &Lane, most: u64) -> Result<u64, StoreError> {
        self.takes(self.store.due_in_lane(lane, most)).await
    }

    fn signals(&self) -> &Signals {
        self.store.signals()
    }

    async fn failed(&self) -> String {
        self.store.failed().await
    }

    async fn close(&self) {
        self.store.close().await;
    }
}
