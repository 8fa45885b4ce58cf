//! The documents: their commands run as printed, their links lead somewhere, and their tables have everything that there is.
//!
//! On the pages below, the blocks fenced as `sh` are one bash script: they run in order, in an empty folder, beside a fresh `fetchgate dev`, and
//! the first command that fails ends it. The printed ports (8000 the service, 9000 the mock vendors, 8001 a second service) are replaced
//! by those in use. Blocks fenced as `console` are only read: what needs Docker or a real vendor, and what commands print.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;

use crate::house::read;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const BINARY: &str = env!("CARGO_BIN_EXE_fetchgate");

#[test]
fn the_commands_of_the_readme_run() {
    commands_run("README.md");
}

#[test]
fn the_commands_of_the_tutorial_run() {
    commands_run("docs/tutorial.md");
}

#[test]
fn the_commands_of_the_runbook_run() {
    commands_run("docs/runbook.md");
}

/// A `fetchgate dev`, ended when dropped.
struct Dev {
    child: Child,
    service: u16,
    vendors: u16,
    /// Kept open, or the process would write into a closed pipe.
    _stdout: BufReader<ChildStdout>,
}

impl Dev {
    fn start(store: &Path) -> Dev {
        let mut dev = Command::new(BINARY);
        dev.args(["dev", "--listen", "127.0.0.1:0", "--persist"]).arg(store);
        dev.env("RUST_LOG", "error").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = dev.spawn().expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        // The service's port is printed first, then that of the vendors.
        let mut ports: Vec<u16> = Vec::new();
        while ports.len() < 2 {
            let mut line = String::new();
            assert_ne!(
                stdout.read_line(&mut line).expect("UTF-8"),
                0,
                "dev says where it and its vendors are: {ports:?}"
            );
            for rest in line.split("http://127.0.0.1:").skip(1) {
                let port = rest.split(|c: char| !c.is_ascii_digit()).next().expect("a first part");
                let port = port.parse().expect("a port");
                if !ports.contains(&port) {
                    ports.push(port);
                }
            }
        }
        Dev { child, service: ports[0], vendors: ports[1], _stdout: stdout }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn commands_run(page: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, work) = (folder.path().join("store"), folder.path().join("work"));
    fs::create_dir(&work).expect("a folder");
    let dev = Dev::start(&store);
    let second = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    let text = read(page);
    let blocks: Vec<&str> =
        text.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().expect("a part")).collect();
    assert!(!blocks.is_empty(), "{page} has commands");
    let mut script = blocks.join("\n");
    for (printed, used) in [(8000, dev.service), (8001, second), (9000, dev.vendors)] {
        // Marked first, or a port in use that is printed elsewhere would be replaced again.
        script = script.replace(&format!(":{printed}"), &format!(":@{used}"));
    }
    let script = format!("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}\n", script.replace(":@", ":"));
    let path = Path::new(BINARY).parent().expect("its folder").display();
    let path = format!("{path}:{}", std::env::var("PATH").expect("a PATH"));
    let mut bash = Command::new("timeout");
    bash.args(["120", "bash", "-euxo", "pipefail", "-c", &script]).current_dir(&work).stdin(Stdio::null());
    bash.env("PATH", path).env("FETCHGATE_URL", format!("http://127.0.0.1:{}", dev.service));
    let output = bash.output().expect("bash runs");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success(), "{page}: {}\n{stdout}\n{stderr}", output.status);
}

/// Every document, by its path from the root.
pub(crate) fn pages() -> Vec<String> {
    fn below(folder: PathBuf, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                below(path, found);
            } else if path.extension().is_some_and(|end| end == "md") {
                found.push(path);
            }
        }
    }
    let mut found = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md"]
        .map(|page| Path::new(ROOT).join(page))
        .to_vec();
    below(Path::new(ROOT).join("docs"), &mut found);
    let from_root = |path: PathBuf| path.strip_prefix(ROOT).expect("below it").display().to_string();
    found.into_iter().map(from_root).collect()
}

/// The lines of a page outside of fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// What a heading is called in links to it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

