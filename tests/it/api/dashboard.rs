//! The dashboard's files: what their headers say to a browser, and what is not in them.

use std::{collections::BTreeSet, fs, io::Write as _, path::Path};

use flate2::{Compression, write::GzEncoder};
use hyper::Method;

use crate::support::{Answer, Backend, TestApp};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dashboard");

/// Bytes of all files together at most, compressed.
const MOST_BYTES: usize = 64 << 10;

/// The files in the folder, by name.
fn files() -> Vec<(String, String)> {
    let entries = fs::read_dir(FOLDER).expect("the folder").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = entries
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("text"))
        })
        .collect();
    files.sort();
    files
}

async fn get(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> Answer {
    app.send_unchecked(Method::GET, path, headers, "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_and_its_files_need_no_key_and_may_do_nothing_but_talk_to_this_service() {
    let keys = "[auth]\nmode = \"api_key\"\nadmin_key = \"an-admin-key-of-at-least-32-characters\"\n";
    let vendor = "[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one\"\nlimits = []\n";
    let app = TestApp::with(Backend::Sqlite, &format!("{keys}{vendor}")).await;
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let page = app.get("/").await;
    assert_eq!((page.status.as_u16(), page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert_eq!(page.header("x-frame-options"), "DENY");
    assert!(page.text == fs::read_to_string(Path::new(FOLDER).join("index.html")).expect("the page"));
    for (name, text) in files() {
        let file = get(&app, &format!("/dashboard/{name}"), &[]).await;
        let kind = match name.rsplit_once('.').expect("a kind").1 {
            "html" => "text/html; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            other => panic!("{other} files are not served"),
        };
        assert_eq!((file.status.as_u16(), file.header("content-type")), (200, kind), "{name}");
        assert!(file.text == text, "{name} is another than the file of that name");
        for (header, value) in [
            ("content-security-policy", policy),
            ("cache-control", "no-cache"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(file.header(header), value, "{name} {header}");
        }
    }
    assert_eq!(get(&app, "/vendors", &[]).await.status, 401);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_sent_again_only_if_it_has_changed() {
    let app = TestApp::start(Backend::Sqlite).await;
    let mut tags = BTreeSet::new();
    for path in ["/", "/dashboard/main.js", "/dashboard/style.css"] {
        let first = get(&app, path, &[]).await;
        let tag = first.header("etag").to_owned();
        assert!(tag.len() == 34 && tags.insert(tag.clone()), "{path} {tag}");
        for sent in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let again = get(&app, path, &[("if-none-match", &sent)]).await;
            assert_eq!((again.status.as_u16(), again.text.as_str(), again.header("etag")), (304, "", &*tag), "{sent}");
        }
        let changed = get(&app, path, &[("if-none-match", "\"other\"")]).await;
        assert_eq!((changed.status, changed.text.as_str()), (first.status, &*first.text));
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_no_other_files() {
    let app = TestApp::start(Backend::Sqlite).await;
    for name in ["nope.js", "..%2Fmod.rs", "%2e%2e%2f%2e%2e%2fCargo.toml", "MAIN.JS", "main.js/"] {
        let answer = get(&app, &format!("/dashboard/{name}"), &[]).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (404, "not_found".to_owned()), "{name}");
    }
    let posted = app.send_unchecked(Method::POST, "/dashboard/main.js", &[], "").await;
    assert_eq!((posted.status.as_u16(), posted.code()), (405, "method_not_allowed".to_owned()));
    app.stop().await;
}

#[test]
fn the_files_make_no_markup_of_data_and_load_nothing_from_elsewhere() {
    // What would read markup or run text, and what the policy forbids anyway.
    let unwanted = [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
        "createContextualFragment",
        "setHTML",
        "javascript:",
        ".style.",
        "style=",
        "import(\"http",
        "srcdoc",
    ];
    for (name, text) in files() {
        for word in unwanted {
            assert!(!text.contains(word), "{name} has {word}");
        }
        let addresses = text.split("://").count() - 1;
        let known = text.matches("http://www.w3.org/2000/svg").count();
        assert_eq!(addresses, known, "{name} names an address elsewhere");
        if name.ends_with(".html") {
            let inline = text
                .split("<script")
                .skip(1)
                .any(|rest| !rest.contains(" src=\"dashboard/") || !rest.contains("></script>"));
            assert!(!inline && !text.contains("<style"), "{name} has something inline");
            let handler = |word: &str| word.starts_with("on") && word.contains("=\"");
            assert!(!text.split_whitespace().any(handler), "{name} has an inline handler");
        }
    }
}

#[test]
fn all_files_together_are_small() {
    let packed = |text: &str| {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(text.as_bytes()).expect("memory");
        gzip.finish().expect("memory").len()
    };
    let bytes: usize = files().iter().map(|(_, text)| packed(text)).sum();
    assert!(bytes <= MOST_BYTES, "{bytes} bytes");
}
