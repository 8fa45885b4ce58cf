//! Finds and reads the config file; `parse` reads a text instead.
//!
//! The only place here that touches the process: its environment is read by [`environment`], its files by [`load`]
//! (and those that `${file:...}` names).

use std::{
    collections::BTreeSet,
    io::Read as _,
    path::{Path, PathBuf},
};

use super::{
    Config,
    error::{ConfigError, Place, Problem},
    fill::{self, Piece},
    read, root,
    source::{Env, PREFIX, layered},
};

/// Where the config is if it is not named.
pub const HERE: &str = "fetchgate.toml";
/// A configuration of ten thousand vendors fits; a log file named by mistake does not.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// The variables of this process; those that are not UTF-8 count as not set.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Reads the file that `--config` names, else `FETCHGATE_CONFIG`, else `fetchgate.toml` in this folder.
pub fn load(path: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigError> {
    let env = Env(env.into_iter().collect());
    let by_variable = env.0.get("FETCHGATE_CONFIG").filter(|path| !path.is_empty());
    let (path, named_by) = match (path, by_variable) {
        (Some(path), _) => (path, "--config"),
        (None, Some(path)) => (Path::new(path), "FETCHGATE_CONFIG"),
        (None, None) => (Path::new(HERE), ""),
    };
    let name = path.display().to_string();
    match read_file(path) {
        Ok(text) => parse_with(&text, &name, &env),
        Err(why) => Err(unreadable(&name, named_by, &why).into()),
    }
}

/// The files that the texts of the same config name as `${file:/run/secrets/x}`; none if it cannot be read.
pub fn secret_files(path: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> BTreeSet<PathBuf> {
    let env = Env(env.into_iter().collect());
    let by_variable = env.0.get("FETCHGATE_CONFIG").filter(|path| !path.is_empty());
    let path = path.or(by_variable.map(Path::new)).unwrap_or(Path::new(HERE));
    let table: toml::Table = read_file(path).ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    let overrides = env.0.iter().filter(|(name, _)| name.starts_with(PREFIX)).map(|(_, value)| &**value);
    let filled = texts(table.values()).into_iter().chain(overrides).filter_map(|text| fill::pieces(text, &env).ok());
    let file = |piece| match piece {
        Piece::File(path) => Some(PathBuf::from(path)),
        Piece::Text(_) => None,
    };
    filled.flat_map(|(pieces, _)| pieces).filter_map(file).collect()
}

/// All texts in these values.
fn texts<'a>(values: impl IntoIterator<Item = &'a toml::Value>) -> Vec<&'a str> {
    let inside = |value: &'a toml::Value| match value {
        toml::Value::String(text) => vec![&**text],
        toml::Value::Array(values) => texts(values),
        toml::Value::Table(table) => texts(table.values()),
        _ => Vec::new(),
    };
    values.into_iter().flat_map(inside).collect()
}

/// Reads a configuration from a text; `source_name` is what errors call it.
pub fn parse(
    text: &str,
    source_name: &str,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    parse_with(text, source_name, &Env(env.into_iter().collect()))
}

fn parse_with(text: &str, name: &str, env: &Env) -> Result<Config, ConfigError> {
    let (layers, sources) = layered(text, name, env)?;
    let raw = read::read(layers, &sources)?;
    root::check(&raw, &sources, env)
}

fn read_file(path: &Path) -> Result<String, std::io::Error> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "over 16 MiB"));
    }
    Ok(text)
}

fn unreadable(name: &str, named_by: &str, why: &std::io::Error) -> Problem {
    let is_missing = why.kind() == std::io::ErrorKind::NotFound;
    let (what, mend) = match (is_missing, named_by) {
        (true, "") => {
            let mend = "Name one with --config FILE or FETCHGATE_CONFIG, copy fetchgate.example.toml to fetchgate.toml, \
                        or run `fetchgate dev`, which needs none";
            ("there is no config file".to_owned(), mend.to_owned())
        }
        (true, _) => (format!("{named_by} names a file that is not there"), "Correct the path".to_owned()),
        (false, _) => (format!("this file cannot be read: {why}"), "Make it a readable UTF-8 text".to_owned()),
    };
    Problem { key: String::new(), place: Place::Whole(name.to_owned()), what, mend }
}
