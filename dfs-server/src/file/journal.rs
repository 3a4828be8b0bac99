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
use std::io::{Read, Write};
use std::path::Path;

use bytes::Bytes;
use dfs_common::api::directory::VersionOf;
use dfs_common::block::BlockHash;
use dfs_common::ids::{InodeId, Version};
use dfs_common::{Error, Result};
use parking_lot::Mutex;

/// The file starts over at this size, once nothing is under way.
const MAX_IDLE_BYTES: u64 = 64 << 10;

/// The file.
#[derive(Debug)]
pub(super) struct Journal {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    bytes: u64,
    open_entries: u64,
}

impl Journal {
    /// Opens `path` and returns what an earlier process did not finish.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<(VersionOf, Bytes)>)> {
        let context = |e: std::io::Error| Error::from_io(&e, path.display());
        let mut file = File::options().read(true).append(true).create(true).open(path).map_err(context)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(context)?;
        let entries = entries(&content);
        let bytes = content.len() as u64;
        Ok((Self { inner: Mutex::new(Inner { file, bytes, open_entries: 0 }) }, entries))
    }

    /// Forgets what [`Journal::open`] returned, once it is indexed.
    pub(super) fn clear(&self) -> Result<()> {
        self.inner.lock().clear()
    }

    /// Notes a version; [`Journal::finished`] must follow.
    pub(super) fn append(&self, what: VersionOf, manifest: &[u8]) -> Result<()> {
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
            return Err(Error::from_io(&e, "journal"));
        }
        inner.bytes += entry.len() as u64;
        inner.open_entries += 1;
        Ok(())
    }

    /// A version that was noted is indexed, or given up.
    pub(super) fn finished(&self) {
        let mut inner = self.inner.lock();
        inner.open_entries -= 1;
        if inner.open_entries == 0
            && inner.bytes > MAX_IDLE_BYTES
            && let Err(e) = inner.clear()
        {
            log::warn!("{e}");
        }
    }
}

impl Inner {
    fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::from_io(&e, "journal"))?;
        self.bytes = 0;
        Ok(())
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
        journal.append(what(1), b"one").unwrap();
        journal.append(what(2), b"").unwrap();
        journal.append(what(3), b"three").unwrap();
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
    fn it_starts_over_when_idle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, _) = Journal::open(&path).unwrap();
        let large = vec![7; MAX_IDLE_BYTES as usize];
        journal.append(what(1), &large).unwrap();
        journal.append(what(2), b"x").unwrap();
        journal.finished();
        assert!(std::fs::metadata(&path).unwrap().len() > MAX_IDLE_BYTES);
        journal.finished();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}
