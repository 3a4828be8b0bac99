//! Extended attributes, within the limits that the wire contract states.

use dfs_common::api::directory::{GetXattr, ListXattrs, RemoveXattr, SetXattr, XattrMode};
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::ids::InodeId;
use dfs_common::name::{NAME_MAX, Name, Text};
use dfs_common::{Error, ErrorKind, Result, xattr};

use super::acl::{self, Acl};
use super::change::{Change, load};
use super::keys;
use super::records::Inode;
use crate::store::View;

const VALUE_MAX: usize = 65_536;
const COUNT_MAX: u32 = 1_000;
/// Of names and values of one inode together.
const BYTES_MAX: u32 = 1 << 20;
/// Of the names of one inode, each with its NUL: what listxattr(2) can return.
const LIST_MAX: usize = 65_536;

pub(crate) fn get_xattr(view: &dyn View, request: &GetXattr) -> Result<Text> {
    xattr::check(&request.name)?;
    load(view, request.ino)?;
    view.get(&keys::xattr(request.ino, request.name.as_bytes()))?.map(Text).ok_or_else(|| absent(request.ino, &request.name))
}

pub(crate) fn list_xattrs(view: &dyn View, request: &ListXattrs) -> Result<Vec<Name>> {
    if load(view, request.ino)?.xattrs == 0 {
        return Ok(Vec::new());
    }
    let (from, to) = keys::xattrs(request.ino);
    view.scan(&from, &to, usize::MAX)?.iter().map(|(key, _)| Name::new(keys::name_of(key))).collect()
}

pub(crate) fn set_xattr(change: &mut Change<'_>, request: &SetXattr) -> Result<Entry> {
    let SetXattr { ino, name, value, mode } = request;
    xattr::check(name)?;
    if value.0.len() > VALUE_MAX {
        return Err(Error::new(ErrorKind::TooBig, format!("a value has at most {VALUE_MAX} bytes, this one {}", value.0.len())));
    }
    let inode = change.load(*ino)?;
    if name.as_bytes().starts_with(b"user.") && !takes_user_xattrs(inode.kind) {
        return Err(Error::new(ErrorKind::NotPermitted, format!("inode {ino} is neither file nor directory, and has no attributes of users")));
    }
    let exists = change.view.get(&keys::xattr(*ino, name.as_bytes()))?.is_some();
    match mode {
        XattrMode::Create if exists => return Err(Error::new(ErrorKind::Exists, format!("inode {ino} has a '{name}'"))),
        XattrMode::Replace if !exists => return Err(absent(*ino, name)),
        _ => {}
    }
    if !xattr::is_list(name) {
        return store(change, *ino, name, Some(value.0.clone()));
    }
    let acl = checked_acl(&inode, name, &value.0)?;
    if name.as_bytes() == acl::ACCESS
        && let Some(acl) = &acl
    {
        change.edit(*ino, |inode| inode.mode = acl.mode(inode.mode))?;
    }
    // A list that says no more than the mode is not kept, so that nobody need ask for it.
    let kept = acl.filter(|acl| name.as_bytes() == acl::DEFAULT || !acl.is_mode());
    store(change, *ino, name, kept.map(|acl| acl.encode()))
}

pub(crate) fn remove_xattr(change: &mut Change<'_>, request: &RemoveXattr) -> Result<Entry> {
    let RemoveXattr { ino, name } = request;
    xattr::check(name)?;
    change.load(*ino)?;
    // Without a list the mode says it all; to take that away is no mistake, as on local disks.
    if !xattr::is_list(name) && change.view.get(&keys::xattr(*ino, name.as_bytes()))?.is_none() {
        return Err(absent(*ino, name));
    }
    store(change, *ino, name, None)
}

