//! Reading a version: from any holder, verified block by block, another holder where
//! one fails or sends wrong bytes.
//!
//! Content is hashed here, where it has come all the way, and not by the server before, unless that is wrong: then it
//! is asked once more to look at what it has, which it mends.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::Cluster;
use crate::api::file::{MAX_READ, VERSIONS};
use crate::attributes::Entry;
use crate::block::{BlockHash, Manifest};
use crate::ids::ServerId;
use crate::wire::{Method, Request};
use crate::{Error, ErrorKind, Result};

/// Content as it lies there.
const DATA: &str = "data?unchecked=1";
/// Between two rounds over holders of which none answered.
const PAUSE: Duration = Duration::from_millis(200);

impl Cluster {
    /// The manifest of the version that `entry` describes. Version 0 is the empty file.
    pub async fn manifest(&self, entry: &Entry) -> Result<Manifest> {
        let Some(hash) = entry.layout.manifest else { return Ok(Manifest::empty(self.block_bits())) };
        let request = self.version_request(entry, "manifest");
        let bytes = self
            .read_any(entry, &request, |bytes| match BlockHash::of(bytes) == hash {
                true => Ok(()),
                false => Err(mismatch("the manifest")),
            })
            .await?;
        Manifest::decode(&bytes)
    }

    /// The manifest and, in the same round trip, the content of the first block, verified; `None` where that is a hole or the server does not send it.
    pub async fn beginning(&self, entry: &Entry) -> Result<(Manifest, Option<Bytes>)> {
        let Some(hash) = entry.layout.manifest else { return Ok((Manifest::empty(self.block_bits()), None)) };
        let mut found = None;
        let verify = |bytes: &[u8]| {
            let (stored, start) = bytes.split_at(Manifest::stored_len(bytes)?);
            if BlockHash::of(stored) != hash {
                return Err(mismatch("the manifest"));
            }
            let manifest = Manifest::decode(stored)?;
            // A damaged block is mended when it is read by itself.
            let is_right = !start.is_empty() && manifest.get(0) == Some(BlockHash::of(start));
            found = Some((manifest, is_right.then_some(stored.len())));
            Ok(())
        };
        let expected = Manifest::len_for(self.block_bits(), entry.attributes.stored) + (1 << self.block_bits());
        let request = self.version_request(entry, "manifest?start=1").expecting(expected);
        let bytes = self.read_any(entry, &request, verify).await?;
        let (manifest, start) = found.expect("what was verified was read");
        Ok((manifest, start.map(|start| bytes.slice(start..))))
    }

