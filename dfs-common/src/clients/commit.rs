//! Writing a version: what changed of the blocks that the primary lacks, then the commit;
//! another primary where this one does not answer.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep};

use super::Cluster;
use crate::api::directory::{Granted, Make, Place, SetAttributes};
use crate::api::file::{BLOCKS, COMMIT, Commit, MAX_INLINE, MAX_PATCHED, Missing};
use crate::attributes::{Entry, Timestamp};
use crate::block::{BlockHash, BlockSet, Manifest};
use crate::ids::{InodeId, ServerId, Token, Version};
use crate::patch::Changed;
use crate::wire::{Method, Request};
use crate::{Error, ErrorKind, Result};

/// Blocks that are sent at the same time.
const PARALLEL_PUTS: usize = 4;
/// Before servers that failed are tried again.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// A manifest of fewer blocks than this travels whole.
const MIN_DELTA_BLOCKS: usize = 64;

/// Where a commit gets the content of its blocks.
pub trait BlockSource: Send + Sync {
    /// The bytes of block `index` of the new version.
    fn read(&self, index: u32) -> Result<Bytes>;

    /// True where servers have block `index` as it is, though it may be no part of the version before.
    fn is_stored(&self, _index: u32) -> bool {
        false
    }

    /// Where block `index` differs from one that servers have, if that is worth sending it as a change.
    fn changed(&self, _index: u32) -> Option<Changed> {
        None
    }

    /// The bytes of block `index` that differ from that one.
    fn read_changed(&self, index: u32, changed: &Changed) -> Result<Bytes> {
        Ok(self.read(index)?.slice(changed.range()))
    }
}

/// A block that has to travel.
#[derive(Clone, Copy, Debug)]
struct Fresh {
    index: u32,
    hash: BlockHash,
    /// It travels as a patch.
    changed: Option<Changed>,
}

impl Fresh {
    /// Bytes of it that travel.
    fn len(&self, manifest: &Manifest) -> usize {
        self.changed.map_or_else(|| manifest.block_len(self.index), |changed| changed.encoded_len())
    }
}

/// A whole file in memory as a source of blocks of `2^block_bits` bytes.
#[derive(Clone, Debug)]
pub struct InMemory {
    /// The content.
    pub content: Bytes,
    /// log2 of the block size.
    pub block_bits: u8,
}

impl InMemory {
    /// The manifest of this content.
    pub fn manifest(&self) -> Result<Manifest> {
        let blocks = self.content.chunks(1 << self.block_bits).enumerate();
        Manifest::new(self.block_bits, self.content.len() as u64, blocks.map(|(i, b)| (i as u32, BlockHash::of(b))).collect())
    }
}

impl BlockSource for InMemory {
    fn read(&self, index: u32) -> Result<Bytes> {
        let start = (index as usize) << self.block_bits;
        let end = (start + (1 << self.block_bits)).min(self.content.len());
        Ok(self.content.slice(start..end))
    }
}

/// A version about to be written.
#[derive(Debug)]
pub struct NewVersion<'a> {
    /// The file.
    pub ino: InodeId,
    /// The write lock's token.
    pub token: Token,
    /// The version it is built on.
    pub base: Version,
    /// That version's content, if known: its blocks need not be sent.
    pub base_manifest: Option<&'a Manifest>,
    /// The new content.
    pub manifest: &'a Manifest,
    /// When the content last changed.
    pub mtime: Timestamp,
    /// Whether all disks must have it before the answer (fsync).
    pub durable: bool,
    /// Whether the writer goes on, so that the version is dropped once the same grant publishes the next.
    pub interim: bool,
    /// Whether nobody has closed the file since the writer made `base`.
    pub goes_on: bool,
    /// Attributes that change in the same step.
    pub set: Option<&'a SetAttributes>,
    /// The file is not known to the directory service yet: it is made in the same step.
    pub make: Option<&'a Make>,
}

