//! One directory that is measured: what workloads find there, how it is made cold, and
//! that nothing of it stays.
//!
//! What several workloads read is made once, by the first that wants it, outside of any
//! measured section. No descriptor stays open between workloads, so that a command may
//! unmount the file system.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::git::Repository;
use super::large::Large;
use super::meter::go_on;
use super::small::Small;
use super::tree::Tree;
use crate::{mountinfo, system};

/// File systems whose only cache is the kernel's: what posix_fadvise(2) drops is read from the disk again.
const LOCAL: [&str; 5] = ["ext2", "ext3", "ext4", "xfs", "btrfs"];

/// How much is done in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// Bytes of the large file, whole MiB.
    pub(super) large: u64,
    /// Small files that are listed and read.
    pub(super) files: usize,
    /// Small files that are created one by one.
    pub(super) created: u64,
    /// Small files that each of eight processes, or threads, creates.
    pub(super) created_by_each: u64,
    /// Files of the tree.
    pub(super) tree: usize,
    /// Reads at random places.
    pub(super) random: u64,
    /// Changes of the large file, and atomic replacements of a file.
    pub(super) edits: u64,
    /// Times that git looks for changes.
    pub(super) status: u64,
}

impl Scale {
    /// What is measured unless something else is asked for.
    pub(super) fn full(large: u64) -> Self {
        Self { large, files: 2000, created: 500, created_by_each: 100, tree: 1500, random: 20_000, edits: 20, status: 5 }
    }

    /// Enough to see that everything works.
    pub(super) fn quick(large: u64) -> Self {
        Self { large, files: 100, created: 30, created_by_each: 5, tree: 60, random: 500, edits: 3, status: 1 }
    }

    /// Bytes that must be free: the large file, its copy and its successor, and some more for trees.
    pub(super) fn space(&self) -> u64 {
        3 * self.large + (self.tree as u64 + 2 * self.files as u64) * (64 << 10)
    }
}

/// Why a workload has no result.
#[derive(Debug)]
pub(super) enum Ended {
    /// It cannot be done here, or would measure something else.
    Skipped(String),
    /// The file system failed, or returned wrong data.
    Failed(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// What a workload must not find in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cold {
    /// Nothing: it measures what is cached.
    No,
    /// The content of the large file.
    Content,
    /// Neither content nor names and attributes.
    Everything,
}

/// One directory that is measured.
#[derive(Debug)]
pub(super) struct Place {
    /// As it was named.
    pub(super) given: PathBuf,
    /// The type of its file system.
    pub(super) file_system: String,
    /// How much is done.
    pub(super) scale: Scale,
    pub(super) large: Option<Large>,
    pub(super) small: Option<Small>,
    pub(super) tree: Option<Tree>,
    pub(super) copy: Option<Tree>,
    pub(super) repository: Option<Repository>,
    home: TempDir,
    cold: Option<String>,
    seed: u64,
    names: u32,
}

impl Place {
    /// Makes a directory of its own below `given`, where everything happens. `seed` makes its content unlike any other's.
    pub(super) fn new(given: &Path, scale: Scale, cold: Option<String>, seed: u64) -> io::Result<Self> {
        let given = given.canonicalize()?;
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let file_system = mountinfo::kind(&table, &given).unwrap_or("unknown").to_owned();
        let home = tempfile::Builder::new().prefix("dfs-bench-").tempdir_in(&given)?;
        let (large, small, tree, copy, repository) = (None, None, None, None, None);
        Ok(Self { given, file_system, scale, large, small, tree, copy, repository, home, cold, seed, names: 0 })
    }

    /// A path there that was not used yet.
    pub(super) fn fresh(&mut self, name: &str) -> PathBuf {
        self.names += 1;
        self.home.path().join(format!("{name}-{}", self.names))
    }

    /// A seed for content that nobody has written yet.
    pub(super) fn seed(&mut self) -> u64 {
        self.seed += 1;
        self.seed
    }

    /// Lets what others have left to be written reach the disk, so that the next workload does not wait for it.
    pub(super) fn settle(&self) -> io::Result<()> {
        system::sync_file_system(&File::open(&self.given)?)
    }

    /// Makes that the next workload does not find cached what it must not.
    pub(super) fn make_cold(&self, what: Cold) -> Result<(), Ended> {
        match (&self.cold, what) {
            (_, Cold::No) => Ok(()),
            (Some(command), _) => self.run_cold(command).map_err(Ended::Failed),
            (None, _) if !LOCAL.contains(&self.file_system.as_str()) => {
                Err(Ended::Skipped(format!("a {} file system has caches that only its own means make cold: --cold", self.file_system)))
            }
            (None, Cold::Everything) => Err(Ended::Skipped("names and attributes stay in the kernel's memory: --cold".to_owned())),
            (None, Cold::Content) => match &self.large {
                Some(large) => forget(&large.path, large.len()),
                None => Ok(()),
            },
        }
    }

    fn run_cold(&self, command: &str) -> io::Result<()> {
        // A file, because a daemon that the command starts may keep what it inherits.
        let mut said = tempfile::tempfile()?;
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir("/").env("DIR", &self.given).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone()?);
        let status = shell.status()?;
        go_on()?;
        if status.success() {
            return Ok(());
        }
        let mut text = String::new();
        said.rewind()?;
        said.take(1000).read_to_string(&mut text)?;
        Err(io::Error::other(format!("the command that makes it cold ended with {status}: {}", text.trim())))
    }

    /// Removes everything that was made here.
    pub(super) fn close(self) -> io::Result<()> {
        let path = self.home.path().to_owned();
        self.home.close().map_err(|e| io::Error::new(e.kind(), format!("{} is left behind: {e}", path.display())))
    }
}

/// Drops the kernel's pages of a file, and makes sure that they are gone.
fn forget(path: &Path, len: u64) -> Result<(), Ended> {
    let file = File::open(path)?;
    file.sync_all()?;
    system::drop_pages(&file)?;
    let mapping = system::Mapping::new(&file, usize::try_from(len).map_err(io::Error::other)?)?;
    match mapping.resident()? {
        0 => Ok(()),
        pages => Err(Ended::Skipped(format!("{pages} pages stay in the kernel's memory: --cold"))),
    }
}

/// Makes a file with this content; an error of close(2) is one.
pub(super) fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content)?;
    system::close(file)
}

/// Makes a copy as cp(1) does: in the kernel where that is possible.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    io::copy(&mut from, &mut to)?;
    system::close(to)
}
