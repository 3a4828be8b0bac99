//! The journal of a cache directory: which of its files hold what no server has.
//!
//! One file that is only appended to, without syncing: what a program wrote before the
//! process was killed is in the same page cache. Compacted when most of it is of the past.
//! A large manifest is told by what differs from the one before, where that stands in the journal.
//! Invariant: a cache file is changed only between its `Begin` and its `End`.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use dfs_common::block::Manifest;
use dfs_common::ids::{InodeId, Version};
use dfs_common::{Error, Result};
use parking_lot::Mutex;

use super::record::{Begun, History, Record};
use crate::failpoint;

/// A journal below this length is never compacted.
const COMPACT_AT: usize = 1 << 20;
/// It is once it is so many times as long as what it amounts to.
const COMPACT_RATIO: usize = 4;
/// Manifests of so many blocks are told by what differs from the one before.
const LARGE: std::ops::RangeInclusive<usize> = 64..=1 << 16;
/// So many of them are remembered, each of another file.
const REMEMBERED: usize = 8;

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    len: usize,
    /// Bytes of records by file that has not ended.
    live: HashMap<u64, usize>,
    /// Records that the disk did not take: they come before the next one.
    unwritten: Vec<u8>,
    /// The sessions of earlier runs are over.
    settled: bool,
    /// The large manifests that were noted last, the newest at the end.
    known: Vec<Known>,
}

/// A manifest that the journal's end knows.
#[derive(Debug)]
struct Known {
    ino: InodeId,
    /// The number under which it stands there.
    file: u64,
    manifest: Arc<Manifest>,
}

impl Inner {
    /// What makes `manifest` of the one that is known of a file that `is_it` accepts, whose number comes with it; from now on
    /// `manifest` is known, of `file`. `None` where it has to be told whole.
    fn delta(&mut self, file: u64, ino: Option<InodeId>, manifest: &Arc<Manifest>, is_it: impl Fn(&Known) -> bool) -> Option<(u64, Bytes)> {
        let before = self.known.iter().position(is_it).map(|at| self.known.remove(at));
        let ino = ino.or(before.as_ref().map(|known| known.ino))?;
        if !LARGE.contains(&manifest.blocks().len()) {
            return None;
        }
        if self.known.len() >= REMEMBERED {
            self.known.remove(0);
        }
        self.known.push(Known { ino, file, manifest: manifest.clone() });
        let before = before.filter(|known| known.manifest.block_bits() == manifest.block_bits())?;
        let delta = manifest.encode_delta(&before.manifest);
        (delta.len() < manifest.encoded_len() / 2).then(|| (before.file, delta.into()))
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::from_io(&e, format!("journal {}", path.display()))
}

fn open_to_append(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).map_err(io(path))
}

impl Journal {
    /// Opens or makes the journal of the cache in `directory`; with what it amounts to.
    pub fn open(directory: &Path) -> Result<(Self, History)> {
        let path = directory.join("journal");
        let file = open_to_append(&path)?;
        let history = History::read(&std::fs::read(&path).map_err(io(&path))?);
        // What is not whole must not stand between two records.
        file.set_len(history.len as u64).map_err(io(&path))?;
        let live = history.files.keys().map(|file| (*file, 0)).collect();
        let inner = Inner { file, len: history.len, live, unwritten: Vec::new(), settled: false, known: Vec::new() };
        Ok((Self { path, inner: Mutex::new(inner) }, history))
    }

    /// Notes that `file` is going to be changed, whose version has `manifest`; that of `begun` is left out.
    pub fn begin(&self, file: u64, begun: Begun, manifest: &Arc<Manifest>) -> Result<()> {
        let mut inner = self.inner.lock();
        let record = match inner.delta(file, Some(begun.ino), manifest, |known| known.ino == begun.ino) {
            Some((since, manifest)) => Record::BeginSince(file, since, Begun { manifest, ..begun }),
            None => Record::Begin(file, Begun { manifest: manifest.encode().into(), ..begun }),
        };
        self.append_to(&mut inner, &record)
    }

    /// Notes that the content of `file` was published as `version` with `manifest`.
    pub fn rebased(&self, file: u64, version: Version, manifest: &Arc<Manifest>) -> Result<()> {
        let mut inner = self.inner.lock();
        let record = match inner.delta(file, None, manifest, |known| known.file == file) {
            Some((_, delta)) => Record::Changed(file, version, delta),
            None => Record::Rebased(file, version, manifest.encode().into()),
        };
        self.append_to(&mut inner, &record)
    }

    /// Appends `record`. Where that fails it is kept, and appended before the next one.
    pub fn append(&self, record: &Record) -> Result<()> {
        self.append_to(&mut self.inner.lock(), record)
    }

    fn append_to(&self, inner: &mut Inner, record: &Record) -> Result<()> {
        let bytes = record.encode();
        match (record, record.file()) {
            (Record::End(file), _) => {
                inner.live.remove(file);
            }
            (_, Some(file)) => *inner.live.entry(file).or_default() += bytes.len(),
            (_, None) => {}
        }
        self.write(inner, bytes)?;
        if inner.len > COMPACT_AT && inner.len > COMPACT_RATIO * inner.live.values().sum::<usize>() {
            self.compact(inner)?;
        }
        Ok(())
    }

