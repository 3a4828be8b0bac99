//! `recovered/`: what could not be published, each file with a note beside it, until the
//! cluster has it as a recoverable version.

use std::path::{Path, PathBuf};

use dfs_common::attributes::Timestamp;
use dfs_common::block::Manifest;
use dfs_common::ids::{InodeId, Version};
use dfs_common::{Error, Result};
use serde::{Deserialize, Serialize};

use super::record::{Owned, runs};
use super::{Content, Shelf};
use crate::failpoint;

/// What is known of a file in `recovered/`; beside it as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The cluster's random name.
    pub cluster: String,
    /// The file that it was to be a version of.
    pub ino: InodeId,
    /// Where that was, as far as it is known; for people.
    pub path: String,
    /// Whose it was.
    #[serde(flatten)]
    pub owned: Owned,
    /// The version that it was built on.
    pub base: Version,
    /// Why it was not published.
    pub reason: String,
    /// When that was.
    pub time: Timestamp,
    /// When the content last changed.
    pub mtime: Timestamp,
    /// Blocks that were never fetched, as runs (first, last): zeros in the file, as in the base version in truth.
    #[serde(default)]
    pub missing: Vec<(u32, u32)>,
    /// log2 of the block size.
    pub block_bits: u8,
}

/// A file in `recovered/`.
#[derive(Clone, Debug)]
pub struct Aside {
    /// The content.
    pub path: PathBuf,
    /// What is known of it.
    pub note: Note,
}

impl Aside {
    fn beside(&self, suffix: &str) -> PathBuf {
        beside(&self.path, suffix)
    }

    /// The base version's manifest, where blocks of it are missing here.
    pub fn base(&self) -> Result<Manifest> {
        let path = self.beside("base");
        Manifest::decode(&std::fs::read(&path).map_err(|e| Error::from_io(&e, path.display()))?)
    }

    /// The cluster has it.
    pub fn remove(&self) {
        // The note goes last: a file without one would be a riddle.
        for path in [self.path.clone(), self.beside("base"), self.beside("json")] {
            if let Err(e) = std::fs::remove_file(&path)
                && e.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("{}: {e}", path.display());
            }
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = std::fs::File::create(path).and_then(|mut file| {
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_data()
    });
    written.map_err(|e| Error::from_io(&e, path.display()))
}

impl Shelf {
    /// Keeps changes that could not be published; returns where.
    pub fn set_aside(&self, content: &Content, (ino, path, owned): (InodeId, String, Owned), reason: &str, now: Timestamp) -> Result<Aside> {
        let map = content.map();
        let mtime = content.changes().and_then(|(_, _, mtime)| mtime).unwrap_or(now);
        let (base, missing) = (content.version(), runs(map.missing()));
        let cluster = self.cluster().to_owned();
        let note = Note { cluster, ino, path, owned, base, reason: reason.to_owned(), time: now, mtime, missing, block_bits: map.bits() };
        let aside = Aside { path: self.recovered_path(ino), note };
        if !aside.note.missing.is_empty() {
            write(&aside.beside("base"), &content.base(&[]).0.encode())?;
        }
        write(&aside.beside("json"), &serde_json::to_vec_pretty(&aside.note).expect("a note serializes"))?;
        failpoint::reach("aside.noted");
        content.sync()?;
        content.rename(aside.path.clone())?;
        failpoint::reach("aside.moved");
        self.end_notes(content);
        Ok(aside)
    }

    /// What is in `recovered/` of this cluster, oldest first.
    pub fn asides(&self) -> Vec<Aside> {
        let Ok(files) = std::fs::read_dir(self.recovered()) else { return Vec::new() };
        let names = files.flatten().map(|f| f.path());
        let mut found: Vec<Aside> = names.filter(|p| p.extension().is_some_and(|e| e == "json")).filter_map(|p| self.aside(&p)).collect();
        found.sort_by_key(|aside| aside.note.time);
        found
    }

    fn aside(&self, json: &Path) -> Option<Aside> {
        let note = std::fs::read(json).ok().and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
        let Some(note) = note else {
            log::warn!("{} is no note; what it belongs to stays where it is", json.display());
            return None;
        };
        let aside = Aside { path: json.with_extension(""), note };
        (aside.path.exists() && aside.note.cluster == self.cluster()).then_some(aside)
    }

    /// Keeps a file of which nothing is known.
    pub(super) fn keep_unknown(&self, path: &Path, now: Timestamp) -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        let (ino, block_bits) = (ino_of(path).unwrap_or_default(), dfs_common::block::DEFAULT_BLOCK_BITS);
        let reason = "a crash left it without a record of what in it is new".to_owned();
        let (cluster, owned) = (self.cluster().to_owned(), Owned::default());
        let path_of = format!("inode {ino}");
        let note = Note { cluster, ino, path: path_of, owned, base: Version(0), reason, time: now, mtime: now, missing: Vec::new(), block_bits };
        let aside = Aside { path: self.recovered().join(name), note };
        write(&aside.beside("json"), &serde_json::to_vec_pretty(&aside.note).expect("a note serializes"))?;
        std::fs::rename(path, &aside.path).map_err(|e| Error::from_io(&e, path.display()))?;
        log::warn!("{} was left by a crash, and nothing is known of it; it is kept as a recoverable version", aside.path.display());
        Ok(())
    }

    /// A crash came between a note and its file: the file is still where it was.
    pub(super) fn drop_notes_without_files(&self) {
        let Ok(files) = std::fs::read_dir(self.recovered()) else { return };
        for path in files.flatten().map(|f| f.path()) {
            let beside = path.extension().is_some_and(|e| e == "json" || e == "base");
            if beside && !path.with_extension("").exists() {
                super::shelf::remove(&path);
            }
        }
    }
}

/// The inode in the name of a cache file.
fn ino_of(path: &Path) -> Option<InodeId> {
    path.file_stem()?.to_str()?.parse().ok()
}
