//! Every place of the config that takes a secret has one of its own, and a run meets every error that there is: not one of them is in the logs
//! at `trace`, in metrics, in answers, in what `check` prints or in the store, as it is, in base64 or in hex. The real binary.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use hyper::Request;
use mock_vendors::MockVendors;
use tempfile::TempDir;

use crate::{
    failure::{LONG, Process, free_address, wait_until},
    support::Caller,
};

const BINARY: &str = env!("CARGO_BIN_EXE_fetchgate");

/// Every place that takes a secret. `SECRET-…` stands for the place's own.
const CONFIG: &str = r#"
[server]
listen = "ADDRESS"
public_url = "http://ADDRESS"
callback_secret = "${SECRET-CALLBACK}"
[auth]
mode = "api_key"
admin_key = "${SECRET-ADMIN}"
[store]
url = "sqlite:STORE"
[vendors.bearer]
kind = "sync"
url = "VENDORS/sync/bearer?status=401"
limits = []
auth = { kind = "bearer", token = "${SECRET-BEARER}" }
[vendors.basic]
kind = "sync"
url = "VENDORS/sync/basic?status=400"
limits = []
auth = { kind = "basic", user = "u", password = "${SECRET-BASIC}" }
[vendors.header]
kind = "sync"
url = "VENDORS/sync/header?status=429&retry_after=1"
limits = []
auth = { kind = "header", name = "x-api-key", value = "${SECRET-HEADER}" }
headers = { x-more = "${SECRET-MORE}" }
[vendors.query]
kind = "sync"
url = "VENDORS/sync/query?body=${SECRET-URL}&status=500"
limits = []
retry = { attempts = 2, first = "10ms", max = "10ms", unanswered = 0 }
auth = { kind = "query", name = "header", value = "x-key:${SECRET-QUERY}" }
[vendors.garbage]
kind = "sync"
url = "VENDORS/sync/garbage?fault=garbage"
limits = []
retry = { attempts = 1, first = "10ms", max = "10ms", unanswered = 0 }
body = '{"key": "${SECRET-BODY}"}'
[vendors.oauth]
kind = "sync"
url = "VENDORS/sync/oauth"
limits = []
auth = { kind = "oauth2", token_url = "VENDORS/sync/token?status=400", client_id = "c", client_secret = "${SECRET-OAUTH}" }
[vendors.sigv4]
kind = "sync"
url = "VENDORS/sync/sigv4?fault=reset"
limits = []
retry = { attempts = 2, first = "10ms", max = "10ms", unanswered = 0 }
auth = { kind = "sigv4", region = "r", service = "s", access_key = "id", secret_key = "${SECRET-SIGV4}" }
[vendors.proxied]
kind = "sync"
url = "https://v.example/a"
limits = []
timeout = "1s"
retry = { attempts = 2, first = "10ms", max = "10ms", unanswered = 0 }
proxy = "http://u:${SECRET-PROXY}@127.0.0.1:1"
tls = { ca = "CERTIFICATES/authority.pem", cert = "CERTIFICATES/client-1.pem", key = "CERTIFICATES/client-1.key" }
[vendors.absent]
kind = "sync"
url = "https://127.0.0.1:1/a?key=${SECRET-ABSENT}"
limits = []
retry = { attempts = 2, first = "10ms", max = "10ms", unanswered = 0 }
tls = { cert = "CERTIFICATES/client-1.pem", key = "CERTIFICATES/client-1.key" }
[vendors.slow]
kind = "sync"
url = "VENDORS/sync/slow?fault=hang"
limits = []
timeout = "100ms"
retry = { attempts = 1, first = "10ms", max = "10ms", unanswered = 0 }
headers = { authorization = "Bearer ${SECRET-SLOW}" }
[vendors.hmac]
kind = "webhook"
url = "VENDORS/sync/hmac?status=500"
limits = []
retry = { attempts = 1, first = "10ms", max = "10ms", unanswered = 0 }
webhook = { verify = "github", secret = ["${SECRET-HMAC}", "${SECRET-HMAC2}"], challenge = { hub = "${SECRET-HUB}" } }
[vendors.token]
kind = "webhook"
url = "VENDORS/async/token?never"
limits = []
webhook = { verify = { header = "x-token", value = "${SECRET-TOKEN}" } }
[vendors.password]
kind = "webhook"
url = "VENDORS/async/password?never"
limits = []
webhook = { verify = { basic = { user = "u", password = "${SECRET-PASSWORD}" } } }
"#;

