//! The primary's part: take a version in, copy it to the replicas, publish it.
//!
//! Order: blocks and copies first, at the same time; then the directory, while the
//! index row is written. Where disks shall have it, blocks and a note of the version are on
//! all of them before the directory hears of it. A version that the directory refused leaves
//! nothing but blocks to collect; one of which the answer was lost stays until the directory has said.

use std::sync::Arc;

use bytes::Bytes;
use dfs_common::api::Operation;
use dfs_common::api::directory::{Publish, VersionOf};
use dfs_common::api::file::{Commit, Missing, MissingBlocks};
use dfs_common::block::{BlockHash, MAX_BLOCK_SIZE, Manifest};
use dfs_common::ids::{ServerId, SessionId, Version};
use dfs_common::patch::{self, Patch};
use dfs_common::user::User;
use dfs_common::wire::{Method, Request, Response};
use dfs_common::{Error, ErrorKind, Result};
use futures_util::future::{join, join_all};
use tokio::time::Instant;

use super::blocks::{WriteBack, verify};
use super::index::is_embedded;
use super::journal::Entry;
use super::storage::Hold;
use super::upload::{Parts, Upload};
use super::{FileServer, PUBLISH_TIMEOUT, blocking};
use crate::store::Durability;

/// Replicas of one file.
const MAX_REPLICAS: usize = 16;
/// Up to this many bytes a block is hashed and written on the runtime's thread.
const INLINE_BYTES: usize = 256 << 10;
/// The same of blocks that come one after the other by themselves: small requests need not wait for those.
const INLINE_PUT: usize = 64 << 10;
/// Up to this many blocks a manifest is changed there.
const INLINE_BLOCKS: usize = 2048;

/// What a crash leaves of a version that is about to be published.
#[derive(Debug)]
pub(super) enum Noted {
    /// Blocks.
    Not,
    /// A note of it.
    Entry(Entry),
    /// Its row, which was not there before where that is true.
    Indexed(bool),
}

impl FileServer {
    /// Stores and publishes a version on behalf of `user`; returns the directory's reply as it came, leases included.
    pub(super) async fn commit(self: Arc<Self>, meta: Commit, body: Bytes, user: Option<User>) -> Result<Response> {
        let id = self.id()?;
        check(&meta, id)?;
        // A task of its own: a client that hangs up must not stop it between publishing and indexing.
        match tokio::spawn(self.commit_checked(meta, body, id, user)).await {
            Ok(result) => result,
            Err(e) => Err(Error::new(ErrorKind::Internal, format!("commit: {e}"))),
        }
    }

    async fn commit_checked(self: Arc<Self>, meta: Commit, body: Bytes, id: ServerId, user: Option<User>) -> Result<Response> {
        let durable = meta.durable || self.config.always_sync;
        let upload = self.parse(&body, (&meta).into()).await?;
        let hold = self.storage.hold(&upload);
        let what = VersionOf { ino: meta.ino, version: Version(meta.base.0 + 1) };
        self.require_blocks(what, &upload).await?;
        let copies = join_all(meta.replicas.iter().map(|&replica| self.copy_to(replica, what, &upload, &body, &meta, durable)));
        let store = async {
            if !meta.replicas.is_empty() {
                // The copies are on their way before this thread is busy with the disk.
                tokio::task::yield_now().await;
            }
            match durable {
                true => self.secure(what, &upload).await,
                false => self.store(&upload).await.map(|()| Noted::Not),
            }
        };
        let (copied, noted) = join(copies, store).await;
        let noted = noted?;
        let (holders, missing) = self.count_copies(id, &meta, copied)?;
        let publish = Publish {
            ino: meta.ino,
            session: meta.session,
            token: meta.token,
            base: meta.base,
            manifest: upload.hash,
            size: upload.manifest.size(),
            stored: upload.manifest.stored(),
            mtime: meta.mtime,
            holders,
            missing,
            durable,
            interim: meta.interim,
            goes_on: meta.goes_on,
            set: meta.set,
            make: meta.make,
        };
        self.publish(what, upload, (hold, noted), &publish, user).await
    }

