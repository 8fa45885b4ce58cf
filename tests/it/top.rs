//! `fetchgate top` as a person sees it: the real binary in a terminal, and without one.

use std::{
    fs,
    io::{Read as _, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    cli::{Dev, nowhere, run},
    failure::BINARY,
};

/// How the terminal was before and after, and the exit code.
const SCRIPT: &str = r#"stty rows 24 cols 100; stty -a >before; "$TOP" top; echo "exit $?"; stty -a >after"#;
const ENTERS: &str = "\x1b[?1049h";
const LEAVES: &str = "\x1b[?1049l";

/// A terminal in which `top` runs.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// All that was written so far.
    text: String,
    folder: TempDir,
}

impl Terminal {
    fn with_top(url: &str) -> Terminal {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut script = Command::new("script");
        script.args(["-qec", SCRIPT, "/dev/null"]).current_dir(folder.path());
        script.env("SHELL", "/bin/sh").env("TERM", "xterm").env("NO_COLOR", "1");
        script.env("TOP", BINARY).env("FETCHGATE_URL", url).env_remove("COLUMNS");
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script is of util-linux");
        let keys = child.stdin.take().expect("piped");
        let mut stdout = child.stdout.take().expect("piped");
        let (send, output) = sync_channel(1024);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut bytes) {
                if send.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { child, keys, output, text: String::new(), folder }
    }

    /// Waits until these words are written, after those that were seen before.
    #[track_caller]
    fn sees(&mut self, words: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.text.contains(words) {
            match self.output.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{words:?} is not shown: {:?}", self.text),
            }
        }
        let seen = self.text.find(words).expect("seen") + words.len();
        self.text.drain(..seen);
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).and_then(|()| self.keys.flush()).expect("typed");
    }

    #[track_caller]
    fn is_as_before(&mut self) {
        self.sees(LEAVES);
        self.sees("exit 0");
        assert!(self.child.wait().expect("it ends").success());
        let [before, after] = ["before", "after"].map(|name| fs::read_to_string(self.folder.path().join(name)));
        assert_eq!(before.expect("written"), after.expect("written"));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself, which a test has seen by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_vendor_is_paused_in_a_terminal_and_the_terminal_is_as_before() {
    let dev = Dev::start();
    let mut top = Terminal::with_top(&dev.url);
    top.sees(ENTERS);
    top.sees("> async");
    top.types("p");
    top.sees("pause async? Its jobs wait");
    top.types("n");
    top.sees("q quit");
    top.types("p");
    top.sees("pause async? Its jobs wait");
    top.types("y");
    top.sees("async is paused");
    let vendor = dev.run(&["vendors", "show", "async", "-o", "json"]).succeeds().json();
    assert_eq!(vendor["paused"], true, "{vendor}");
    top.sees("paused until resumed");
    top.types("\r");
    top.sees("vendors resume async` ends the pause");
    top.sees("no job has failed since");
    top.types("?j\x1b[A");
    top.sees("> async");
    top.types("q");
    top.is_as_before();
}

#[test]
fn a_service_that_goes_away_is_said_on_the_screen_and_ctrl_c_gives_the_terminal_back() {
    let dev = Dev::start();
    let mut top = Terminal::with_top(&dev.url);
    top.sees("> async");
    drop(dev);
    top.sees("no new figures, trying again: no service can be reached at");
    top.sees("> async");
    top.types("\x03");
    top.is_as_before();
}

#[test]
fn without_a_terminal_top_prints_one_table() {
    let dev = Dev::start();
    dev.run(&["vendors", "pause", "polling"]).succeeds();
    for args in [&["top"][..], &["top", "--once", "--utc"]] {
        let table = dev.run(args).succeeds().stdout;
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("in ") && lines[0].ends_with("  breaches 0"), "{table}");
        assert!(lines[2].starts_with("NAME  ") && lines[2].ends_with("  STATE"), "{table}");
        assert!(lines[3].starts_with("polling ") && lines[3].ends_with("paused until resumed"), "{table}");
        assert!(lines.len() == 7 && lines[4..].iter().all(|line| line.ends_with("running")), "{table}");
    }
    run(&nowhere(), &["top", "--once"]).fails(3, &["no service can be reached"]);
}
