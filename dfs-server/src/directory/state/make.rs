//! Creating entries of every type.

use dfs_common::api::directory::{Birth, Made, Make};
use dfs_common::attributes::{FileKind, Timestamp};
use dfs_common::ids::{InodeId, SessionId, Token, Version};
use dfs_common::{Error, ErrorKind, Result};

use super::acl;
use super::change::{Change, find, load_directory};
use super::guarded::{hands_down_sgid, loses_sgid};
use super::keys;
use super::placement::place_new;
use super::records::{Inode, Record};
use super::reserve::{reserve, use_number};
use super::xattr::{load_acl, put_acl};
use crate::store::View;

const SGID: u32 = 0o2000;
/// What `stat` says of every directory.
const DIRECTORY_SIZE: u64 = 4096;
/// The longest target of a symlink, in bytes (PATH_MAX without its NUL).
const TARGET_MAX: usize = 4095;

pub(crate) fn make(change: &mut Change<'_>, request: &Make) -> Result<Made> {
    make_for(change, request, change.session)
}

/// The same for a session that need not be the one that asks.
pub(super) fn make_for(change: &mut Change<'_>, request: &Make, session: Option<SessionId>) -> Result<Made> {
    let name = request.name.as_bytes();
    if let Some(birth) = &request.birth
        && let Some(made) = repeated(change, request, birth)?
    {
        return Ok(made);
    }
    let parent = load_directory(&change.view, request.parent)?;
    if find(&change.view, request.parent, name)?.is_some() {
        return Err(Error::new(ErrorKind::Exists, format!("'{}' exists in directory {}", request.name, request.parent)));
    }
    let target = target(request)?;
    let directory = request.kind == FileKind::Directory;
    let inherit = parent.mode & SGID != 0;
    let now = request.birth.as_ref().map_or(Ok(change.now.wall), |birth| use_number(change, request.parent, birth))?;
    let mut inode = blank(request.kind, now);
    inode.mode = request.mode & 0o7777;
    let default = if request.kind == FileKind::Symlink { None } else { load_acl(&change.view, request.parent, &parent, acl::DEFAULT)? };
    let access = default.as_ref().map(|default| default.inherited(request.mode));
    inode.mode = access.as_ref().map_or(inode.mode & !(request.umask & 0o777), |access| access.mode(inode.mode));
    if inherit && directory {
        inode.mode |= SGID;
    }
    let (uid, gid) = change.ordinary_user().map_or((request.uid, request.gid), |user| (user.uid, user.gid));
    inode.uid = uid;
    inode.gid = if inherit { parent.gid } else { gid };
    if hands_down_sgid(&parent, request.kind, inode.mode) && change.ordinary_user().is_some_and(|user| loses_sgid(user, parent.gid)) {
        inode.mode &= !SGID;
    }
    if matches!(request.kind, FileKind::CharDevice | FileKind::BlockDevice) {
        inode.rdev = request.rdev;
    }
    if directory {
        inode.parent = request.parent;
    }
    if request.kind == FileKind::Symlink {
        inode.mode = 0o777;
        inode.size = target.len() as u64;
        inode.target = target;
    }
    if request.kind == FileKind::File {
        (inode.placement, inode.pin) = place_new(change, request.parent)?;
        if let Some(maker) = session.filter(|_| request.lock) {
            (inode.maker, inode.fence) = (maker, Token::FRESH);
        }
    }
    let ino = request.birth.as_ref().map_or_else(|| InodeId(change.tables.inode_ids.take()), |birth| birth.ino);
    if let Some(access) = access.filter(|access| !access.is_mode()) {
        put_acl(change, ino, &mut inode, acl::ACCESS, &access);
    }
    if let Some(default) = default.filter(|_| directory) {
        put_acl(change, ino, &mut inode, acl::DEFAULT, &default);
    }
    change.put_inode(ino, &inode);
    change.put_dentry(request.parent, name, ino);
    let reserved = match request.kind {
        FileKind::Directory => reserve(change, ino, &inode, request.reserve)?,
        FileKind::File => reserve(change, request.parent, &parent, request.reserve)?,
        _ => None,
    };
    let directory = change.touch_directory_at(request.parent, i32::from(directory), now)?;
    change.effects.inodes += 1;
    Ok(Made { entry: inode.entry(ino), directory, reserved })
}

/// The answer to a birth that was told of before.
fn repeated(change: &Change<'_>, request: &Make, birth: &Birth) -> Result<Option<Made>> {
    if request.kind != FileKind::File {
        return Err(Error::new(ErrorKind::Invalid, "only files are made before they are told of"));
    }
    let Some(value) = change.view.get(&keys::inode(birth.ino))? else { return Ok(None) };
    let inode = Inode::decode(&value)?;
    if inode.kind != FileKind::File {
        return Err(Error::new(ErrorKind::Invalid, format!("inode {} was not made as a file", birth.ino)));
    }
    let directory = load_directory(&change.view, request.parent)?.entry(request.parent).attributes;
    Ok(Some(Made { entry: inode.entry(birth.ino), directory, reserved: None }))
}

/// A directory without a name: the root, or RECOVERED.
pub(crate) fn make_top(ino: InodeId, mode: u32, now: Timestamp) -> Inode {
    Inode { mode, parent: ino, ..blank(FileKind::Directory, now) }
}

fn blank(kind: FileKind, now: Timestamp) -> Inode {
    let directory = kind == FileKind::Directory;
    Inode {
        kind,
        mode: 0,
        uid: 0,
        gid: 0,
        nlink: if directory { 2 } else { 1 },
        rdev: 0,
        size: if directory { DIRECTORY_SIZE } else { 0 },
        stored: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        version: Version(0),
        xattrs: 0,
        xattr_bytes: 0,
        parent: InodeId(0),
        target: Vec::new(),
        placement: Vec::new(),
        pin: Vec::new(),
        holders: Vec::new(),
        manifest: None,
        fence: Token(0),
        maker: SessionId(0),
    }
}

fn target(request: &Make) -> Result<Vec<u8>> {
    let invalid = |why: &str| Err(Error::new(ErrorKind::Invalid, why));
    match (&request.target, request.kind) {
        (None, FileKind::Symlink) => invalid("a symlink needs a target"),
        (None, _) => Ok(Vec::new()),
        (Some(text), FileKind::Symlink) if text.0.is_empty() => Err(Error::new(ErrorKind::NotFound, "a symlink's target is empty")),
        (Some(text), FileKind::Symlink) if text.0.len() > TARGET_MAX => {
            Err(Error::new(ErrorKind::NameTooLong, format!("a symlink's target has at most {TARGET_MAX} bytes, this one {}", text.0.len())))
        }
        (Some(text), FileKind::Symlink) if text.0.contains(&0) => invalid("a symlink's target holds no NUL"),
        (Some(text), FileKind::Symlink) => Ok(text.0.clone()),
        (Some(_), _) => invalid("only a symlink has a target"),
    }
}
