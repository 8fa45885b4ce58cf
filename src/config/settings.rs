//! The settings besides the vendors, as people may see them.
//!
//! Never shows a secret, nor a URL that may have one in it: what is not chosen here is not shown.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Callers, Config, StoreAt, Tenant, duration};

impl Config {
    /// What is in force, by key.
    pub fn settings(&self) -> BTreeMap<String, Value> {
        let Config { server, store, capacity, tenants, result_webhooks, .. } = self;
        let mut public = server.public_url.clone();
        // A URL that has no host cannot have a user either.
        let _ = public.set_username("").and_then(|()| public.set_password(None));
        let (url, queue) = match &store.at {
            StoreAt::Sqlite(path) => (format!("sqlite:{}", path.display()), None),
            StoreAt::RedisMongo { database, redis, .. } => (format!("mongodb://…/{database}"), Some(redis)),
        };
        let mut all: BTreeMap<String, Value> = [
            ("default_vendor", json!(self.default_vendor)),
            ("server.listen", json!(server.listen.to_string())),
            ("server.public_url", json!(public.as_str())),
            ("server.tls", json!(server.tls.is_some())),
            ("server.cors", json!(server.cors.join(", "))),
            ("server.max_connections_per_address", json!(server.max_connections_per_address)),
            ("ops.listen", json!(self.ops_listen.map(|address| address.to_string()))),
            ("auth.mode", json!(if matches!(self.callers, Callers::Anybody) { "none" } else { "api_key" })),
            ("store.url", json!(url)),
            ("store.retention", json!(duration::write(store.retention))),
            // Hosts and ports alone.
            ("queue.url", json!(queue.map(|redis| format!("{redis:?}")))),
            ("capacity.max_waiting", json!(capacity.max_waiting)),
            ("capacity.grace", json!(duration::write(capacity.grace))),
            ("result_webhooks.give_up_after", json!(duration::write(result_webhooks.give_up_after))),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        for (name, tenant) in &tenants.named {
            all.extend(bounds(&format!("tenants.{name}"), tenant));
        }
        all.extend(bounds("tenant_defaults", &tenants.others));
        all
    }
}

fn bounds(table: &str, tenant: &Tenant) -> [(String, Value); 2] {
    let submit = tenant.submit.map(|rate| format!("{}/{}", rate.jobs, duration::write(rate.per)));
    [(format!("{table}.submit"), json!(submit)), (format!("{table}.max_waiting"), json!(tenant.max_waiting))]
}
