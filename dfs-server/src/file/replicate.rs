//! Copies of versions and blocks, seen from both ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_common::api::directory::VersionOf;
use dfs_common::api::file::{BLOCKS, Commit, REPLICATE, Replicate};
use dfs_common::block::BlockHash;
use dfs_common::ids::ServerId;
use dfs_common::wire::{Method, Request};
use dfs_common::{Error, ErrorKind, Result};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::blocks::WriteBack;
use super::commit::Noted;
use super::upload::{Parts, Upload};
use super::{FileServer, blocking};

/// How long one copy may take; what takes longer is copied later, on the directory's order.
const COPY_TIMEOUT: Duration = Duration::from_secs(8);
/// A server that let a copy time out is not asked again for this long.
const PENALTY: Duration = Duration::from_secs(5);
/// Blocks that a replica fetches at the same time.
const PARALLEL_FETCHES: usize = 4;

impl FileServer {
    /// Sends a version to a replica: as it came, or whole where the replica lacks what that is a change of.
    pub(super) async fn copy_to(
        &self,
        replica: ServerId,
        what: VersionOf,
        upload: &Upload,
        body: &Bytes,
        meta: &Commit,
        durable: bool,
    ) -> Result<()> {
        let primary = self.id()?;
        let request = |body: Bytes, Parts { manifest_len, manifest_base, inline, patches }| {
            let (ino, version) = (what.ino, what.version);
            let copy = Replicate { ino, version, primary, manifest_len, manifest_base, inline, patches, durable };
            Request::new(Method::Post, REPLICATE).meta(&copy).body(body)
        };
        let sent = self.send_to(replica, request(body.clone(), meta.into())).await;
        let is_change = meta.manifest_base.is_some() || !meta.patches.is_empty();
        match sent {
            Err(e) if is_change && e.kind() == ErrorKind::NotFound => {
                let (body, parts) = upload.whole();
                self.send_to(replica, request(body, parts)).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    /// Passes a block on to a replica as it was `sent`, or whole where that is a patch that the replica cannot apply; where that
    /// fails, the replica fetches it when the version comes.
    pub(super) async fn forward_block(&self, replica: ServerId, hash: BlockHash, (method, sent): (Method, Bytes), content: Bytes) {
        let request = |method, body| Request::new(method, format!("{BLOCKS}{hash}")).body(body);
        let mut forwarded = self.send_to(replica, request(method, sent)).await;
        if method == Method::Post && forwarded.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            forwarded = self.send_to(replica, request(Method::Put, content)).await;
        }
        if let Err(e) = forwarded {
            log::debug!("block {hash} to file server {replica}: {e}");
        }
    }

    /// One exchange with another file server, unless it is known not to answer.
    async fn send_to(&self, server: ServerId, request: Request) -> Result<Bytes> {
        self.learn(&[server]).await;
        let now = Instant::now();
        {
            let mut unreachable = self.unreachable.lock();
            unreachable.until.retain(|_, until| *until > now);
            if unreachable.dead.contains(&server) || unreachable.until.contains_key(&server) {
                return Err(Error::new(ErrorKind::Unavailable, format!("file server {server} does not answer")));
            }
        }
        match tokio::time::timeout(COPY_TIMEOUT, self.peers.send(server, request)).await {
            Ok(reply) => reply?.into_bytes(),
            Err(_) => {
                self.unreachable.lock().until.insert(server, now + COPY_TIMEOUT + PENALTY);
                Err(Error::new(ErrorKind::TimedOut, format!("file server {server} took over {} s", COPY_TIMEOUT.as_secs())))
            }
        }
    }

    /// Takes in a copy that a primary sends before it publishes the version.
    pub(super) async fn replicate(self: Arc<Self>, meta: Replicate, body: Bytes) -> Result<()> {
        if Some(meta.primary) == self.id().ok() || meta.ino.0 == 0 {
            return Err(Error::new(ErrorKind::Invalid, "a copy comes from another server and is of a file"));
        }
        let task = async move {
            let upload = self.parse(&body, (&meta).into()).await?;
            let what = VersionOf { ino: meta.ino, version: meta.version };
            self.take_copy(what, &upload, &[meta.primary], meta.durable).await
        };
        // A task of its own, as with commits: what it has begun to store it also settles.
        match tokio::spawn(task).await {
            Ok(result) => result,
            Err(e) => Err(Error::new(ErrorKind::Internal, format!("copy: {e}"))),
        }
    }

    /// Stores and indexes a version; blocks that did not come with it are fetched from one of `sources`.
    pub(super) async fn take_copy(&self, what: VersionOf, upload: &Arc<Upload>, sources: &[ServerId], durable: bool) -> Result<()> {
        let hold = self.storage.hold(upload);
        let absent = self.absent(what, upload).await?;
        let fetches = absent.into_iter().map(|hash| self.fetch_block(hash, sources));
        stream::iter(fetches).buffer_unordered(PARALLEL_FETCHES).try_for_each(|_| async { Ok(()) }).await?;
        let noted = if durable { self.secure(what, upload).await? } else { self.store(upload).await.map(|()| Noted::Not)? };
        let noted = self.noted(what, upload, noted);
        self.index(what, upload, &noted).await?;
        hold.settle();
        self.storage.unpin(None, upload);
        Ok(())
    }

    /// Gets a block from the first of `sources` that has it, stores and returns it.
    pub(super) async fn fetch_block(&self, hash: BlockHash, sources: &[ServerId]) -> Result<Bytes> {
        self.learn(sources).await;
        let own = self.id().ok();
        let mut problem = Error::new(ErrorKind::NotFound, format!("no other server has block {hash}"));
        for source in self.peers.order(sources).into_iter().filter(|s| Some(*s) != own) {
            let request = Request::new(Method::Get, format!("{BLOCKS}{hash}"));
            let answer = self.peers.send(source, request).await.and_then(dfs_common::wire::Response::into_bytes);
            match answer {
                Ok(content) if BlockHash::of(&content) == hash => {
                    let (storage, block) = (self.storage.clone(), content.clone());
                    blocking(move || storage.put(hash, &block, WriteBack::Begin)).await?;
                    return Ok(content);
                }
                Ok(_) => problem = Error::new(ErrorKind::Corrupt, format!("file server {source} sent other bytes than block {hash}")),
                Err(e) => problem = e.context(format!("file server {source}")),
            }
        }
        Err(problem)
    }
}
