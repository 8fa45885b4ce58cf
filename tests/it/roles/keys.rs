//! A key that one process makes is good in the others, and one that it deletes is good in none.

use fetchgate::{
    clock::Clock,
    config::{self, Config},
    keys::{FOLLOW_EVERY, NewKey, Scope},
    roles::Roles,
    service::{Listeners, Service},
    shutdown::Shutdown,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};

use super::{LONG, Process};
use crate::{
    failure::wait_until,
    support::{START, database, servers::Server},
};

/// Two processes over the same servers: one that answers, and one in which the test acts. The user of Redis says what they hear of each other.
fn config(redis: &Server, folder: &TempDir, user: &str) -> Config {
    let mongo = crate::support::servers::mongo().mongo_url(&database(folder));
    let redis = redis.redis_url().replace("redis://", &format!("redis://{user}:x@"));
    let text = format!(
        "[auth]\nmode = \"api_key\"\nadmin_key = \"an-admin-key-of-at-least-32-characters\"\n\
         [store]\nurl = \"{mongo}\"\n[queue]\nurl = \"{redis}\"\n\
         [vendors.one]\nkind = \"sync\"\nurl = \"http://127.0.0.1:9\"\nlimits = []\n"
    );
    config::parse(&text, "test", std::iter::empty()).unwrap_or_else(|error| panic!("{error}"))
}

async fn follow(user: &str, meanwhile: impl Fn(&Clock)) {
    let (redis, folder, clock) = (Server::redis(), tempfile::tempdir().expect("a folder"), Clock::manual(START));
    for (user, channels) in [("deaf", "&*:bells"), ("all", "&*")] {
        assert_eq!(redis.say(&format!("ACL SETUSER {user} on >x ~* +@all resetchannels {channels}")), "+OK");
    }
    let service = async || {
        let config = config(&redis, &folder, user);
        Service::build(&config, Roles::Api, clock.clone()).await.expect("the service")
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, shutdown, mut running) = (listener.local_addr().expect("it"), Shutdown::new(), JoinSet::new());
    running.spawn(service().await.run(Listeners { api: Some(listener), ..Listeners::default() }, shutdown.clone()));
    let (there, here) = (Process { address, shutdown, running }, service().await.into_parts().0);

    let new = NewKey { name: "k".to_owned(), tenant: None, scopes: vec![Scope::Operate], expires_in: None };
    let (record, key) = here.access.keys.create(new, "the test").await.expect("the store works");
    let bearer = format!("Bearer {}", key.reveal());
    let becomes = async |status: u16| {
        wait_until("the key is known", LONG, async || {
            meanwhile(&clock);
            let answer = there.caller().get_with(&[("authorization", &bearer)], "/vendors/one/limits").await;
            (answer.status.as_u16() == status).then_some(())
        })
        .await;
    };
    becomes(200).await;
    assert!(here.access.keys.delete(&record.id).await.expect("the store works"));
    becomes(401).await;
    here.limits.stop().await.expect("the book is there");
    here.limiter.stop().await.expect("stopped");
    here.store.close().await;
    there.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_good_and_then_not_in_every_process_at_once() {
    follow("all", |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_good_and_then_not_within_a_second_where_nothing_is_announced() {
    follow("deaf", |clock| clock.advance(FOLLOW_EVERY)).await;
}
