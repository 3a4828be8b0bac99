//! Reading and writing open files.
//!
//! What is in the cache file is served by a plain system call; only what is missing, or
//! a commit under way, makes a request wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dfs_common::attributes::Timestamp;
use dfs_common::clients::steps::{self, Target};
use dfs_common::{Error, ErrorKind, Result};

use super::handles::FileHandle;
use super::node::Node;
use super::{Caller, Vfs};
use crate::cache::Content;
use crate::cache::content::{CopyNotYet, NotYet};
use crate::failpoint;

/// The most that one copy_file_range copies; its caller goes on.
const COPY: u64 = 256 << 20;
/// Of these, as much as is copied while both contents are locked: a multiple of every block size.
const COPY_STEP: u64 = 1 << 20;
/// Up to this many bytes are copied by the thread that reads the request: handing them to another one takes longer.
const COPY_INLINE: u64 = 128 << 10;

/// How a program writes.
#[derive(Clone, Copy, Debug)]
pub struct Writing {
    /// At the end, wherever that is.
    pub append: bool,
    /// By storing to a mapping, of which these are pages.
    pub mapped: bool,
    /// By somebody who is not root: ends suid and sgid.
    pub by_user: bool,
    /// Disks have it before the call returns. Where it goes through the kernel's page cache an fsync follows.
    pub durable: bool,
}

impl Vfs {
    /// The bytes, if all of them are here.
    pub fn read_now(&self, handle: u64, offset: u64, len: u32) -> Result<Option<Vec<u8>>> {
        match self.handles.file(handle)?.content.read(offset, u64::from(len)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(NotYet::Missing(_) | NotYet::Committing) => Ok(None),
            Err(NotYet::Failed(e)) => Err(e),
        }
    }

    /// Reads, fetching what is missing.
    pub async fn read(self: &Arc<Self>, handle: u64, offset: u64, len: u32) -> Result<Vec<u8>> {
        let handle = self.handles.file(handle)?;
        loop {
            match handle.content.read(offset, u64::from(len)) {
                Ok(bytes) => return Ok(bytes),
                Err(problem) => {
                    handle.on_behalf(self.overcome(&handle.node, &handle.content, problem)).await?;
                    self.stream(&handle.node, &handle.content);
                }
            }
        }
    }

    /// Writes at `offset`, if nothing stands in the way and nothing but bytes changes: true when done.
    pub fn write_now(&self, handle: u64, offset: u64, data: &[u8], how: Writing) -> Result<bool> {
        let handle = self.handles.file(handle)?;
        check_writer(&handle)?;
        if has_more_to_do(&handle, how) {
            return Ok(false);
        }
        match put(&handle.content, offset, data, how, self.now()) {
            Ok(()) => {
                self.send_ahead(&handle);
                Ok(true)
            }
            Err(NotYet::Missing(_) | NotYet::Committing) => Ok(false),
            Err(NotYet::Failed(e)) => Err(e),
        }
    }

    /// The same, fetching blocks that it changes in part, ending privileges, and waiting for disks.
    pub async fn write(&self, handle: u64, offset: u64, data: &[u8], how: Writing) -> Result<()> {
        let handle = self.handles.file(handle)?;
        check_writer(&handle)?;
        let (node, content) = (&handle.node, &handle.content);
        let write = async {
            if how.by_user {
                self.kill_privileges(node).await?;
            }
            if handle.direct {
                self.end_capability(node).await?;
            }
            self.change(node, content, || put(content, offset, data, how, self.now())).await?;
            if handle.direct && how.durable { self.commit(node, content, true).await } else { Ok(()) }
        };
        handle.on_behalf(write).await?;
        self.send_ahead(&handle);
        Ok(())
    }

    /// Whether a write does more than change bytes, so that nobody may give up on it.
    pub fn writes_more(&self, handle: u64, how: Writing) -> bool {
        self.handles.file(handle).is_ok_and(|handle| has_more_to_do(&handle, how))
    }

