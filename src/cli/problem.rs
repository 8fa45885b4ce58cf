//! Errors of the service (RFC 9457) in the words of the command line: flags instead of pointers into a body, commands instead of requests.
//!
//! Never hides a field that is wrong.

use serde::Deserialize;

use super::print::shown;

/// An error of the service, or of one job of a batch.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    detail: String,
    code: String,
    #[serde(default)]
    errors: Vec<FieldError>,
}

#[derive(Debug, Deserialize)]
struct FieldError {
    pointer: String,
    detail: String,
}

impl Problem {
    /// For a command whose flags the fields came from.
    pub(super) fn of_flags(&self) -> String {
        self.sentence(flag)
    }

    /// For a job that was read from a file.
    pub(super) fn of_fields(&self) -> String {
        self.sentence(field)
    }

    fn sentence(&self, name: fn(&str) -> String) -> String {
        let wrong: Vec<String> =
            self.errors.iter().map(|error| shown(&placed(&name(&error.pointer), &error.detail))).collect();
        let code = shown(&self.code);
        match &*wrong {
            // The detail of one wrong field only repeats it.
            [one] => format!("{one} ({code})"),
            [] => format!("{} ({code})", shown(&self.in_commands())),
            several => format!("{} fields are wrong ({code})\n  {}", several.len(), several.join("\n  ")),
        }
    }

    fn in_commands(&self) -> String {
        let detail = self.detail.replace("GET /vendors lists them", "`fetchgate vendors list` shows them");
        detail.replace("GET /keys lists them", "`fetchgate keys list` shows them")
    }
}

/// What is wrong at a pointer into a job: `payload.email is missing`.
pub(super) fn in_job(pointer: &str, detail: &str) -> String {
    placed(&field(pointer), detail)
}

/// A place and what is wrong there, as a sentence if the two make one.
fn placed(place: &str, detail: &str) -> String {
    let is_verb = |word: &str| matches!(word, "is" | "are" | "must" | "has" | "have" | "cannot" | "can" | "needs");
    let is_sentence = detail.split(' ').next().is_some_and(is_verb);
    format!("{place}{}{detail}", if is_sentence { " " } else { ": " })
}

/// The flag that a pointer (RFC 6901) into a body belongs to: `/not_before` is `--not-before`.
fn flag(pointer: &str) -> String {
    let mut names = names(pointer);
    if names.first().is_some_and(|first| first == "filter") {
        names.remove(0);
    }
    let Some(first) = names.first() else { return "the body".to_owned() };
    match first.as_str() {
        "payload" => names.join("."),
        "tags" => "--tag".to_owned(),
        "scopes" => "--scope".to_owned(),
        "limits" => match names.get(1).and_then(|n| n.parse::<usize>().ok()) {
            Some(n) => {
                [format!("--set number {}", n + 1)].iter().chain(&names[2..]).cloned().collect::<Vec<_>>().join(".")
            }
            None => "--set".to_owned(),
        },
        first => format!("--{}", first.replace('_', "-")),
    }
}

/// The field of a job that a pointer belongs to: `/payload/email` is `payload.email`.
fn field(pointer: &str) -> String {
    let names = names(pointer);
    if names.is_empty() { "the job".to_owned() } else { names.join(".") }
}

fn names(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|name| name.replace("~1", "/").replace("~0", "~")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str) -> Problem {
        serde_json::from_str(json).expect("a problem")
    }

    #[test]
    fn a_wrong_field_is_named_once_by_its_flag_or_its_place_in_the_file() {
        let late = problem(
            r#"{"detail":"/deadline: is in the past","code":"invalid_field","errors":[{"pointer":"/deadline","detail":"is in the past"}]}"#,
        );
        assert_eq!(late.of_flags(), "--deadline is in the past (invalid_field)");
        assert_eq!(late.of_fields(), "deadline is in the past (invalid_field)");
        let missing = problem(
            r#"{"detail":"is missing","code":"invalid_field","errors":[{"pointer":"/payload/a~1b","detail":"is missing"}]}"#,
        );
        assert_eq!(missing.of_flags(), "payload.a/b is missing (invalid_field)");
    }

    #[test]
    fn several_wrong_fields_are_all_named() {
        let several = problem(
            r#"{"detail":"x","code":"invalid_field","errors":[{"pointer":"/limits/1/per","detail":"expected a time"},{"pointer":"","detail":"must be an object"}]}"#,
        );
        let expected =
            "2 fields are wrong (invalid_field)\n  --set number 2.per: expected a time\n  the body must be an object";
        assert_eq!(several.of_flags(), expected);
    }

    #[test]
    fn a_request_that_would_help_is_named_as_a_command() {
        let unknown =
            problem(r#"{"detail":"no vendor is called \"x\"; GET /vendors lists them","code":"unknown_vendor"}"#);
        let expected = "no vendor is called \"x\"; `fetchgate vendors list` shows them (unknown_vendor)";
        assert_eq!(unknown.of_flags(), expected);
        let key = problem(r#"{"detail":"there is no key with this id; GET /keys lists them","code":"unknown_key"}"#);
        assert_eq!(key.of_flags(), "there is no key with this id; `fetchgate keys list` shows them (unknown_key)");
    }
}
