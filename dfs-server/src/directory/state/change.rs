//! One mutation under way: the rows it reads and writes, and what it does to the tables.
//!
//! Whoever drives it decides whether its rows are committed; until then nothing has
//! happened. A mutation that fails is thrown away whole.

use dfs_common::attributes::{Attributes, Timestamp};
use dfs_common::ids::{InodeId, SessionId};
use dfs_common::user::User;
use dfs_common::{Error, ErrorKind, Result};

use super::keys;
use super::past::{self, Lost};
use super::records::{Dentry, Inode, Orphan, Record, ServerRecord, SessionRecord, UnderReplicated, VersionRecord};
use super::tables::{Moment, Policy, Tables};
use crate::store::{Overlay, View};

/// What a committed mutation changes in the tables.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(super) inodes: i64,
    pub(super) orphans: i64,
    pub(super) kept: i64,
    pub(super) orphaned: Vec<(InodeId, Orphan)>,
    pub(super) released: Vec<(InodeId, SessionId)>,
    pub(super) freed: Vec<InodeId>,
    pub(super) settled: Vec<InodeId>,
    pub(super) under: Vec<(InodeId, bool)>,
    pub(super) opened: Option<(SessionId, SessionRecord)>,
    pub(super) closed: Option<SessionId>,
    pub(super) expired: Option<(SessionId, Timestamp)>,
    pub(super) forgotten: Option<SessionId>,
    pub(super) registered: Option<(dfs_common::ids::ServerId, ServerRecord)>,
}

impl Effects {
    /// The session that it ends.
    pub(crate) fn closed(&self) -> Option<SessionId> {
        self.closed
    }
}

/// A mutation under way. Of the tables it may take numbers and note placements; the rest changes by [`Effects`].
#[derive(Debug)]
pub(crate) struct Change<'a> {
    pub(crate) view: Overlay<'a>,
    pub(crate) tables: &'a mut Tables,
    pub(crate) policy: &'a Policy,
    pub(crate) now: Moment,
    /// Who makes it, where it is a client.
    pub(crate) session: Option<SessionId>,
    /// On whose behalf; `None` has the rights of root.
    pub(crate) user: Option<User>,
    pub(crate) effects: Effects,
}

/// The inode, orphans included.
pub(super) fn load(view: &dyn View, ino: InodeId) -> Result<Inode> {
    match view.get(&keys::inode(ino))? {
        Some(value) => Inode::decode(&value),
        None => Err(Error::new(ErrorKind::NotFound, format!("inode {ino} does not exist"))),
    }
}

/// A directory that has not been removed.
pub(super) fn load_directory(view: &dyn View, ino: InodeId) -> Result<Inode> {
    let inode = load(view, ino)?;
    if !inode.is_directory() {
        return Err(Error::new(ErrorKind::NotDirectory, format!("inode {ino} is no directory")));
    }
    if inode.nlink == 0 {
        return Err(Error::new(ErrorKind::NotFound, format!("directory {ino} was removed")));
    }
    Ok(inode)
}

