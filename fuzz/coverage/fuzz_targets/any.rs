//! The target that `FUZZ_TARGET` names, under LLVM's fuzzer: see `make fuzz`.
#![no_main]

use std::sync::LazyLock;

use fetchgate_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("FUZZ_TARGET names no target: {name}"))
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
