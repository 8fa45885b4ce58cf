//! The config file: what is valid means what the contract says, and every mistake is answered with key, place and mend.

use std::{path::Path, time::Duration};

use fetchgate::{
    config::{self, Config, ConfigError, EXAMPLE, Kind, Place, StoreAt},
    limit::{Key, Per, Shape},
    vendor::{replies::Test, verify::Verify},
};
use proptest::prelude::*;

mod answers;
mod asks;
mod auth;
mod limits;
mod mistakes;
mod secrets;
mod sent;
mod store;

const SECRET: &str = "canary-7f3a9c";

fn parse(text: &str) -> Result<Config, ConfigError> {
    parse_with(text, &[])
}

fn parse_with(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    config::parse(text, "fetchgate.toml", env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

/// A valid sync vendor in lines 1 to 4; `more` begins in line 5.
fn sync_vendor(more: &str) -> String {
    format!("[vendors.v]\nkind = \"sync\"\nurl = \"http://127.0.0.1:9000/sync\"\nlimits = [\"50/s\"]\n{more}")
}

/// A vendor with these limits in line 4.
fn with_limits(limits: &str) -> String {
    format!("[vendors.v]\nkind = \"sync\"\nurl = \"http://127.0.0.1:9000/sync\"\nlimits = [{limits}]\n")
}

/// A webhook vendor on this machine in lines 1 to 4; `more` begins in line 5.
fn webhook_vendor(more: &str) -> String {
    sync_vendor(more).replace("\"sync\"", "\"webhook\"")
}

/// Asserts that there is exactly one problem, and that it names the key, the line and a word of what is wrong or the mend.
#[track_caller]
fn refused(text: &str, key: &str, line: usize, word: &str) {
    let error = match parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => error,
    };
    let shown = error.to_string();
    let [problem] = error.problems() else { panic!("{text}\nnot one problem:\n{shown}") };
    assert_eq!(problem.key, key, "{text}\n{shown}");
    assert_eq!(problem.place, Place::Line { file: "fetchgate.toml".to_owned(), line }, "{text}\n{shown}");
    assert!(!problem.mend.is_empty(), "{shown}");
    assert!(shown.starts_with(&format!("fetchgate.toml line {line}: {key}")), "{shown}");
    assert!(shown.contains(word), "{word:?} is not in: {shown}");
}

#[test]
fn the_example_is_valid_and_says_the_defaults_of_the_contract() {
    let config = parse(EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.default_vendor.as_deref(), Some("sync"));
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8000");
    assert_eq!(config.server.public_base(), "http://127.0.0.1:8000");
    assert!(config.server.callback_secret.is_none() && config.ops_listen.is_none());
    assert!(matches!(&config.store.at, StoreAt::Sqlite(path) if path == Path::new("data/fetchgate.db")));
    assert_eq!(config.store.retention, Duration::from_secs(7 * 86_400));
    assert_eq!(config.capacity.max_waiting, 5_000_000);
    assert_eq!(config.capacity.max_waiting_bytes, 100_000_000_000);
    assert_eq!(config.capacity.grace, Duration::from_secs(30));

    let names: Vec<&str> = config.vendors.iter().map(|vendor| &*vendor.name).collect();
    assert_eq!(names, ["async", "polling", "sync"]);
    let sync = &config.vendors[2];
    assert_eq!((sync.concurrency, sync.timeout), (32, Duration::from_secs(10)));
    let retry = sync.retry;
    assert_eq!((retry.attempts, retry.first, retry.max, retry.unanswered), (16, ms(1000), ms(600_000), 1));
    assert_eq!(sync.answer_within, Duration::from_secs(600));
    let breaker = sync.breaker.expect("it is on by default");
    assert_eq!((breaker.failed, breaker.calls), (900_000, 5));
    assert_eq!((breaker.within, breaker.open), (Duration::from_secs(30), Duration::from_secs(10)));
    assert!(sync.deadline.is_none() && sync.open.is_none() && sync.headers.is_empty() && sync.clean.is_noop());
    let Kind::Webhook(webhook) = &config.vendors[0].kind else { panic!() };
    assert!(matches!(webhook.verify, Verify::None));
    let Kind::Polling(polling) = &config.vendors[1].kind else { panic!() };
    let ticket = polling.ticket.as_ref().map(ToString::to_string);
    assert_eq!((polling.every, ticket.as_deref()), (Duration::from_secs(1), Some("/id")));
    assert_eq!((polling.first, polling.max, polling.missing), (ms(1000), None, ms(30_000)));
    assert!(polling.hosts.is_empty() && polling.result_url.is_none() && polling.body.is_none());
}

#[test]
fn an_empty_file_has_the_defaults_of_the_example() {
    let (example, empty) = (parse(EXAMPLE).unwrap(), parse("").unwrap());
    let sections = |config: &Config| {
        format!("{:?} {:?} {:?} {:?}", config.server, config.ops_listen, config.store, config.capacity)
    };
    assert_eq!(sections(&empty), sections(&example));
    assert!(empty.vendors.is_empty() && empty.default_vendor.is_none());
    assert!(empty.warnings[0].contains("no vendors"));
}

#[test]
fn a_vendor_that_says_little_is_the_examples_vendor() {
    let example = parse(EXAMPLE).unwrap();
    let mine = parse(
        "[vendors.sync]\nkind = 'sync'\nurl = 'http://127.0.0.1:9000/sync'\nlimits = ['50/s', '2000/m', '20000/d']",
    )
    .unwrap();
    assert_eq!(format!("{:?}", mine.vendors[0]), format!("{:?}", example.vendors[2]));
    assert_eq!(mine.pools[0], example.pools[2]);
}

#[test]
fn every_setting_of_the_contract_that_is_built_is_read() {
    let text = r#"
        [server]
        callback_secret = "${CALLBACK_SECRET}"
        public_url = "https://jobs.example/fetchgate/"
        [ops]
        listen = "127.0.0.1:9100"
        [vendors.bureau]
        kind = "webhook"
        method = "PUT"
        url = "https://api.bureau.example/v2/{{ payload.region | path }}/reports"
        pool = "account"
        limits = [
          "10/s",
          { calls = 600, per = "1m", shape = "window", guard = "10ms", id = "per-minute" },
          { calls = 20000, per = "day", shape = "calendar", tz = "America/New_York" },
          { calls = 5, per = "1s", key = "tenant" },
          { calls = 1000, per = "5m", shape = "bucket", burst = 5 },
        ]
        open = 500
        answer_within = "20m"
        deadline = "1h"
        retry = { attempts = 3 }
        headers = { authorization = "Bearer ${BUREAU_KEY}" }
        body = '{"ref": {{ request_id | json }}, "notify": {{ callback_url | json }}}'
        webhook = { verify = "standard-webhooks", secret = "${BUREAU_SECRET}", request_id = "/reference", result = "/report", ticket = "/id", ticket_in_callback = "/report_id" }
        failed = { at = "/status", is = ["error", 3, true] }
        clean = { trim = true, drop_null = true, redact = ["/ssn", "/applicant/email"] }
        at_most_once = false
    "#;
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let env = [("CALLBACK_SECRET", "0123456789abcdef"), ("BUREAU_KEY", SECRET), ("BUREAU_SECRET", secret)];
    let config = parse_with(text, &env).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.server.callback_secret.as_ref().unwrap().reveal(), "0123456789abcdef");
    assert_eq!(config.server.public_base(), "https://jobs.example/fetchgate");
    let vendor = &config.vendors[0];
    assert_eq!((&*vendor.pool, vendor.method.as_str(), vendor.open), ("account", "PUT", Some(500)));
    assert_eq!((vendor.retry.attempts, vendor.retry.first), (3, ms(1000)), "what retry does not say is the default");
    assert_eq!(*vendor.headers[0].1.reveal(), *format!("Bearer {SECRET}"));
    let failed = &vendor.failed.as_ref().unwrap().test;
    assert!(matches!(failed, Test::Is(texts) if texts == &["error", "3", "true"]), "{failed:?}");
    assert_eq!(vendor.clean.redact.len(), 2);
    let Kind::Webhook(webhook) = &vendor.kind else { panic!() };
    assert!(matches!(&webhook.verify, Verify::Signed(signed) if *signed.secrets[0].reveal() == *secret));
    assert_eq!(webhook.ticket_in_callback.as_ref().unwrap().to_string(), "/report_id");
    let limits = &config.pools[0].limits;
    let ids: Vec<&str> = limits.iter().map(|limit| &*limit.id).collect();
    assert_eq!(ids, ["10/s", "per-minute", "20000/day", "5/1s", "1000/5m"]);
    assert_eq!((limits[1].guard, limits[3].key, limits[4].shape), (ms(10), Key::Tenant, Shape::Bucket { burst: 5 }));
    assert!(matches!(&limits[2].per, Per::Day(tz) if tz.iana_name() == Some("America/New_York")));
    assert_eq!(limits[2].shape, Shape::Calendar);
}

