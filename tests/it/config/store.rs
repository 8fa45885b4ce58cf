//! The two stores: what their URLs may say, and that no URL is ever repeated.

use fetchgate::{config::StoreAt, redis_link::RedisUrl};

use super::{SECRET, parse, refused};

/// A MongoDB store in line 2, its queue in line 4.
fn many_machines(store: &str, queue: &str) -> String {
    format!("[store]\nurl = \"{store}\"\n[queue]\nurl = \"{queue}\"\n")
}

#[test]
fn a_mongodb_store_takes_its_database_and_its_redis_from_the_urls() {
    let stores = [
        "mongodb://localhost:27017/fetchgate",
        "mongodb://user:p%40ss@a:1,b:2,c:3/fetchgate?replicaSet=rs0&authSource=admin&tls=true",
        "mongodb+srv://user:pass@cluster.example/fetchgate",
        "mongodb://localhost/fetchgate?directConnection=true&w=majority&journal=true&readPreference=primary",
    ];
    for url in stores {
        let text = many_machines(url, "redis://localhost:6379/0");
        let config = parse(&text).unwrap_or_else(|error| panic!("{url}: {error}"));
        let StoreAt::RedisMongo { mongo, database, redis } = &config.store.at else { panic!("{url}") };
        assert_eq!((mongo.reveal(), &**database, &*format!("{redis:?}")), (url, "fetchgate", "localhost:6379"));
    }
}

#[test]
fn mistakes_in_the_two_urls_are_refused_with_a_mend() {
    let redis = "redis://localhost";
    let stores = [
        ("mongodb://", "not a MongoDB URI"),
        ("mongodb://host:port/fetchgate", "not a MongoDB URI"),
        ("mongodb://host", "mongodb://HOST:27017/fetchgate"),
        ("mongodb://host/", "the database"),
        ("mongodb://host/admin", "MongoDB's own"),
        ("mongodb://host/a{b}", "letters, digits"),
        ("mongodb://host/fetchgate?w=1", "Remove w"),
        ("mongodb://host/fetchgate?w=0", "Remove w"),
        ("mongodb://host/fetchgate?journal=false", "Remove w and journal"),
        ("mongodb://host/fetchgate?readPreference=secondaryPreferred", "Remove readPreference"),
    ];
    for (url, word) in stores {
        refused(&many_machines(url, redis), "store.url", 2, word);
    }
    let queues = [
        "localhost:6379",
        "http://localhost:6379",
        "redis://",
        "redis://host:port",
        "redis://host/first",
        "redis+tower://host",
        "redis+sentinel://a:26379,b:26379",
        "redis+sentinel://a,,b/mymaster",
        "redis+sentinel://a/mymaster/first",
        "redis+cluster://",
        "redis+cluster://a,b/1",
    ];
    for url in queues {
        refused(&many_machines("mongodb://host/fetchgate", url), "queue.url", 4, "Write \"redis://HOST:6379/0\"");
    }
    refused("[store]\nurl = \"mongodb://host/fetchgate\"", "queue", 2, "Add [queue]");
    refused("[store]\nurl = \"mongodb://host/fetchgate\"\n[queue]\n", "queue.url", 3, "required");
    refused(&many_machines("mongodb://host/fetchgate", "${NOPE}"), "queue.url", 4, "Set NOPE");
    refused(&many_machines("sqlite:data/x.db", redis), "queue", 3, "Remove [queue]");
    let both = parse(&many_machines("mongodb://host", "nowhere")).unwrap_err();
    let keys: Vec<&str> = both.problems().iter().map(|problem| &*problem.key).collect();
    assert_eq!(keys, ["store.url", "queue.url"], "both are told at once");
}

#[test]
fn redis_urls_of_every_kind_are_read_and_show_no_password() {
    let password = SECRET;
    let urls = [
        ("redis://localhost", "localhost:6379"),
        ("redis://user:PASSWORD@host:7000/3", "host:7000"),
        ("redis://:PASSWORD@[::1]:7000", "::1:7000"),
        ("rediss://user:PASSWORD@host", "host:6379"),
        ("redis+sentinel://user:PASSWORD@a:26379,b:26380/mymaster", "a:26379,b:26380"),
        ("rediss+sentinel://:PASSWORD@a:26379/mymaster/2", "a:26379"),
        ("redis+cluster://user:PASSWORD@a,b:7001", "a:6379,b:7001"),
        ("rediss+cluster://a:7000", "a:7000"),
    ];
    for (url, nodes) in urls {
        let read = RedisUrl::parse(&url.replace("PASSWORD", password)).unwrap_or_else(|why| panic!("{url}: {why}"));
        assert_eq!(format!("{read:?}"), nodes);
    }
}

#[test]
fn no_message_repeats_a_url() {
    let stores =
        ["mongodb://u:@@host", "mongodb://u:@@host/admin", "mongodb://u:@@host/fetchgate?w=1", "mysql://u:@@host"];
    let queues =
        ["redis://u:@@host/x", "redis+sentinel://u:@@host", "http://u:@@host", "redis+cluster://u:@@host/0", "@"];
    let good = ("mongodb://u:@@host/fetchgate", "redis://u:@@host");
    let bad = stores.map(|store| (store, good.1)).into_iter().chain(queues.map(|queue| (good.0, queue)));
    for (store, queue) in bad.chain([good]) {
        let text = many_machines(store, queue).replace(":@", &format!(":{SECRET}")).replace("\"@\"", SECRET);
        let shown = match parse(&text) {
            Ok(config) => format!("{config:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains(SECRET) && !shown.contains("://u"), "{text}\nshows it:\n{shown}");
    }
}
