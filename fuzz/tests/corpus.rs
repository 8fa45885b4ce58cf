//! Plays the corpus: every input that was ever kept, against its target.

use std::{collections::BTreeSet, fs, panic::catch_unwind, path::Path};

use fetchgate_fuzz::{TARGETS, clean_up, corpus};

#[test]
fn every_input_of_the_corpus_keeps_the_promises_of_its_target() {
    let mut broken = Vec::new();
    for target in &TARGETS {
        let inputs = fs::read_dir(corpus(target.name)).unwrap_or_else(|error| panic!("{}: {error}", target.name));
        let mut played = 0;
        for input in inputs.map(|entry| entry.expect("an entry").path()) {
            let data = fs::read(&input).expect("a readable input");
            played += 1;
            // Nothing, and each beginning, is an input too.
            let lengths = [0, data.len() / 3, data.len() / 2, data.len().saturating_sub(1), data.len()];
            if lengths.into_iter().any(|length| catch_unwind(|| (target.run)(&data[..length])).is_err()) {
                broken.push(input);
            }
        }
        assert!(played >= 3, "{} has {played} inputs", target.name);
    }
    clean_up();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_folder_of_the_corpus_is_for_a_target() {
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.into()).collect();
    let folders = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).expect("the corpus");
    let folders: BTreeSet<_> = folders.map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(folders, names);
}
