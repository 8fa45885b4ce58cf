//! The recipes of `docs/recipes`, word for word: their configs and their curls, against pretend vendors that behave as documented.
//!
//! Only the hosts in URLs are replaced. The test's clock moves, so limits and waits are as printed.

use std::{collections::BTreeSet, fs, ops::Range, path::Path, process::Command, time::Duration};

use mock_vendors::{Answer, Arrival};
use serde_json::{Value, json};

use crate::{
    house,
    support::{self, Backend, TestApp},
};

/// Those that call back.
mod callbacks;
/// Those that answer at once, in JSON.
mod replies;
/// Those that are called in another way: SOAP, signatures, a status URL.
mod wires;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/recipes");

/// Runs a recipe's test on the embedded store only; a few run on every backend.
macro_rules! on_sqlite {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name($crate::support::Backend::Sqlite).await;
            }
        }
    )+};
}
use on_sqlite;

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(FOLDER).join(name)).unwrap_or_else(|error| panic!("docs/recipes/{name}: {error}"))
}

/// The names of all recipes: their files without `.md`.
fn names() -> BTreeSet<String> {
    let files = fs::read_dir(FOLDER).expect("docs/recipes");
    let stem =
        |file: fs::DirEntry| Path::new(&file.file_name()).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let names = files.filter_map(|file| stem(file.expect("a file")));
    names.filter(|name| name != "README").collect()
}

/// The one config of a page.
fn config_in(page: &str) -> &str {
    let blocks: Vec<&str> = page.split("```toml\n").skip(1).collect();
    assert_eq!(blocks.len(), 1, "a recipe has one config");
    blocks[0].split_once("\n```").expect("its end").0
}

/// What the curls of a page send.
fn submissions(page: &str) -> Vec<String> {
    let bodies = page.split("--data '").skip(1).map(|rest| rest.split_once("'\n").expect("its end").0.to_owned());
    bodies.collect()
}

/// What an environment variable of a recipe holds.
fn secret(variable: &str) -> String {
    format!("secret-{variable}")
}

fn secrets(config: &str) -> Vec<(String, String)> {
    house::variables(config).into_iter().map(|name| (name.to_owned(), secret(name))).collect()
}

/// A running recipe, and the vendor that its test plays.
struct Recipe {
    app: TestApp,
    host: &'static str,
    submissions: Vec<String>,
}

/// A job that ended, and how.
struct Ended {
    job: Value,
    attempts: Vec<Value>,
    took: Duration,
}

impl Recipe {
    /// The config of this page; its calls to `host` get what `after` and the like say.
    async fn start(backend: Backend, name: &str, host: &'static str) -> Recipe {
        let page = page(&format!("{name}.md"));
        let config = config_in(&page);
        let app = TestApp::as_printed(backend, config, secrets(config)).await;
        Recipe { app, host, submissions: submissions(&page) }
    }

    /// The next calls to a host get these answers.
    fn says(&self, host: &str, answers: Vec<Answer>) {
        self.app.vendors.script(host, answers);
    }

    /// Sends what the n-th curl of the page sends.
    async fn submit(&self, n: usize) -> String {
        self.app.submit_with(&self.submissions[n]).await
    }

    /// The payload of the n-th curl, to the letter.
    fn payload(&self, n: usize) -> String {
        support::text_of(&self.submissions[n], "payload").expect("a payload")
    }

    /// A job of the first curl after these answers, which must end it.
    async fn after(&mut self, answers: Vec<Answer>) -> Ended {
        let (before, wanted, began) = (self.app.vendors.count(self.host), answers.len() as u64, self.app.clock.now());
        self.says(self.host, answers);
        let id = self.submit(0).await;
        self.app.run_until_idle().await;
        let calls = self.app.vendors.count(self.host) - before;
        let ended = self.ended(&id, began.0).await;
        assert_eq!(calls, wanted, "every answer was used, and none more was asked for: {}", ended.job);
        ended
    }

    async fn ended(&self, id: &str, began: i64) -> Ended {
        let attempts = self.app.get(&format!("/jobs/{id}/attempts")).await.json();
        let took = Duration::from_millis((self.app.clock.now().0 - began) as u64);
        Ended { job: self.app.find(id).await, attempts: attempts["attempts"].as_array().expect("a list").clone(), took }
    }

    /// Keys that the vendor refuses: it waits, and the job with it. Half a minute later one call finds out, and gets `good`.
    async fn keys_are_refused(&mut self, refusal: Answer, good: Vec<Answer>) -> String {
        // A call that was taken within the last minute would speak for the keys.
        self.app.run_for(Duration::from_secs(120)).await;
        self.says(self.host, vec![refusal]);
        let id = self.submit(0).await;
        self.app.run_for(Duration::from_secs(1)).await;
        let waiting = self.app.find(&id).await;
        assert_eq!(
            (&waiting["status"], &waiting["blocked_on"]),
            (&json!("pending"), &json!("credentials")),
            "{waiting}"
        );
        self.says(self.host, good);
        self.app.run_until_idle().await;
        let job = self.app.find(&id).await;
        assert!(job["status"] == "complete" || job["blocked_on"] == "awaiting_callback", "{job}");
        // An accepted job has used up none yet.
        assert!(job["tries"].as_u64() <= Some(1), "{job}");
        id
    }

    /// What the vendor was asked since the last look, at the paths that it knows.
    fn seen(&self) -> Vec<Arrival> {
        self.seen_at(self.host)
    }

