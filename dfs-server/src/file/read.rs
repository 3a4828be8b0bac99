//! Reads: a version's manifest and content, verified block by block, here or by who reads;
//! what is damaged or missing is fetched from another holder and repaired on the way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::api::directory::{VersionOf, Versions};
use dfs_common::api::file::MAX_READ;
use dfs_common::block::{BlockHash, Manifest};
use dfs_common::ids::ServerId;
use dfs_common::wire::Response;
use dfs_common::{Error, ErrorKind, Result};
use lru::LruCache;
use tokio::sync::OwnedSemaphorePermit;

use super::blocks::{Check, Found};
use super::buffers::Buffers;
use super::storage::copy_block;
use super::{FileServer, blocking};

/// Blocks in all cached manifests.
const MAX_CACHED_BLOCKS: usize = 400_000;
/// Manifests in the cache, however small.
const MAX_CACHED: usize = 4096;
/// Up to this many bytes are read on the runtime's thread.
const INLINE_BYTES: usize = 64 << 10;
/// A longer manifest comes without the first block: the longest ones are nearly all that one answer may have.
const START_BEHIND: usize = 8 << 20;
/// How long a large read waits for memory.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// Decoded manifests by their hash, the least used ones leave first.
#[derive(Debug)]
pub(super) struct Manifests {
    cache: LruCache<BlockHash, Arc<Manifest>>,
    blocks: usize,
}

impl Default for Manifests {
    fn default() -> Self {
        Self { cache: LruCache::unbounded(), blocks: 0 }
    }
}

impl Manifests {
    pub(super) fn get(&mut self, hash: BlockHash) -> Option<Arc<Manifest>> {
        self.cache.get(&hash).cloned()
    }

    pub(super) fn insert(&mut self, hash: BlockHash, manifest: Arc<Manifest>) {
        self.blocks += manifest.blocks().len();
        if let Some(old) = self.cache.put(hash, manifest) {
            self.blocks -= old.blocks().len();
        }
        while self.cache.len() > 1 && (self.blocks > MAX_CACHED_BLOCKS || self.cache.len() > MAX_CACHED) {
            if let Some((_, old)) = self.cache.pop_lru() {
                self.blocks -= old.blocks().len();
            }
        }
    }
}