/// A place for servers that are not there.
const SCALED: &str = r#"
[server]
listen = "ADDRESS"
tls = { cert = "CERTIFICATES/client-1.pem", key = "CERTIFICATES/client-1.key" }
[store]
url = "mongodb://u:${SECRET-MONGO}@127.0.0.1:1/fetchgate"
[queue]
url = "redis://u:${SECRET-REDIS}@127.0.0.1:1/0"
[vendors.a]
kind = "sync"
url = "VENDORS/sync"
limits = []
"#;

struct Canaries {
    folder: TempDir,
    vendors: MockVendors,
    /// By variable.
    secrets: BTreeMap<String, String>,
}

impl Canaries {
    async fn new() -> Canaries {
        let vendors = MockVendors::start("127.0.0.1:0").await.expect("a port for the mock vendors");
        let names = [CONFIG, SCALED].concat();
        let names = names.split("${SECRET-").skip(1).filter_map(|rest| rest.split('}').next());
        let secrets =
            names.map(|name| (format!("SECRET_{name}"), format!("canary{:032x}", fastrand::u128(..)))).collect();
        Canaries { folder: tempfile::tempdir().expect("a folder"), vendors, secrets }
    }

    fn secret(&self, place: &str) -> &str {
        &self.secrets[&format!("SECRET_{place}")]
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, config: &str, address: &str) {
        let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/certificates");
        let text = config
            .replace("${SECRET-", "${SECRET_")
            .replace("ADDRESS", address)
            .replace("VENDORS", &self.vendors.url())
            .replace("STORE", self.path("jobs.db").to_str().expect("UTF-8"))
            .replace("CERTIFICATES", certificates.to_str().expect("UTF-8"));
        fs::write(self.path(name), text).expect("written");
    }

    /// The binary, with everything that it says in `NAME.out`.
    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        let out = File::create(self.path(&format!("{name}.out"))).expect("a file");
        command.args(arguments).envs(&self.secrets).env("RUST_LOG", "trace").env_remove("FETCHGATE_CONFIG");
        command
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a handle"))
            .stderr(out);
        command
    }

    /// Nothing that was said or stored, in any file of the folder, has a secret.
    fn assert_none_is_in(&self, what: &str, bytes: &[u8]) {
        for (place, secret) in &self.secrets {
            for form in forms(secret) {
                let found = bytes.windows(form.len()).position(|window| window == form.as_bytes());
                let around = found.map(|at| &bytes[at.saturating_sub(300)..(at + 100).min(bytes.len())]);
                assert!(
                    found.is_none(),
                    "{what} has {place} as {form}: {}",
                    String::from_utf8_lossy(around.unwrap_or_default())
                );
            }
        }
        let key = include_str!("support/certificates/client-1.key");
        let key = key.lines().find(|line| line.len() > 40).expect("a key");
        assert!(
            !bytes.windows(key.len()).any(|window| window == key.as_bytes()),
            "{what} has the key of a certificate"
        );
    }
}

