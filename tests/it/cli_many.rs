//! The command line for many jobs, and for people: filters, files, tables, times, colours, pipes.

use std::{
    io::{BufReader, Write as _},
    net::TcpListener,
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};

use crate::{
    cli::{Dev, Run, nowhere, read_line, run},
    failure::BINARY,
};

/// Jobs of a paused vendor, with the tag `many`; their ids, oldest first.
fn waiting(dev: &Dev, count: usize) -> Vec<String> {
    dev.run(&["vendors", "pause", "sync"]).succeeds();
    let file: String = (0..count).map(|n| format!("{{\"payload\":{n}}}\n")).collect();
    let sent = dev.run_with_stdin(&["jobs", "submit", "--batch", "-", "--vendor", "sync", "--tag", "many"], &file);
    let ids: Vec<String> = sent.succeeds().stdout.lines().map(str::to_owned).collect();
    assert_eq!(ids.len(), count);
    ids
}

fn ids(list: &Value) -> Vec<&str> {
    list["jobs"].as_array().expect("jobs").iter().map(|job| job["request_id"].as_str().expect("an id")).collect()
}

#[test]
fn options_of_a_batch_hold_for_the_jobs_that_do_not_say_it_themselves() {
    let dev = Dev::start();
    let file = "{\"payload\":1}\n{\"payload\":2,\"tags\":[\"own\"],\"vendor\":\"async\"}\n";
    let submit = ["jobs", "submit", "--batch", "-", "--vendor", "sync", "--tag", "given", "--wait", "30s"];
    let sent = dev.run_with_stdin(&submit, file).succeeds();
    assert!(sent.stderr.contains("accepted 2, rejected 0\n") && sent.stderr.contains("complete 2\n"), "{sent:?}");
    let jobs: Vec<Value> =
        sent.stdout.lines().map(|id| dev.run(&["jobs", "get", id, "-o", "json"]).succeeds().json()).collect();
    assert_eq!(json!([jobs[0]["vendor"], jobs[0]["tags"], jobs[0]["status"]]), json!(["sync", ["given"], "complete"]));
    assert_eq!(json!([jobs[1]["vendor"], jobs[1]["tags"]]), json!(["async", ["own"]]));

    dev.run(&["vendors", "pause", "sync"]).succeeds();
    let late = [&submit[..9], &["50ms"]].concat();
    dev.run_with_stdin(&late, "{\"payload\":1}\n").fails(1, &["not all jobs are complete: pending 1"]);
    dev.run_with_stdin(&submit, " [{\"payload\":1}]").fails(2, &["is a JSON array", "jq -c"]);
}

#[test]
fn a_list_takes_several_statuses_and_durations_and_is_one_document() {
    let dev = Dev::start();
    let ids_sent = waiting(&dev, 6);
    for id in [&ids_sent[1], &ids_sent[4]] {
        dev.run(&["jobs", "cancel", id]).succeeds();
    }
    let both = ["jobs", "list", "--status", "pending", "--status", "cancelled", "--created-after", "1h", "-o", "json"];
    let newest_first: Vec<&str> = ids_sent.iter().rev().map(|id| &**id).collect();
    assert_eq!(ids(&dev.run(&both).succeeds().json()), newest_first);
    let limited = dev.run(&[&both[..], &["--limit", "3"]].concat()).succeeds().json();
    assert_eq!(ids(&limited), newest_first[..3]);
    let cancelled = dev.run(&["jobs", "list", "--status", "cancelled,failed", "-o", "json"]).succeeds().json();
    assert_eq!(ids(&cancelled), [&ids_sent[4], &ids_sent[1]]);
    let older = ["jobs", "list", "--created-before", "1h"];
    assert_eq!(dev.run(&older).succeeds().stderr, "no job fits\n");
    // Exactly as many as there are: nothing is said of more.
    assert_eq!(dev.run(&["jobs", "list", "--limit", "6"]).succeeds().stderr, "");
}

#[test]
fn tables_fit_the_width_and_times_are_as_asked_for() {
    let dev = Dev::start();
    let id = waiting(&dev, 3).remove(0);
    for args in [&["jobs", "list"][..], &["vendors", "list"], &["keys", "list"], &["vendors", "audit", "sync"]] {
        let narrow = Run::of(dev.command(args).env("COLUMNS", "80").output().expect("it runs")).succeeds();
        assert!(narrow.stdout.lines().all(|line| line.chars().count() <= 80), "{}", narrow.stdout);
    }
    let narrow = Run::of(dev.command(&["jobs", "list"]).env("COLUMNS", "60").output().expect("it runs")).succeeds();
    let head: Vec<&str> = narrow.stdout.lines().next().expect("a head").split_whitespace().collect();
    assert!(head.starts_with(&["ID", "STATUS"]) && !head.contains(&"TENANT"), "{narrow:?}");

    let wide = dev.run(&["jobs", "list"]).succeeds().stdout;
    assert!(wide.lines().next().is_some_and(|head| head.ends_with("ERROR  TAGS")), "all columns: {wide}");
    assert!(wide.contains("s ago ") || wide.contains("  now "), "{wide}");
    let created = dev.run(&["jobs", "get", &id, "-o", "json"]).succeeds().json()["created_at"].clone();
    let created = created.as_str().expect("a time");
    assert!(dev.run(&["jobs", "list", "--utc"]).succeeds().stdout.contains(created));
    let zoned = dev.run(&["jobs", "list", "--tz", "Asia/Kolkata"]).succeeds().stdout;
    assert!(zoned.contains(" +05:30  none"), "{zoned}");
    dev.run(&["jobs", "list", "--tz", "Nowhere/At all"]).fails(2, &["no such time zone"]);
    assert!(dev.run(&["jobs", "get", &id]).succeeds().stdout.contains(&format!("created_at  {created} (")), "both");
}

