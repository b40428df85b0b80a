//! Replays the corpora of the fuzz targets, so that what the fuzzer found stays fixed on the stable toolchain.
#![allow(
    clippy::disallowed_methods,
    reason = "this test reads the corpora; the core that it tests does no I/O"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub mod targets;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Names in a directory of `fuzz/`, without extensions.
fn names(directory: &str) -> BTreeSet<String> {
    let directory = fuzz_dir().join(directory);
    let entries = fs::read_dir(&directory).unwrap_or_else(|e| panic!("{directory:?}: {e}"));
    entries
        .map(|entry| {
            let path = entry.expect("a readable directory").path();
            let stem = path.file_stem().expect("a file name");
            stem.to_string_lossy().into_owned()
        })
        .collect()
}

#[test]
fn every_corpus_replays() {
    for (name, target) in targets::TARGETS {
        let directory = fuzz_dir().join("corpus").join(name);
        let mut count = 0;
        for entry in fs::read_dir(&directory).unwrap_or_else(|e| panic!("{directory:?}: {e}")) {
            let path = entry.expect("a readable directory").path();
            let data = fs::read(&path).expect("a readable file");
            let run = || target(&data);
            if std::panic::catch_unwind(run).is_err() {
                panic!("{} makes {name} panic", path.display());
            }
            count += 1;
        }
        assert!(count > 0, "{} is empty", directory.display());
    }
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let listed: BTreeSet<_> = targets::TARGETS
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(names("fuzz_targets"), listed);
    assert_eq!(names("corpus"), listed);
}
