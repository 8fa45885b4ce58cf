//! The version of what is kept in MongoDB, on record beside it.
//!
//! Never changes anything in a database that a newer version of Fetchgate has used.

use mongodb::bson::doc;

use super::mongo::{Mongo, PATIENCE, within};
use crate::store::StoreError;

/// The newest version that is known here. Every field that came since version 1 is read where it is missing, so there is nothing to migrate.
/// One that older versions would misread needs the next number.
pub const SCHEMA: i64 = 1;
/// The setting with the version.
const NAME: &str = "schema";

impl Mongo {
    /// Fails if a newer version has used the database.
    pub(super) async fn check_schema(&self) -> Result<(), StoreError> {
        let found = within(async { self.settings.find_one(doc! { "_id": NAME }).max_time(PATIENCE).await }).await?;
        let found = found.and_then(|found| found.get_i64("version").ok()).unwrap_or(0);
        if found > SCHEMA {
            let database = self.settings.namespace().db;
            return Err(StoreError::Unavailable(format!(
                "the database {database} was used by a newer version of Fetchgate (schema {found}, this one knows {SCHEMA}); run that version"
            )));
        }
        Ok(())
    }

    /// Notes the version, so that older versions keep away from it.
    pub(super) async fn note_schema(&self) -> Result<(), StoreError> {
        let newest = doc! { "$max": { "version": SCHEMA } };
        within(self.settings.update_one(doc! { "_id": NAME }, newest).upsert(true)).await.map(drop)
    }
}
