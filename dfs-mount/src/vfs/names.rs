//! Names: lookup, making, linking, removing and renaming entries.

use dfs_common::api::directory::{Link, Lookup, Made, Make, ReadLink, Remove, Rename, RenameMode};
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::name::Text;
use dfs_common::{Error, ErrorKind, Result};

use super::coherence::{Place, Told};
use super::leases::Stamp;
use super::{Caller, Vfs};

/// A new entry that is no regular file.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// Its type.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// For devices.
    pub rdev: u32,
    /// For symlinks.
    pub target: Option<Vec<u8>>,
}

impl Vfs {
    /// Finds `name` in the directory `parent`. An absent name is an answer, too.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<Told> {
        let place = self.place(parent, name)?;
        let known = self.telling().known(&place);
        if let Some(told) = known {
            return Ok(told);
        }
        self.give_birth_at(&place).await?;
        let lookup = Lookup { parent: place.directory.ino, name: place.name.clone() };
        let (result, stamp) = self.ask(&lookup).await;
        let telling = self.telling();
        match result {
            Ok(entry) => Ok(telling.introduce(&entry, &stamp, Some(place))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(telling.absent(place, stamp)),
            Err(e) => Err(e),
        }
    }

    /// The kernel dropped `count` references to a node.
    pub fn forget(&self, id: u64, count: u64) {
        self.nodes.forget(id, count);
    }

    /// mkdir, mknod, symlink, and the first half of create.
    pub async fn make(&self, parent: u64, name: &[u8], new: NewEntry, caller: Caller) -> Result<Told> {
        let place = self.place(parent, name)?;
        self.give_birth_at(&place).await?;
        let wish = self.wish(place.directory.ino, new.kind, caller);
        let make = Make {
            umask: caller.umask,
            uid: caller.uid,
            gid: caller.gid,
            rdev: new.rdev,
            target: new.target.map(Text),
            lock: new.kind == FileKind::File && self.cluster.may_have_new_locks(),
            reserve: wish.count,
            ..Make::new(place.directory.ino, place.name.clone(), new.kind, new.mode & 0o7777)
        };
        let _making = self.locks.making.begin();
        let (made, stamp) = self.mutate(&make).await;
        let mut made = made?;
        let mut reserved = made.reserved.take();
        if reserved.is_some() {
            // What is made under these numbers was made later.
            self.cluster.reached(made.entry.attributes.ctime);
        }
        if made.entry.layout.fresh == Some(self.cluster.id()) {
            self.keep_fresh(made.entry.attributes.ino);
        }
        if make.kind == FileKind::File {
            self.hear_wish(wish, reserved.take(), &stamp);
        }
        let is_new_directory = make.kind == FileKind::Directory && stamp.grants(made.entry.attributes.ino);
        let told = self.told_of_new_name(made, place, &stamp);
        if is_new_directory && let Some(node) = told.node() {
            node.state.lock().entries.is_new();
            self.hear_of_new(node.ino, reserved, &stamp);
        }
        Ok(told)
    }

    /// Gives a file another name.
    pub async fn link(&self, id: u64, parent: u64, name: &[u8]) -> Result<Told> {
        let (node, place) = (self.node(id)?, self.place(parent, name)?);
        if node.state.lock().superseded {
            // A new name must lead to the current version, which this node is not.
            return Err(ErrorKind::Stale.into());
        }
        self.give_birth(&node).await?;
        let (made, stamp) = self.mutate(&Link { ino: node.ino, parent: place.directory.ino, name: place.name.clone() }).await;
        let made = made?;
        self.telling().changed(&node, &stamp);
        Ok(self.told_of_new_name(made, place, &stamp).for_now())
    }

    fn told_of_new_name(&self, made: Made, place: Place, stamp: &Stamp) -> Told {
        let mut telling = self.telling();
        telling.changed_entry(&place, Some(made.entry.attributes.ino), false, stamp);
        telling.hear_attributes(&place.directory, made.directory, stamp);
        telling.introduce(&made.entry, stamp, Some(place))
    }

    /// The target of a symlink.
    pub async fn read_link(&self, id: u64) -> Result<Vec<u8>> {
        Ok(self.cluster.directory.call(&ReadLink { ino: self.ino(id)? }).await?.0)
    }