    /// The servers that hold the version now, this one first, and those that should; `Unavailable` below `min_copies`.
    fn count_copies(&self, id: ServerId, meta: &Commit, copied: Vec<Result<()>>) -> Result<(Vec<ServerId>, Vec<ServerId>)> {
        let (mut holders, mut missing, mut problems) = (vec![id], Vec::new(), Vec::new());
        for (&replica, result) in meta.replicas.iter().zip(copied) {
            match result {
                Ok(()) => {
                    self.unreachable.lock().warned.remove(&replica);
                    holders.push(replica);
                }
                Err(e) => {
                    // Once a failure of a server, not once a file.
                    let level = if self.unreachable.lock().warned.insert(replica) { log::Level::Warn } else { log::Level::Debug };
                    log::log!(level, "copy of inode {} to file server {replica}: {e}", meta.ino);
                    missing.push(replica);
                    problems.push(format!("file server {replica}: {e}"));
                }
            }
        }
        if holders.len() < self.config.min_copies as usize {
            let message = format!("{} copies instead of {}: {}", holders.len(), self.config.min_copies, problems.join("; "));
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok((holders, missing))
    }

    /// Asks the directory to make `what` the current version, and indexes it meanwhile.
    async fn publish(
        &self,
        what: VersionOf,
        upload: Arc<Upload>,
        (hold, noted): (Hold, Noted),
        publish: &Publish,
        user: Option<User>,
    ) -> Result<Response> {
        let (storage, hash) = (&self.storage, upload.hash);
        let noted = match self.noted(what, &upload, noted) {
            // A manifest that is a block is found again whatever happens.
            Noted::Not if is_embedded(&upload.manifest) => Noted::Indexed(self.index(what, &upload, &Noted::Not).await?),
            noted => noted,
        };
        let request = Request::new(Method::Post, Publish::PATH).json(publish).user(user);
        let publishing = self.directory.send_until(&request, Instant::now() + PUBLISH_TIMEOUT);
        let index = async {
            // The request is on its way before this thread is busy with the index.
            tokio::task::yield_now().await;
            self.index(what, &upload, &noted).await
        };
        let (reply, indexed) = join(publishing, index).await;
        let granted = reply.as_ref().ok().and_then(|reply| reply.meta.clone());
        let reply = match reply.and_then(Response::into_bytes) {
            Ok(body) => Response { meta: granted, ..Response::raw_json(body) },
            Err(e) => {
                // A row that was there before, or is added once more, may be the live version: a doubt can only be settled by asking.
                let is_undone = !e.kind().is_transient()
                    && matches!(indexed, Ok(true))
                    && hold.undo((what, hash)).unwrap_or_else(|e| {
                        log::error!("undoing version {} of inode {}: {e}", what.version, what.ino);
                        false
                    });
                if !is_undone {
                    self.doubtful.lock().insert(what.ino);
                }
                return Err(e);
            }
        };
        match indexed {
            Ok(_) => hold.settle(),
            Err(e) => {
                log::error!("version {} of inode {} is published and not indexed: {e}", what.version, what.ino);
                hold.keep();
                if let Noted::Entry(entry) = noted {
                    entry.keep();
                }
                self.doubtful.lock().insert(what.ino);
            }
        }
        storage.unpin(Some(publish.session), &upload);
        if !is_embedded(&upload.manifest) {
            // What is published next is likely to be a change of this.
            self.manifests.lock().insert(hash, upload.manifest.clone());
        }
        Ok(reply)
    }

    /// Checks and takes apart a body, on a thread of its own where that is much work. `NotFound` where it is a change of what is not here.
    pub(super) async fn parse(&self, body: &Bytes, parts: Parts) -> Result<Arc<Upload>> {
        let base = match parts.manifest_base {
            None => None,
            Some(hash) => Some(self.manifest_block(hash).await?),
        };
        let (storage, body) = (self.storage.clone(), body.clone());
        let blocks = base.as_ref().map_or(0, |base| base.blocks().len());
        let is_small = body.len() <= INLINE_BYTES && blocks <= INLINE_BLOCKS && parts.patches.len() <= 1;
        let parse = move || Upload::parse(&body, &parts, base, |patch| storage.patch(patch)).map(Arc::new);
        if is_small { parse() } else { blocking(parse).await }
    }

    /// A manifest that is stored as a block; `NotFound` where it is not here.
    async fn manifest_block(&self, hash: BlockHash) -> Result<Arc<Manifest>> {
        if let Some(manifest) = self.manifests.lock().get(hash) {
            return Ok(manifest);
        }
        let storage = self.storage.clone();
        let found = blocking(move || storage.manifest(hash, None)).await;
        // Who names a block that is no manifest is not told more of it.
        let found = found.ok().flatten().ok_or_else(|| Error::new(ErrorKind::NotFound, format!("manifest {hash} is not here")))?;
        let manifest = Arc::new(found);
        self.manifests.lock().insert(hash, manifest.clone());
        Ok(manifest)
    }

    /// `NotFound` where blocks are neither here nor in the upload.
    pub(super) async fn require_blocks(&self, what: VersionOf, upload: &Arc<Upload>) -> Result<()> {
        let absent = self.absent(what, upload).await?;
        match absent.len() {
            0 => Ok(()),
            n => Err(Error::new(ErrorKind::NotFound, format!("{n} of {} blocks are missing here", upload.blocks().len()))),
        }
    }

    /// The blocks of `upload`, which shall be `what`, that are neither here nor in it.
    pub(super) async fn absent(&self, what: VersionOf, upload: &Arc<Upload>) -> Result<Vec<BlockHash>> {
        if upload.base.is_none() && upload.blocks().len() == upload.inline.len() {
            return Ok(Vec::new());
        }
        if !upload.is_large() {
            return self.storage.absent(what, upload);
        }
        let (storage, upload) = (self.storage.clone(), upload.clone());
        blocking(move || storage.absent(what, &upload)).await
    }

    /// Writes what came with `upload`.
    pub(super) async fn store(&self, upload: &Arc<Upload>) -> Result<()> {
        if !upload.is_large() {
            return self.storage.put_upload(upload);
        }
        let (storage, upload) = (self.storage.clone(), upload.clone());
        blocking(move || storage.put_upload(&upload)).await
    }

    /// The same, and returns when `what` outlives a loss of power: the disk has all of its blocks, and a note of it or its row.
    pub(super) async fn secure(&self, what: VersionOf, upload: &Arc<Upload>) -> Result<Noted> {
        let Some(entry) = self.storage.note(what, upload, true) else {
            self.store(upload).await?;
            let (storage, upload) = (self.storage.clone(), upload.clone());
            let flush = move || storage.files.flush(&storage.unflushed(&upload, false)).and_then(|()| storage.add(what, &upload, Durability::Disk));
            return blocking(flush).await.map(Noted::Indexed);
        };
        // The disk is busy with the note while the blocks' files are made.
        let sync = blocking(move || entry.sync().map(|()| entry));
        let store = async {
            self.store(upload).await?;
            let unflushed = self.storage.unflushed(upload, true);
            if unflushed.is_empty() {
                return Ok(());
            }
            let storage = self.storage.clone();
            blocking(move || storage.files.flush(&unflushed)).await
        };
        let (synced, stored) = join(sync, store).await;
        stored?;
        self.storage.files.noted(upload.hash);
        synced.map(Noted::Entry)
    }

    /// The same with a note where that is worth it and there is room: its row follows while the directory is asked.
    pub(super) fn noted(&self, what: VersionOf, upload: &Upload, noted: Noted) -> Noted {
        match noted {
            Noted::Not if is_embedded(&upload.manifest) => self.storage.note(what, upload, false).map_or(Noted::Not, Noted::Entry),
            noted => noted,
        }
    }

    /// Adds the index row; false where it was there.
    pub(super) async fn index(&self, what: VersionOf, upload: &Arc<Upload>, noted: &Noted) -> Result<bool> {
        if let Noted::Indexed(new) = noted {
            return Ok(*new);
        }
        if !upload.is_large() {
            return self.storage.add(what, upload, Durability::Process);
        }
        let (storage, upload) = (self.storage.clone(), upload.clone());
        blocking(move || storage.add(what, &upload, Durability::Process)).await
    }

    /// Stores one block ahead of a commit, here and (as far as they answer) at the replicas. `sent` is the block or, by `method`
    /// POST, a patch; `NotFound` where that cannot be applied here.
    pub(super) async fn put_block(
        &self,
        hash: BlockHash,
        (method, sent): (Method, Bytes),
        session: Option<SessionId>,
        replicas: &[ServerId],
    ) -> Result<()> {
        if sent.len() > MAX_BLOCK_SIZE + patch::HEADER {
            return Err(Error::new(ErrorKind::TooBig, format!("a block has at most {MAX_BLOCK_SIZE} bytes")));
        }
        let is_patch = method == Method::Post;
        let content = if is_patch { self.patched(hash, &sent).await? } else { sent.clone() };
        let own = self.id().ok();
        self.storage.pin(session, &[hash]);
        let others = replicas.iter().filter(|r| Some(**r) != own);
        let forwards = join_all(others.map(|&replica| self.forward_block(replica, hash, (method, sent.clone()), content.clone())));
        let store = async {
            if !replicas.is_empty() {
                tokio::task::yield_now().await;
            }
            let small = content.len() <= if is_patch { INLINE_BYTES } else { INLINE_PUT };
            let (storage, content) = (self.storage.clone(), content.clone());
            let put = move || match is_patch {
                true => storage.put(hash, &content, WriteBack::Later),
                false => verify(hash, &content).and_then(|()| storage.put(hash, &content, WriteBack::Begin)),
            };
            if small { put() } else { blocking(put).await }
        };
        join(forwards, store).await.1
    }

    /// The block `hash` as the patch `sent` makes it; `NotFound` where it makes something else.
    async fn patched(&self, hash: BlockHash, sent: &Bytes) -> Result<Bytes> {
        let (storage, patch) = (self.storage.clone(), Patch::decode(sent)?);
        let is_small = patch.len as usize <= INLINE_BYTES;
        let make = move || {
            let (made, block) = storage.patch(&patch)?;
            if made != hash {
                return Err(Error::new(ErrorKind::NotFound, format!("the patch does not make block {hash} of what is stored here")));
            }
            Ok(block)
        };
        if is_small { make() } else { blocking(make).await }
    }

    /// Which blocks the client must send; the others are pinned for it.
    pub(super) async fn missing(&self, ask: Missing) -> Result<MissingBlocks> {
        if ask.hashes.len() > Missing::MAX {
            return Err(Error::new(ErrorKind::TooBig, format!("a question has at most {} hashes", Missing::MAX)));
        }
        // Pinned first: what is found afterwards stays.
        self.storage.pin(Some(ask.session), &ask.hashes);
        let storage = self.storage.clone();
        let look = move || {
            let absent = |hash: &BlockHash| storage.files.len(*hash).is_none_or(|len| len == 0);
            Ok(ask.hashes.iter().enumerate().filter(|(_, hash)| absent(hash)).map(|(at, _)| at as u32).collect())
        };
        Ok(MissingBlocks { missing: blocking(look).await? })
    }
}

fn check(meta: &Commit, id: ServerId) -> Result<()> {
    let invalid = |what: &str| Err(Error::new(ErrorKind::Invalid, what));
    let mut replicas = meta.replicas.clone();
    replicas.sort_unstable();
    replicas.dedup();
    if replicas.len() != meta.replicas.len() || replicas.contains(&id) || replicas.len() > MAX_REPLICAS {
        return invalid("replicas are at most 16 other servers, each once");
    }
    if meta.ino.0 == 0 || meta.base.0 == u64::MAX {
        return invalid("no such inode or version");
    }
    Ok(())
}