/// Bytes of a large answer; its share of the memory for reads is free once it is sent.
struct Answer {
    content: Vec<u8>,
    buffers: Arc<Buffers>,
    _memory: OwnedSemaphorePermit,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.content));
    }
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl FileServer {
    /// One verified block, for another server.
    pub(super) async fn block(&self, hash: BlockHash) -> Result<Bytes> {
        let storage = self.storage.clone();
        match blocking(move || storage.files.read(hash)).await? {
            Found::Block(bytes) => Ok(bytes),
            Found::Missing => Err(Error::new(ErrorKind::NotFound, format!("block {hash} is not here"))),
            Found::Corrupt => {
                self.found_corrupt(hash);
                Err(Error::new(ErrorKind::Corrupt, format!("block {hash} is damaged here")))
            }
        }
    }

    /// The stored form of a version's manifest, with the content of its first block behind it if that is asked for and is at hand: as it
    /// is, for what is wrong with it is found, and made up for, when it is read by itself.
    pub(super) async fn manifest_bytes(&self, what: VersionOf, with_start: bool) -> Result<Bytes> {
        let manifest = self.version(what).await?;
        let (stored, len) = (manifest.encoded_len(), manifest.encoded_len() + manifest.block_len(0));
        let start = manifest.get(0).filter(|_| with_start && stored <= START_BEHIND);
        let permits = len.div_ceil(1024) as u32;
        let memory = start.and_then(|hash| Some((hash, self.read_memory.clone().try_acquire_many_owned(permits).ok()?)));
        let Some((hash, memory)) = memory else { return Ok(manifest.encode().into()) };
        let (storage, buffers) = (self.storage.clone(), self.buffers.clone());
        let read = move || {
            let mut content = buffers.take(len);
            manifest.encode_to(&mut content[..stored]);
            if !matches!(storage.files.read_to(hash, &mut content[stored..], Check::Length), Ok(None)) {
                content.truncate(stored);
            }
            Ok(content)
        };
        Ok(self.large_answer(blocking(read).await?, memory))
    }

    /// A version's content, or the part of it that `range` names.
    pub(super) async fn data(&self, what: VersionOf, range: Option<&str>, check: Check) -> Result<Response> {
        let manifest = self.version(what).await?;
        let (status, start, end) = match range {
            None => (200, 0, manifest.size()),
            Some(text) => {
                let (start, end) = parse_range(text, manifest.size())?;
                (206, start, end)
            }
        };
        if end - start > MAX_READ {
            return Err(Error::new(ErrorKind::TooBig, format!("one answer has at most {MAX_READ} bytes: read the {} bytes in ranges", end - start)));
        }
        let content = self.content(what, manifest, (start, (end - start) as usize), check).await?;
        Ok(Response::bytes(status, content))
    }

    /// `len` bytes from `start`, which must lie in the version.
    async fn content(&self, what: VersionOf, manifest: Arc<Manifest>, (start, len): (u64, usize), check: Check) -> Result<Bytes> {
        if len <= INLINE_BYTES {
            let mut content = vec![0; len];
            let bad = self.storage.read_into(&manifest, start, &mut content, check)?;
            self.heal(what, &manifest, bad, start, &mut content).await?;
            return Ok(content.into());
        }
        let permits = len.div_ceil(1024) as u32;
        let memory = tokio::time::timeout(MEMORY_TIMEOUT, self.read_memory.clone().acquire_many_owned(permits)).await;
        let memory = memory.map_err(|_| Error::new(ErrorKind::Unavailable, "too many large reads at once"))?.expect("never closed");
        let (storage, read, buffers) = (self.storage.clone(), manifest.clone(), self.buffers.clone());
        let fill = move || {
            let mut content = buffers.take(len);
            storage.read_into(&read, start, &mut content, check).map(|bad| (content, bad))
        };
        let (mut content, bad) = blocking(fill).await?;
        self.heal(what, &manifest, bad, start, &mut content).await?;
        Ok(self.large_answer(content, memory))
    }

    fn large_answer(&self, content: Vec<u8>, memory: OwnedSemaphorePermit) -> Bytes {
        Bytes::from_owner(Answer { content, buffers: self.buffers.clone(), _memory: memory })
    }

    /// Fetches the blocks in `bad` from other holders, stores them, and fills in `content`.
    async fn heal(&self, what: VersionOf, manifest: &Manifest, bad: Vec<(u32, Found)>, start: u64, content: &mut [u8]) -> Result<()> {
        if bad.is_empty() {
            return Ok(());
        }
        let sources = self.holders(what).await;
        for (index, found) in bad {
            let hash = manifest.get(index).expect("only blocks with data are read");
            if found == Found::Corrupt {
                self.found_corrupt(hash);
            }
            match self.fetch_block(hash, &sources).await {
                Ok(block) => {
                    log::warn!("block {hash} of version {} of inode {} was {}; repaired", what.version, what.ino, word(&found));
                    copy_block(manifest, index, &block, start, content);
                }
                Err(e) => {
                    // Blocks go after their version. What was damaged is missing from then on, too.
                    let is_held = !self.storage.index.claims(what)?.is_empty();
                    let kind = if is_held { ErrorKind::Corrupt } else { ErrorKind::NotFound };
                    return Err(Error::new(kind, format!("block {hash} is {} and could not be repaired: {e}", word(&found))));
                }
            }
        }
        Ok(())
    }

    /// Takes a damaged block away, so that nothing counts on it.
    fn found_corrupt(&self, hash: BlockHash) {
        self.corrupt.fetch_add(1, Ordering::Relaxed);
        log::error!("block {hash} is damaged");
        self.storage.discard(hash);
    }

    /// The servers that hold a version, as the directory knows it.
    pub(super) async fn holders(&self, what: VersionOf) -> Vec<ServerId> {
        match self.directory.call(&Versions { ino: what.ino }).await {
            Ok(rows) => rows.into_iter().find(|row| row.version == what.version).map(|row| row.holders).unwrap_or_default(),
            Err(e) => {
                log::warn!("holders of inode {}: {e}", what.ino);
                Vec::new()
            }
        }
    }

    /// The manifest of a version that this server holds, or should hold.
    pub(super) async fn version(&self, what: VersionOf) -> Result<Arc<Manifest>> {
        let gone = || Error::new(ErrorKind::NotFound, format!("version {} of inode {} is not here", what.version, what.ino));
        let mut claims = self.storage.index.claims(what)?;
        if claims.len() != 1 {
            // None, or several that claim to be this version: the directory knows which one is.
            self.settle(what.ino).await?;
            claims = self.storage.index.claims(what)?;
        }
        let Some((hash, row)) = claims.pop().filter(|_| claims.is_empty()) else { return Err(gone()) };
        if let Some(manifest) = self.manifests.lock().get(hash) {
            return Ok(manifest);
        }
        let storage = self.storage.clone();
        let found = match row.embedded {
            Some(bytes) => self.storage.manifest(hash, Some(&bytes))?,
            None => blocking(move || storage.manifest(hash, None)).await?,
        };
        let manifest = match found {
            Some(manifest) => manifest,
            None => {
                let sources = self.holders(what).await;
                Manifest::decode(&self.fetch_block(hash, &sources).await?)?
            }
        };
        let manifest = Arc::new(manifest);
        self.manifests.lock().insert(hash, manifest.clone());
        Ok(manifest)
    }
}

