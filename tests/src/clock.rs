//! Wrong clocks (libfaketime).

use std::path::{Path, PathBuf};

/// The variables that give a process a wall clock of its own, which reads `file` each time: an offset as `+3600`.
pub fn wrong_clock(file: &Path) -> Vec<(String, String)> {
    let libraries = std::fs::read_dir("/usr/lib").expect("/usr/lib").flatten().map(|e| e.path().join("faketime/libfaketimeMT.so.1"));
    let library: PathBuf = libraries.into_iter().find(|l| l.is_file()).expect("libfaketime is missing: install the package faketime");
    let variables = [
        ("LD_PRELOAD", library.to_str().expect("text")),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().expect("text")),
        ("FAKETIME_NO_CACHE", "1"),
        // Only what people set: the clock that counts from the start goes on.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    variables.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec()
}