/// A secret as it is, in hex, and in base64 whatever stands before it.
fn forms(secret: &str) -> Vec<String> {
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let base64 = (0..3).map(|before: usize| {
        let all = BASE64_STANDARD_NO_PAD.encode(format!("{}{secret}", "-".repeat(before)));
        // The first letters depend on what stands before, the last on what follows.
        all[(before * 8).div_ceil(6)..all.len() - 2].to_owned()
    });
    [secret.to_owned(), hex.to_uppercase(), hex].into_iter().chain(base64).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_logs_metrics_answers_checks_or_the_store() {
    let canaries = Canaries::new().await;
    let address = free_address();
    canaries.write("fetchgate.toml", CONFIG, &address.to_string());
    canaries.write("scaled.toml", SCALED, &free_address().to_string());
    let mut serving = Process::new(canaries.command("serve", &["serve"]), address, canaries.path("serve.out"));
    serving.ready().await;
    let caller = Caller::at(&format!("http://{address}"));
    let key = format!("Bearer {}", canaries.secret("ADMIN"));
    let mut answers = String::new();
    meet_every_error(&canaries, &caller, &key, &mut answers).await;
    canaries.assert_none_is_in("the answers", answers.as_bytes());

    for (name, arguments) in [
        ("check", &["check"][..]),
        ("check-scaled", &["check", "--config", "scaled.toml"]),
        ("connect", &["check", "--connect"]),
        ("connect-scaled", &["check", "--connect", "--config", "scaled.toml"]),
        ("scaled", &["serve", "--config", "scaled.toml"]),
    ] {
        let mut child = canaries.command(name, arguments).spawn().expect("the binary starts");
        wait_until(name, LONG, async || child.try_wait().expect("our child")).await;
    }
    for vendor in ["bearer", "basic", "header", "query", "garbage", "oauth", "sigv4", "proxied", "hmac", "token"] {
        let name = format!("request-{vendor}");
        let mut command = canaries.command(&name, &["check", "--vendor", vendor, "--payload", "{}"]);
        assert!(command.status().expect("the binary starts").success(), "{vendor}");
    }
    serving.terminate();
    serving.exits(LONG).await;
    let log = serving.log();
    assert!(log.contains("DEBUG"), "the log has everything");
    let mut files = 0;
    for file in fs::read_dir(canaries.folder.path()).expect("the folder").map(|entry| entry.expect("a file").path()) {
        if file.is_file() {
            canaries.assert_none_is_in(&file.display().to_string(), &fs::read(&file).expect("readable"));
            files += 1;
        }
    }
    assert!(files > 15, "{files}");
}

/// Every way in which a call, a callback or a request can fail here, and everything that can be read after that.
async fn meet_every_error(canaries: &Canaries, caller: &Caller, key: &str, answers: &mut String) {
    let vendors = [
        "bearer", "basic", "header", "query", "garbage", "oauth", "sigv4", "proxied", "absent", "slow", "hmac",
        "token", "password",
    ];
    let mut ids = Vec::new();
    for vendor in vendors {
        let request = Request::post("/jobs").header("content-type", "application/json").header("authorization", key);
        let accepted = caller.send(request, &format!(r#"{{"vendor":"{vendor}","payload":{{}}}}"#)).await;
        assert_eq!(accepted.status, 202, "{}", accepted.text);
        ids.push(accepted.json()["request_id"].as_str().expect("an id").to_owned());
    }
    for id in &ids {
        let path = format!("/jobs/{id}");
        // Those whose credentials are refused wait; so does who waits for a callback.
        wait_until("each job was called", LONG, async || {
            let job = caller.get_with(&[("authorization", key)], &path).await.json();
            let is_seen =
                job["attempts"].as_u64() > Some(0) || !job["blocked_on"].is_null() || job["status"] != "pending";
            is_seen.then_some(())
        })
        .await;
    }
    let (hub, token) = (canaries.secret("HUB"), canaries.secret("TOKEN"));
    let hook =
        |vendor: &str| Request::post(format!("/vendor-webhook/{vendor}")).header("content-type", "application/json");
    let right = format!("/vendor-webhook/hmac?hub.challenge=1&hub.verify_token={hub}");
    for request in [
        hook("hmac").header("x-hub-signature-256", "sha256=00"),
        hook("token").header("x-token", "wrong"),
        hook("token").header("x-token", token),
        hook("password").header("authorization", "Basic dTp3cm9uZw=="),
        hook("hmac/AZIAAAAAcACAAAAAAAAAKgAAAAfZvyhFAJLG_lkbltJoaoAd"),
        Request::get(right),
        Request::get("/vendor-webhook/hmac?hub.challenge=1&hub.verify_token=wrong"),
        Request::get("/jobs").header("authorization", format!("{key}x")),
        Request::get(format!("/jobs?key={}", canaries.secret("ADMIN"))).header("authorization", "Bearer wrong"),
    ] {
        answers.push_str(&caller.send(request, r#"{"request_id":"00000000-0000-7000-8000-000000000000"}"#).await.text);
    }
    let mut paths = vec!["/jobs".to_owned(), "/keys".into(), "/metrics".into(), "/readyz".into(), "/vendors".into()];
    paths.extend(["/stats", "/failures", "/system"].map(str::to_owned));
    paths.extend(ids.iter().flat_map(|id| [format!("/jobs/{id}"), format!("/jobs/{id}/attempts")]));
    paths
        .extend(vendors.iter().flat_map(|name| ["", "/limits", "/audit"].map(|what| format!("/vendors/{name}{what}"))));
    for path in paths {
        let answer = caller.get_with(&[("authorization", key)], &path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answers.push_str(&answer.text);
    }
}
