//! Content on the local disk as the blocks of a new version: read block by block, so
//! that a file of any size needs the memory of a few blocks.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use dfs_common::attributes::Entry;
use dfs_common::block::{BlockHash, Manifest};
use dfs_common::clients::commit::{BlockSource, NewVersion};
use dfs_common::{Error, ErrorKind, Result};

use super::failure::Outcome;
use super::progress::Progress;
use super::session::{Locked, Session};

/// A local file whose bytes are the blocks from `first` on.
#[derive(Debug)]
pub(crate) struct FileSource {
    file: File,
    first: u32,
    manifest: Manifest,
    sent: Progress,
}

impl FileSource {
    /// Hashes `file`, whose content follows the first `first` blocks of `base`.
    ///
    /// Blocks of zeros become holes. Between blocks the runtime may do other work, so that
    /// the session stays alive however long this takes.
    pub(crate) async fn scan(file: File, base: &Manifest, first: u32) -> Outcome<Self> {
        let (bits, size) = (base.block_bits(), file.metadata()?.len());
        let mut blocks: Vec<(u32, BlockHash)> = base.blocks().iter().take_while(|block| block.0 < first).copied().collect();
        let mut offset = 0;
        let mut index = first;
        let mut buffer = vec![0; 1 << bits];
        while offset < size {
            let piece = &mut buffer[..(size - offset).min(1 << bits) as usize];
            file.read_exact_at(piece, offset)?;
            if piece.iter().any(|&b| b != 0) {
                blocks.push((index, BlockHash::of(piece)));
            }
            offset += piece.len() as u64;
            index = index.checked_add(1).ok_or_else(|| Error::new(ErrorKind::FileTooLarge, "the file has too many blocks"))?;
            tokio::task::yield_now().await;
        }
        let total = (u64::from(first) << bits) + size;
        let manifest = Manifest::new(bits, total, blocks)?;
        Ok(Self { file, first, manifest, sent: Progress::new(size) })
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl BlockSource for FileSource {
    fn read(&self, index: u32) -> Result<Bytes> {
        let mut content = vec![0; self.manifest.block_len(index)];
        let at = u64::from(index - self.first) << self.manifest.block_bits();
        self.file.read_exact_at(&mut content, at).map_err(|e| Error::from_io(&e, "reading the local file"))?;
        if Some(BlockHash::of(&content)) != self.manifest.get(index) {
            return Err(Error::new(ErrorKind::Invalid, "the local file changed while it was sent"));
        }
        self.sent.add(content.len() as u64);
        Ok(content.into())
    }
}

/// Commits `source` as the next version of the locked file.
pub(crate) async fn publish(session: &Session, locked: &Locked, source: &FileSource, base: Option<&Manifest>, durable: bool) -> Result<Entry> {
    let new = NewVersion {
        ino: locked.entry.attributes.ino,
        token: locked.token,
        base: locked.entry.attributes.version,
        base_manifest: base,
        manifest: source.manifest(),
        mtime: session.cluster.now(),
        durable,
        interim: false,
        goes_on: false,
        set: None,
        make: None,
    };
    let published = session.cluster.commit(&new, &locked.entry.layout.placement, source).await.map(|published| published.0);
    source.sent.finish();
    published
}

/// `head` and then everything from `input` in a file without a name, away from the runtime's thread.
pub(crate) async fn spool(head: Bytes, mut input: impl Read + Send + 'static) -> Outcome<File> {
    let copied = tokio::task::spawn_blocking(move || {
        let mut file = tempfile::tempfile()?;
        file.write_all(&head)?;
        std::io::copy(&mut input, &mut file)?;
        file.seek(SeekFrom::Start(0))?;
        Ok::<_, std::io::Error>(file)
    });
    Ok(copied.await.expect("copying does not panic")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn spooled(head: &[u8], tail: Vec<u8>) -> File {
        spool(Bytes::copy_from_slice(head), std::io::Cursor::new(tail)).await.unwrap()
    }

    #[tokio::test]
    async fn a_file_becomes_blocks_and_zeros_become_holes() {
        let mut content = vec![0; 3 << 16];
        content[..3].copy_from_slice(b"abc");
        content.extend_from_slice(b"end");
        let source = FileSource::scan(spooled(b"", content.clone()).await, &Manifest::empty(16), 0).await.unwrap();
        let manifest = source.manifest();
        assert_eq!((manifest.size(), manifest.blocks().len()), ((3 << 16) + 3, 2));
        assert_eq!(source.read(3).unwrap(), &content[3 << 16..]);
        assert_eq!(manifest.get(1), None);
    }

    #[tokio::test]
    async fn appending_keeps_the_full_blocks() {
        let old = vec![7u8; (1 << 16) + 2];
        let base = FileSource::scan(spooled(b"", old.clone()).await, &Manifest::empty(16), 0).await.unwrap();
        let file = spooled(&old[1 << 16..], b"more".to_vec()).await;
        let longer = FileSource::scan(file, base.manifest(), 1).await.unwrap();
        assert_eq!(longer.manifest().size(), (1 << 16) + 6);
        assert_eq!(longer.manifest().get(0), base.manifest().get(0));
        assert_eq!(&longer.read(1).unwrap()[..], b"\x07\x07more");
    }

    #[tokio::test]
    async fn a_file_that_changes_is_refused() {
        let file = spooled(b"", b"before".to_vec()).await;
        let source = FileSource::scan(file.try_clone().unwrap(), &Manifest::empty(16), 0).await.unwrap();
        file.write_all_at(b"AFTER!", 0).unwrap();
        assert_eq!(source.read(0).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