/// Where `name` in `parent` leads.
pub(super) fn find(view: &dyn View, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>> {
    view.get(&keys::dentry(parent, name))?.map(|value| Dentry::decode(&value).map(|d| d.ino)).transpose()
}

impl<'a> Change<'a> {
    /// No change yet above `below`.
    pub(crate) fn new(below: &'a dyn View, tables: &'a mut Tables, policy: &'a Policy, now: Moment, session: Option<SessionId>) -> Self {
        Self { view: Overlay::new(below), tables, policy, now, session, user: None, effects: Effects::default() }
    }

    /// The user, where it is not root.
    pub(super) fn ordinary_user(&self) -> Option<&User> {
        self.user.as_ref().filter(|user| !user.is_root())
    }

    /// Host and program of a live session.
    pub(super) fn author(&self, session: SessionId) -> Option<String> {
        let client = &self.tables.sessions.get(&session)?.record.client;
        Some(format!("{} {}[{}]", client.host, client.program, client.pid))
    }

    pub(super) fn load(&self, ino: InodeId) -> Result<Inode> {
        load(&self.view, ino)
    }

    pub(super) fn put_inode(&mut self, ino: InodeId, inode: &Inode) {
        self.view.put(keys::inode(ino), inode.encode());
    }

    /// Loads, changes and stores an inode; returns it as stored.
    pub(super) fn edit(&mut self, ino: InodeId, edit: impl FnOnce(&mut Inode)) -> Result<Inode> {
        let mut inode = self.load(ino)?;
        edit(&mut inode);
        self.put_inode(ino, &inode);
        Ok(inode)
    }

    /// Notes that the entries of directory `ino` changed, and its count of subdirectories by `subdirectories`. Returns what it is then.
    pub(super) fn touch_directory(&mut self, ino: InodeId, subdirectories: i32) -> Result<Attributes> {
        self.touch_directory_at(ino, subdirectories, self.now.wall)
    }

    /// The same for what happened at `time`, which is not later than now.
    pub(super) fn touch_directory_at(&mut self, ino: InodeId, subdirectories: i32, time: Timestamp) -> Result<Attributes> {
        let now = self.now.wall;
        // What was set to a time to come is set back by any change.
        let later = |known: Timestamp| if known > now { time } else { known.max(time) };
        let parent = self.edit(ino, |directory| {
            directory.nlink = directory.nlink.saturating_add_signed(subdirectories);
            (directory.mtime, directory.ctime) = (later(directory.mtime), later(directory.ctime));
        })?;
        assert!(parent.is_directory() && parent.nlink >= 2, "entries change only in directories that have names");
        Ok(parent.entry(ino).attributes)
    }

    pub(super) fn put_dentry(&mut self, parent: InodeId, name: &[u8], ino: InodeId) {
        self.view.put(keys::dentry(parent, name), Dentry { ino }.encode());
    }

    /// Takes one name from an inode that is no directory, or the only one from a directory.
    /// At none it becomes an orphan of the sessions that may have it open; where there are none, it is only kept, or goes at once.
    pub(super) fn drop_name(&mut self, ino: InodeId, lost: &Lost<'_>) -> Result<Inode> {
        let now = self.now.wall;
        let inode = self.edit(ino, |inode| {
            inode.nlink = if inode.is_directory() { 0 } else { inode.nlink.saturating_sub(1) };
            inode.ctime = now;
        })?;
        let kept = past::note_removal(self, lost, ino, &inode);
        if inode.nlink > 0 {
            return Ok(inode);
        }
        let sessions = self.tables.aware.of(ino);
        if sessions.is_empty() && kept == 0 {
            self.effects.inodes -= 1;
            self.free(ino)?;
            return Ok(inode);
        }
        let orphan = Orphan { sessions, kept };
        self.view.put(keys::orphan(ino), orphan.encode());
        if orphan.sessions.is_empty() {
            self.count_kept(1);
        } else {
            self.effects.orphans += 1;
            self.effects.orphaned.push((ino, orphan));
        }
        Ok(inode)
    }

    /// So many inodes that nobody has open become kept ones; negative: they are in use again.
    pub(super) fn count_kept(&mut self, more: i64) {
        self.effects.kept += more;
        self.effects.inodes -= more;
    }

    /// Deletes a removed inode that nobody has open; its versions go to their holders as orders to drop. The caller counts.
    pub(super) fn free(&mut self, ino: InodeId) -> Result<()> {
        let inode = self.load(ino)?;
        assert_eq!(inode.nlink, 0, "inode {ino} has names");
        if inode.xattrs > 0 {
            let (from, to) = keys::xattrs(ino);
            for (key, _) in self.view.scan(&from, &to, usize::MAX)? {
                self.view.delete(key);
            }
        }
        if inode.version.0 > 0 {
            let (from, to) = keys::versions(ino);
            for (key, value) in self.view.scan(&from, &to, usize::MAX)? {
                self.drop_version(key, &VersionRecord::decode(&value)?);
            }
            self.set_missing(ino, None)?;
        }
        self.view.delete(keys::inode(ino));
        self.view.delete(keys::orphan(ino));
        self.effects.freed.push(ino);
        Ok(())
    }

    /// Deletes a version's row and orders its holders to drop it.
    pub(super) fn drop_version(&mut self, key: crate::store::Key, record: &VersionRecord) {
        let what = keys::version_of(&key);
        for &holder in &record.holders {
            self.view.put(keys::drop_order(holder, what), Vec::new());
        }
        if record.superseded != Timestamp(0) {
            self.view.delete(keys::superseded(record.superseded, what));
        }
        self.view.delete(key);
    }

    /// Notes which servers lack the current version of `ino`; `None`: it has all its copies.
    pub(super) fn set_missing(&mut self, ino: InodeId, missing: Option<UnderReplicated>) -> Result<()> {
        let key = keys::under_replicated(ino);
        match missing {
            Some(record) => {
                self.view.put(key, record.encode());
                self.effects.under.push((ino, true));
            }
            None if self.view.get(&key)?.is_some() => {
                self.view.delete(key);
                self.effects.under.push((ino, false));
            }
            None => {}
        }
        Ok(())
    }
}
