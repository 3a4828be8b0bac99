//! flock(2) and fcntl(2) locks: asked for at the lock service, so that they exclude each
//! other across clients.
//!
//! The mount knows only which of its files have any at all, so that closing the others
//! costs nothing. Invariant: whoever may hold a lock is in the table.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dfs_common::api::lock::{Family, Mode, RangeRow, Span};
use dfs_common::clients::cluster::RangeLock;
use dfs_common::ids::InodeId;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use super::interrupt::ask_in_line;
use super::locks::RETRY;
use super::process::process_of;
use super::{Caller, Vfs};
use crate::system;

/// A lock as a program asks for it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The kernel's number of the open file (flock) or of the process (fcntl).
    pub owner: u64,
    /// Which bytes.
    pub span: Span,
    /// `None`: unlock.
    pub mode: Option<Mode>,
    /// Wait for it.
    pub wait: bool,
}

/// Who may hold locks on which files.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    holders: Mutex<HashMap<InodeId, Vec<(Family, u64)>>>,
}

impl Ranges {
    fn add(&self, ino: InodeId, owner: (Family, u64)) {
        let mut holders = self.holders.lock();
        let owners = holders.entry(ino).or_default();
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }

    fn remove(&self, ino: InodeId, owner: (Family, u64)) -> bool {
        let mut holders = self.holders.lock();
        let Some(owners) = holders.get_mut(&ino) else { return false };
        let before = owners.len();
        owners.retain(|o| *o != owner);
        let removed = owners.len() < before;
        if owners.is_empty() {
            holders.remove(&ino);
        }
        removed
    }

    fn has(&self, ino: InodeId, owner: (Family, u64)) -> bool {
        self.holders.lock().get(&ino).is_some_and(|owners| owners.contains(&owner))
    }

    /// The session behind all of them has expired: they are lost. Returns on how many files.
    pub(crate) fn forget(&self) -> usize {
        std::mem::take(&mut *self.holders.lock()).len()
    }
}

impl Vfs {
    /// flock(2), or fcntl(2) with F_SETLK or F_SETLKW.
    pub async fn set_range(self: &Arc<Self>, id: u64, wanted: Wanted, caller: Caller) -> Result<()> {
        let family = family_of(caller, wanted.span);
        let lock = self.range_lock(id, family, wanted, caller)?;
        let (ino, owner) = (lock.ino, (family, lock.owner));
        if wanted.mode.is_none() {
            if !self.ranges.has(ino, owner) {
                return Ok(());
            }
            // Who gets the lock next and opens the file sees what was written under it.
            let published = self.publish_written(id).await;
            if lock.span == Span::ALL {
                self.ranges.remove(ino, owner);
            }
            self.unlock_range(lock).await?;
            return published;
        }
        self.ranges.add(ino, owner);
        let request = self.cluster.next_lock_request();
        let wait = if wanted.wait { None } else { Some(Duration::ZERO) };
        let (ask, cancel) = (self.cluster.lock_range(&lock, request, wait), self.cluster.cancel_range(&lock, request));
        ask_in_line(caller, ask, cancel, || self.tell_later("cancel a lock", lock.clone(), Some(request))).await
    }

    /// fcntl(2) with F_GETLK: the first lock in the way.
    pub async fn test_range(&self, id: u64, wanted: Wanted, caller: Caller) -> Result<Option<RangeRow>> {
        let lock = self.range_lock(id, Family::Posix, wanted, caller)?;
        self.cluster.test_range(&lock).await
    }

    /// Whether a row of the lock service is about a process of this host, whose number means something here.
    pub fn is_of_this_host(&self, row: &RangeRow) -> bool {
        row.process.host == system::host_name()
    }

    /// Whether closing this file has locks to give up.
    pub fn has_ranges(&self, id: u64, family: Family, owner: u64) -> bool {
        self.ino(id).is_ok_and(|ino| self.ranges.has(ino, (family, owner)))
    }

    /// A process closed a descriptor (fcntl locks), or an open file its last one (flock): all its locks on the file end.
    pub async fn end_ranges(self: &Arc<Self>, id: u64, family: Family, owner: u64) {
        let Ok(ino) = self.ino(id) else { return };
        if !self.ranges.remove(ino, (family, owner)) {
            return;
        }
        let lock = RangeLock { ino, family, owner, span: Span::ALL, mode: Mode::Shared, pid: 0, program: String::new() };
        if let Err(e) = self.unlock_range(lock).await {
            log::warn!("locks on inode {ino} were not given up: {e}");
        }
    }

    /// Unlocks; a service that does not answer is told later, as this session would hold it for ever.
    async fn unlock_range(self: &Arc<Self>, lock: RangeLock) -> Result<()> {
        let result = self.cluster.unlock_range(&lock).await;
        if result.as_ref().is_err_and(|e| e.kind().is_transient()) {
            self.tell_later("unlock", lock, None);
        }
        result
    }

    /// Unlocks, or cancels `request`, however long the service is away.
    fn tell_later(self: &Arc<Self>, what: &'static str, lock: RangeLock, request: Option<u64>) {
        let vfs = self.clone();
        tokio::spawn(async move {
            let told = async {
                loop {
                    tokio::time::sleep(RETRY).await;
                    let told = match request {
                        Some(request) => vfs.cluster.cancel_range(&lock, request).await,
                        None => vfs.cluster.unlock_range(&lock).await,
                    };
                    if !told.is_err_and(|e| e.kind().is_transient()) {
                        return;
                    }
                }
            };
            vfs.waits.watch(what, lock.ino.0, told).await;
        });
    }

    async fn publish_written(&self, id: u64) -> Result<()> {
        let node = self.node(id)?;
        let written = {
            let state = node.state.lock();
            state.content.clone().filter(|_| state.writers > 0)
        };
        match written {
            Some(content) => self.commit(&node, &content, false).await,
            None => Ok(()),
        }
    }

    fn range_lock(&self, id: u64, family: Family, wanted: Wanted, caller: Caller) -> Result<RangeLock> {
        let ino = self.ino(id)?;
        if wanted.span.first > wanted.span.last {
            return Err(Error::new(ErrorKind::Invalid, "a range ends before it begins"));
        }
        let (pid, program) = process_of(caller.pid);
        let mode = wanted.mode.unwrap_or(Mode::Shared);
        Ok(RangeLock { ino, family, owner: wanted.owner, span: wanted.span, mode, pid, program })
    }
}

/// Which call a lock request comes from. The FUSE library does not tell, but the calling thread is still inside of it.
fn family_of(caller: Caller, span: Span) -> Family {
    let call = std::fs::read_to_string(format!("/proc/{}/syscall", caller.pid)).unwrap_or_default();
    match call.split_whitespace().next().and_then(|number| number.parse::<i64>().ok()) {
        Some(libc::SYS_flock) => Family::Flock,
        Some(libc::SYS_fcntl) => Family::Posix,
        // A thread of another architecture, or one that may not be looked at: flock is always about the whole file.
        _ if span == Span::ALL => Family::Flock,
        _ => Family::Posix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_locked_has_something_to_give_up() {
        let (ranges, file) = (Ranges::default(), InodeId(7));
        ranges.add(file, (Family::Posix, 1));
        ranges.add(file, (Family::Posix, 1));
        ranges.add(file, (Family::Flock, 1));
        assert!(ranges.has(file, (Family::Posix, 1)) && !ranges.has(file, (Family::Posix, 2)));
        assert!(ranges.remove(file, (Family::Posix, 1)) && !ranges.remove(file, (Family::Posix, 1)));
        assert_eq!((ranges.forget(), ranges.forget()), (1, 0));
    }
}
