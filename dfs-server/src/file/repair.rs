//! Work behind the requests: agreeing with the directory about versions, making copies
//! that it orders, flushing, collecting.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_common::api::directory::{CopyOrder, HeldVersions, ReportCopy, VersionOf};
use dfs_common::api::file::VERSIONS;
use dfs_common::block::BlockHash;
use dfs_common::ids::{InodeId, ServerId, Version};
use dfs_common::wire::{Method, Request};
use dfs_common::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::blocks::Found;
use super::index::Claim;
use super::storage::{Storage, seconds};
use super::upload::Upload;
use super::{FileServer, PUBLISH_TIMEOUT, blocking};

/// Versions added less than this many seconds ago may belong to a commit under way: it asks the directory for [`PUBLISH_TIMEOUT`] at
/// the most. Less than what passes until the second reconciliation.
const YOUNG_S: u64 = PUBLISH_TIMEOUT.as_secs() + 20;
/// Between two flushes of what no fsync asked for.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Blocks deleted between two looks at other work.
const COLLECT_BATCH: usize = 64;
/// Between two looks at pins that may be over.
const PIN_INTERVAL: Duration = Duration::from_secs(10);
/// Versions dropped in one commit.
const DROP_BATCH: usize = 32;

/// Writes to the disk, once a second, what no durable commit has written. In a thread of its own: a flush may take as long as
/// the disk likes.
pub(super) async fn flush(storage: Arc<Storage>) {
    let (ask, asked) = mpsc::channel::<oneshot::Sender<Result<()>>>();
    let flushed = storage.clone();
    let flusher = move || asked.iter().for_each(|done| drop(done.send(flushed.flush())));
    if let Err(e) = std::thread::Builder::new().name("flusher".to_owned()).spawn(flusher) {
        log::error!("nothing is flushed that no fsync asks for: {e}");
        return;
    }
    loop {
        // A pause that ends early when the journal needs the room.
        let _ = tokio::time::timeout(FLUSH_INTERVAL, storage.journal.turned.notified()).await;
        let number = storage.flush_begins();
        if storage.has_unflushed() {
            let (done, flushed) = oneshot::channel();
            if ask.send(done).is_err() {
                log::error!("the flusher thread has ended");
                return;
            }
            if let Ok(Err(e)) = flushed.await {
                log::error!("{e}");
                continue;
            }
        }
        storage.flush_ends(number);
    }
}

/// Counts what is there, then deletes blocks that nothing needs, in small portions.
pub(super) async fn collect(storage: Arc<Storage>) {
    let counting = storage.clone();
    if let Err(e) = blocking(move || counting.count_blocks()).await {
        log::error!("counting blocks: {e}");
        return;
    }
    let mut pins_checked = Instant::now();
    loop {
        let collecting = storage.clone();
        let more = blocking(move || collecting.collect(COLLECT_BATCH)).await.unwrap_or_else(|e| {
            log::error!("{e}");
            false
        });
        if !more {
            // A pause that ends early when there is something to collect.
            let _ = tokio::time::timeout(PIN_INTERVAL, storage.collectable.notified()).await;
        }
        if pins_checked.elapsed() >= PIN_INTERVAL {
            pins_checked = Instant::now();
            storage.expire_pins();
        }
    }
}

impl FileServer {
    /// Compares all rows with what the directory says: rows of versions that are gone leave, lost rows return.
    pub(super) async fn reconcile(&self) -> Result<()> {
        self.compare_pages(None).await
    }

    /// The same for one file, young rows included where another manifest was published in their place.
    pub(super) async fn settle(&self, ino: InodeId) -> Result<()> {
        self.compare_pages(Some(ino)).await
    }

    /// Compares the rows of `ino`, or all, page by page: of what lies behind a page nothing is known.
    async fn compare_pages(&self, ino: Option<InodeId>) -> Result<()> {
        let server = self.id()?;
        let at = |version: u64| ino.map(|ino| VersionOf { ino, version: Version(version) });
        let (mut after, last) = (at(0), at(u64::MAX));
        loop {
            let page = self.directory.call(&HeldVersions { server, after, ino }).await?;
            self.compare(&page.versions, after, page.next.or(last)).await?;
            match page.next {
                Some(next) if Some(next) > after => after = Some(next),
                Some(_) => return Err(Error::new(ErrorKind::Corrupt, "pages of held versions go backwards")),
                None => return Ok(()),
            }
        }
    }

    /// Compares the rows behind `after` and up to `last` with `live`.
    pub(super) async fn compare(&self, live: &[Claim], after: Option<VersionOf>, last: Option<VersionOf>) -> Result<()> {
        let mut lost: BTreeMap<VersionOf, BlockHash> = live.iter().copied().collect();
        let wanted = lost.clone();
        // The largest hash: behind every row of this version.
        let mut from = after.map(|what| (what, BlockHash([0xff; 32])));
        loop {
            let rows = self.storage.index.page(from, last)?;
            let (mut others, mut unknown, young) = (Vec::new(), Vec::new(), seconds().saturating_sub(YOUNG_S));
            for (claim @ (what, hash), row) in &rows {
                match wanted.get(what) {
                    Some(live) if live == hash => {
                        lost.remove(what);
                    }
                    Some(_) => others.push(*claim),
                    None if row.made > young => {}
                    None => unknown.push(*claim),
                }
            }
            self.drop_older(others, u64::MAX).await?;
            // Not what a commit has added once more since it was looked at, and published after the directory had answered.
            self.drop_older(unknown, young).await?;
            match rows.last() {
                Some((claim, _)) => from = Some(*claim),
                None => break,
            }
        }
        for claim in lost {
            self.find_again(claim).await?;
        }
        Ok(())
    }

