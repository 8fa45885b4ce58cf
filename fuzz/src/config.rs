//! Config files and overrides from the environment.

use fetchgate::config::{Config, ConfigError, parse};

/// The value of a variable that configs may name. It is in no error, and a config never shows it.
const SECRET: &str = "kq7Zx0Wv9LmT";
const GOOD: &str = "[vendors.sync]\nkind = \"sync\"\nurl = \"https://v.example/${SECRET}\"\nlimits = [\"50/s\"]\n";

/// A text as a config: nothing of a secret is in what is wrong with it, nor in what is made of it.
pub(crate) fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if text.contains("file:") {
        return; // No file that an input names is read.
    }
    let variables = [("SECRET".to_owned(), SECRET.to_owned())];
    check(parse(&text, "fuzzed.toml", variables));
}

/// An override of the environment, its name and its value, over a config that is good.
pub(crate) fn environment(data: &[u8]) {
    let (name, value) = super::first_line(data);
    let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
    if value.contains("file:") {
        return;
    }
    let variables = [(name.into_owned(), value.into_owned()), ("SECRET".to_owned(), SECRET.to_owned())];
    check(parse(GOOD, "fuzzed.toml", variables));
}

fn check(read: Result<Config, ConfigError>) {
    let said = match read {
        Ok(config) => format!("{config:?}"),
        Err(error) => {
            let said = error.to_string();
            assert!(!said.is_empty() && said.len() < 256 << 10, "{} bytes", said.len());
            said
        }
    };
    assert!(!said.contains(SECRET), "{said}");
}