fn anchors(page: &str) -> BTreeSet<String> {
    let text = read(page);
    let headings = prose(&text).filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#'));
    headings.map(anchor).collect()
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    for page in pages() {
        let text = read(&page);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let ours = links.filter(|link| !link.starts_with("http") && !link.contains(' '));
        for link in ours {
            let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
            let target = match file {
                "" => PathBuf::from(&page),
                file => Path::new(&page).parent().expect("a folder").join(file),
            };
            assert!(Path::new(ROOT).join(&target).exists(), "{page} links to {link}");
            if let Some(heading) = heading {
                assert!(
                    anchors(&target.to_string_lossy()).contains(heading),
                    "{page} links to {link}: no such heading"
                );
            }
        }
    }
}

#[test]
fn no_line_of_the_documents_is_too_long_to_read() {
    for page in pages() {
        let text = read(&page);
        let longest = prose(&text).filter(|line| !line.starts_with('|')).max_by_key(|line| line.chars().count());
        let longest = longest.unwrap_or_default();
        assert!(longest.chars().count() <= 400, "{page}: {longest}");
    }
}

/// The keys in the tables under a heading of docs/config.md, each with its type and its default.
fn keys_on_page(page: &str, heading: &str) -> BTreeMap<String, [String; 2]> {
    let from =
        page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("docs/config.md has no {heading}")).1;
    let rows = from.lines().take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with("| `"));
    let mut keys = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").collect();
        assert!(cells.len() >= 4, "key, type, default, meaning: {row}");
        for key in cells[0].split('`').skip(1).step_by(2) {
            keys.insert(key.to_owned(), [cells[1], cells[2]].map(|cell| cell.trim().to_owned()));
        }
    }
    keys
}

/// The keys that may be written, with their types, by the struct that reads them: `raw/mod.rs Server`.
fn keys_in_source() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut structs = BTreeMap::new();
    for file in ["mod.rs", "vendor.rs", "webhook.rs"] {
        let source = read(&format!("src/config/raw/{file}"));
        for part in source.split(" struct ").skip(1) {
            let Some((name, fields)) = part.split_once(" {\n").filter(|(name, _)| !name.contains(';')) else {
                continue;
            };
            let fields = fields.split("\n}").next().expect("its end");
            let mut renamed = None;
            let mut keys = BTreeMap::new();
            for line in fields.lines() {
                renamed = line.split_once("rename = \"").map(|(_, rest)| rest.trim_end_matches("\")]")).or(renamed);
                if let Some((field, kind)) = line.split_once(") ").and_then(|(_, rest)| rest.split_once(": ")) {
                    keys.insert(renamed.take().unwrap_or(field).to_owned(), kind.trim_end_matches(',').to_owned());
                }
            }
            structs.insert(format!("{file} {name}"), keys);
        }
    }
    structs
}

/// Where docs/config.md describes what a struct reads, and where the example has its defaults.
const SECTIONS: [(&str, &str, &str); 29] = [
    ("mod.rs Root", "## The file", ""),
    ("mod.rs Server", "### `[server]`", "server"),
    ("mod.rs Tls", "#### `server.tls`", ""),
    ("mod.rs Ops", "### `[ops]`", "ops"),
    ("mod.rs Auth", "### `[auth]`", "auth"),
    ("mod.rs Store", "### `[store]`", "store"),
    ("mod.rs Queue", "### `[queue]`", "queue"),
    ("mod.rs Capacity", "### `[capacity]`", "capacity"),
    ("mod.rs Tenant", "### `[tenants.NAME]` and `[tenant_defaults]`", "tenant_defaults"),
    ("mod.rs ResultWebhooks", "### `[result_webhooks]`", "result_webhooks"),
    ("vendor.rs Vendor", "## `[vendors.NAME]`", ""),
    ("vendor.rs LimitTable", "### `limits`", ""),
    ("vendor.rs Retry", "### `retry`", "vendors.sync.retry"),
    ("vendor.rs BreakerTable", "### `breaker`", "vendors.sync.breaker"),
    ("vendor.rs Clean", "### `clean`", "vendors.sync.clean"),
    ("vendor.rs BodyTable", "### `body`", ""),
    ("vendor.rs Login", "### `auth`", ""),
    ("vendor.rs Tls", "### `tls`", ""),
    ("vendor.rs Rule", "### `replies`", ""),
    ("vendor.rs Match", "### `failed` and `done`", ""),
    ("vendor.rs SlowDown", "### `slow_down`", ""),
    ("vendor.rs RateHeader", "### `rate_headers`", ""),
    ("vendor.rs Polling", "### `polling`", ""),
    ("vendor.rs At", "### `result_url`", ""),
    ("vendor.rs Host", "### `hosts`", ""),
    ("webhook.rs Webhook", "### `webhook`", ""),
    ("webhook.rs VerifyTable", "### `webhook.verify`", ""),
    ("webhook.rs Basic", "#### `webhook.verify.basic`", ""),
    ("webhook.rs ChallengeTable", "### `webhook.challenge`", ""),
];