fn word(found: &Found) -> &'static str {
    if *found == Found::Corrupt { "damaged" } else { "missing" }
}

/// `bytes=A-B`, `bytes=A-` or `bytes=-N` as start and end (exclusive) within `size` (RFC 9110, section 14.1.2).
fn parse_range(text: &str, size: u64) -> Result<(u64, u64)> {
    let invalid = || Error::new(ErrorKind::Invalid, format!("range '{text}': expected bytes=FIRST-LAST"));
    let (first, last) = text.strip_prefix("bytes=").and_then(|rest| rest.split_once('-')).ok_or_else(invalid)?;
    let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<u64>().map_err(|_| invalid()),
        false => Err(invalid()),
    };
    let (start, end) = match (first, last) {
        ("", "") => return Err(invalid()),
        ("", suffix) => (size.saturating_sub(number(suffix)?), size),
        (first, "") => (number(first)?, size),
        (first, last) => (number(first)?, number(last)?.saturating_add(1).min(size.max(1))),
    };
    if !last.is_empty() && !first.is_empty() && number(first)? > number(last)? {
        return Err(invalid());
    }
    if start >= size || start >= end {
        return Err(Error::new(ErrorKind::Range, format!("range '{text}' lies behind the {size} bytes of the version")));
    }
    Ok((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-0", (0, 1)),
            ("bytes=2-4", (2, 5)),
            ("bytes=2-", (2, 10)),
            ("bytes=-3", (7, 10)),
            ("bytes=-30", (0, 10)),
            ("bytes=9-18446744073709551615", (9, 10)),
        ] {
            assert_eq!(parse_range(text, 10).unwrap(), expected, "{text}");
        }
        for bad in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-4",
            "bytes=a-b",
            "bytes=1-2,4-5",
            "bytes=+1-2",
            "lines=1-2",
            "bytes=1--2",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(parse_range(bad, 10).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
        for (behind, size) in [("bytes=10-", 10), ("bytes=10-12", 10), ("bytes=-0", 10), ("bytes=0-0", 0), ("bytes=-1", 0)] {
            assert_eq!(parse_range(behind, size).unwrap_err().kind(), ErrorKind::Range, "{behind}");
        }
    }

    impl Manifests {
        /// Forgets everything, as a restart does.
        pub(crate) fn clear(&mut self) {
            *self = Self::default();
        }
    }

    #[test]
    fn the_cache_is_bounded_by_blocks() {
        let mut cache = Manifests::default();
        for n in 0..10u8 {
            let blocks = (0..100_000).map(|i| (i, BlockHash([n; 32]))).collect();
            cache.insert(BlockHash([n; 32]), Arc::new(Manifest::new(16, 100_000 << 16, blocks).unwrap()));
        }
        assert_eq!((cache.cache.len(), cache.blocks), (4, 400_000));
    }
}