#[test]
fn a_breaker_is_on_unless_it_is_turned_off_and_what_its_table_leaves_out_is_the_default() {
    let breaker = |more: &str| parse(&sync_vendor(more)).unwrap_or_else(|error| panic!("{error}")).vendors[0].breaker;
    assert_eq!(breaker("breaker = {}"), breaker(""));
    assert_eq!(breaker("breaker = { calls = 7 }").map(|breaker| (breaker.calls, breaker.failed)), Some((7, 900_000)));
    assert_eq!(breaker("breaker = false"), None);
    let off = [("FETCHGATE__VENDORS__V__BREAKER", "false")];
    assert_eq!(parse_with(&sync_vendor(""), &off).expect("valid").vendors[0].breaker, None);
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn the_environment_overrides_any_key() {
    let env = [
        ("FETCHGATE__SERVER__LISTEN", "127.0.0.1:7000"),
        ("FETCHGATE__CAPACITY__MAX_WAITING", "77"),
        ("FETCHGATE__DEFAULT_VENDOR", "my-vendor"),
        ("FETCHGATE__VENDORS__MY_VENDOR__LIMITS", r#"["5/s", { calls = 9, per = "1m" }]"#),
        ("FETCHGATE__VENDORS__MY_VENDOR__RETRY__ATTEMPTS", "9"),
        ("FETCHGATE__VENDORS__MY_VENDOR__HEADERS__X_API_KEY", "12345"),
        ("FETCHGATE__VENDORS__MY_VENDOR__CLEAN", "{ trim = true }"),
        ("FETCHGATE__VENDORS__MY_VENDOR__BODY", r#"{"a": {{ payload | json }}}"#),
        ("FETCHGATE__VENDORS__MY_VENDOR__TIMEOUT", ""),
        ("FETCHGATE__AUTH__ALLOW_OPEN", "true"),
        ("FETCHGATE_CONFIG", "elsewhere"),
        ("FETCHGATE_SERVER_LISTEN", "ignored"),
    ];
    let text = sync_vendor("timeout = \"3s\"").replace("vendors.v", "vendors.my-vendor");
    let config = parse_with(&text, &env).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:7000");
    assert_eq!(config.capacity.max_waiting, 77);
    let vendor = &config.vendors[0];
    assert_eq!(config.default_vendor.as_deref(), Some("my-vendor"));
    assert_eq!((vendor.retry.attempts, vendor.retry.first), (9, ms(1000)));
    assert_eq!((vendor.headers[0].0.as_str(), &*vendor.headers[0].1.reveal()), ("x-api-key", "12345"));
    assert!(vendor.clean.trim && !vendor.clean.drop_null && vendor.body.is_some());
    assert_eq!(vendor.timeout, Duration::from_secs(3), "an empty variable is one that is not set");
    assert_eq!(config.pools[0].limits.len(), 2);
}

#[test]
fn errors_about_the_environment_name_the_variable() {
    let table = [
        ("FETCHGATE__SERVER__LISTEN", "x", "server.listen", "127.0.0.1:8000"),
        ("FETCHGATE__SERVER__LISTNE", "x", "server.listne", "Did you mean listen?"),
        ("FETCHGATE__CAPACITY__MAX_WAITING", "many", "capacity.max_waiting", "whole number"),
        ("FETCHGATE__VENDORS__V__LIMITS", "[\"50/s\", { calls = 1, per = \"x\" }]", "vendors.v.limits[1].per", "month"),
        ("FETCHGATE__VENDORS__V__LIMITS", "50/s", "vendors.v.limits", "[\"50/s\""),
        ("FETCHGATE__VENDORS__V__TIMEOUT", "10", "vendors.v.timeout", "unit is missing"),
        ("FETCHGATE__SERVER__LISTEN__PORT", "1", "", "server.listen has nothing inside it"),
        ("FETCHGATE__", "1", "", "FETCHGATE__SERVER__LISTEN"),
        ("FETCHGATE__SERVER____LISTEN", "1", "", "two underscores"),
    ];
    for (variable, value, key, word) in table {
        let text = sync_vendor("[server]\nlisten = \"127.0.0.1:1\"");
        let error = parse_with(&text, &[(variable, value)]).expect_err(variable);
        let [problem] = error.problems() else { panic!("{error}") };
        assert_eq!((&*problem.key, &problem.place), (key, &Place::Variable(variable.to_owned())), "{error}");
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn the_file_is_found_or_the_error_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    std::fs::write(&path, "[capacity]\nmax_waiting = 5").unwrap();
    let named = |path: &Path| [("FETCHGATE_CONFIG".to_owned(), path.display().to_string())];
    assert_eq!(config::load(Some(&path), []).unwrap().capacity.max_waiting, 5);
    assert_eq!(config::load(None, named(&path)).unwrap().capacity.max_waiting, 5);

    let nowhere = folder.path().join("nowhere.toml");
    let error = config::load(None, named(&nowhere)).unwrap_err().to_string();
    assert!(error.contains("nowhere.toml") && error.contains("FETCHGATE_CONFIG"), "{error}");
    let error = config::load(Some(&nowhere), named(&path)).unwrap_err().to_string();
    assert!(error.contains("nowhere.toml") && error.contains("--config"), "{error}");
    let error = config::load(None, []).unwrap_err().to_string();
    assert!(error.contains("fetchgate.example.toml") && error.contains("fetchgate dev"), "{error}");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    let error = config::load(Some(&path), []).unwrap_err().to_string();
    assert!(error.contains("UTF-8"), "{error}");
}

/// Places where the example is cut, doubled or overwritten with something that means something in TOML.
fn mutated_example() -> impl Strategy<Value = String> {
    let noise = prop_oneof![
        Just("\"".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just("{".to_owned()),
        Just("}".to_owned()),
        Just("=".to_owned()),
        Just("\n".to_owned()),
        Just("${".to_owned()),
        Just("{{".to_owned()),
        Just("/".to_owned()),
        Just("-1".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("1e999".to_owned()),
        Just("# ".to_owned()),
        Just("\u{10ffff}".to_owned()),
        Just("1979-05-27".to_owned()),
        ".{0,4}",
    ];
    // The commented-out vendor is mutated too.
    let whole = EXAMPLE.replace("\n# ", "\n").replace("\n#\n", "\n");
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, noise), 1..6);
    (prop::bool::ANY, edits).prop_map(move |(plain, edits)| {
        let mut text: Vec<char> = if plain { EXAMPLE.chars().collect() } else { whole.chars().collect() };
        for (at, cut, noise) in edits {
            let at = at.index(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, noise.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_text_never_panics_and_always_says_what_is_wrong(text in any::<Vec<u8>>().prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())) {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.problems().is_empty() && !error.to_string().is_empty());
        }
    }

    #[test]
    fn a_mutated_example_never_panics_and_always_says_what_is_wrong(text in mutated_example()) {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.problems().is_empty());
            let named = |problem: &config::Problem| !problem.mend.is_empty() && matches!(problem.place, Place::Line { .. });
            prop_assert!(error.problems().iter().all(named), "{}", error);
        }
    }

    #[test]
    fn random_variables_never_panic(name in "[A-Z_]{0,30}", value in ".{0,20}") {
        let name = format!("FETCHGATE__{name}");
        let section = ("FETCHGATE__VENDORS__SYNC__TIMEOUT", value.as_str());
        for env in [(name.as_str(), value.as_str()), section] {
            if let Err(error) = parse_with(EXAMPLE, &[env]) {
                prop_assert!(!error.problems().is_empty());
            }
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read(millis in any::<u64>()) {
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(config::parse_duration(&config::write_duration(duration)), Ok(duration));
    }
}
