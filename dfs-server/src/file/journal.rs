//! Versions whose publishing is under way, so that a crash between the directory's
//! commit and this server's own cannot lose a manifest that lies in no block.
//!
//! Appended to before the directory is asked, which costs one write(2); the index row
//! follows while the answer is on its way. At start the entries become rows, and
//! reconciling with the directory settles them. It survives the process being killed;
//! it need not survive the loss of power, because a durable commit indexes first.
//!
//! Entry, little endian: length u32 of what follows, BLAKE3 of what follows that (32),
//! inode u64, version u64, the manifest's stored form.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dfs_common::api::directory::VersionOf;
use dfs_common::block::BlockHash;
use dfs_common::ids::{InodeId, Version};
use dfs_common::{Error, Result};
use parking_lot::Mutex;

/// At this size entries go to the next file, and the full one leaves once all of its versions are indexed.
const MAX_BYTES: u64 = 64 << 10;

/// The files: `journal`, and `journal.old` while versions in it are under way.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    old_path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    bytes: u64,
    /// Counts the files; an entry belongs to the current one or to the one before.
    generation: u64,
    /// Versions under way in the current file.
    current: u64,
    /// Versions under way in the file before; `None` where there is none.
    previous: Option<u64>,
}

/// A version that was noted, to be handed back when it is indexed or given up.
#[derive(Debug)]
#[must_use]
pub(super) struct Entry(u64);

impl Journal {
    /// Opens the files at `path` and returns what an earlier process did not finish.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<(VersionOf, Bytes)>)> {
        let context = |e: std::io::Error| Error::from_io(&e, path.display());
        let old_path = path.with_extension("old");
        let mut unfinished = Vec::new();
        for path in [&old_path, path] {
            match std::fs::read(path) {
                Ok(content) => unfinished.extend(entries(&content)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(context(e)),
            }
        }
        let file = File::options().append(true).create(true).open(path).map_err(context)?;
        let bytes = file.metadata().map_err(context)?.len();
        let inner = Inner { file, bytes, generation: 0, current: 0, previous: None };
        Ok((Self { path: path.to_owned(), old_path, inner: Mutex::new(inner) }, unfinished))
    }

    /// Forgets what [`Journal::open`] returned, once it is indexed.
    pub(super) fn clear(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.file.set_len(0).map_err(|e| Error::from_io(&e, self.path.display()))?;
        inner.bytes = 0;
        self.remove_old()
    }

    /// Notes a version; [`Journal::finished`] must follow.
    pub(super) fn append(&self, what: VersionOf, manifest: &[u8]) -> Result<Entry> {
        let mut entry = Vec::with_capacity(52 + manifest.len());
        entry.extend_from_slice(&((48 + manifest.len()) as u32).to_le_bytes());
        entry.extend_from_slice(&[0; 32]);
        entry.extend_from_slice(&what.ino.0.to_le_bytes());
        entry.extend_from_slice(&what.version.0.to_le_bytes());
        entry.extend_from_slice(manifest);
        let hash = BlockHash::of(&entry[36..]);
        entry[4..36].copy_from_slice(&hash.0);
        let mut inner = self.inner.lock();
        let before = inner.bytes;
        if let Err(e) = inner.file.write_all(&entry) {
            // Half an entry would hide the next ones.
            let _ = inner.file.set_len(before);
            return Err(Error::from_io(&e, self.path.display()));
        }
        inner.bytes += entry.len() as u64;
        inner.current += 1;
        let entry = Entry(inner.generation);
        if inner.bytes > MAX_BYTES
            && inner.previous.is_none()
            && let Err(e) = self.rotate(&mut inner)
        {
            log::warn!("journal: {e}");
        }
        Ok(entry)
    }

    /// A version that was noted is indexed, or given up.
    pub(super) fn finished(&self, entry: Entry) {
        let mut inner = self.inner.lock();
        if entry.0 == inner.generation {
            inner.current -= 1;
            return;
        }
        let left = inner.previous.expect("a file stays while entries of it are under way") - 1;
        inner.previous = (left > 0).then_some(left);
        if left == 0
            && let Err(e) = self.remove_old()
        {
            log::warn!("journal: {e}");
        }
    }

    /// Starts the next file. The entry just written is in the full one, so that one always has an end to wait for.
    fn rotate(&self, inner: &mut Inner) -> Result<()> {
        let context = |e: std::io::Error| Error::from_io(&e, self.path.display());
        std::fs::rename(&self.path, &self.old_path).map_err(context)?;
        inner.file = File::options().append(true).create(true).open(&self.path).map_err(context)?;
        inner.bytes = 0;
        inner.generation += 1;
        inner.previous = Some(std::mem::take(&mut inner.current));
        Ok(())
    }

    fn remove_old(&self) -> Result<()> {
        match std::fs::remove_file(&self.old_path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::from_io(&e, self.old_path.display())),
            _ => Ok(()),
        }
    }
}

/// The whole entries at the start of `content`.
fn entries(mut content: &[u8]) -> Vec<(VersionOf, Bytes)> {
    let mut entries = Vec::new();
    while let Some((len, rest)) = content.split_first_chunk::<4>() {
        let Some((entry, rest)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else { break };
        content = rest;
        let Some((hash, body)) = entry.split_first_chunk::<32>() else { break };
        let (Some((ino, after)), true) = (body.split_first_chunk::<8>(), BlockHash::of(body).0 == *hash) else { break };
        let Some((version, manifest)) = after.split_first_chunk::<8>() else { break };
        let what = VersionOf { ino: InodeId(u64::from_le_bytes(*ino)), version: Version(u64::from_le_bytes(*version)) };
        entries.push((what, Bytes::copy_from_slice(manifest)));
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(n: u64) -> VersionOf {
        VersionOf { ino: InodeId(n), version: Version(n + 1) }
    }

    #[test]
    fn entries_survive_and_a_torn_one_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, old) = Journal::open(&path).unwrap();
        assert!(old.is_empty());
        let _entries = [journal.append(what(1), b"one"), journal.append(what(2), b""), journal.append(what(3), b"three")];
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..6 {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (_, old) = Journal::open(&path).unwrap();
            let mut expected = vec![(what(1), Bytes::from_static(b"one")), (what(2), Bytes::new())];
            if cut == 0 {
                expected.push((what(3), Bytes::from_static(b"three")));
            }
            assert_eq!(old, expected);
        }
    }

    #[test]
    fn a_full_file_leaves_when_its_versions_are_indexed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, _) = Journal::open(&path).unwrap();
        let first = journal.append(what(1), b"x").unwrap();
        let full = journal.append(what(2), &vec![7; MAX_BYTES as usize]).unwrap();
        let next = journal.append(what(3), &vec![8; MAX_BYTES as usize]).unwrap();
        let last = journal.append(what(4), b"y").unwrap();
        let inodes = |path: &Path| Journal::open(path).unwrap().1.iter().map(|e| e.0.ino.0).collect::<Vec<_>>();
        assert_eq!(inodes(&path), [1, 2, 3, 4]);
        journal.finished(full);
        journal.finished(next);
        assert_eq!(inodes(&path), [1, 2, 3, 4], "the first entry is still under way");
        journal.finished(first);
        assert_eq!(inodes(&path), [3, 4]);
        let another = journal.append(what(5), b"z").unwrap();
        journal.finished(last);
        assert_eq!(inodes(&path), [3, 4, 5], "the file that was full turned into the old one");
        journal.finished(another);
        assert!(inodes(&path).is_empty());
    }
}