    /// unlink or, with `directory`, rmdir.
    pub async fn remove(&self, parent: u64, name: &[u8], directory: bool) -> Result<()> {
        let place = self.place(parent, name)?;
        match directory {
            true => self.give_births(None).await?,
            false => self.give_birth_at(&place).await?,
        }
        let (removed, stamp) = self.mutate(&Remove { parent: place.directory.ino, name: place.name.clone(), directory }).await;
        let removed = removed?;
        {
            let mut telling = self.telling();
            telling.changed_entry(&place, None, false, &stamp);
            telling.hear_attributes(&place.directory, removed.directory, &stamp);
        }
        self.name_gone(&place, removed.entry, &stamp);
        Ok(())
    }

    /// renameat2 without RENAME_WHITEOUT.
    pub async fn rename(&self, parent: u64, name: &[u8], new_parent: u64, new_name: &[u8], mode: RenameMode) -> Result<()> {
        let (from, to) = (self.place(parent, name)?, self.place(new_parent, new_name)?);
        let rename = Rename { parent: from.directory.ino, name: from.name.clone(), new_parent: to.directory.ino, new_name: to.name.clone(), mode };
        self.give_births(None).await?;
        let (renamed, stamp) = self.mutate(&rename).await;
        let renamed = renamed?;
        let moved = renamed.entry.attributes.ino;
        let other = renamed.replaced.as_ref().map(|r| r.attributes.ino);
        if other == Some(moved) {
            // Two names of one inode: both stay. A kernel that had them as two nodes moves what it keeps all the same.
            self.forget_all().await;
            return Ok(());
        }
        let exchanged = other.filter(|_| mode == RenameMode::Exchange);
        let leased = {
            let mut telling = self.telling();
            let from_leased = telling.changed_entry(&from, exchanged, exchanged.is_some(), &stamp);
            let to_leased = telling.changed_entry(&to, Some(moved), true, &stamp);
            telling.hear_attributes(&from.directory, renamed.directory, &stamp);
            telling.hear_attributes(&to.directory, renamed.new_directory, &stamp);
            to_leased && (from_leased || exchanged.is_none())
        };
        self.name_moved(renamed.entry, &from, &to, &stamp);
        match renamed.replaced {
            Some(replaced) if exchanged.is_some() => self.name_moved(replaced, &to, &from, &stamp),
            Some(replaced) => self.name_gone(&to, replaced, &stamp),
            None => {}
        }
        let is_uncovered = |ino| self.nodes.all_of(ino).iter().any(|node| node.is_open_unleased());
        if !leased || is_uncovered(moved) || exchanged.is_some_and(is_uncovered) {
            // The kernel moves what it keeps along with the name, to where it must not keep it.
            self.forget_all().await;
        }
        Ok(())
    }

    fn name_moved(&self, entry: Entry, from: &Place, to: &Place, stamp: &Stamp) {
        let Some(node) = self.nodes.current(entry.attributes.ino) else { return };
        self.changed(&node, entry, stamp);
        let mut state = node.state.lock();
        state.remove_place(from.directory.ino, &from.name);
        state.add_place(to.directory.ino, &to.name);
    }

    /// `place` no longer leads to `entry`. Where it was the last name, the inode lives on only for those who have it open.
    fn name_gone(&self, place: &Place, entry: Entry, stamp: &Stamp) {
        let (ino, orphan) = (entry.attributes.ino, entry.attributes.nlink == 0);
        if let Some(node) = self.nodes.current(ino) {
            self.changed(&node, entry, stamp);
            let mut state = node.state.lock();
            state.remove_place(place.directory.ino, &place.name);
            if orphan && let Some(content) = &state.content {
                // It ends with those who have it open, by a crash too.
                self.shelf.end_notes(content);
            }
        }
        if orphan {
            self.let_go_if_closed(ino);
        }
    }
}

/// renameat2's flags as a mode; `Invalid` for the ones that no network file system has.
pub fn rename_mode(no_replace: bool, exchange: bool, other: bool) -> Result<RenameMode> {
    match (no_replace, exchange, other) {
        (false, false, false) => Ok(RenameMode::Replace),
        (true, false, false) => Ok(RenameMode::NoReplace),
        (false, true, false) => Ok(RenameMode::Exchange),
        _ => Err(Error::new(ErrorKind::Invalid, "unknown flags of renameat2")),
    }
}
