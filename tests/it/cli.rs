//! The command line, black box: the real binary against a real `fetchgate dev`, or against a few canned bytes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio},
    thread::{self, JoinHandle},
};

use clap::CommandFactory;
use serde_json::{Value, json};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_fetchgate");
/// Spacing, long numbers and the order of keys: all that a JSON library would change.
const ODD: &str = r#"{"z": 123456789012345678901234567890,  "a":1.10, "b" : [ ],"a":1e2}"#;

/// A running `fetchgate dev`, ended when dropped.
pub(crate) struct Dev {
    child: Child,
    pub(crate) url: String,
    pub(crate) folder: TempDir,
    /// Held open, or the process would write into a closed pipe.
    _stdout: BufReader<ChildStdout>,
}

impl Dev {
    pub(crate) fn start() -> Dev {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // With the limit of most shells.
        let mut dev = Command::new("sh");
        dev.args(["-c", r#"ulimit -Sn 1024; exec "$0" "$@""#, BINARY]);
        dev.args(["dev", "--quiet", "--listen", "127.0.0.1:0", "--persist"]).arg(folder.path());
        dev.env("RUST_LOG", "error").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = dev.spawn().expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let url = loop {
            let line = read_line(&mut stdout).expect("dev tells its URL before it ends");
            if let Some((_, rest)) = line.split_once("running: ") {
                break rest.split_whitespace().next().expect("a URL").to_owned();
            }
        };
        Dev { child, url, folder, _stdout: stdout }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        command(&self.url, args)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().expect("the binary runs"))
    }

    pub(crate) fn run_with_stdin(&self, args: &[&str], stdin: &str) -> Run {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        child.stdin.take().expect("piped").write_all(stdin.as_bytes()).expect("it reads its stdin");
        Run::of(child.wait_with_output().expect("it ends"))
    }

    /// Starts a command that goes on until something happens.
    pub(crate) fn spawn(&self, args: &[&str]) -> Watch {
        let mut child =
            self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        Watch { child, stdout, stderr }
    }

    pub(crate) fn submit(&self, args: &[&str]) -> String {
        self.run(&[&["jobs", "submit", "--payload", "1"], args].concat()).succeeds().stdout.trim().to_owned()
    }

    /// What the service itself answers.
    pub(crate) fn body(&self, path: &str) -> String {
        let address = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("dev listens");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer in UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        body.to_owned()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself, which a test has seen by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command under way, ended when dropped.
pub(crate) struct Watch {
    child: Child,
    pub(crate) stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Watch {
    fn interrupt(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill runs").success());
    }

    /// Waits for its end; the output is what was not read before.
    fn end(mut self) -> Run {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).expect("UTF-8");
        self.stderr.read_to_string(&mut stderr).expect("UTF-8");
        let code = self.child.wait().expect("it ends").code().expect("an exit code, not a signal");
        Run { code, stdout, stderr }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command has written, and its exit code.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(output: Output) -> Run {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Run {
            code: output.status.code().expect("an exit code"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    #[track_caller]
    pub(crate) fn succeeds(self) -> Run {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Ends with this code and says all of this on stderr.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> Run {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {self:?}");
        }
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(crate) fn command(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args).env("FETCHGATE_URL", url).env_remove("COLUMNS").stdin(Stdio::null());
    command
}

pub(crate) fn run(url: &str, args: &[&str]) -> Run {
    Run::of(command(url, args).output().expect("the binary runs"))
}

/// The next line; nothing at the end.
pub(crate) fn read_line(from: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    (from.read_line(&mut line).expect("UTF-8") > 0).then_some(line)
}

/// Gives these bytes as its answer to one request. The head is all that it reads, and what it gives at its end.
pub(crate) fn canned(answer: &'static str) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let serving = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let mut lines = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut head = String::new();
        while let Some(line) = read_line(&mut lines).filter(|line| !line.trim().is_empty()) {
            head.push_str(&line);
        }
        (&stream).write_all(answer.as_bytes()).expect("written");
        head
    });
    (url, serving)
}

/// A URL at which nothing listens.
pub(crate) fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

#[test]
fn a_job_goes_from_submit_to_its_result() {
    let dev = Dev::start();
    let submitted = dev.run(&["jobs", "submit", "--vendor", "sync", "--payload", ODD]).succeeds();
    let id = submitted.stdout.trim();
    assert_eq!(submitted.stdout, format!("{id}\n"), "the id and nothing else");
    assert_eq!(id.len(), 36, "{id}");

    let shown = dev.run(&["jobs", "get", id, "--wait", "30s", "--payload"]).succeeds().stdout;
    for line in
        [&*format!("request_id   {id}"), "status       complete", "tags         none", "payload\n{", "result\n{"]
    {
        assert!(shown.contains(line), "{line:?} is missing:\n{shown}");
    }
    assert!(
        shown.contains("\n  \"z\": 123456789012345678901234567890,\n  \"a\": 1.10,\n  \"b\": [],\n  \"a\": 1e2\n}"),
        "{shown}"
    );

    let verbatim = dev.run(&["jobs", "get", id, "-o", "json", "--payload"]).succeeds().stdout;
    assert_eq!(verbatim, dev.body(&format!("/jobs/{id}?include=payload")) + "\n");
    assert!(verbatim.contains(ODD), "{verbatim}");

    let waited = dev.run(&["jobs", "submit", "--payload", "null", "--wait", "30s", "-o", "json"]).succeeds();
    assert_eq!(waited.json()["status"], "complete");
    let accepted = dev.run(&["jobs", "submit", "--payload", "null", "-o", "json"]).succeeds();
    assert_eq!(accepted.stdout, format!("{{\"request_id\":{}}}\n", accepted.json()["request_id"]));
}

#[test]
fn a_service_asks_for_no_huge_pages() {
    let dev = Dev::start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", dev.child.id())).expect("it runs");
    let enabled = status.lines().find_map(|line| line.strip_prefix("THP_enabled:")).expect("the kernel says it");
    assert_eq!(enabled.trim(), "0");
}

#[test]
fn a_service_may_open_all_files_that_it_is_allowed_and_has_room_for_them_from_the_beginning() {
    let dev = Dev::start();
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", dev.child.id())).expect("it runs");
    let (limits, status) = (read("limits"), read("status"));
    let limits = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the kernel says it");
    let (allowed, at_most) = {
        let mut both = limits.split_whitespace();
        (both.next().expect("a soft limit"), both.next().expect("a hard limit"))
    };
    assert_eq!(allowed, at_most);
    let room = status.lines().find_map(|line| line.strip_prefix("FDSize:")).expect("the kernel says it");
    let room: u64 = room.trim().parse().expect("a number");
    assert!(room >= allowed.parse().unwrap_or(u64::MAX).min(16_384), "room for {room}");
}

#[test]
fn a_payload_comes_from_a_file_or_stdin_and_every_field_is_passed_on() {
    let dev = Dev::start();
    let payload = format!("{{\"lines\":\n{ODD}}}");
    let submit =
        ["jobs", "submit", "--payload-file", "-", "--vendor", "polling", "--priority", "high", "--tenant", "acme"];
    let more = ["--not-before", "1d", "--deadline", "2d", "--tag", "a b", "--tag", "c", "--idempotency-key", "k"];
    let submit = [&submit[..], &more].concat();
    let id = dev.run_with_stdin(&submit, &payload).succeeds().stdout;
    let job = dev.run(&["jobs", "get", id.trim(), "--payload", "-o", "json"]).succeeds();
    assert!(job.stdout.contains(&payload.replace('\n', " ")), "one line, and otherwise untouched: {}", job.stdout);
    assert_eq!(job.stdout.lines().count(), 1);
    let job = job.json();
    let got = json!([job["vendor"], job["priority"], job["tenant"], job["tags"], job["blocked_on"]]);
    assert_eq!(got, json!(["polling", "high", "acme", ["a b", "c"], "not_before"]));
    assert!(job["deadline"].is_string(), "{job}");

    assert_eq!(dev.run_with_stdin(&submit, &payload).succeeds().stdout, id, "the same key and body: the same job");
    dev.run_with_stdin(&submit, "2").fails(1, &["idempotency_key_reused"]);

    let file = dev.folder.path().join("payload.json");
    std::fs::write(&file, " [1] \n").expect("written");
    let file = file.to_str().expect("UTF-8");
    let id = dev.run(&["jobs", "submit", "--payload-file", file]).succeeds().stdout;
    assert_eq!(
        dev.run(&["jobs", "get", id.trim(), "--payload", "-o", "json"]).succeeds().json()["payload"],
        json!([1])
    );
}

#[test]
fn refusals_are_shown_with_their_code_and_every_wrong_field() {
    let dev = Dev::start();
    let submit = ["jobs", "submit", "--payload", "1"];
    dev.run(&[&submit[..], &["--vendor", "buro"]].concat()).fails(1, &["buro", "(unknown_vendor)"]);
    let wrong = ["--not-before", "soon", "--deadline", "never"];
    let both = ["2 fields are wrong (invalid_field)", "\n  --not-before must be ", "\n  --deadline must be "];
    dev.run(&[&submit[..], &wrong].concat()).fails(1, &both);
    dev.run(&[&submit[..], &["--deadline", "2020-01-01T00:00:00Z"]].concat())
        .fails(1, &["error: --deadline is in the past (invalid_field)\n"]);
    dev.run(&["jobs", "get", "../vendors"]).fails(1, &["(unknown_job)"]);
    dev.run(&["vendors", "show", "a/b c"]).fails(1, &["a/b c", "`fetchgate vendors list` shows them (unknown_vendor)"]);

    let id = dev.submit(&["--wait", "30s", "-o", "json"]);
    let id = serde_json::from_str::<Value>(&id).expect("JSON")["request_id"].as_str().expect("an id").to_owned();
    dev.run(&["jobs", "cancel", &id]).fails(1, &["(already_ended)"]);
    dev.run(&["jobs", "replay", &id]).fails(1, &["(not_replayable)"]);
}

#[test]
fn only_for_who_waits_the_exit_code_says_how_a_job_ended() {
    let dev = Dev::start();
    dev.run(&["vendors", "pause", "sync"]).succeeds();
    let late = dev.run(&["jobs", "submit", "--payload", "1", "--deadline", "50ms", "--wait", "30s"]);
    let late = late.fails(1, &["the job is expired", "(deadline)"]);
    assert!(late.stdout.contains("status       expired"), "the job itself is shown: {late:?}");

    let id = dev.submit(&[]);
    let words = ["the job has not ended yet: it is pending, blocked on vendor_paused", &format!("jobs watch {id}")];
    dev.run(&["jobs", "get", &id, "--wait", "1ms"]).fails(1, &words);
    dev.run(&["jobs", "get", &id]).succeeds();
    let cancelled = dev.run(&["jobs", "cancel", &id]).succeeds();
    assert!(cancelled.stdout.contains("status       cancelled"), "{cancelled:?}");
    dev.run(&["jobs", "get", &id]).succeeds();
    dev.run(&["jobs", "get", &id, "--wait", "30s"]).fails(1, &["the job is cancelled"]);
    dev.run(&["jobs", "watch", &id]).fails(1, &["the job is cancelled"]);
    let replayed = dev.run(&["jobs", "replay", &id, "-o", "json"]).succeeds();
    assert_eq!(replayed.json()["status"], "pending");
}

#[test]
fn a_list_follows_the_cursors_and_a_batch_names_what_was_rejected() {
    let dev = Dev::start();
    dev.run(&["vendors", "pause", "sync"]).succeeds();
    let mut file: String = (0..600).map(|n| format!("{{\"payload\":{n},\"tags\":[\"many\"]}}\n")).collect();
    file.push_str("\n{\"payload\":1,\"vendor\":\"buro\"}\nnot json");
    let path = dev.folder.path().join("jobs.ndjson");
    std::fs::write(&path, &file).expect("written");
    let path = path.to_str().expect("UTF-8");
    let batch = ["jobs", "submit", "--batch", path, "--idempotency-key", "night"];
    let sent = dev
        .run(&batch)
        .fails(1, &["line 602: ", "(unknown_vendor)", "line 603: ", "(malformed_json)", "2 of 602 jobs were rejected"]);
    assert!(sent.stderr.contains("accepted 600, rejected 2\n"), "{}", sent.stderr);
    assert_eq!(
        (sent.stdout.lines().count(), sent.stdout.lines().next().map(str::len)),
        (600, Some(36)),
        "an id a line"
    );
    let again =
        dev.run_with_stdin(&["jobs", "submit", "--batch", "-", "--idempotency-key", "night", "-o", "json"], &file);
    let again = again.fails(1, &["2 of 602"]);
    assert_eq!(again.json()["items"].as_array().map(Vec::len), Some(602));

    let all = dev.run(&["jobs", "list", "--all", "--tag", "many"]).succeeds();
    assert_eq!(
        all.stdout.lines().filter(|line| line.contains(" pending ")).count(),
        600,
        "the second batch made none twice"
    );
    assert_eq!(all.stderr, "");
    let page = dev.run(&["jobs", "list", "--limit", "500", "-o", "json"]).succeeds().stdout;
    assert_eq!(page, dev.body("/jobs?limit=500") + "\n");
    let all = dev.run(&["jobs", "list", "--all", "-o", "json"]).succeeds();
    assert_eq!((all.stdout.lines().count(), all.json()["jobs"].as_array().map(Vec::len)), (1, Some(600)));
    assert_eq!(all.json()["next_cursor"], Value::Null);

    let three = dev
        .run(&["jobs", "list", "--limit", "3", "--status", "pending", "--vendor", "sync", "--tenant", "default"])
        .succeeds();
    assert_eq!(three.stdout.lines().count(), 4, "a head and three rows: {three:?}");
    assert!(three.stdout.starts_with("ID ") && three.stderr.contains("--all"), "{three:?}");
    let none = dev.run(&["jobs", "list", "--status", "failed"]).succeeds();
    assert_eq!((&*none.stdout, &*none.stderr), ("", "no job fits\n"));

    // Whoever reads has seen enough: no panic and no error.
    let mut list =
        dev.command(&["jobs", "list", "--all"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    drop(list.stdout.take());
    let ended = list.wait_with_output().expect("it ends");
    assert_eq!((ended.status.code(), &*ended.stderr), (Some(0), &b""[..]));
}

#[test]
fn watch_follows_a_job_to_its_end() {
    let dev = Dev::start();
    dev.run(&["vendors", "pause", "async"]).succeeds();
    let id = dev.submit(&["--vendor", "async"]);
    let mut watch = dev.spawn(&["jobs", "watch", &id]);
    let first = read_line(&mut watch.stdout).expect("how the job stands");
    assert!(first.contains("  pending  vendor_paused"), "{first}");
    dev.run(&["vendors", "resume", "async"]).succeeds();
    let ended = watch.end().succeeds();
    let (changes, result) = ended.stdout.split_once("\n\n").expect("the result below the changes");
    assert!(changes.ends_with("  complete") && result.starts_with("{\n"), "{ended:?}");
    let json = dev.run(&["jobs", "watch", &id, "-o", "json"]).succeeds();
    assert_eq!(json.stdout, dev.body(&format!("/jobs/{id}")) + "\n");
}

#[test]
fn watch_follows_what_waits_until_nothing_does_and_ctrl_c_tells_what_is_known() {
    let dev = Dev::start();
    let idle = dev.run(&["jobs", "watch"]).succeeds();
    assert_eq!((&*idle.stdout, &*idle.stderr), ("all jobs have ended\n", ""));
    dev.run(&["vendors", "pause", "sync", "--for", "1h"]).succeeds();
    for _ in 0..3 {
        dev.submit(&[]);
    }
    let mut stopped = dev.spawn(&["jobs", "watch"]);
    let note = read_line(&mut stopped.stderr).expect("a note");
    assert!(note.starts_with("sync is paused (for ") && note.contains("`fetchgate vendors resume sync`"), "{note}");
    stopped.interrupt();
    let stopped = stopped.end().fails(1, &["the jobs go on"]);
    let lines: Vec<&str> = stopped.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("  0/3"), "a line where there is no terminal: {stopped:?}");
    assert_eq!(lines[1], "3 under way: sync 3");

    let mut watch = dev.spawn(&["jobs", "watch", "--vendor", "sync"]);
    read_line(&mut watch.stderr).expect("a note");
    dev.run(&["vendors", "resume", "sync"]).succeeds();
    assert!(watch.end().succeeds().stdout.ends_with("\nall jobs have ended\n"));
}

#[test]
fn vendors_are_listed_shown_paused_and_resumed() {
    let dev = Dev::start();
    let list = dev.run(&["vendors", "list"]).succeeds().stdout;
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), ["NAME", "async", "faulty", "polling", "sync"]);
    assert_eq!(rows[4], ["sync", "sync", "running", "0", "none", "due", "0", "0", "0", "0", "0", "50/s"]);
    let vendors = dev.run(&["vendors", "list", "-o", "json"]).succeeds().json();
    assert_eq!(vendors["vendors"].as_array().map(Vec::len), Some(4));
    assert!(dev.body("/vendors").starts_with(r#"{"vendors":[{"name":"async","kind":"webhook","pool":"#), "one order");

    let shown = dev.run(&["vendors", "show", "sync"]).succeeds().stdout;
    assert!(
        shown.ends_with(
            "LIMIT  USED  CALLS  PER  SHAPE  KEY     NEXT CALL\n50/s   0     50     1s   paced  vendor  now\n"
        ),
        "{shown}"
    );
    for line in ["state       running\nlast error  none\nwaiting     0\n", "in flight   0 of 32\n"] {
        assert!(shown.contains(line), "{line:?} is missing:\n{shown}");
    }

    let audit = dev.run(&["vendors", "audit", "sync"]).succeeds().stdout;
    assert!(audit.contains("LIMIT  WINDOW  KEY     MOST IN ANY  ALLOWED"), "{audit}");
    let since = ["vendors", "audit", "sync", "--window", "1s", "--since", "2026-11-22T15:00:00+01:00", "-o", "json"];
    let wanted = serde_json::json!({"calls": 0, "max_in_any_window": 0, "limit": 50, "breaches": 0});
    assert_eq!(dev.run(&since).succeeds().json(), wanted);
    let hour = ["vendors", "audit", "sync", "--window", "1s", "--since", "1h", "-o", "json"];
    assert_eq!(dev.run(&hour).succeeds().json(), wanted);

    let paused = dev.run(&["vendors", "pause", "sync"]).succeeds().stdout;
    assert_eq!(paused, "sync is paused until resumed\n");
    let paused = dev.run(&["vendors", "pause", "sync", "--for", "10m"]).succeeds().stdout;
    assert!(paused.starts_with("sync is paused until 2"), "{paused}");
    assert!(paused.ends_with("; before, it was paused until resumed\n"), "{paused}");
    let shown = dev.run(&["vendors", "show", "sync"]).succeeds().stdout;
    for words in ["state       paused, 10m to go\n", "why         sync is paused (for ", "paused by   anonymous, "] {
        assert!(shown.contains(words), "{words:?} is missing:\n{shown}");
    }
    assert_eq!(dev.run(&["vendors", "show", "sync", "-o", "json"]).succeeds().json()["paused"], true);
    assert_eq!(dev.run(&["vendors", "resume", "sync"]).succeeds().stdout, "sync is no longer paused\n");
}

#[test]
fn limits_are_shown_set_and_removed() {
    let dev = Dev::start();
    let shown = dev.run(&["vendors", "limits", "sync"]).succeeds().stdout;
    let table = "LIMIT  CALLS  PER  SHAPE  GUARD  KEY\n50/s   50     1s   paced  8ms    vendor";
    assert!(shown.starts_with("from the config file, version 0\n\n") && shown.contains(table), "{shown}");
    let window = r#"{ calls = 600, per = "1m", shape = "window" }"#;
    let laid =
        dev.run(&["vendors", "limits", "sync", "--set", "20/s", "--set", window, "-o", "json"]).succeeds().json();
    assert_eq!((&laid["source"], &laid["version"]), (&json!("live"), &json!(1)));
    assert_eq!((&laid["limits"][0]["id"], &laid["limits"][1]["shape"]), (&json!("20/s"), &json!("window")));
    let shown = dev.run(&["vendors", "limits", "sync"]).succeeds().stdout;
    assert!(shown.starts_with("live since 2") && shown.contains("600/1m"), "{shown}");
    dev.run(&["vendors", "limits", "sync", "--set", "fast"]).fails(1, &["--set number 1", "(invalid_field)"]);
    dev.run(&["vendors", "limits", "sync", "--set", "{ calls = "]).fails(2, &["--set"]);
    dev.run(&["vendors", "limits", "sync", "--set", "1/s", "--clear"]).fails(2, &["cannot be used with"]);
    let back = dev.run(&["vendors", "limits", "sync", "--clear"]).succeeds().stdout;
    assert!(back.starts_with("from the config file, version 2\n"), "{back}");
    let json = ["vendors", "limits", "sync", "--set", r#"{"calls": 5, "per": "1s"}"#, "-o", "json"];
    assert_eq!(dev.run(&json).succeeds().json()["limits"][0]["id"], "5/1s");
}

#[test]
fn keys_are_made_listed_and_revoked_and_a_job_is_erased() {
    let dev = Dev::start();
    let create =
        ["keys", "create", "--name", "billing", "--tenant", "acme", "--scope", "submit,read", "--expires-in", "90d"];
    let key = dev.run(&create).succeeds().stdout.trim().to_owned();
    let id = key.strip_prefix("fg_").and_then(|rest| rest.split_once('_')).expect("a key").0.to_owned();
    let listed = dev.run(&["keys", "list"]).succeeds().stdout;
    let row: Vec<&str> = listed.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!((row[0], &row[1..4]), (&*id, &["billing", "acme", "submit,read"][..]));
    assert!(listed.contains("  anonymous  in 90d  ") && listed.trim_end().ends_with("  never"), "{listed}");
    assert!(!listed.contains(&key), "{listed}");
    dev.run(&["keys", "create", "--name", "x", "--scope", "read"]).fails(1, &["--tenant", "(invalid_field)"]);
    dev.run(&["keys", "create", "--name", "x", "--scope", "write"]).fails(2, &["possible values"]);
    assert_eq!(dev.run(&["keys", "revoke", &id]).succeeds().stdout, format!("{id} is revoked\n"));
    dev.run(&["keys", "revoke", &id]).fails(1, &["(unknown_key)"]);

    let job = dev.submit(&["--vendor", "sync", "--wait", "10s", "-o", "json"]);
    let job: Value = serde_json::from_str(&job).expect("the job");
    let job = job["request_id"].as_str().expect("an id");
    assert_eq!(dev.run(&["jobs", "erase", job]).succeeds().stdout, format!("{job} is erased\n"));
    dev.run(&["jobs", "get", job]).fails(1, &["(unknown_job)"]);
}

#[test]
fn a_key_is_sent_and_never_shown() {
    const UNAUTHORIZED: &str = "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/problem+json\r\ncontent-length: 57\r\n\r\n{\"detail\": \"this needs a key\", \"code\": \"unauthenticated\"}";
    let (url, asked) = canned(UNAUTHORIZED);
    let refused =
        Run::of(command(&url, &["vendors", "list"]).env("FETCHGATE_KEY", "s3cret").output().expect("it runs"));
    let refused = refused.fails(1, &["(unauthenticated)", "The key from --key or FETCHGATE_KEY is not good"]);
    assert!(!refused.stderr.contains("s3cret"), "{}", refused.stderr);
    assert!(asked.join().expect("asked").contains("authorization: Bearer s3cret\r\n"));
    let (url, _asked) = canned(UNAUTHORIZED);
    run(&url, &["vendors", "list"]).fails(1, &["Give the key with --key, or in FETCHGATE_KEY"]);
    run(&nowhere(), &["vendors", "list", "--key", "a\nb"]).fails(2, &["--key"]);
}

#[test]
fn wrong_arguments_end_with_2_before_anything_is_sent() {
    let url = nowhere();
    let wrong: [(&[&str], &str); 17] = [
        (&["jobs", "submit"], "--payload"),
        (&["jobs", "submit", "--payload", "1", "--batch", "x"], "cannot be used with"),
        (&["jobs", "submit", "--payload", r#"1,"priority":"high""#], "the payload is not JSON at line 1, column 2"),
        (&["jobs", "submit", "--payload-file", "/no/such/file"], "/no/such/file cannot be read"),
        (&["jobs", "submit", "--payload", "1", "--priority", "urgent"], "high"),
        (&["jobs", "submit", "--payload", "1", "--idempotency-key", "a\nb"], "visible ASCII"),
        (&["jobs", "get", "x", "--wait", "30"], "the unit is missing"),
        (&["jobs", "list", "--all", "--limit", "3"], "cannot be used with"),
        (&["jobs", "submit", "--payload-file", "-"], "the payload is empty"),
        (&["jobs", "submit"], "Usage: fetchgate jobs submit <--payload"),
        (&["jobs", "cancel"], "or with --all"),
        (&["jobs", "replay", "an-id", "--vendor", "sync"], "cannot be used with"),
        (&["vendors", "audit", "sync", "--since", "yesterday"], "such as 2h"),
        (&["vendors", "pause", "sync", "--for", "a while"], "no spaces"),
        (&["vendors", "list", "--url", "127.0.0.1:8000"], "http://127.0.0.1:8000"),
        (&["vendors", "list", "--url", "localhost:8000"], "http://127.0.0.1:8000"),
        (&["healthcheck", "--url", "http://me:secret@localhost"], "a user name or a password"),
    ];
    for (args, word) in wrong {
        let run = run(&url, args).fails(2, &[word]);
        assert!(!run.stderr.contains("secret"), "{run:?}");
    }
}

#[test]
fn a_service_that_cannot_be_reached_ends_with_3_and_the_mend() {
    let url = nowhere();
    for args in [&["jobs", "list"][..], &["jobs", "watch"], &["vendors", "list"], &["healthcheck"]] {
        run(&url, args).fails(3, &[&*url, "--url", "FETCHGATE_URL", "fetchgate dev"]);
    }
    let (url, serving) = canned("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{");
    run(&url, &["jobs", "list"]).fails(3, &[&*url, "may have handled the request"]);
    serving.join().expect("served");
}

#[test]
fn something_else_than_fetchgate_is_recognised() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 5\r\n\r\n<html",
        "HTTP/1.1 308 Permanent Redirect\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
    ] {
        let (url, serving) = canned(answer);
        run(&url, &["vendors", "list"]).fails(1, &["not how Fetchgate answers", "is the URL right?"]);
        serving.join().expect("served");
    }
}

#[test]
fn the_healthcheck_says_what_is_not_ready() {
    let dev = Dev::start();
    assert_eq!(dev.run(&["healthcheck"]).succeeds().stdout, "ready\n");
    assert_eq!(run("http://127.0.0.1:1", &["healthcheck", "--url", &dev.url]).succeeds().stdout, "ready\n");
    let (url, serving) = canned(concat!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n",
        r#"{"status":"not_ready","role":["api"],"checks":{"store":"\u001b[2J disk is full"}}"#
    ));
    let sick = run(&url, &["healthcheck"]).fails(1, &["not ready", "store  \\u{1b}[2J disk is full"]);
    assert!(!sick.stderr.contains('\u{1b}'), "nothing from outside moves the cursor: {sick:?}");
    serving.join().expect("served");
}

#[test]
fn every_command_and_option_has_a_line_of_help() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{} says nothing", command.get_name());
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {} says nothing", command.get_name(), argument.get_id());
        }
        command.get_subcommands().for_each(check);
    }
    let mut cli = fetchgate::cli::Cli::command();
    cli.build();
    check(&cli);
    let help = run("http://me:secret@host", &["jobs", "list", "--help"]).succeeds().stdout;
    assert!(help.contains("FETCHGATE_URL") && !help.contains("secret"), "{help}");
}