    /// Indexes a version that was listed for this server and had no row, unless that is over by now: it is published before it
    /// is indexed, and dropped before its row goes.
    async fn find_again(&self, claim @ (what, hash): Claim) -> Result<()> {
        // In this order: it is indexed before it ceases to be on its way.
        let is_on_its_way = self.storage.is_on_its_way(hash);
        if self.storage.index.has(claim)? {
            return Ok(());
        }
        let before = VersionOf { version: Version(what.version.0.saturating_sub(1)), ..what };
        let held = self.directory.call(&HeldVersions { server: self.id()?, after: Some(before), ino: Some(what.ino) }).await?;
        if !held.versions.contains(&claim) {
            return Ok(());
        }
        if !is_on_its_way {
            log::warn!("version {} of inode {} should be here and is not indexed", what.version, what.ino);
        }
        if let Err(e) = self.adopt(what, hash, &[]).await {
            let level = if is_on_its_way { log::Level::Debug } else { log::Level::Error };
            log::log!(level, "version {} of inode {}: {e}", what.version, what.ino);
        }
        Ok(())
    }

    /// Drops rows that were not added after `latest`, in small commits, so that others get their turn.
    async fn drop_older(&self, claims: Vec<Claim>, latest: u64) -> Result<()> {
        for batch in claims.chunks(DROP_BATCH) {
            let (storage, batch) = (self.storage.clone(), batch.to_vec());
            blocking(move || storage.drop_older(&batch, latest)).await?;
        }
        Ok(())
    }

    /// Drops all rows of versions that are no longer alive, once the disk has those that came after them: where the power fails before,
    /// they are what is left. What the disk does not have either goes at once, and is never written there.
    pub(super) async fn drop_versions(&self, versions: &[VersionOf]) -> Result<()> {
        let mut claims = Vec::new();
        for &what in versions {
            claims.extend(self.storage.index.claims(what)?.into_iter().map(|(hash, _)| (what, hash)));
        }
        let (lost, left) = claims.into_iter().partition(|(_, manifest)| self.storage.files.may_be_lost(*manifest));
        self.drop_older(lost, u64::MAX).await?;
        if !left.is_empty() {
            self.storage.flushed().await;
        }
        self.drop_older(left, u64::MAX).await
    }

    /// Makes a version one of this server's: its manifest from here or elsewhere, then the blocks that are missing.
    async fn adopt(&self, what: VersionOf, hash: BlockHash, from: &[ServerId]) -> Result<()> {
        let storage = self.storage.clone();
        let here = blocking(move || storage.files.read(hash)).await?;
        let sources = if from.is_empty() { self.holders(what).await } else { from.to_vec() };
        let encoded = match here {
            Found::Block(bytes) => bytes,
            Found::Missing | Found::Corrupt => self.fetch_manifest(what, hash, &sources).await?,
        };
        let upload = Arc::new(blocking(move || Upload::without_blocks(encoded)).await?);
        self.take_copy(what, &upload, &sources, false).await
    }

    async fn fetch_manifest(&self, what: VersionOf, hash: BlockHash, sources: &[ServerId]) -> Result<Bytes> {
        self.learn(sources).await;
        let own = self.id()?;
        let mut problem = Error::new(ErrorKind::NotFound, "no other server holds it");
        for source in self.peers.order(sources).into_iter().filter(|s| *s != own) {
            let request = Request::new(Method::Get, format!("{VERSIONS}{}/{}/manifest", what.ino, what.version));
            match self.peers.send(source, request).await.and_then(dfs_common::wire::Response::into_bytes) {
                Ok(bytes) if BlockHash::of(&bytes) == hash => return Ok(bytes),
                Ok(_) => problem = Error::new(ErrorKind::Corrupt, format!("file server {source} has another manifest")),
                Err(e) => problem = e.context(format!("file server {source}")),
            }
        }
        Err(problem)
    }

    /// Makes a copy that the directory ordered, and reports it.
    pub(super) async fn carry_out(&self, order: CopyOrder) -> Result<()> {
        self.adopt(order.what, order.manifest, &order.from).await?;
        match self.directory.call(&ReportCopy { server: self.id()?, what: order.what }).await {
            Ok(_) => Ok(()),
            Err(e) => {
                // Gone meanwhile, or nobody answered: the next order or reconciliation decides.
                self.doubtful.lock().insert(order.what.ino);
                Err(e)
            }
        }
    }

    /// Asks the directory about files of which it is unknown whether a version was published.
    pub(super) async fn settle_doubts(&self) {
        let doubtful = std::mem::take(&mut *self.doubtful.lock());
        for ino in doubtful {
            if let Err(e) = self.settle(ino).await {
                log::debug!("inode {ino}: {e}");
                self.doubtful.lock().insert(ino);
            }
        }
    }
}