    /// close(2): publishes what has changed. Its error is the caller's.
    ///
    /// A shell's `>` opens with O_TRUNC, duplicates the descriptor and closes the first one before anything is
    /// written. That close publishes nothing, or others would see the empty file in between. Nor does that of a process
    /// which only inherited the descriptor, as every program that another thread starts does until its exec, while the
    /// one that opened the file still has it: others would see half of what that is writing.
    pub async fn flush(&self, handle: u64, caller: Caller) -> Result<()> {
        let handle = self.handles.file(handle)?;
        if handle.content.is_only_emptied() && self.has_another_descriptor(caller.pid, &handle.node) {
            return Ok(());
        }
        if let Some(held) = handle.held {
            // A process's first thread has its number, so that most need not be looked up.
            let is_own = [0, held.process].contains(&caller.pid) || held.process == 0 || self.locks.processes.of(caller.pid).0 == held.process;
            if !is_own && self.has_another_descriptor(held.process, &handle.node) {
                return Ok(());
            }
            handle.on_behalf(self.commit(&handle.node, &handle.content, false)).await?;
            failpoint::reach("flush.done");
        }
        Ok(())
    }

    /// Whether the process of this thread has a descriptor of the inode for writing, other than one that it is closing.
    pub(super) fn has_another_descriptor(&self, pid: u32, node: &Node) -> bool {
        // The kernel shows the number that it heard last.
        let inode = [format!("ino:\t{}", node.id), format!("ino:\t{}", node.ino)];
        let mount = format!("mnt_id:\t{}", self.mount_id.load(Ordering::Relaxed));
        let writes = |line: &str| {
            let flags = line.strip_prefix("flags:").and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
            flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
        };
        let is_it = |text: String| {
            let has = |wanted: &String| text.lines().any(|line| line == wanted);
            inode.iter().any(has) && has(&mount) && text.lines().any(writes)
        };
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
        descriptors.flatten().filter_map(|d| std::fs::read_to_string(d.path()).ok()).any(is_it)
    }

    /// True where a flush has nothing to do.
    pub fn is_flushed(&self, handle: u64) -> bool {
        self.handles.file(handle).is_ok_and(|h| {
            let is_told = || {
                let state = h.node.state.lock();
                state.unborn.is_none() && state.held_back.is_none()
            };
            let is_flushed = h.held.is_none() || (!h.content.needs_commit(false) && !h.content.is_aside() && is_told());
            if is_flushed && h.held.is_some() {
                h.content.closed();
            }
            is_flushed
        })
    }

    /// fsync(2): publishes, and waits for the disks of all copies.
    pub async fn fsync(&self, handle: u64) -> Result<()> {
        let handle = self.handles.file(handle)?;
        if handle.held.is_some() {
            handle.on_behalf(self.commit(&handle.node, &handle.content, true)).await?;
            failpoint::reach("fsync.done");
        }
        Ok(())
    }

