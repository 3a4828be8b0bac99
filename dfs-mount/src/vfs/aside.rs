//! Content that could not be published: kept in the cache directory first, then brought
//! to the cluster as a recoverable version, a file in the directory [`RECOVERED`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dfs_common::api::directory::{Lookup, Make, SetXattr, XattrMode};
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::clients::commit::NewVersion;
use dfs_common::ids::{InodeId, RECOVERED};
use dfs_common::name::{Name, Text};
use dfs_common::{Error, ErrorKind, Result};

use super::locks::{Lockable, Wait};
use super::node::Node;
use super::{Caller, Vfs};
use crate::cache::Content;
use crate::cache::aside::{Aside, Note};
use crate::cache::record::Owned;
use crate::cache::restore::{complete, restore_whole};
use crate::recovered::{Description, XATTR};
use crate::{failpoint, system};

/// Between two attempts to upload what could not be uploaded.
const RETRY: Duration = Duration::from_secs(30);
/// Of a file's name, so much is in that of its recoverable version, in bytes.
const NAME_MAX: usize = 200;
/// One part in so many of the cluster's space is left free by recoverable versions.
const KEEP_FREE: u64 = 10;
/// Bytes of one fetch of what the content lacks.
const FETCH: u64 = 4 << 20;

/// What has happened since the mount, in numbers.
#[derive(Debug, Default)]
pub struct Stats {
    pub(super) recovered: AtomicU64,
    pub(super) set_aside: AtomicU64,
    pub(super) uploaded: AtomicU64,
}

impl Stats {
    /// Files that a crash left and that were published.
    pub fn recovered(&self) -> u64 {
        self.recovered.load(Ordering::Relaxed)
    }

    /// Files that could not be published and were kept.
    pub fn set_aside(&self) -> u64 {
        self.set_aside.load(Ordering::Relaxed)
    }

    /// Of these and of earlier ones, those that the cluster has as recoverable versions.
    pub fn uploaded(&self) -> u64 {
        self.uploaded.load(Ordering::Relaxed)
    }
}

impl Vfs {
    /// What has happened since the mount.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Keeps what was written to `content` and could not be published. It is nobody's to write any more; whoever opens the
    /// file from now on gets what is published.
    pub(crate) async fn set_aside(&self, node: &Arc<Node>, content: &Arc<Content>, problem: &Error) {
        let owned = {
            let mut state = node.state.lock();
            if !content.put_aside() {
                return;
            }
            state.unlease();
            (state.pages, state.writers) = (None, 0);
            Owned::from(&state.entry.attributes)
        };
        if let Err(e) = self.keep(content, (node.ino, self.nodes.path(node), owned), problem) {
            log::error!("keeping what was written to inode {} failed, too: {e}. It stays in {}", node.ino, content.path().display());
        }
        self.forget_attributes(node.id);
        self.uncover(node).await;
    }

    /// Keeps `content` here, and lets it be uploaded.
    pub(super) fn keep(&self, content: &Content, of: (InodeId, String, Owned), problem: &Error) -> Result<()> {
        let aside = self.shelf.set_aside(content, of, problem.message(), self.now())?;
        self.stats.set_aside.fetch_add(1, Ordering::Relaxed);
        let Note { path, ino, .. } = &aside.note;
        log::error!(
            "{path} (inode {ino}) could not be published: {problem}. What was written is kept in {} until it is among the recoverable versions",
            aside.path.display()
        );
        self.upload_soon.notify_one();
        Ok(())
    }

    /// Brings what is kept here to the cluster, as soon as it can be; never returns.
    pub async fn keep_recovered(self: Arc<Self>) {
        loop {
            let left = self.upload_asides().await;
            tokio::select! {
                () = self.upload_soon.notified() => {}
                () = tokio::time::sleep(RETRY), if left > 0 => {}
            }
        }
    }

    /// Uploads what is kept here; returns how much is left.
    pub(super) async fn upload_asides(&self) -> usize {
        let _one_at_a_time = self.uploading.lock().await;
        let mut left = 0;
        for aside in self.shelf.asides() {
            match self.upload(&aside).await {
                Ok(name) => {
                    self.stats.uploaded.fetch_add(1, Ordering::Relaxed);
                    log::warn!("{} is the recoverable version {name}", aside.note.path);
                }
                Err(e) => {
                    left += 1;
                    log::warn!("{} is kept in {}, it could not be uploaded: {e}", aside.note.path, aside.path.display());
                }
            }
        }
        left
    }

    async fn upload(&self, aside: &Aside) -> Result<Name> {
        self.check_room(aside).await?;
        let missing = self.fetch_missing(aside).await?;
        let name = name_of(&aside.note)?;
        let entry = self.make_recoverable(&name).await?;
        failpoint::reach("aside.made");
        let size = self.publish_aside(aside, &entry).await?;
        failpoint::reach("aside.committed");
        let note = &aside.note;
        let description = Description {
            path: note.path.clone(),
            ino: note.ino,
            base: note.base,
            time: note.time,
            host: system::host_name(),
            reason: note.reason.clone(),
            size,
            owned: note.owned,
            missing: missing.to_vec(),
            block_bits: note.block_bits,
        };
        let value = Text(serde_json::to_vec(&description).expect("a description serializes"));
        // Last: what is described is whole.
        self.mutate(&SetXattr { ino: entry.attributes.ino, name: Name::new(XATTR.as_bytes())?, value, mode: XattrMode::Set }).await.0?;
        failpoint::reach("aside.described");
        aside.remove();
        Ok(name)
    }