impl Cluster {
    /// Commits `new`, whose servers are `placement` (from the file's layout). Returns the file as published, and what leases that gives.
    ///
    /// Where a primary does not answer, the directory names others, until the timeout. `Conflict` or `Fenced`:
    /// somebody else published; nothing was changed.
    pub async fn commit(&self, new: &NewVersion<'_>, placement: &[ServerId], source: &dyn BlockSource) -> Result<(Entry, Option<Granted>)> {
        let timeout = self.directory.timeout();
        let mut failing_since = None;
        let mut unplaced = None;
        let mut placement = placement.to_vec();
        let mut avoid: Vec<ServerId> = Vec::new();
        let mut base = Base::known(new.base_manifest);
        loop {
            let started = Instant::now();
            let problem = match placement.split_first() {
                Some((&primary, replicas)) => match self.commit_to(new, base, primary, replicas, source).await {
                    Ok(published) => return Ok(published),
                    // The primary lacks what it was thought to have: send more.
                    Err(e) if e.kind() == ErrorKind::NotFound && base.manifest().is_some() => {
                        base = base.less();
                        continue;
                    }
                    Err(e) if e.kind().is_transient() || e.kind() == ErrorKind::NoSpace => {
                        avoid.push(primary);
                        e.context(format!("file server {primary}"))
                    }
                    Err(e) => return Err(e),
                },
                None => unplaced.take().unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "no file server can take the file")),
            };
            log::warn!("commit of inode {}: {problem}", new.ino);
            // A long upload leaves as much time for another server as a short one.
            let since = *failing_since.get_or_insert_with(|| started.max(Instant::now() - self.peers.attempt()));
            let left = timeout.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Err(Error::new(ErrorKind::TimedOut, format!("commit of inode {}: {problem}", new.ino)));
            }
            // One attempt: whether to go on asking is decided here.
            placement = match self.directory.call_once_within(&Place { ino: new.ino, avoid: avoid.clone() }, left).await {
                Ok(entry) => {
                    self.learn(&entry).await?;
                    // Who holds the base has its blocks, which this client may not have.
                    let is_holder = entry.layout.placement.first().is_some_and(|primary| entry.layout.holders.contains(primary));
                    base = Base::known(new.base_manifest.filter(|_| is_holder));
                    entry.layout.placement
                }
                // Nobody else can take it: a full disk stays the reason.
                Err(e) if e.kind().is_transient() && problem.kind() == ErrorKind::NoSpace => return Err(problem),
                Err(e) if e.kind().is_transient() => {
                    unplaced = Some(e);
                    Vec::new()
                }
                Err(e) => return Err(e),
            };
            if placement.first().is_none_or(|p| avoid.contains(p)) {
                if problem.kind() == ErrorKind::NoSpace {
                    return Err(problem);
                }
                // A server that did not answer may be back.
                avoid.clear();
                sleep(PAUSE.min(left)).await;
            }
        }
    }

    async fn commit_to(
        &self,
        new: &NewVersion<'_>,
        base: Base<'_>,
        primary: ServerId,
        replicas: &[ServerId],
        source: &dyn BlockSource,
    ) -> Result<(Entry, Option<Granted>)> {
        let is_change = base.to_change().is_some();
        let fresh: Vec<Fresh> = fresh_blocks(new.manifest, base.manifest())
            .into_iter()
            .filter(|(index, _)| !(is_change && source.is_stored(*index)))
            .map(|(index, hash)| Fresh { index, hash, changed: if is_change { source.changed(index) } else { None } })
            .collect();
        let bytes: usize = fresh.iter().map(|fresh| fresh.len(new.manifest)).sum();
        let patched: usize = fresh.iter().filter(|fresh| fresh.changed.is_some()).map(|fresh| new.manifest.block_len(fresh.index)).sum();
        let (patches, inline) = if bytes <= MAX_INLINE && patched <= MAX_PATCHED {
            fresh.into_iter().partition(|fresh| fresh.changed.is_some())
        } else {
            self.put_missing(new.manifest, &fresh, primary, replicas, source).await?;
            (Vec::new(), Vec::new())
        };
        let (encoded, manifest_base) = encode_manifest(new.manifest, base.to_change());
        let lengths = |blocks: &[Fresh]| blocks.iter().map(|fresh| fresh.len(new.manifest) as u32).collect::<Vec<u32>>();
        let commit = Commit {
            ino: new.ino,
            session: self.id(),
            token: new.token,
            base: new.base,
            mtime: new.mtime,
            manifest_len: encoded.len() as u32,
            manifest_base,
            inline: lengths(&inline),
            patches: lengths(&patches),
            replicas: replicas.to_vec(),
            durable: new.durable,
            interim: new.interim,
            goes_on: new.goes_on,
            set: new.set.cloned(),
            make: new.make.cloned(),
        };
        let mut body = BytesMut::with_capacity(encoded.len() + commit.inline.iter().chain(&commit.patches).sum::<u32>() as usize);
        body.extend_from_slice(&encoded);
        for fresh in &inline {
            body.extend_from_slice(&source.read(fresh.index)?);
        }
        for (fresh, changed) in patches.iter().filter_map(|fresh| fresh.changed.map(|changed| (fresh, changed))) {
            let bytes = source.read_changed(fresh.index, &changed)?;
            changed.patch(new.manifest.block_len(fresh.index), bytes).encode(&mut body);
        }
        let request = Request::new(Method::Post, COMMIT).session(Some(self.id())).meta(&commit).body(body.freeze());
        let reply = self.peers.send(primary, request).await?;
        let granted = reply.granted();
        reply.parse_json().map(|entry| (entry, granted))
    }

    /// Sends those of `fresh` that the primary does not have yet.
    async fn put_missing(
        &self,
        manifest: &Manifest,
        fresh: &[Fresh],
        primary: ServerId,
        replicas: &[ServerId],
        source: &dyn BlockSource,
    ) -> Result<()> {
        for batch in fresh.chunks(Missing::MAX) {
            let ask = Missing { session: self.id(), hashes: batch.iter().map(|fresh| fresh.hash).collect() };
            let request = Request::new(Method::Post, <Missing as crate::api::Operation>::PATH).session(Some(self.id())).json(&ask);
            let answer: crate::api::file::MissingBlocks = self.peers.send(primary, request).await?.parse_json()?;
            let wanted: Vec<Fresh> = answer.missing.iter().filter_map(|&at| batch.get(at as usize).copied()).collect();
            let puts = wanted.into_iter().map(|Fresh { index, hash, changed }| async move {
                let content = source.read(index)?;
                assert_eq!(content.len(), manifest.block_len(index), "block {index} has the manifest's length");
                self.put_block(hash, content, changed, primary, replicas).await
            });
            stream::iter(puts).buffer_unordered(PARALLEL_PUTS).try_collect::<()>().await?;
        }
        Ok(())
    }

    /// Stores one block at `primary` and, through it, at `replicas`, where it stays pinned for the session: as what
    /// `changed`, if the primary can make it of that, or else whole.
    pub async fn put_block(&self, hash: BlockHash, content: Bytes, changed: Option<Changed>, primary: ServerId, replicas: &[ServerId]) -> Result<()> {
        let replicas: Vec<String> = replicas.iter().map(ToString::to_string).collect();
        let query = if replicas.is_empty() { String::new() } else { format!("?replicas={}", replicas.join(",")) };
        let request = |method| Request::new(method, format!("{BLOCKS}{hash}{query}")).session(Some(self.id()));
        if let Some(changed) = changed {
            let mut patch = BytesMut::with_capacity(changed.encoded_len());
            changed.patch(content.len(), content.slice(changed.range())).encode(&mut patch);
            match self.peers.send(primary, request(Method::Post).body(patch.freeze())).await?.into_bytes() {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                other => return other.map(|_| ()),
            }
        }
        self.peers.send(primary, request(Method::Put).body(content)).await?.into_bytes().map(|_| ())
    }
}

