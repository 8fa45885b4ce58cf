//! The house rules that a tool would check, as plain tests: documents that tell the truth, licences, dependencies that are used.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The part of the architecture page between two headings.
fn section<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let rest = page.split_once(from).unwrap_or_else(|| panic!("no heading {from:?}")).1;
    rest.split_once(to).unwrap_or_else(|| panic!("no heading {to:?}")).0
}

#[test]
fn the_architecture_page_names_files_and_functions_that_exist() {
    let page = read("ARCHITECTURE.md");
    let mut file = None;
    let mut checked = 0;
    for word in quoted(section(&page, "### One job", "### Folders")) {
        if word.starts_with("src/") && word.ends_with(".rs") {
            file = Some((word, read(word)));
            continue;
        }
        let is_name = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        // A name right after a file is a function or a type in it.
        if let Some((path, source)) = file.take().filter(|_| is_name) {
            let exists = [format!("fn {word}("), format!("fn {word}<"), format!("struct {word}")];
            assert!(exists.iter().any(|text| source.contains(text)), "{path} has no {word}");
            checked += 1;
        }
    }
    assert!(checked >= 20, "only {checked} names were found: has the page changed its form?");
}

#[test]
fn one_job_can_be_followed_through_ten_files_and_under_2000_lines() {
    let page = read("ARCHITECTURE.md");
    let walk = section(&page, "### One job", "### The parts");
    let files: BTreeSet<&str> = quoted(walk).filter(|word| word.starts_with("src/")).collect();
    let lines: usize = files.iter().map(|path| read(path).lines().count()).sum();
    assert!(files.len() <= 11 && lines < 2000, "{} files, {lines} lines: {files:?}", files.len());
}

#[test]
fn every_file_named_in_the_documents_exists() {
    for page in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/vendors.md",
        "docs/callers.md",
        "docs/cli.md",
        "examples/README.md",
        "docs/mock-vendors.md",
        "docs/recipes/README.md",
        "docs/operate.md",
        "docs/security.md",
        "docs/lab/benchmarks.md",
        "docs/lab/scale.md",
        "docs/lab/referee.md",
    ] {
        let text = read(page);
        let folder = Path::new(page).parent().expect("a folder");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in links.filter(|link| !link.is_empty() && !link.starts_with("http")) {
            let target = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(link);
            assert!(target.exists(), "{page} links to {link}");
        }
    }
}

#[test]
fn every_fault_of_the_mock_vendors_is_described() {
    let page = read("docs/mock-vendors.md");
    let parameters = mock_vendors::HELP.split_once("Query parameters").expect("a list").1.lines().skip(1);
    // A line is a kind of parameters and its list, or goes on with the list.
    let lists = parameters.map(|line| line.trim().split_once("  ").map_or(line, |(_, list)| list));
    let words: BTreeSet<&str> =
        lists.flat_map(|list| list.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))).collect();
    assert!(words.len() > 40, "{words:?}");
    for word in words.into_iter().filter(|word| !["", "with", "name", "value"].contains(word)) {
        let is_there = [format!("`{word}`"), format!("`{word}="), format!("={word}`"), format!("&{word}=")];
        assert!(is_there.iter().any(|text| page.contains(text)), "docs/mock-vendors.md does not say what {word} does");
    }
}

/// The names of variables that a text uses as `${NAME}` or `${NAME:-default}`.
pub(crate) fn variables(text: &str) -> BTreeSet<&str> {
    let ends = |c: char| !(c.is_ascii_uppercase() || c == '_');
    text.split("${").skip(1).filter_map(|rest| rest.split(ends).next()).collect()
}