/// Replaces or, with `None`, removes a value, within the limits of one inode.
fn store(change: &mut Change<'_>, ino: InodeId, name: &Name, value: Option<Vec<u8>>) -> Result<Entry> {
    let inode = change.load(ino)?;
    let key = keys::xattr(ino, name.as_bytes());
    let old = change.view.get(&key)?;
    let of = |value: &Option<Vec<u8>>| value.as_ref().map_or((0, 0), |value| (1, size(name, value)));
    let (before, after) = (of(&old), of(&value));
    let (count, bytes) = (inode.xattrs - before.0 + after.0, inode.xattr_bytes - before.1 + after.1);
    if count > COUNT_MAX {
        return Err(Error::new(ErrorKind::NoSpace, format!("inode {ino} has {COUNT_MAX} extended attributes, the most it may have")));
    }
    if bytes > BYTES_MAX {
        return Err(Error::new(ErrorKind::NoSpace, format!("the extended attributes of inode {ino} would be over {BYTES_MAX} bytes")));
    }
    if count > inode.xattrs && count as usize * (NAME_MAX + 1) > LIST_MAX {
        let (from, to) = keys::xattrs(ino);
        let names = change.view.scan(&from, &to, usize::MAX)?.iter().map(|(key, _)| keys::name_of(key).len() + 1).sum::<usize>();
        if names + name.as_bytes().len() + 1 > LIST_MAX {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("the names of the extended attributes of inode {ino} would be over {LIST_MAX} bytes"),
            ));
        }
    }
    match value {
        Some(value) => change.view.put(key, value),
        None if old.is_some() => change.view.delete(key),
        None => {}
    }
    let now = change.now.wall;
    let inode = change.edit(ino, |inode| {
        (inode.xattrs, inode.xattr_bytes) = (count, bytes);
        inode.ctime = now;
    })?;
    Ok(inode.entry(ino))
}

/// Whether an inode has extended attributes of users: its mode means something else where it is neither file nor directory.
pub(super) fn takes_user_xattrs(kind: FileKind) -> bool {
    matches!(kind, FileKind::File | FileKind::Directory)
}

fn checked_acl(inode: &Inode, name: &Name, value: &[u8]) -> Result<Option<Acl>> {
    if inode.kind == FileKind::Symlink {
        return Err(Error::new(ErrorKind::NotSupported, "a symlink has no access control list"));
    }
    if name.as_bytes() == acl::DEFAULT && !inode.is_directory() {
        return Err(Error::new(ErrorKind::Forbidden, "only a directory has a default access control list"));
    }
    Acl::decode(value)
}

/// The access control list `name` (access or default) of an inode.
pub(super) fn load_acl(view: &dyn View, ino: InodeId, inode: &Inode, name: &[u8]) -> Result<Option<Acl>> {
    if inode.xattrs == 0 {
        return Ok(None);
    }
    match view.get(&keys::xattr(ino, name))? {
        Some(value) => Acl::decode(&value).map_err(|e| Error::new(ErrorKind::Corrupt, format!("inode {ino}: {e}"))),
        None => Ok(None),
    }
}

/// chmod of an inode that may have an access list.
pub(super) fn follow_mode(change: &mut Change<'_>, ino: InodeId, mode: u32) -> Result<()> {
    let inode = change.load(ino)?;
    if let Some(mut acl) = load_acl(&change.view, ino, &inode, acl::ACCESS)? {
        acl.set_mode(mode);
        change.view.put(keys::xattr(ino, acl::ACCESS), acl.encode());
    }
    Ok(())
}

/// Gives a new inode an access control list; the caller stores the inode.
pub(super) fn put_acl(change: &mut Change<'_>, ino: InodeId, inode: &mut Inode, name: &[u8], acl: &Acl) {
    let value = acl.encode();
    inode.xattrs += 1;
    inode.xattr_bytes += (name.len() + value.len()) as u32;
    change.view.put(keys::xattr(ino, name), value);
}

fn size(name: &Name, value: &[u8]) -> u32 {
    (name.as_bytes().len() + value.len()) as u32
}

fn absent(ino: InodeId, name: &Name) -> Error {
    Error::new(ErrorKind::NoAttribute, format!("inode {ino} has no '{name}'"))
}
