//! Between the kernel's numbers and structures and ours.

use std::time::SystemTime;

use dfs_common::api::lock::Mode;
use dfs_common::attributes::{Attributes, FileKind, Timestamp};
use dfs_common::user::NOBODY;
use dfs_common::{Error, ErrorKind};
use fuser::{Errno, FileAttr, FileType, FopenFlags, INodeNo, ReplyXattr, Request, TimeOrNow};

use crate::vfs::Caller;
use crate::vfs::directories::OpenedDirectory;

/// What statfs calls a block, and stat an I/O size.
pub(super) const BLOCK: u32 = 4096;
/// The unit of st_blocks.
const STAT_BLOCK: u64 = 512;

/// The one place where errors become numbers, and where the ones that a person should hear of are logged.
pub(super) fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::Unavailable
        | ErrorKind::TimedOut
        | ErrorKind::Corrupt
        | ErrorKind::Internal
        | ErrorKind::Unauthenticated
        | ErrorKind::SessionExpired => {
            log::error!("{error}");
        }
        kind => log::debug!("{}: {error}", kind.code()),
    }
    Errno::from_i32(error.kind().errno())
}

/// User and group. Where the kernel has no number for them, they are nobody's.
pub(super) fn user(request: &Request) -> (u32, u32) {
    let known = |id| if id == u32::MAX { NOBODY } else { id };
    (known(request.uid()), known(request.gid()))
}

pub(super) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask: 0, pid: request.pid() }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn file_attr(a: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino.0),
        size: a.size,
        blocks: a.stored.div_ceil(STAT_BLOCK),
        atime: a.atime.to_system_time(),
        mtime: a.mtime.to_system_time(),
        ctime: a.ctime.to_system_time(),
        crtime: a.crtime.to_system_time(),
        kind: file_type(a.kind),
        perm: a.mode as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: BLOCK,
        flags: 0,
    }
}

/// The type in a mode of mknod(2).
pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

/// What a lock request wants; `None`: to unlock.
pub(super) fn mode_of(kind: i32) -> Option<Mode> {
    match kind {
        libc::F_RDLCK => Some(Mode::Shared),
        libc::F_WRLCK => Some(Mode::Exclusive),
        _ => None,
    }
}

pub(super) fn kind_of_lock(mode: Mode) -> i32 {
    match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
    }
}

/// `now` is the time that counts as now.
pub(super) fn timestamp(time: TimeOrNow, now: Timestamp) -> Timestamp {
    match time {
        TimeOrNow::SpecificTime(time) => match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(_) => Timestamp::from_system_time(time),
            // The library subtracts the nanoseconds of a time before 1970 instead of adding them.
            Err(before) => Timestamp::from_parts(-(before.duration().as_secs() as i64), before.duration().subsec_nanos()),
        },
        TimeOrNow::Now => now,
    }
}

pub(super) fn xattr_reply(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(e),
    }
}

pub(super) fn directory_flags(opened: OpenedDirectory) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    if opened.may_keep {
        flags |= FopenFlags::FOPEN_CACHE_DIR;
    }
    if opened.keep_cache {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    flags
}