    /// What a full cluster refused must not take the room that is made for what is written next.
    async fn check_room(&self, aside: &Aside) -> Result<()> {
        let size = std::fs::metadata(&aside.path).map_err(|e| Error::from_io(&e, "recovered file"))?.len();
        let space = self.stat_fs().await?;
        if space.available.saturating_sub(size) < space.capacity / KEEP_FREE {
            return Err(Error::new(ErrorKind::NoSpace, "it would leave less than a tenth of the cluster free"));
        }
        Ok(())
    }

    /// The file that it goes to; the one from before, where an attempt was broken off.
    async fn make_recoverable(&self, name: &Name) -> Result<Entry> {
        let make = Make::new(RECOVERED, name.clone(), FileKind::File, 0o600);
        let entry = match self.mutate(&make).await.0 {
            Ok(made) => made.entry,
            Err(e) if e.kind() == ErrorKind::Exists => self.ask(&Lookup { parent: RECOVERED, name: name.clone() }).await.0?,
            Err(e) => return Err(e),
        };
        self.cluster.learn(&entry).await?;
        Ok(entry)
    }

    /// Fetches into the file what it lacks of the version that it was built on. Returns what nobody has any more.
    async fn fetch_missing<'a>(&self, aside: &'a Aside) -> Result<&'a [(u32, u32)]> {
        if aside.note.missing.is_empty() {
            return Ok(&[]);
        }
        let base = aside.base()?;
        let gone = |e: &Error| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Stale | ErrorKind::Corrupt);
        let mut entry = match self.cluster.entry(aside.note.ino).await {
            Err(e) if gone(&e) => return Ok(&aside.note.missing),
            entry => entry?,
        };
        entry.attributes.version = aside.note.base;
        let step = (FETCH >> base.block_bits()) as u32;
        for &(first, last) in &aside.note.missing {
            for from in (first..=last).step_by(step as usize) {
                match self.cluster.blocks(&entry, &base, from, last.min(from + step - 1)).await {
                    Ok(bytes) => complete(&aside.path, u64::from(from) << base.block_bits(), &bytes)?,
                    Err(e) if gone(&e) => return Ok(&aside.note.missing),
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(&[])
    }

    /// Makes the content the current version of `entry`; returns its size.
    async fn publish_aside(&self, aside: &Aside, entry: &Entry) -> Result<u64> {
        let (path, bits, mtime) = (aside.path.clone(), aside.note.block_bits, aside.note.mtime);
        let begun = tokio::task::spawn_blocking(move || {
            let content = restore_whole(&path, bits, mtime)?;
            let plan = content.begin_commit(mtime, false)?;
            Ok::<_, Error>((content, plan))
        });
        let (content, plan) = begun.await.map_err(|e| Error::new(ErrorKind::Internal, format!("hashing: {e}")))??;
        let size = content.size();
        let Some(plan) = plan.filter(|plan| entry.layout.manifest != Some(plan.manifest.hash())) else { return Ok(size) };
        let ino = entry.attributes.ino;
        let file = Lockable { ino, fresh: entry.layout.fresh };
        let held = self.lock(file, Caller::default(), Wait::Until(Some(self.cluster.directory.timeout()))).await?;
        let new = NewVersion {
            ino,
            token: held.token,
            base: entry.attributes.version,
            base_manifest: None,
            manifest: &plan.manifest,
            mtime,
            durable: true,
            interim: false,
            goes_on: false,
            set: None,
            make: None,
        };
        let published = self.cluster.commit(&new, &entry.layout.placement, &content).await;
        self.unlock(ino, held).await;
        published.map(|_| size)
    }
}

/// Readable, and the same at each attempt.
fn name_of(note: &Note) -> Result<Name> {
    let file = note.path.rsplit('/').next().unwrap_or_default();
    let end = (0..=file.len().min(NAME_MAX)).rev().find(|&at| file.is_char_boundary(at)).unwrap_or_default();
    Name::new(format!("{}.{}.{}", &file[..end], note.ino, note.time.0.div_euclid(1_000_000)).as_bytes())
}

#[cfg(test)]
mod tests {
    use dfs_common::attributes::Timestamp;
    use dfs_common::ids::Version;

    use super::*;

    #[test]
    fn recoverable_versions_have_names_that_people_know() {
        let note = |path: &str| Note {
            cluster: "c".into(),
            ino: InodeId(17),
            path: path.into(),
            owned: Owned::default(),
            base: Version(1),
            reason: "fenced".into(),
            time: Timestamp(1_700_000_000_123_456_789),
            mtime: Timestamp(0),
            missing: Vec::new(),
            block_bits: 18,
        };
        let name = |path: &str| name_of(&note(path)).unwrap().to_string();
        assert_eq!(name("/home/anna/letter.txt"), "letter.txt.17.1700000000123");
        assert_eq!(name("inode 17"), "inode 17.17.1700000000123");
        assert!(name(&"ü".repeat(127)).len() < 255);
    }
}