#[test]
fn a_terminal_gets_colours_unless_they_are_not_wanted() {
    let dev = Dev::start();
    let listed = |no_color: Option<&str>| {
        // `script` runs a command on a terminal of its own.
        let mut script = Command::new("script");
        script.args(["-qec", &format!("{BINARY} vendors list"), "/dev/null"]).stdin(Stdio::null());
        script.env("FETCHGATE_URL", &dev.url).env("TERM", "xterm").env_remove("NO_COLOR").env_remove("CLICOLOR");
        script.env_remove("CLICOLOR_FORCE").env_remove("COLUMNS").envs(no_color.map(|value| ("NO_COLOR", value)));
        Run::of(script.output().expect("`script` of util-linux runs")).succeeds().stdout
    };
    assert!(listed(None).contains("\u{1b}[32mrunning\u{1b}[0m"), "{:?}", listed(None));
    assert!(listed(Some("1")).contains("running") && !listed(Some("1")).contains('\u{1b}'));
    assert!(!dev.run(&["vendors", "list"]).succeeds().stdout.contains('\u{1b}'), "a pipe is no terminal");
}

#[test]
fn whoever_reads_may_stop_at_any_time() {
    for args in [&["openapi"][..], &["completions", "bash"], &["man"], &["--help"]] {
        let mut command = Command::new(BINARY);
        let mut child =
            command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        drop(child.stdout.take());
        let ended = child.wait_with_output().expect("it ends");
        assert_eq!((ended.status.code(), &*ended.stderr), (Some(0), &b""[..]), "{args:?}");
    }
}

#[test]
fn there_is_a_manual_page_for_each_command_and_the_help_has_the_exit_codes() {
    let page = run(&nowhere(), &["man"]).succeeds().stdout;
    assert!(page.contains(".TH fetchgate 1") && page.contains("no service could be reached"), "{page}");
    let page = run(&nowhere(), &["man", "jobs", "list"]).succeeds().stdout;
    assert!(page.contains("created\\-after"), "{page}");
    run(&nowhere(), &["man", "jobs", "lists"]).fails(2, &["there is no command jobs lists"]);
    let help = run(&nowhere(), &["--help"]).succeeds().stdout;
    for line in ["  2  the arguments or the config are wrong", "  3  no service could be reached", "NO_COLOR"] {
        assert!(help.contains(line), "{line:?} is missing:\n{help}");
    }
    let docs = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md"));
    let mut cli = <fetchgate::cli::Cli as clap::CommandFactory>::command();
    cli.build();
    for group in cli.get_subcommands().filter(|group| group.get_name() != "help") {
        let (name, mut commands) = (group.get_name(), group.get_subcommands().filter(|one| one.get_name() != "help"));
        let is_told = |command: &str| docs.contains(&format!("`{command}")) || docs.contains(&format!("/{command}"));
        assert!(docs.contains(&format!("`{name}")), "docs/cli.md does not say what {name} does");
        assert!(
            commands.all(|one| is_told(&format!("{name} {}", one.get_name())) || is_told(one.get_name())),
            "{name}"
        );
    }
}

