//! Extended attributes, within the limits that the wire contract states.

use dfs_common::api::Done;
use dfs_common::api::directory::{GetXattr, ListXattrs, RemoveXattr, SetXattr, XattrMode};
use dfs_common::ids::InodeId;
use dfs_common::name::{Name, Text};
use dfs_common::{Error, ErrorKind, Result};

use super::change::{Change, load};
use super::keys;
use crate::store::View;

const VALUE_MAX: usize = 65_536;
const COUNT_MAX: u32 = 1_000;
/// Of names and values of one inode together.
const BYTES_MAX: u32 = 1 << 20;
const NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];

pub(crate) fn get_xattr(view: &dyn View, request: &GetXattr) -> Result<Text> {
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

pub(crate) fn set_xattr(change: &mut Change<'_>, request: &SetXattr) -> Result<Done> {
    let SetXattr { ino, name, value, mode } = request;
    check_name(name)?;
    if value.0.len() > VALUE_MAX {
        return Err(Error::new(ErrorKind::TooBig, format!("a value has at most {VALUE_MAX} bytes, this one {}", value.0.len())));
    }
    let inode = change.load(*ino)?;
    let key = keys::xattr(*ino, name.as_bytes());
    let old = change.view.get(&key)?;
    match (mode, &old) {
        (XattrMode::Create, Some(_)) => return Err(Error::new(ErrorKind::Exists, format!("inode {ino} has a '{name}'"))),
        (XattrMode::Replace, None) => return Err(absent(*ino, name)),
        _ => {}
    }
    let before = old.as_ref().map_or(0, |old| size(name, old));
    let (count, bytes) = (inode.xattrs + u32::from(old.is_none()), inode.xattr_bytes - before + size(name, &value.0));
    if count > COUNT_MAX {
        return Err(Error::new(ErrorKind::TooMany, format!("inode {ino} has {COUNT_MAX} extended attributes, the most it may have")));
    }
    if bytes > BYTES_MAX {
        return Err(Error::new(ErrorKind::NoSpace, format!("the extended attributes of inode {ino} would be over {BYTES_MAX} bytes")));
    }
    change.view.put(key, value.0.clone());
    note(change, *ino, count, bytes)
}

pub(crate) fn remove_xattr(change: &mut Change<'_>, request: &RemoveXattr) -> Result<Done> {
    let RemoveXattr { ino, name } = request;
    check_name(name)?;
    let inode = change.load(*ino)?;
    let key = keys::xattr(*ino, name.as_bytes());
    let old = change.view.get(&key)?.ok_or_else(|| absent(*ino, name))?;
    change.view.delete(key);
    note(change, *ino, inode.xattrs - 1, inode.xattr_bytes - size(name, &old))
}

fn note(change: &mut Change<'_>, ino: InodeId, count: u32, bytes: u32) -> Result<Done> {
    let now = change.now.wall;
    change.edit(ino, |inode| {
        (inode.xattrs, inode.xattr_bytes) = (count, bytes);
        inode.ctime = now;
    })?;
    Ok(Done {})
}

fn size(name: &Name, value: &[u8]) -> u32 {
    (name.as_bytes().len() + value.len()) as u32
}

fn check_name(name: &Name) -> Result<()> {
    let bytes = name.as_bytes();
    if bytes.starts_with(b"system.posix_acl_") {
        return Err(Error::new(ErrorKind::NotSupported, "access control lists are not supported"));
    }
    match NAMESPACES.iter().find_map(|namespace| bytes.strip_prefix(*namespace)) {
        Some([]) => Err(Error::new(ErrorKind::Invalid, format!("'{name}' is only a namespace"))),
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorKind::NotSupported, format!("'{name}' is in no namespace: user., trusted., security. and system. are known"))),
    }
}

fn absent(ino: InodeId, name: &Name) -> Error {
    Error::new(ErrorKind::NoAttribute, format!("inode {ino} has no '{name}'"))
}
