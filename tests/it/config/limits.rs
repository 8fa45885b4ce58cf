//! Limits: what the short and the long form mean, which contradict themselves, which cost too much.

use std::time::Duration;

use fetchgate::{
    config::Config,
    limit::{Per, Shape},
};

use super::{ms, parse, refused, sync_vendor, with_limits};

fn rolling(config: &Config, pool: usize, limit: usize) -> (String, u64, Duration, Shape, Duration) {
    let limit = &config.pools[pool].limits[limit];
    let Per::Rolling(period) = &limit.per else { panic!("{limit:?}") };
    (limit.id.to_string(), limit.calls, *period, limit.shape, limit.guard)
}

#[test]
fn limits_have_the_shapes_and_guards_of_the_design() {
    let config = parse(&with_limits(r#""50/s", "9/1500ms", "10/5s", "7/10s", "2000/m", "100/h", "20000/d""#)).unwrap();
    let expected = [
        ("50/s", 50, 1_000, Shape::Paced, 8),
        ("9/1500ms", 9, 1_500, Shape::Paced, 8),
        ("10/5s", 10, 5_000, Shape::Paced, 25),
        ("7/10s", 7, 10_000, Shape::Paced, 50),
        ("2000/m", 2000, 60_000, Shape::Window, 300),
        ("100/h", 100, 3_600_000, Shape::Window, 500),
        ("20000/d", 20_000, 86_400_000, Shape::Window, 500),
    ];
    for (i, (id, calls, period, shape, guard)) in expected.into_iter().enumerate() {
        assert_eq!(rolling(&config, 0, i), (id.to_owned(), calls, ms(period), shape, ms(guard)));
    }
    let short = rolling(&parse(&with_limits(r#""9/900ms""#)).unwrap(), 0, 0);
    assert_eq!(short.4, ms(5), "below a second");
    assert_eq!(config.warnings, Vec::<String>::new(), "defaults cost less than 1 %");
    assert!(parse(&with_limits("")).unwrap().pools[0].limits.is_empty(), "[] says that there are none");
    assert_eq!(rolling(&parse(&with_limits(r#"{ calls = 9, per = "1s", guard = "3ms" }"#)).unwrap(), 0, 0).4, ms(3));
}

#[test]
fn limits_that_contradict_themselves_are_refused() {
    let table = [
        (r#""50""#, "", "50/s"),
        (r#""50/x""#, "", "50/s"),
        (r#""50/sec""#, "", "50/s"),
        (r#""50 / s""#, "", "50/s"),
        (r#""-1/s""#, "", "whole number"),
        (r#""1.5/s""#, "", "whole number"),
        (r#""0/s""#, "", "at least 1 call"),
        (r#""99999999999999999999999/s""#, "", "at most"),
        (r#""5/1ms""#, "", "10ms"),
        (r#""5/0s""#, "", "10ms"),
        (r#""20000/day""#, "", r#"{ calls = 20000, per = "day" }"#),
        ("50", "", "50/s"),
        ("true", "", "50/s"),
        (r#"{ per = "1m" }"#, ".calls", "required"),
        ("{ calls = 5 }", ".per", "required"),
        (r#"{ calls = 0, per = "1m" }"#, ".calls", "from 1"),
        (r#"{ calls = -5, per = "1m" }"#, ".calls", "whole number"),
        (r#"{ calls = "5", per = "1m" }"#, ".calls", "whole number"),
        ("{ calls = 5, per = 60 }", ".per", "1m"),
        (r#"{ calls = 5, per = "week" }"#, ".per", "month"),
        (r#"{ calls = 5, per = "1m", shape = "sliding" }"#, ".shape", "paced"),
        (r#"{ calls = 5, per = "1m", shape = "calendar" }"#, ".shape", r#"per = "day""#),
        (r#"{ calls = 5, per = "day", shape = "window" }"#, ".shape", r#"per = "1d""#),
        (r#"{ calls = 5, per = "month", shape = "paced" }"#, ".shape", "calendar"),
        (r#"{ calls = 5, per = "1m", tz = "UTC" }"#, ".tz", "Remove tz"),
        (r#"{ calls = 5, per = "day", tz = "Mars/Olympus" }"#, ".tz", "America/New_York"),
        (r#"{ calls = 5, per = "1m", burst = 2 }"#, ".burst", "bucket"),
        (r#"{ calls = 5, per = "1m", shape = "paced", burst = 2 }"#, ".burst", "bucket"),
        (r#"{ calls = 5, per = "1m", shape = "bucket" }"#, ".burst", "required"),
        (r#"{ calls = 5, per = "1m", shape = "bucket", burst = 6 }"#, ".burst", "from 1 to 5"),
        (r#"{ calls = 5, per = "1m", shape = "bucket", burst = 0 }"#, ".burst", "from 1 to 5"),
        (r#"{ calls = 5, per = "1m", guard = "1m" }"#, ".guard", "300ms"),
        (r#"{ calls = 5, per = "1m", guard = "soon" }"#, ".guard", "250ms"),
        (r#"{ calls = 5, per = "1m", guard = "0s" }"#, ".guard", "3ms"),
        (r#"{ calls = 5, per = "1m", key = "user" }"#, ".key", "tenant"),
        (r#"{ calls = 5, per = "1m", id = "" }"#, ".id", "1 to 64"),
        (r#"{ calls = 5, per = "1m", id = "a b" }"#, ".id", "1 to 64"),
        (r#"{ calls = 5, per = "1m", brust = 5 }"#, ".brust", "burst"),
    ];
    for (limit, key, word) in table {
        refused(&with_limits(limit), &format!("vendors.v.limits[0]{key}"), 4, word);
    }
    refused(&with_limits(r#""50/s", "50/s""#), "vendors.v.limits[1]", 4, "limits[0]");
    refused(&with_limits("\n\"50/s\",\n{ calls = 1, per = \"1s\", id = \"50/s\" }"), "vendors.v.limits[1]", 6, "id = ");
    refused(&with_limits(&r#""1/s","#.repeat(17)), "vendors.v.limits", 4, "at most 16");
    refused(&with_limits("").replace("[]", "\"50/s\""), "vendors.v.limits", 4, "[\"50/s\"");
    refused(&with_limits("").replace("limits = []", ""), "vendors.v.limits", 1, "limits = []");
}

#[test]
fn a_guard_or_burst_that_costs_much_is_reported_in_percent() {
    let table = [
        (r#"{ calls = 100, per = "1s", guard = "20ms" }"#, Some("2.0 %")),
        (r#"{ calls = 100, per = "1s", guard = "10ms" }"#, None),
        (r#"{ calls = 100, per = "1m", shape = "bucket", burst = 11 }"#, Some("10.4 %")),
        (r#"{ calls = 1000, per = "5m", shape = "bucket", burst = 5 }"#, None),
        (r#""5/100ms""#, Some("4.8 %")),
    ];
    for (limit, percent) in table {
        let warnings = parse(&with_limits(limit)).unwrap().warnings;
        match percent {
            None => assert_eq!(warnings, Vec::<String>::new(), "{limit}"),
            Some(percent) => {
                assert!(warnings.len() == 1 && warnings[0].contains(percent), "{limit}: {warnings:?}");
                assert!(warnings[0].starts_with("vendors.v.limits[0]"), "{warnings:?}");
            }
        }
    }
}

#[test]
fn vendors_of_one_pool_share_its_limits() {
    let other = "[vendors.w]\nkind = \"sync\"\nurl = \"http://127.0.0.1/w\"\npool = \"v\"\n";
    let with = |limits: &str| format!("{}{other}{limits}", sync_vendor(""));
    for fine in ["", "limits = [\"50/s\"]"] {
        let config = parse(&with(fine)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((config.pools.len(), config.pools[0].limits.len(), config.vendors.len()), (1, 1, 2));
    }
    refused(&with("limits = [\"40/s\"]"), "vendors.w.limits", 9, "vendors.v");
    refused(&with("limits = [\"40/s\"]"), "vendors.w.limits", 9, "line 4");
    refused(&with("limits = []"), "vendors.w.limits", 9, "Make the two the same");
}

#[test]
fn ten_thousand_vendors_are_read_and_no_more() {
    let vendor = |i: usize| sync_vendor("timeout = \"9s\"\n").replace("vendors.v", &format!("vendors.v{i}"));
    let mut text: String = (0..10_000).map(vendor).collect();
    let config = parse(&text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((config.vendors.len(), config.pools.len()), (10_000, 10_000));
    let error = parse(&text.replace("9s", "0s")).unwrap_err().to_string();
    assert!(error.ends_with("more") && error.lines().count() == 21, "{error}");
    text += &vendor(10_000);
    assert!(parse(&text).unwrap_err().to_string().contains("at most 10000"));
}
