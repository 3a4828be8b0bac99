//! The dependency rules of the tree, as a check over its sources: which words a file
//! must not hold, and how long it may be.
//!
//! Comments and string literals do not count, tests at the end of a file (from
//! `#[cfg(test)]` on) may use anything.

use std::path::{Path, PathBuf};

/// The most lines of a source file.
pub const MAX_LINES: usize = 600;

/// What pure files must not name: runtimes, HTTP crates, files, sockets, threads, clocks, randomness.
pub const IMPURE: &[&str] = &[
    "tokio",
    "hyper",
    "hyper_util",
    "http_body_util",
    "reqwest",
    "rusqlite",
    "fuser",
    "libc",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "Instant",
    "SystemTime",
    "rand",
    "getrandom",
    "RandomState",
    "log",
];

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The file, from the root of the checkout.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// Every file of the checkout that ends with `.rs`, with its text.
pub fn sources(root: &Path) -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    let mut pending: Vec<PathBuf> = ["dfs-common", "dfs-server", "dfs-mount", "tests"].iter().map(|d| root.join(d)).collect();
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten() {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("source text");
                out.push((path.strip_prefix(root).expect("below the root").to_owned(), text));
            }
        }
    }
    out.sort();
    out
}

/// Lines of code: without comments, without string contents, without the tests at the end.
pub fn code(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    let end = text.lines().position(|l| l.trim() == "#[cfg(test)]").unwrap_or(usize::MAX);
    text.lines().enumerate().take(end).map(|(index, line)| (index + 1, strip(line)))
}

/// `line` without a comment at its end and without what stands in quotes.
fn strip(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => {
                chars.next();
            }
            '"' => quoted = !quoted,
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            c if !quoted => out.push(c),
            _ => {}
        }
    }
    out
}

/// Whether `word` (an identifier or a path of them) stands in `line` by itself.
pub fn names(line: &str, word: &str) -> bool {
    let ident = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(ident) && !after.is_some_and(ident)
    })
}

/// The lines of `text` that name one of `words`. `std::{fs, …}` counts as `std::fs`.
pub fn forbidden(file: &Path, text: &str, words: &[&str]) -> Vec<Broken> {
    let mut out = Vec::new();
    for (line, code) in code(text) {
        for word in words {
            let grouped = word.strip_prefix("std::").is_some_and(|module| code.contains("std::{") && names(&code, module));
            if names(&code, word) || grouped {
                out.push(Broken { file: file.to_owned(), line, what: format!("names {word}") });
            }
        }
    }
    out
}

/// A file that is too long.
pub fn too_long(file: &Path, text: &str) -> Option<Broken> {
    let line = text.lines().count();
    (line > MAX_LINES).then(|| Broken { file: file.to_owned(), line, what: format!("is longer than {MAX_LINES} lines") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_found() {
        for bad in ["use tokio::sync::Mutex;", "let now = std::time::Instant::now();", "use std::{fs, io};", "    std::fs::read(x)", "hyper::Request"]
        {
            assert_eq!(forbidden(Path::new("x.rs"), bad, IMPURE).len(), 1, "{bad}");
        }
    }

    #[test]
    fn comments_strings_longer_words_and_tests_are_fine() {
        for fine in ["// tokio", "/// like std::fs", "let x = \"tokio\";", "let operand = 1;", "fn blog() {}", "#[cfg(test)]\nuse tokio::test;"] {
            assert_eq!(forbidden(Path::new("x.rs"), fine, IMPURE), [], "{fine}");
        }
    }

    #[test]
    fn long_files_are_found() {
        assert!(too_long(Path::new("x.rs"), &"\n".repeat(601)).is_some());
        assert!(too_long(Path::new("x.rs"), &"\n".repeat(600)).is_none());
    }
}