    /// Manifest and content of a small version (at most one block) in one round trip; `None` where it is larger.
    pub async fn small(&self, entry: &Entry) -> Result<Option<(Manifest, Bytes)>> {
        let (Some(hash), size) = (entry.layout.manifest, entry.attributes.size) else {
            return Ok(Some((Manifest::empty(self.block_bits()), Bytes::new())));
        };
        let bits = self.block_bits();
        if size == 0 || size > 1 << bits || entry.attributes.stored != size {
            return Ok(None);
        }
        let manifest_of = |bytes: &[u8]| Manifest::new(bits, size, vec![(0, BlockHash::of(bytes))]);
        let mut manifest = None;
        let verify = |bytes: &[u8]| {
            let found = manifest_of(bytes)?;
            if bytes.len() as u64 != size || found.hash() != hash {
                return Err(mismatch("the content"));
            }
            manifest = Some(found);
            Ok(())
        };
        match self.read_any(entry, &self.version_request(entry, DATA).expecting(size as usize), verify).await {
            Ok(bytes) => Ok(manifest.map(|m| (m, bytes))),
            // A version with another block size: its manifest tells.
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Content of the blocks `first..=last` (at most [`MAX_READ`] bytes), verified; holes are zeros.
    pub async fn blocks(&self, entry: &Entry, manifest: &Manifest, first: u32, last: u32) -> Result<Bytes> {
        let start = u64::from(first) << manifest.block_bits();
        let end = ((u64::from(last) + 1) << manifest.block_bits()).min(manifest.size());
        assert!(start < end && end - start <= MAX_READ, "a read of {start}..{end}");
        let request = self.version_request(entry, DATA).range(start, end - 1);
        self.read_any(entry, &request, |bytes| verify(manifest, first, last, end - start, bytes)).await
    }

    fn version_request(&self, entry: &Entry, what: &str) -> Request {
        let attributes = &entry.attributes;
        Request::new(Method::Get, format!("{VERSIONS}{}/{}/{what}", attributes.ino, attributes.version)).session(Some(self.id()))
    }

    /// The first answer that `verify` accepts. `Stale` where no holder has the version any more. Holders that do not
    /// answer are asked again until the timeout.
    async fn read_any(&self, entry: &Entry, request: &Request, mut verify: impl FnMut(&[u8]) -> Result<()>) -> Result<Bytes> {
        let deadline = Instant::now() + self.directory.timeout();
        self.learn(entry).await?;
        let mut level = log::Level::Warn;
        loop {
            let round = self.read_round(entry, request, &mut verify, deadline, level).await;
            level = log::Level::Debug;
            match round {
                Err(e) if e.kind().is_transient() && Instant::now() + PAUSE < deadline => sleep(PAUSE).await,
                other => return other,
            }
        }
    }

    async fn read_from(&self, server: ServerId, request: Request, verify: &mut impl FnMut(&[u8]) -> Result<()>, deadline: Instant) -> Result<Bytes> {
        let left = deadline.saturating_duration_since(Instant::now());
        let bytes = self.peers.send_within(server, request, left).await?.into_bytes()?;
        verify(&bytes).map(|()| bytes)
    }

    /// Asks each holder once.
    async fn read_round(
        &self,
        entry: &Entry,
        request: &Request,
        verify: &mut impl FnMut(&[u8]) -> Result<()>,
        deadline: Instant,
        level: log::Level,
    ) -> Result<Bytes> {
        let (ino, version) = (entry.attributes.ino, entry.attributes.version);
        let mut problem = Error::new(ErrorKind::Unavailable, format!("version {version} of inode {ino} has no holder"));
        let mut gone = true;
        for server in self.peers.order(&entry.layout.holders) {
            let mut answer = self.read_from(server, request.clone(), verify, deadline).await;
            if request.query_value("unchecked").is_some()
                && let Err(e) = &answer
                && e.kind() == ErrorKind::Corrupt
            {
                log::log!(level, "file server {server}, version {version} of inode {ino}: {e}");
                answer = self.read_from(server, Request { query: String::new(), ..request.clone() }, verify, deadline).await;
            }
            match answer {
                Ok(bytes) => return Ok(bytes),
                Err(e) => {
                    log::log!(level, "file server {server}, version {version} of inode {ino}: {e}");
                    gone &= e.kind() == ErrorKind::NotFound;
                    problem = e.context(format!("file server {server}"));
                }
            }
        }
        if gone && !entry.layout.holders.is_empty() {
            return Err(Error::new(ErrorKind::Stale, format!("version {version} of inode {ino} is gone")));
        }
        Err(problem)
    }
}

fn mismatch(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what} does not match its hash"))
}

fn verify(manifest: &Manifest, first: u32, last: u32, expected: u64, bytes: &[u8]) -> Result<()> {
    let corrupt = |what: String| Err(Error::new(ErrorKind::Corrupt, what));
    if bytes.len() as u64 != expected {
        return corrupt(format!("{} bytes instead of {expected}", bytes.len()));
    }
    let size = manifest.block_size() as usize;
    for (index, piece) in (first..=last).zip(bytes.chunks(size)) {
        let fine = match manifest.get(index) {
            Some(hash) => BlockHash::of(piece) == hash,
            None => piece.iter().all(|&b| b == 0),
        };
        if !fine {
            return corrupt(format!("block {index} does not match its hash"));
        }
    }
    Ok(())
}