#[test]
fn one_command_says_why_a_job_failed_and_what_to_do() {
    let dev = Dev::start();
    let submit = ["jobs", "submit", "--vendor", "faulty", "--payload", r#"{"status": 422}"#, "--wait", "30s"];
    let shown = dev.run(&submit).fails(1, &["the vendor answered 422 (vendor_refused)"]).stdout;
    let why = "\n\nwhy: the vendor answered 422 (vendor_refused)\nthe vendor said: 422 ";
    assert!(
        shown.contains(why) && shown.contains("\nnext: If the payload is wrong, submit a corrected job. If "),
        "{shown}"
    );
    let id = shown.split_whitespace().nth(1).expect("the id");
    assert!(dev.run(&["jobs", "get", id]).succeeds().stdout.contains(why), "later too");
    let attempts = dev.run(&["jobs", "attempts", id]).succeeds().stdout;
    assert!(attempts.starts_with("N  KIND  SENT") && attempts.contains("  422     "), "{attempts}");
    assert!(attempts.contains("\n\nthe vendor answered attempt 1 with status 422:\n"), "{attempts}");
    let vendor = dev.run(&["vendors", "show", "faulty"]).succeeds().stdout;
    assert!(vendor.contains("last error  the vendor answered 422 (vendor_refused, "), "{vendor}");
    let failures = dev.run(&["failures", "--since", "2h", "--vendor", "faulty"]).succeeds().stdout;
    assert!(failures.contains(&format!("{id}  the vendor answered 422")), "{failures}");
    let none = dev.run(&["failures", "--vendor", "sync"]).succeeds().stdout;
    assert!(none.starts_with("no job has failed since 2"), "{none}");
}

#[test]
fn many_jobs_are_cancelled_replayed_and_erased_after_somebody_has_said_yes() {
    let dev = Dev::start();
    waiting(&dev, 5);
    dev.submit(&["--vendor", "sync"]);
    let cancel = ["jobs", "cancel", "--tag", "many"];
    dev.run(&cancel).fails(2, &["5 jobs will be cancelled", "--yes", "--dry-run"]);
    assert_eq!(dev.run(&[&cancel[..], &["--dry-run"]].concat()).succeeds().stdout, "5 jobs would be cancelled\n");
    assert_eq!(dev.run(&[&cancel[..], &["--yes"]].concat()).succeeds().stdout, "5 jobs are cancelled\n");
    let none = "no job that can be cancelled fits\n";
    assert_eq!(dev.run(&[&cancel[..], &["--yes"]].concat()).succeeds().stdout, none);
    let replay = ["jobs", "replay", "--status", "failed,cancelled", "--vendor", "sync", "-y", "-o", "json"];
    assert_eq!(dev.run(&replay).succeeds().json(), json!({"matched": 5, "done": 5}));
    assert_eq!(dev.run(&["jobs", "cancel", "--all", "-y"]).succeeds().stdout, "6 jobs are cancelled\n");
    let erase = ["jobs", "erase", "--tag", "many", "--created-after", "1h"];
    assert_eq!(dev.run(&[&erase[..], &["--dry-run"]].concat()).succeeds().stdout, "5 jobs would be erased\n");
    assert_eq!(dev.run(&[&erase[..], &["--yes"]].concat()).succeeds().stdout, "5 jobs are erased\n");
    assert_eq!(ids(&dev.run(&["jobs", "list", "-o", "json"]).succeeds().json()).len(), 1);
}

/// A stream of events that is cut after these events; then the head of the request that goes on, and the rest.
#[test]
fn events_go_on_behind_the_last_one_after_an_interruption() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let event = |id: &str, status: &str| {
        format!(
            "id: {id}\nevent: job\ndata: {{\"request_id\":\"{id}\",\"vendor\":\"v\",\"tenant\":\"t\",\"status\":\"{status}\",\"at\":\"2026-11-22T12:00:00.000Z\"}}\n\n"
        )
    };
    let streams = [event("one", "processing") + "id: half\ndata: ", event("two", "complete")];
    let serving = thread::spawn(move || {
        streams.map(|text| {
            let (stream, _) = listener.accept().expect("a connection");
            let mut lines = BufReader::new(stream.try_clone().expect("a second handle"));
            let mut head = String::new();
            while let Some(line) = read_line(&mut lines).filter(|line| !line.trim().is_empty()) {
                head.push_str(&line);
            }
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hello\n\n";
            (&stream).write_all((answer.to_owned() + &text).as_bytes()).expect("written");
            head
        })
    });
    let mut command = crate::cli::command(&url, &["events", "--vendor", "v", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut next = || serde_json::from_str::<Value>(&read_line(&mut stdout).expect("an event")).expect("JSON");
    let seen = [next(), next()].map(|event| json!([event["id"], event["event"], event["data"]["status"]]));
    assert_eq!(seen, [json!(["one", "job", "processing"]), json!(["two", "job", "complete"])]);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let heads = serving.join().expect("served");
    assert!(heads[0].starts_with("GET /events?vendor=v HTTP/1.1") && !heads[0].contains("last-event-id"), "{heads:?}");
    assert!(heads[1].contains("last-event-id: one\r\n"), "only whole events count: {heads:?}");
    run(&nowhere(), &["events"]).fails(3, &["no service can be reached"]);
}

#[test]
fn events_are_printed_as_they_happen() {
    let dev = Dev::start();
    // An id from elsewhere: the service says so first, and so the stream is open.
    let mut events = dev.spawn(&["events", "--vendor", "sync", "--after", "elsewhere"]);
    let first = read_line(&mut events.stdout).expect("an event");
    assert!(first.contains("  reset  "), "{first}");
    let id = dev.submit(&["--vendor", "sync"]);
    let line = read_line(&mut events.stdout).expect("an event");
    assert!(line.ends_with(&format!("Z  complete    {id}  sync  default\n")), "{line}");
}

#[test]
fn the_processes_and_the_store_are_shown() {
    let system = Dev::start().run(&["system"]).succeeds().stdout;
    assert!(
        system.contains("store        ok (sqlite, schema ") && system.contains("redis        not used\n"),
        "{system}"
    );
    assert!(system.contains("  running  api,worker  "), "{system}");
}
