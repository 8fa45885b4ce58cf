//! What one process writes into the book reaches the others: as soon as it says so, and when that is lost as soon as they look.

use std::sync::Arc;

use fetchgate::{
    api::App,
    book::Pause,
    clock::Clock,
    config::{self, Config},
    in_force::{Expected, FOLLOW_WITHOUT_MESSAGES},
    roles::Roles,
    service::{Listeners, Service},
    shutdown::Shutdown,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};

use super::{LONG, Process};
use crate::{
    failure::wait_until,
    support::{
        START, database,
        servers::{self, Server},
    },
};

/// Processes on a clock that stands still: none looks by itself before it is moved.
struct Site {
    redis: Server,
    folder: TempDir,
    clock: Clock,
}

impl Site {
    fn new() -> Site {
        let (redis, folder) = (Server::redis(), tempfile::tempdir().expect("a folder"));
        for (user, channels) in [("deaf", "&*:bells"), ("all", "&*")] {
            assert_eq!(redis.say(&format!("ACL SETUSER {user} on >x ~* +@all resetchannels {channels}")), "+OK");
        }
        Site { redis, folder, clock: Clock::manual(START) }
    }

    /// With these limits in its file, and as this user of Redis.
    fn config(&self, limits: &str, user: &str) -> Config {
        let mongo = servers::mongo().mongo_url(&database(&self.folder));
        let redis = self.redis.redis_url().replace("redis://", &format!("redis://{user}:x@"));
        let text = format!(
            "[store]\nurl = \"{mongo}\"\n[queue]\nurl = \"{redis}\"\n\
             [vendors.one]\nkind = \"sync\"\nurl = \"http://127.0.0.1:9\"\nlimits = {limits}\n"
        );
        config::parse(&text, "test", std::iter::empty()).unwrap_or_else(|error| panic!("{error}"))
    }

    async fn service(&self, limits: &str, user: &str) -> Service {
        Service::build(&self.config(limits, user), Roles::Api, self.clock.clone()).await.expect("the service")
    }

    /// One that follows what others do.
    async fn follower(&self, user: &str) -> Process {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("the port");
        let service = self.service(r#"["40/s"]"#, user).await;
        let (shutdown, mut running) = (Shutdown::new(), JoinSet::new());
        running.spawn(service.run(Listeners { api: Some(listener), ..Listeners::default() }, shutdown.clone()));
        Process { address, shutdown, running }
    }

    /// One that the test acts in.
    async fn actor(&self, limits: &str, user: &str) -> Arc<App> {
        self.service(limits, user).await.into_parts().0
    }
}

async fn lay(app: &App, limits: &str) {
    let limits = config::parse_limits(limits).expect("limits");
    assert!(
        app.limits
            .set_live(&*app.limiter, "one", &Expected::Any, Some(&limits), "the test")
            .await
            .expect("the book is there")
    );
}

fn pause() -> Pause {
    Pause { vendor: "one".to_owned(), until: None, since: Some(START), by: Some("the test".to_owned()) }
}

async fn end(app: &App) {
    app.limits.stop().await.expect("the book is there");
    app.limiter.stop().await.expect("stopped");
    app.store.close().await;
}

/// Waits until this is the first limit in force there; `meanwhile` something else happens.
async fn sees(process: &Process, limit: &str, meanwhile: impl Fn()) {
    wait_until(limit, LONG, async || {
        meanwhile();
        let found: Value = process.caller().get("/vendors/one/limits").await.json();
        (found["limits"][0]["id"] == limit).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_changes_the_others_follow_at_once() {
    let site = Site::new();
    let (there, here) = (site.follower("all").await, site.actor(r#"["40/s"]"#, "all").await);
    // The first may be seen by who has just begun to listen, and looks for that; those after it are heard.
    for limit in ["60/s", "50/s", "70/s"] {
        lay(&here, &format!("[\"{limit}\"]")).await;
        sees(&there, limit, || {}).await;
    }
    for is_paused in [true, false] {
        match is_paused {
            true => here.pauses.pause(pause()).await,
            false => here.pauses.resume("one").await,
        }
        .expect("the book is there");
        wait_until("the pause", LONG, async || {
            (there.caller().get("/vendors/one").await.json()["paused"] == json!(is_paused)).then_some(())
        })
        .await;
    }
    assert!(
        here.limits.set_live(&*here.limiter, "one", &Expected::Any, None, "the test").await.expect("the book is there")
    );
    sees(&there, "40/s", || {}).await;
    let stricter = site.actor(r#"["20/s"]"#, "all").await;
    sees(&there, "20/s", || {}).await;
    end(&stricter).await;
    sees(&there, "40/s", || {}).await;
    end(&here).await;
    there.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_message_is_lost_is_followed_at_the_next_poll() {
    // Who is deaf hears nobody, and is not allowed to say that the book has changed either.
    for (listens, speaks) in [("deaf", "all"), ("all", "deaf")] {
        let site = Site::new();
        let (there, here) = (site.follower(listens).await, site.actor(r#"["40/s"]"#, speaks).await);
        for limit in ["60/s", "50/s"] {
            lay(&here, &format!("[\"{limit}\"]")).await;
            sees(&there, limit, || site.clock.advance(FOLLOW_WITHOUT_MESSAGES)).await;
        }
        end(&here).await;
        there.stop().await;
    }
}
