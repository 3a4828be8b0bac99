//! The workloads, in the order in which they run.

use std::io;
use std::time::Duration;

use serde::Serialize;

use super::meter::Meter;
use super::place::{Cold, Ended, Place};
use super::{git, large, small, tree};

/// What the result of a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Unit {
    /// Microseconds for one unit of work.
    #[serde(rename = "us")]
    Microseconds,
    /// Millions of bytes in a second.
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    /// Units of work in a second.
    #[serde(rename = "1/s")]
    PerSecond,
}

impl Unit {
    /// True where more is faster.
    pub(super) fn is_rate(self) -> bool {
        self != Self::Microseconds
    }

    /// The result of `count` units of work that took so long; a unit of [`Unit::MegabytesPerSecond`] is a MiB.
    pub(super) fn of(self, count: u64, elapsed: Duration) -> f64 {
        let (count, seconds) = (count as f64, elapsed.as_secs_f64());
        match self {
            Self::Microseconds => seconds * 1e6 / count,
            Self::MegabytesPerSecond => count * 1.048_576 / seconds,
            Self::PerSecond => count / seconds,
        }
    }
}

/// One workload.
pub(super) struct Row {
    /// What `--only` takes.
    pub(super) name: &'static str,
    /// What it does.
    pub(super) title: &'static str,
    pub(super) unit: Unit,
    /// The unit of work, as in "a file"; "all" where the whole is the unit.
    pub(super) per: &'static str,
    /// What must not be cached when it runs.
    pub(super) cold: Cold,
    /// Makes what it needs, and has it cached.
    pub(super) prepare: fn(&mut Place) -> Result<(), Ended>,
    /// Does it, and checks what it read or wrote.
    pub(super) run: fn(&mut Place, &mut Meter) -> io::Result<()>,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

fn nothing(_: &mut Place) -> Result<(), Ended> {
    Ok(())
}

macro_rules! rows {
    ($($name:literal, $title:literal, $unit:ident $per:literal, $cold:ident, $prepare:path, $run:path;)*) => {
        &[$(Row { name: $name, title: $title, unit: Unit::$unit, per: $per, cold: Cold::$cold, prepare: $prepare, run: $run }),*]
    };
}

/// All of them.
pub(super) const ROWS: &[Row] = rows! {
    "write", "write a large file, fsync, close", MegabytesPerSecond "MiB", No, nothing, large::write;
    "read", "read it, cached", MegabytesPerSecond "MiB", No, large::warm, large::read;
    "mmap", "read it through mmap, cached", MegabytesPerSecond "MiB", No, large::warm, large::read_mapped;
    "random", "read 4 KiB at random places, cached", Microseconds "read", No, large::warm, large::read_randomly;
    "cold-read", "open and read the large file, cold", MegabytesPerSecond "MiB", Content, large::prepare, large::read_cold;
    "cold-first", "open it and read the first 4 KiB, cold", Microseconds "open", Content, large::prepare, large::read_first;
    "append", "open, append 4 KiB to the large file, close", Microseconds "change", No, large::warm, large::append;
    "overwrite", "open, overwrite 4 KiB in its middle, close", Microseconds "change", No, large::warm, large::overwrite;
    "cp", "copy the large file in the kernel, cached", MegabytesPerSecond "MiB", No, large::warm, large::copy_whole;
    "create", "create, write 4 KiB, close, one by one", Microseconds "file", No, nothing, small::create;
    "create-8", "the same by eight processes", PerSecond "file", No, nothing, small::create_by_processes;
    "create-8t", "the same by eight threads of one process", PerSecond "file", No, nothing, small::create_by_threads;
    "stat", "stat, cached", Microseconds "file", No, small::warm, small::stat;
    "open", "open, read 4 KiB, close, cached", Microseconds "file", No, small::warm, small::open_read_close;
    "find", "list a tree, cached", Microseconds "entry", No, small::warm, small::find;
    "du", "list a tree with attributes, cached", Microseconds "entry", No, small::warm, small::du;
    "cold-find", "list a tree, cold", Microseconds "entry", Everything, small::prepare, small::find;
    "cold-files", "list and read small files in order, cold", Microseconds "file", Everything, small::prepare, small::read_cold;
    "save", "write 16 KiB, fsync, rename over the old file", Microseconds "save", No, nothing, small::save;
    "untar", "extract a source tree", Microseconds "file", No, nothing, tree::extract;
    "cp-r", "copy the tree", Microseconds "file", No, tree::warm, tree::copy_all;
    "rm-r", "remove the copy", Microseconds "file", No, tree::prepare_removal, tree::remove;
    "git-commit", "git init, add, commit of such a tree", Microseconds "file", No, git::prepare, git::commit;
    "git-status", "git status, cached", Microseconds "run", No, git::warm, git::status;
    "git-clone", "git clone of it", Microseconds "file", No, git::warm, git::clone;
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
    }

    #[test]
    fn units() {
        assert_eq!(Unit::Microseconds.of(4, Duration::from_millis(2)), 500.0);
        assert_eq!(Unit::MegabytesPerSecond.of(1000, Duration::from_secs(2)), 524.288);
        assert_eq!(Unit::PerSecond.of(10, Duration::from_secs(2)), 5.0);
    }
}