    /// fallocate(2): makes the file longer, or turns a range into zeros. Space is never reserved. As a write it ends
    /// suid and sgid where the caller is not root.
    pub async fn allocate(&self, handle: u64, offset: u64, len: u64, mode: i32, caller: Caller) -> Result<()> {
        let handle = self.handles.file(handle)?;
        check_writer(&handle)?;
        let (node, content) = (&handle.node, &handle.content);
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let end = offset.checked_add(len).filter(|_| len > 0).ok_or_else(|| Error::from(ErrorKind::Invalid))?;
        let zero = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => false,
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => true,
            libc::FALLOC_FL_ZERO_RANGE => true,
            _ => return Err(ErrorKind::NotSupported.into()),
        };
        if caller.uid != 0 {
            self.kill_privileges(node).await?;
        }
        if zero {
            self.change(node, content, || content.zero(offset, len, self.now())).await?;
        }
        if !keep_size && end > content.size() {
            self.change(node, content, || content.truncate(end.max(content.size()), self.now())).await?;
        }
        Ok(())
    }

    /// copy_file_range(2) between open files, from (handle, offset) to (handle, offset). Returns how much was copied:
    /// less than `len` where the source ends, or where it is much.
    pub async fn copy(&self, from: (u64, u64), to: (u64, u64), len: u64, caller: Caller) -> Result<u32> {
        let (source, target) = (self.handles.file(from.0)?, self.handles.file(to.0)?);
        check_writer(&target)?;
        if caller.uid != 0 {
            target.on_behalf(self.kill_privileges(&target.node)).await?;
        }
        let holders = source.node.state.lock().entry.layout.holders.clone();
        target.content.set_origin(&holders);
        let (len, mut done) = (len.min(COPY), 0);
        loop {
            let (a, b) = (source.content.clone(), target.content.clone());
            let (from, to, len) = (from.1 + done, to.1 + done, len - done);
            let (now, much) = (self.now(), len.min(a.size().saturating_sub(from)) > COPY_INLINE);
            let copy = move || copy_steps((&a, from), (&b, to), len, now);
            let (copied, problem) = match much {
                true => tokio::task::spawn_blocking(copy).await.map_err(|e| Error::new(ErrorKind::Internal, format!("copying: {e}")))?,
                false => copy(),
            };
            done += copied;
            let overcome = match problem {
                None => return Ok(done as u32),
                Some(CopyNotYet::Source(blocks)) => source.on_behalf(self.overcome(&source.node, &source.content, NotYet::Missing(blocks))).await,
                Some(CopyNotYet::Target(problem)) => target.on_behalf(self.overcome(&target.node, &target.content, problem)).await,
            };
            match overcome {
                Ok(()) => {}
                Err(_) if done > 0 => return Ok(done as u32),
                Err(e) => return Err(e),
            }
        }
    }

    /// lseek(2) with SEEK_DATA (`data`) or SEEK_HOLE; `None` behind the end.
    pub fn seek(&self, handle: u64, offset: u64, data: bool) -> Result<Option<u64>> {
        Ok(self.handles.file(handle)?.content.seek(offset, data))
    }

    /// Carries out a change, as soon as nothing stands in its way.
    pub(crate) async fn change(&self, node: &Arc<Node>, content: &Arc<Content>, attempt: impl Fn() -> Result<(), NotYet>) -> Result<()> {
        loop {
            match attempt() {
                Ok(()) => return Ok(()),
                Err(problem) => self.overcome(node, content, problem).await?,
            }
        }
    }

    async fn overcome(&self, node: &Arc<Node>, content: &Arc<Content>, problem: NotYet) -> Result<()> {
        match problem {
            NotYet::Failed(e) => Err(e),
            NotYet::Committing => {
                let _noted = steps::note(|| Target::Here { what: "an upload of the file".to_owned() });
                content.commit_done().await;
                Ok(())
            }
            NotYet::Missing(blocks) => {
                let entry = node.state.lock().entry.clone();
                self.fill(&entry, content, blocks).await
            }
        }
    }
}

/// Copies step by step, so that nobody waits long for either content; what stopped it, if it was not the end.
fn copy_steps((source, from): (&Content, u64), (target, to): (&Content, u64), len: u64, now: Timestamp) -> (u64, Option<CopyNotYet>) {
    let mut done = 0;
    while done < len {
        let at = to + done;
        let step = (COPY_STEP - at % COPY_STEP).min(len - done);
        match target.copy_from(source, from + done, at, step, now) {
            Ok(0) => break,
            Ok(copied) => done += copied,
            Err(problem) => return (done, Some(problem)),
        }
    }
    (done, None)
}

fn put(content: &Content, offset: u64, data: &[u8], how: Writing, now: Timestamp) -> Result<(), NotYet> {
    if how.mapped { content.write_back(offset, data, now) } else { content.write(offset, data, how.append, now) }
}

/// A write ends suid, sgid and security.capability; the last of these the kernel leaves to us where it writes past its page cache.
fn has_more_to_do(handle: &FileHandle, how: Writing) -> bool {
    let state = handle.node.state.lock();
    let is_privileged = how.by_user && state.entry.attributes.mode & 0o6000 != 0;
    is_privileged || (handle.direct && (how.durable || state.may_have_capability()))
}

fn check_writer(handle: &FileHandle) -> Result<()> {
    if handle.held.is_some() { Ok(()) } else { Err(Error::new(ErrorKind::Invalid, "the file is not open for writing")) }
}