    fn write(&self, inner: &mut Inner, bytes: Vec<u8>) -> Result<()> {
        let bytes = if inner.unwritten.is_empty() { bytes } else { [std::mem::take(&mut inner.unwritten), bytes].concat() };
        if let Err(e) = inner.file.write_all(&bytes) {
            inner.unwritten = bytes;
            inner.file.set_len(inner.len as u64).map_err(io(&self.path))?;
            return Err(io(&self.path)(e));
        }
        inner.len += bytes.len();
        Ok(())
    }

    /// Sessions of earlier runs are over: the journal starts anew with what is still left.
    pub fn settle(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.settled = true;
        self.compact(&mut inner)
    }

    /// The session is over and was ended in order: the next mount need not look, unless files are left.
    pub fn finish(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        if inner.live.is_empty() {
            inner.file.set_len(0).map_err(io(&self.path))?;
            inner.len = 0;
            inner.known.clear();
        }
        Ok(())
    }

    fn compact(&self, inner: &mut Inner) -> Result<()> {
        self.write(inner, Vec::new())?;
        let history = History::read(&std::fs::read(&self.path).map_err(io(&self.path))?);
        let mut bytes = Vec::new();
        // It has no manifests of files that have ended.
        inner.known.clear();
        inner.live.clear();
        for record in history.compacted(inner.settled) {
            let encoded = record.encode();
            if let Some(file) = record.file() {
                *inner.live.entry(file).or_default() += encoded.len();
            }
            bytes.extend_from_slice(&encoded);
        }
        let temporary = self.path.with_extension("new");
        std::fs::write(&temporary, &bytes).map_err(io(&temporary))?;
        failpoint::reach("compact.written");
        std::fs::rename(&temporary, &self.path).map_err(io(&self.path))?;
        failpoint::reach("compact.renamed");
        inner.file = open_to_append(&self.path)?;
        inner.len = bytes.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::block::BlockHash;
    use dfs_common::ids::SessionId;

    use super::*;
    use crate::cache::record::{Owned, Run};

    fn begin(file: u64) -> Record {
        let begun = Begun {
            ino: InodeId(file),
            path: "/f".into(),
            owned: Owned::default(),
            version: Version(1),
            manifest: Bytes::from(vec![7; 300]),
            missing: Vec::new(),
        };
        Record::Begin(file, begun)
    }

    fn started(dir: &Path, session: u64) -> (Journal, History) {
        let (journal, history) = Journal::open(dir).unwrap();
        journal.append(&Record::Start(Run { cluster: "c".into(), boot: "b".into(), session: SessionId(session) })).unwrap();
        (journal, history)
    }

    #[test]
    fn what_had_not_ended_is_found_again_behind_a_torn_tail_too() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = started(dir.path(), 1);
        journal.append(&begin(1)).unwrap();
        journal.append(&begin(2)).unwrap();
        journal.append(&Record::End(1)).unwrap();
        drop(journal);
        File::options().append(true).open(dir.path().join("journal")).unwrap().write_all(&begin(3).encode()[..20]).unwrap();
        let (journal, history) = started(dir.path(), 2);
        assert_eq!(history.files.keys().copied().collect::<Vec<_>>(), [2]);
        journal.append(&begin(4)).unwrap();
        drop(journal);
        assert_eq!(started(dir.path(), 3).1.files.keys().copied().collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn it_stays_short_and_forgets_nothing_that_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = started(dir.path(), 1);
        journal.append(&begin(1)).unwrap();
        for file in 2..20_000 {
            journal.append(&begin(file)).unwrap();
            journal.append(&Record::End(file)).unwrap();
        }
        assert!(std::fs::metadata(dir.path().join("journal")).unwrap().len() < 2 * COMPACT_AT as u64);
        drop(journal);
        let (journal, history) = started(dir.path(), 2);
        assert_eq!((history.files.len(), history.runs.len()), (1, 1));
        journal.append(&Record::End(1)).unwrap();
        journal.settle().unwrap();
        drop(journal);
        assert_eq!(started(dir.path(), 3).1.runs.len(), 1);
    }

    #[test]
    fn large_manifests_are_told_by_what_differs_through_compactions_too() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = started(dir.path(), 1);
        let manifest = |n: u32| {
            let blocks = (0..1000).map(|block| (block, BlockHash::of(&[u8::from(block == 7) * n as u8, block as u8])));
            Arc::new(Manifest::new(16, 1000 << 16, blocks.collect()).unwrap())
        };
        let Record::Begin(_, begun) = begin(5) else { unreachable!() };
        let length = || std::fs::metadata(dir.path().join("journal")).unwrap().len();
        journal.begin(0, begun.clone(), &manifest(0)).unwrap();
        let first = length();
        assert!(first > 32_000);
        for n in 1..40u32 {
            journal.rebased(u64::from(n) - 1, Version(n.into()), &manifest(n)).unwrap();
            journal.append(&Record::End(u64::from(n) - 1)).unwrap();
            journal.begin(n.into(), begun.clone(), &manifest(n)).unwrap();
            if n % 10 == 0 {
                journal.settle().unwrap();
            }
            let left = &History::read(&std::fs::read(dir.path().join("journal")).unwrap()).files[&u64::from(n)];
            assert_eq!(left.begun.manifest, manifest(n).encode());
        }
        assert!(length() < 4 * first, "40 times {first} bytes became {}", length());
    }

    /// Not part of the suite: what a record costs.
    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = started(dir.path(), 1);
        let start = std::time::Instant::now();
        for file in 0..100_000 {
            journal.append(&begin(file)).unwrap();
            journal.append(&Record::End(file)).unwrap();
        }
        println!("{:?} for Begin and End", start.elapsed() / 100_000);
    }
}
