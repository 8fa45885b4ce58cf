//! Calls that are made at most once: the record that such a call is about to be made, kept until the lease ends.
//!
//! Never ends a job: that is done when the lease is reclaimed (see `dispatch`).

use mongodb::bson::{Document, doc};

use super::{
    Core,
    truth::{docs::id_bson, updates},
};
use crate::{
    clock::Time,
    store::{Lease, StoreError, With},
};

impl Core {
    /// Puts the calls of these leases on record; gives those that are still good. After an error all of them are released.
    pub(super) async fn mark(&self, leases: Vec<Lease>) -> Result<Vec<Lease>, StoreError> {
        let now = self.clock.now();
        let leases: Vec<Lease> = leases.into_iter().map(|lease| Lease { called_at: Some(now), ..lease }).collect();
        match self.try_to_mark(&leases, now).await {
            Ok(good) => {
                let (good, lost): (Vec<_>, Vec<_>) = leases.into_iter().zip(good).partition(|(_, is_good)| *is_good);
                self.release(lost.into_iter().map(|(lease, _)| (lease, None)).collect()).await;
                Ok(good.into_iter().map(|(lease, _)| lease).collect())
            }
            // Some may be on record: the answer may have been lost.
            Err(error) => {
                self.release(leases.into_iter().map(|lease| (lease, None)).collect()).await;
                Err(error)
            }
        }
    }

    /// Says of each whether it is still good.
    async fn try_to_mark(&self, leases: &[Lease], now: Time) -> Result<Vec<bool>, StoreError> {
        // A lease that is lost matches nothing.
        let versions: Vec<i64> = leases.iter().map(|lease| self.leases.version(lease).unwrap_or(-1)).collect();
        let update = |(lease, version): (&Lease, &i64)| {
            let set = doc! { "called_at": now.0, "by": self.marker(lease) };
            updates::one(lease.job.id, *version, doc! { "$set": set, "$inc": { "version": 1_i64 } })
        };
        let updates: Vec<Document> = leases.iter().zip(&versions).map(update).collect();
        let mut good = vec![true; leases.len()];
        if self.mongo.update_jobs(updates).await? != leases.len() {
            let ids: Vec<_> = leases.iter().map(|lease| lease.job.id).collect();
            let found = self.mongo.find_all(&ids, With::NEITHER).await?;
            for ((lease, version), is_good) in leases.iter().zip(&versions).zip(&mut good) {
                *is_good = found.get(&lease.job.id).is_some_and(|found| {
                    found.version == version + 1 && found.by.as_ref() == Some(&self.marker(lease))
                });
            }
        }
        let marked = leases.iter().zip(&good).filter(|(_, is_good)| **is_good);
        marked.for_each(|(lease, _)| self.leases.mark(lease));
        Ok(good)
    }

    /// Removes the records of these leases' calls, none of which was made.
    pub(super) async fn unmark(&self, leases: &[&Lease]) -> Result<(), StoreError> {
        let update = |lease: &&Lease| {
            let called_at = lease.called_at.map(|at| at.0);
            let ours = doc! { "_id": id_bson(lease.job.id), "by": self.marker(lease), "called_at": called_at };
            doc! { "q": ours, "u": { "$unset": { "called_at": "" }, "$inc": { "version": 1_i64 } } }
        };
        self.mongo.update_jobs(leases.iter().map(update).collect()).await?;
        Ok(())
    }

    /// Who put the call of this attempt on record.
    fn marker(&self, lease: &Lease) -> String {
        format!("{}/{}/call", self.process, lease.attempt)
    }
}
