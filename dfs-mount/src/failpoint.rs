//! Named points at which a test lets this process die, as a crash would end it.
//!
//! `DFS_TEST_KILL_AT=NAME` kills it (SIGKILL) when it comes to that point, `NAME@N` when it
//! comes there for the Nth time. Without the variable a point costs one relaxed load. Every
//! window around something that a crash must not tear has a point here, and `tests/crash.rs`
//! dies at each of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::system;

/// Every point. Those of `recovery`, `aside` and `compact` are come to by a mount that finds what a crash left.
pub const POINTS: &[&str] = &[
    "open.begun",
    "open.journalled",
    "open.moved",
    "write.begun",
    "write.bytes",
    "write.done",
    "fetch.bytes",
    "fetch.recorded",
    "truncate.cut",
    "truncate.done",
    "commit.begun",
    "commit.sending",
    "commit.published",
    "commit.rebased",
    "commit.done",
    "fsync.done",
    "flush.done",
    "release.begun",
    "put_back.moved",
    "put_back.ended",
    "recovery.begun",
    "recovery.taken_over",
    "recovery.restored",
    "recovery.published",
    "recovery.ended",
    "recovery.settled",
    "aside.noted",
    "aside.moved",
    "aside.made",
    "aside.committed",
    "aside.described",
    "compact.written",
    "compact.renamed",
];

static ARMED: AtomicBool = AtomicBool::new(false);
static TARGET: OnceLock<(String, AtomicU32)> = OnceLock::new();

/// Takes the point to die at from the environment. An unknown name is an error: the test would test nothing.
pub(crate) fn arm() -> Result<(), String> {
    let Ok(wanted) = std::env::var("DFS_TEST_KILL_AT") else { return Ok(()) };
    let (name, nth) = parse(&wanted).ok_or_else(|| format!("DFS_TEST_KILL_AT={wanted}: no such point"))?;
    TARGET.get_or_init(|| (name.to_owned(), AtomicU32::new(nth)));
    ARMED.store(true, Ordering::Relaxed);
    Ok(())
}

fn parse(wanted: &str) -> Option<(&str, u32)> {
    let (name, nth) = wanted.split_once('@').unwrap_or((wanted, "1"));
    let nth = nth.parse().ok().filter(|&n| n > 0)?;
    POINTS.contains(&name).then_some((name, nth))
}

/// The process has come to `name`.
pub(crate) fn reach(name: &'static str) {
    if ARMED.load(Ordering::Relaxed) {
        count(name);
    }
}

#[cold]
fn count(name: &str) {
    let Some((target, left)) = TARGET.get() else { return };
    if target == name && left.fetch_sub(1, Ordering::Relaxed) == 1 {
        system::kill_self();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_named_with_or_without_a_count() {
        assert_eq!(parse("write.bytes"), Some(("write.bytes", 1)));
        assert_eq!(parse("write.bytes@3"), Some(("write.bytes", 3)));
        for bad in ["write", "write.bytes@0", "write.bytes@x", ""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