#[test]
fn compose_its_config_and_its_environment_speak_of_the_same() {
    let (compose, settings, config) = (read("compose.yaml"), read(".env.example"), read("docker/fetchgate.toml"));
    let lines = settings.lines().filter_map(|line| line.split_once('='));
    let explained: BTreeMap<&str, &str> = lines.filter(|(name, _)| !name.starts_with('#')).collect();
    assert_eq!(explained.keys().copied().collect::<BTreeSet<_>>(), variables(&compose), "each variable is used");
    for (name, value) in &explained {
        assert!(compose.contains(&format!("${{{name}:-{value}}}")), "{name} has another default in compose.yaml");
    }
    assert!(variables(&config).iter().all(|name| compose.contains(&format!("    {name}: "))), "passed on");
    let env = explained.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let config =
        fetchgate::config::parse(&config, "docker/fetchgate.toml", env).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((config.server.listen.port(), config.vendors.len()), (8000, 3));
    assert!(config.ops_listen.is_some(), "a worker's healthcheck needs it");

    let manifest: toml::Table = read("Cargo.toml").parse().expect("TOML");
    let rust = manifest["workspace"]["package"]["rust-version"].as_str().expect("a version");
    assert!(read("Dockerfile").contains(&format!("FROM rust:{rust}-bookworm")), "the image is built with another Rust");
}

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    let output =
        command.args(arguments).args(["--locked", "--offline"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn licences_are_permissive_and_nothing_unwanted_is_built_in() {
    const ALLOWED: [&str; 14] = [
        "MIT",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Zlib",
        "Unicode-3.0",
        "CC0-1.0",
        "MIT-0",
        "0BSD",
        "Unlicense",
        "BSL-1.0",             // Boost
        "CDLA-Permissive-2.0", // for data: lists of certificates
    ];
    let tree = cargo(&["tree", "--workspace", "--prefix", "none", "--format", "{p}|{l}|"]);
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let mut parts = line.split('|');
        let (package, licence) =
            (parts.next().expect("a package"), parts.next().expect("a licence").replace('/', " OR "));
        let fits = |one: &str| ALLOWED.contains(&one.trim_matches(['(', ')', ' ']));
        // Of alternatives one has to fit, of parts all.
        let all = licence.split(" AND ").all(|part| part.split(" OR ").any(fits));
        assert!(all, "{package} is under {licence}");
        let unwanted = ["openssl-sys ", "aws-lc-rs ", "native-tls "].iter().any(|name| package.starts_with(name));
        assert!(!unwanted, "{package}: there is one TLS library, rustls over ring");
    }
    let lock = read("Cargo.lock");
    let sources = lock.lines().filter(|line| line.starts_with("source = "));
    for source in sources {
        assert!(source.contains("registry+"), "{source}: crates come from the registry");
    }
}

#[test]
fn every_dependency_is_used_and_says_why_it_is_here() {
    for (manifest, folders) in [
        ("Cargo.toml", &["src", "tests", "benches"][..]),
        ("mock-vendors/Cargo.toml", &["mock-vendors/src", "mock-vendors/tests"]),
        ("fuzz/Cargo.toml", &["fuzz/src", "fuzz/tests"]),
    ] {
        let text = read(manifest);
        let sources: String =
            folders.iter().map(|folder| all_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))).collect();
        let table: toml::Table = text.parse().expect("TOML");
        for section in ["dependencies", "dev-dependencies"] {
            for name in table.get(section).and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys) {
                let used = sources.contains(&name.replace('-', "_"));
                assert!(used, "{manifest}: {name} is not used");
            }
        }
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in
            lines.iter().enumerate().filter(|(_, line)| line.contains("version = \"") && line.contains(" = "))
        {
            let is_dependency = !line.starts_with("version") && !line.contains("rust-version");
            let reasons = lines[..i].iter().rev().take_while(|line| !line.is_empty() && !line.starts_with('['));
            assert!(
                !is_dependency || reasons.into_iter().any(|line| line.starts_with('#')),
                "{manifest}: no reason for {line}"
            );
        }
    }
}

fn all_sources(folder: &Path) -> String {
    let Ok(entries) = fs::read_dir(folder) else { return String::new() };
    let read = |entry: fs::DirEntry| {
        let path = entry.path();
        if path.is_dir() { all_sources(&path) } else { fs::read_to_string(&path).unwrap_or_default() }
    };
    entries.filter_map(Result::ok).map(read).collect()
}

#[test]
fn serde_json_keeps_its_plain_features() {
    // arbitrary_precision breaks tagged enums, preserve_order and float_roundtrip change what others see: serde_json #1108, #559.
    let tree = cargo(&["tree", "--workspace", "--invert", "serde_json", "--depth", "0", "--format", "{f}"]);
    assert_eq!(tree.lines().next(), Some("default,raw_value,std"));
}