/// What the primary is thought to have of the version that a new one is built on.
#[derive(Clone, Copy, Debug)]
enum Base<'a> {
    /// All of it, so that it can be told what changed.
    Changed(&'a Manifest),
    /// Its blocks.
    Blocks(&'a Manifest),
    /// Nobody knows.
    Unknown,
}

impl<'a> Base<'a> {
    fn known(manifest: Option<&'a Manifest>) -> Self {
        manifest.map_or(Self::Unknown, Self::Changed)
    }

    /// It did not have that.
    fn less(self) -> Self {
        match self {
            Self::Changed(manifest) => Self::Blocks(manifest),
            Self::Blocks(_) | Self::Unknown => Self::Unknown,
        }
    }

    fn manifest(self) -> Option<&'a Manifest> {
        match self {
            Self::Changed(manifest) | Self::Blocks(manifest) => Some(manifest),
            Self::Unknown => None,
        }
    }

    fn to_change(self) -> Option<&'a Manifest> {
        if let Self::Changed(manifest) = self { Some(manifest) } else { None }
    }
}

/// `manifest` as it travels, and of which other one that is the change.
fn encode_manifest(manifest: &Manifest, base: Option<&Manifest>) -> (Vec<u8>, Option<BlockHash>) {
    let worth_it =
        |base: &&Manifest| base.blocks().len().min(manifest.blocks().len()) >= MIN_DELTA_BLOCKS && base.block_bits() == manifest.block_bits();
    if let Some(base) = base.filter(worth_it) {
        let delta = manifest.encode_delta(base);
        if delta.len() < manifest.encoded_len() / 2 {
            return (delta, Some(base.hash()));
        }
    }
    (manifest.encode(), None)
}