    fn seen_at(&self, host: &str) -> Vec<Arrival> {
        let arrivals = self.app.vendors.arrivals(host);
        self.app.vendors.reset(host);
        let prefix = format!("/at/{host}");
        let at_path = |arrival: Arrival| {
            let path = arrival.path_and_query.strip_prefix(&prefix).expect("this host's").to_owned();
            Arrival { path_and_query: path, ..arrival }
        };
        arrivals.into_iter().map(at_path).collect()
    }
}

impl Ended {
    #[track_caller]
    fn is_complete(&self, attempts: u64, tries: u64) -> &Ended {
        let is = (&self.job["status"], &self.job["attempts"], &self.job["tries"]);
        assert_eq!(is, (&json!("complete"), &json!(attempts), &json!(tries)), "{} {:?}", self.job, self.attempts);
        self
    }

    /// It failed with this code, and the vendor's words are there.
    #[track_caller]
    fn is_failed(&self, code: &str, status: u16, words: &str) {
        assert_failed(&self.job, code, words);
        assert_eq!(self.job["error"]["vendor"]["status"], status, "{}", self.job);
    }

    #[track_caller]
    fn took(&self, seconds: Range<u64>) -> &Ended {
        let range = Duration::from_secs(seconds.start)..Duration::from_secs(seconds.end);
        assert!(range.contains(&self.took), "{:?}: {} {:?}", self.took, self.job, self.attempts);
        self
    }

    #[track_caller]
    fn has_outcomes(&self, wanted: &[&str]) -> &Ended {
        let outcomes: Vec<&str> = self.attempts.iter().filter_map(|attempt| attempt["outcome"].as_str()).collect();
        assert_eq!(outcomes, wanted, "{:?}", self.attempts);
        self
    }
}

#[track_caller]
fn assert_failed(job: &Value, code: &str, words: &str) {
    let is = (&job["status"], &job["error"]["code"]);
    assert_eq!(is, (&json!("failed"), &json!(code)), "{job}");
    assert!(job["error"]["vendor"]["body"].as_str().is_some_and(|body| body.contains(words)), "{words}: {job}");
}

#[track_caller]
fn assert_asked(arrival: &Arrival, method: &str, path: &str) {
    assert_eq!((arrival.method.as_str(), arrival.path_and_query.as_str()), (method, path));
}

fn body_of(arrival: &Arrival) -> String {
    String::from_utf8(arrival.body.to_vec()).expect("text")
}

#[test]
fn every_recipe_is_tested_and_in_the_index_and_every_link_leads_somewhere() {
    let sources: String = [include_str!("replies.rs"), include_str!("wires.rs"), include_str!("callbacks.rs")].concat();
    let index = page("README.md");
    let names = names();
    assert!(names.len() >= 12, "{names:?}");
    for name in &names {
        assert!(sources.contains(&format!("Recipe::start(backend, \"{name}\", ")), "{name} has no test");
        assert_eq!(index.matches(&format!("]({name}.md) |")).count(), 1, "{name} is not in the index");
        let text = page(&format!("{name}.md"));
        for part in ["## Try it", "## What becomes of a job", "## Noticed", "## Sources"] {
            assert!(text.contains(part), "{name} has no {part:?}");
        }
    }
    let links = index.split("](").skip(1).filter_map(|rest| rest.split(".md)").next());
    assert_eq!(links.map(str::to_owned).collect::<BTreeSet<_>>(), names, "the index names recipes that are not there");
}

#[test]
fn every_recipe_passes_check_as_it_is_printed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("fetchgate.toml");
    for name in names() {
        let page = page(&format!("{name}.md"));
        let config = config_in(&page);
        fs::write(&file, config).expect("written");
        for submission in submissions(&page) {
            let submission: Value = serde_json::from_str(&submission).expect("JSON");
            let (vendor, payload) =
                (submission["vendor"].as_str().expect("a vendor"), submission["payload"].to_string());
            for arguments in [&["check"][..], &["check", "--vendor", vendor, "--payload", payload.as_str()]] {
                let mut command = Command::new(env!("CARGO_BIN_EXE_fetchgate"));
                command
                    .args(arguments)
                    .arg("--config")
                    .arg(&file)
                    .current_dir(folder.path())
                    .env_remove("FETCHGATE_CONFIG");
                let output = command.envs(secrets(config)).output().expect("the binary runs");
                let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                assert!(output.status.success(), "{name}, {arguments:?}: {err}");
                assert!(!out.contains("secret-") && !out.contains("warning"), "{name}, {arguments:?}: {out}");
            }
        }
    }
}

/// Vendors are told apart by their configs: no code decides by the name of one. Names of signature schemes and of documents are data.
#[test]
fn no_code_decides_by_the_name_of_a_vendor() {
    const DECIDES: [&str; 7] = ["=>", "==", "!=", "matches!(", "starts_with(", "ends_with(", "contains("];
    fn look(folder: &Path, names: &BTreeSet<String>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                look(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("text").to_lowercase();
                for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
                    let is_named = names.iter().any(|name| {
                        let by_text =
                            line.contains(&format!("\"{name}\"")) && DECIDES.iter().any(|how| line.contains(how));
                        by_text || line.contains(&format!("::{name}")) || line.contains(&format!("{name}.com"))
                    });
                    assert!(!is_named, "{}: {line}", path.display());
                }
            }
        }
    }
    // `s3` is a service of AWS signatures, which signs paths in a way of its own.
    let words = names().into_iter().filter(|name| name != "s3");
    let names = words.map(|name| name.split('-').next().expect("a word").to_owned()).collect();
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &names);
}