/// Whether the page's word for a type fits the type of the field.
fn fits(kind: &str, written: &str) -> bool {
    let is = |words: &[&str]| words.iter().any(|word| written.starts_with(word));
    match kind.replace("Option<", "").replace("Spanned<", "").trim_end_matches('>') {
        "Number" | "f64" => is(&["number"]),
        "bool" => is(&["boolean"]),
        "Text" => !is(&["number", "boolean", "list", "table"]),
        list if list.starts_with("Vec<") => is(&["list"]),
        map if map.starts_with("BTreeMap<") => is(&["table"]),
        // A table, or one of several forms.
        _ => !is(&["number", "boolean"]),
    }
}

#[test]
fn the_config_page_has_every_key_with_its_type_and_no_other() {
    let page = read("docs/config.md");
    let mut in_source = keys_in_source();
    for (name, heading, _) in SECTIONS {
        let keys = in_source.remove(name).unwrap_or_else(|| panic!("there is no struct {name}"));
        let on_page = keys_on_page(&page, heading);
        assert!(
            on_page.keys().eq(keys.keys()),
            "docs/config.md, {heading}: {:?}, not {:?}",
            on_page.keys(),
            keys.keys()
        );
        for (key, [written, _]) in on_page {
            assert!(
                fits(&keys[&key], &written),
                "docs/config.md, {heading}: {key} is no {written}, but {}",
                keys[&key]
            );
        }
    }
    assert!(in_source.is_empty(), "docs/config.md has no section for {in_source:?}");
}

#[test]
fn the_config_page_has_the_defaults_of_the_example() {
    let page = read("docs/config.md");
    let example: toml::Table = fetchgate::config::EXAMPLE.parse().expect("TOML");
    let literal = |cell: &str| -> Option<toml::Value> {
        let text = cell.strip_prefix('`')?.strip_suffix('`')?;
        format!("x = {text}").parse::<toml::Table>().ok()?.remove("x")
    };
    for (_, heading, path) in SECTIONS.iter().filter(|(.., path)| !path.is_empty()) {
        let mut table = Some(&example);
        for part in path.split('.') {
            table = table.and_then(|table| table.get(part)).and_then(toml::Value::as_table);
        }
        for (key, [_, cell]) in keys_on_page(&page, heading) {
            let default = table.and_then(|table| table.get(&key)).cloned();
            assert_eq!(literal(&cell), default, "docs/config.md, {heading}: {key}");
        }
    }
    let vendor = keys_on_page(&page, "## `[vendors.NAME]`");
    for (name, key) in [
        ("sync", "method"),
        ("sync", "concurrency"),
        ("sync", "timeout"),
        ("sync", "at_most_once"),
        ("async", "answer_within"),
    ] {
        assert_eq!(literal(&vendor[key][1]).as_ref(), example["vendors"][name].get(key), "docs/config.md: {key}");
    }
}

#[test]
fn the_vendors_that_are_printed_in_full_can_be_used() {
    let page = read("docs/vendors.md");
    let config = page.split("\n```toml\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("a config");
    let secrets = [("PEOPLE_KEY".to_owned(), "secret".to_owned())];
    let config = fetchgate::config::parse(config, "docs/vendors.md", secrets).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.vendors.len(), 3, "one of each kind");
}

#[test]
fn the_api_page_has_every_status_and_every_code() {
    let page = read("docs/api.md");
    let text = read("docs/api/openapi.json");
    let api: Value = serde_json::from_str(&text).expect("JSON");
    let is_code = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let of_problems = text.split("- `").skip(1).filter_map(|rest| rest.split_once("`:").map(|(code, _)| code));
    let mut words: BTreeSet<&str> = of_problems.filter(is_code).collect();
    assert!(words.len() > 20, "{words:?}");
    let schemas = &api["components"]["schemas"];
    for list in [&schemas["Status"], &schemas["FailureCode"], &schemas["Attempt"]["properties"]["outcome"]] {
        words.extend(list["enum"].as_array().expect("a list").iter().filter_map(Value::as_str));
    }
    for word in words {
        assert!(page.contains(&format!("`{word}`")), "docs/api.md does not explain {word}");
    }
}
