//! The command line before there is a service: `init` writes a first config, `doctor` says what a service would miss.

use std::{
    fs::{self, Permissions},
    io::{BufReader, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{Run, canned, read_line};

const BINARY: &str = env!("CARGO_BIN_EXE_fetchgate");

fn run_in(folder: &TempDir, args: &[&str], stdin: &str) -> Run {
    let mut command = Command::new(BINARY);
    command.args(args).current_dir(folder.path()).env_remove("FETCHGATE_CONFIG").env_remove("FETCHGATE_URL");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    // A command that reads nothing may have ended already.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    Run::of(child.wait_with_output().expect("it ends"))
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn three_answers_make_a_config_that_passes_check() {
    let folder = folder();
    let answers = "bureau https://api.bureau.example/v2/people\nsync\n10/s,20000/d\n";
    run_in(&folder, &["init"], answers).succeeds();
    let said = run_in(&folder, &["check"], "").succeeds().stdout;
    assert!(said.contains("bureau (sync, pool bureau)\n  POST https://api.bureau.example/v2/people"), "{said}");
    assert!(said.contains("10/s: 10 calls in any 1s") && said.contains("20000/d: "), "{said}");
}

#[test]
fn flags_make_a_config_of_each_kind_and_nobody_is_asked() {
    for kind in ["sync", "webhook", "polling"] {
        let folder = folder();
        let url = "https://api.example/jobs?v=2";
        let flags = ["init", "mine.toml", "--vendor", "desk", "--url", url, "--kind", kind, "--limit", "none"];
        let run = run_in(&folder, &flags, "").succeeds();
        assert!(run.stderr.is_empty() && run.stdout.contains("fetchgate check --config mine.toml"), "{run:?}");
        let said = run_in(&folder, &["check", "--config", "mine.toml"], "").succeeds().stdout;
        assert!(said.contains(&format!("desk ({kind}, pool desk)")) && said.contains("no limits"), "{said}");
    }
}

#[test]
fn init_overwrites_nothing_and_writes_nothing_that_check_refuses() {
    let folder = folder();
    let flags = ["init", "--vendor", "v", "--url", "https://v.example", "--kind", "sync", "--limit"];
    run_in(&folder, &[&flags[..], &["ten"]].concat(), "").fails(2, &["limits"]);
    run_in(&folder, &["init"], "bureau\n").fails(2, &["url"]);
    run_in(&folder, &["init"], "").fails(2, &["--vendor"]);
    assert!(!folder.path().join("fetchgate.toml").exists());
    fs::write(folder.path().join("fetchgate.toml"), "mine").expect("written");
    run_in(&folder, &[&flags[..], &["10/s"]].concat(), "").fails(2, &["is not overwritten"]);
    assert_eq!(fs::read_to_string(folder.path().join("fetchgate.toml")).expect("there"), "mine");
}

/// A config with a secret in a file, for a service at this address.
fn config(listen: &str) -> String {
    format!(
        "[server]\nlisten = \"{listen}\"\n[vendors.v]\nkind = \"sync\"\nurl = \"http://127.0.0.1:1/\"\nlimits = []\n\
         headers = {{ x-key = \"${{file:key}}\" }} # or \"${{file:/nowhere}}\"\n"
    )
}

fn checks(run: &Run) -> Vec<(String, String, bool)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let checks = run.json()["checks"].as_array().expect("a list").clone();
    checks.iter().map(|one| (text(&one["name"]), text(&one["state"]), one.get("mend").is_some())).collect()
}

#[test]
fn the_doctor_says_what_is_wrong_and_what_to_do_about_it() {
    let folder = folder();
    let key = folder.path().join("key");
    fs::write(&key, "secret-7f3a9c").expect("written");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("allowed");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    fs::write(folder.path().join("fetchgate.toml"), config(&address)).expect("written");
    // Whoever asks at the port is answered with the end of the connection.
    let answering = std::thread::spawn(move || drop(taken.accept()));

    let run = run_in(&folder, &["doctor", "-o", "json"], "").fails(1, &["one thing is bad"]);
    answering.join().expect("no panic");
    assert!(!run.stdout.contains("secret-7f3a9c"), "{run:?}");
    let found = checks(&run);
    assert!(found.iter().all(|(_, state, mend)| *mend == (state != "ok")), "{found:?}");
    for (name, state) in [
        ("config", "ok"),
        ("store", "ok"),
        ("store version", "ok"),
        ("vendor", "warn"),
        ("secret file", "warn"),
        ("server.listen", "bad"),
    ] {
        assert!(found.iter().any(|one| one.0 == name && one.1 == state), "{name} is not {state}: {found:?}");
    }
}

#[test]
fn the_doctor_finds_nothing_bad_where_nothing_is_and_says_so_of_a_config_that_is_wrong() {
    let folder = folder();
    let key = folder.path().join("key");
    fs::write(&key, "secret").expect("written");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("allowed");
    fs::write(folder.path().join("fetchgate.toml"), config("127.0.0.1:0")).expect("written");
    let run = run_in(&folder, &["doctor"], "").succeeds();
    assert!(run.stdout.contains("ok    secret file: ") && !run.stdout.contains("bad "), "{run:?}");
    fs::write(folder.path().join("fetchgate.toml"), "colour = 1").expect("written");
    let run = run_in(&folder, &["doctor"], "").fails(1, &["one thing is bad"]);
    assert!(run.stdout.starts_with("bad   config: ") && run.stdout.contains("mend: "), "{run:?}");
}

#[test]
fn dev_prints_its_address_first_and_takes_a_port_a_name_and_the_variables_of_a_config() {
    for (listen, by) in [("0", "--listen"), ("localhost:0", "--listen"), ("127.0.0.1:0", "FETCHGATE__SERVER__LISTEN")] {
        let folder = folder();
        let mut dev = Command::new(BINARY);
        dev.args(["dev", "--quiet", "--persist"])
            .arg(folder.path())
            .env("RUST_LOG", "error")
            .env("FETCHGATE__VENDORS__SYNC__LIMITS", r#"["7/s"]"#);
        if by == "--listen" {
            dev.args([by, listen])
        } else {
            dev.env(by, listen)
        };
        let mut child = dev.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let first = read_line(&mut stdout).expect("a line");
        let url =
            first.strip_prefix("Fetchgate is running: ").and_then(|rest| rest.split(' ').next()).expect("the address");
        let limits = crate::cli::run(url, &["vendors", "limits", "sync"]).succeeds().stdout;
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert!(url.starts_with("http://127.0.0.1:") && limits.contains("7/s"), "{first}{limits}");
    }
    run_in(&folder(), &["dev", "--listen", "here"], "").fails(2, &["write a port such as 8000"]);
}

#[test]
fn dev_names_all_its_vendors_and_sends_traces_where_the_usual_variables_say() {
    let (collector, receiving) = canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let folder = folder();
    let mut dev = Command::new(BINARY);
    dev.args(["dev", "--listen", "0", "--persist"]).arg(folder.path());
    dev.env("RUST_LOG", "error").env("OTEL_EXPORTER_OTLP_ENDPOINT", collector);
    let mut child = dev.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the binary starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut banner = String::new();
    while !banner.contains("/refuse?") {
        banner.push_str(&read_line(&mut stdout).expect("a line"));
    }
    let head = receiving.join().expect("no panic");
    let url = banner.split_whitespace().nth(3).expect("the address");
    let vendors = crate::cli::run(url, &["vendors", "list", "-o", "json"]).succeeds().json()["vendors"].clone();
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    for vendor in vendors.as_array().expect("a list") {
        let name = vendor["name"].as_str().expect("a name");
        assert!(banner.contains(&format!(" {name} ")), "{name} is not in: {banner}");
    }
    assert!(banner.contains(&format!("fetchgate top --url {url}\n")), "{banner}");
}