/// The blocks of `manifest` that `base` lacks, each hash once.
fn fresh_blocks(manifest: &Manifest, base: Option<&Manifest>) -> Vec<(u32, BlockHash)> {
    let nothing = Manifest::empty(manifest.block_bits());
    let base = base.unwrap_or(&nothing);
    let mut fresh: Vec<(u32, BlockHash)> = manifest.unlike(base).copied().collect();
    let (names, mut seen) = (base.names(fresh.len()), BlockSet::default());
    fresh.retain(|block| !names(&block.1) && seen.insert(block.1));
    fresh
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fresh_blocks_travel_and_each_once() {
        let (a, b) = (BlockHash::of(b"a"), BlockHash::of(b"b"));
        let base = Manifest::new(16, 1 << 16, vec![(0, a)]).unwrap();
        let new = Manifest::new(16, 4 << 16, vec![(0, a), (1, b), (3, b)]).unwrap();
        assert_eq!(fresh_blocks(&new, Some(&base)), [(1, b)]);
        assert_eq!(fresh_blocks(&new, None), [(0, a), (1, b)]);
        let many = |seed: u8| (0..20).map(move |n| (n, BlockHash::of(&[seed, n as u8 % 15]))).collect();
        let (base, moved) = (Manifest::new(16, 20 << 16, many(1)).unwrap(), Manifest::new(16, 20 << 16, many(2)).unwrap());
        assert_eq!(fresh_blocks(&moved, Some(&base)), moved.blocks()[..15]);
        let shifted = Manifest::new(16, 21 << 16, base.blocks().iter().map(|block| (block.0 + 1, block.1)).collect()).unwrap();
        assert_eq!(fresh_blocks(&shifted, Some(&base)), []);
        let swapped = Manifest::new(16, 2 << 16, vec![(0, base.blocks()[1].1), (1, base.blocks()[0].1)]).unwrap();
        assert_eq!(fresh_blocks(&swapped, Some(&base)), []);
    }

    #[test]
    fn memory_as_a_source() {
        let source = InMemory { content: Bytes::from(vec![7; (1 << 16) + 3]), block_bits: 16 };
        let manifest = source.manifest().unwrap();
        assert_eq!(manifest.blocks().len(), 2);
        assert_eq!(source.read(1).unwrap().len(), 3);
        assert_eq!(BlockHash::of(&source.read(0).unwrap()), manifest.get(0).unwrap());
    }
}
