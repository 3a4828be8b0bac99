//! Every callback calls one method of the file system, replies, and sends its errors
//! through one place.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use dfs_common::api::directory::XattrMode;
use dfs_common::api::lock::{Family, Span};
use dfs_common::attributes::{Attributes, FileKind};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{BLOCK, caller, directory_flags, errno, file_attr, file_type, kind_of_lock, kind_of_mode, mode_of, timestamp, xattr_reply};
use super::{Adapter, mutation, named, question};
use crate::vfs::Caller;
use crate::vfs::attributes::Change;
use crate::vfs::coherence::Telling;
use crate::vfs::directories::{Listed, Listing};
use crate::vfs::interrupt::Signals;
use crate::vfs::io::Writing;
use crate::vfs::names::{NewEntry, rename_mode};
use crate::vfs::open::Intent;
use crate::vfs::past::is_past;
use crate::vfs::ranges::Wanted;
use crate::vfs::waits::About;

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is optional: an older kernel costs round trips, not function.
        for flag in [
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Handles of files (open_by_handle_at, an NFS server) are looked up again as `.` and `..`.
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_MAX_PAGES,
            // The umask is ours to apply, as a default ACL overrides it.
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_FLOCK_LOCKS,
        ] {
            if config.add_capabilities(flag).is_err() {
                log::debug!("this kernel lacks {flag:?}");
            }
        }
        // A kernel that has it serves large files from the cache's disk. That may not lie on another file system itself.
        if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() && config.set_max_stack_depth(1).is_err() {
            log::debug!("this kernel serves no cache files");
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "." || name == ".." {
            return self.lookup_handle(request, parent, name == "..", reply);
        }
        if self.vfs.past().answers(parent.0, name.as_bytes()) {
            return self.past_lookup(request, parent, name, reply);
        }
        let vfs = self.vfs.clone();
        let owned = name.to_owned();
        self.entry(reply, named(question("lookup", request, parent), name), async move { vfs.lookup(parent.0, owned.as_bytes()).await });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        if is_past(ino.0) { self.vfs.past().forget(ino.0, count) } else { self.vfs.forget(ino.0, count) }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        if is_past(ino.0) {
            return self.past_getattr(ino, reply);
        }
        let vfs = self.vfs.clone();
        self.attributes(reply, question("getattr", request, ino), async move { vfs.get_attributes(ino.0).await });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // The kernel names no handle for O_TRUNC, which always sets 0.
        let explicit = |time| matches!(time, Some(TimeOrNow::SpecificTime(_)));
        let now = (atime.is_some() || mtime.is_some()) && !explicit(atime) && !explicit(mtime);
        let (clock, by_handle) = (self.vfs.now(), handle.is_some() || size == Some(0));
        let (atime, mtime) = (atime.map(|time| timestamp(time, clock)), mtime.map(|time| timestamp(time, clock)));
        let change = Change { mode: mode.map(|m| m & 0o7777), uid, gid, size, by_handle, atime, mtime, now };
        let (vfs, caller) = (self.vfs.clone(), caller(request));
        self.attributes(reply, mutation("setattr", request, ino), async move { vfs.set_attributes(ino.0, change, caller).await });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        if is_past(ino.0) {
            return self.past_readlink(request, ino, reply);
        }
        let vfs = self.vfs.clone();
        self.data(reply, question("readlink", request, ino), async move { vfs.read_link(ino.0).await });
    }

    fn mknod(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let Some(kind) = kind_of_mode(mode) else { return reply.error(Errno::EINVAL) };
        let new = NewEntry { kind, mode, rdev, target: None };
        self.make(reply, mutation("mknod", request, parent), parent, name, new, Caller { umask, ..caller(request) });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let new = NewEntry { kind: FileKind::Directory, mode, rdev: 0, target: None };
        self.make(reply, mutation("mkdir", request, parent), parent, name, new, Caller { umask, ..caller(request) });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Some(target.as_os_str().as_bytes().to_vec());
        let new = NewEntry { kind: FileKind::Symlink, mode: 0o777, rdev: 0, target };
        self.make(reply, mutation("symlink", request, parent), parent, name, new, caller(request));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let about = named(mutation("unlink", request, parent), name);
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        let changing = self.vfs.changing(&[(parent.0, name.as_bytes())]);
        self.empty(reply, about, changing, async move { vfs.remove(parent.0, name.as_bytes(), false).await });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let about = named(mutation("rmdir", request, parent), name);
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        let changing = self.vfs.changing(&[(parent.0, name.as_bytes())]);
        self.empty(reply, about, changing, async move { vfs.remove(parent.0, name.as_bytes(), true).await });
    }

    fn rename(&self, request: &Request, parent: INodeNo, name: &OsStr, new_parent: INodeNo, new_name: &OsStr, flags: RenameFlags, reply: ReplyEmpty) {
        let (no_replace, exchange) = (flags.contains(RenameFlags::RENAME_NOREPLACE), flags.contains(RenameFlags::RENAME_EXCHANGE));
        let others = !flags.difference(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE).is_empty();
        let about = named(mutation("rename", request, parent), name);
        let (vfs, name, new_name) = (self.vfs.clone(), name.to_owned(), new_name.to_owned());
        let changing = self.vfs.changing(&[(parent.0, name.as_bytes()), (new_parent.0, new_name.as_bytes())]);
        self.empty(reply, about, changing, async move {
            let mode = rename_mode(no_replace, exchange, others)?;
            vfs.rename(parent.0, name.as_bytes(), new_parent.0, new_name.as_bytes(), mode).await
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let about = named(mutation("link", request, new_parent), new_name);
        let (vfs, name) = (self.vfs.clone(), new_name.to_owned());
        self.entry(reply, about, async move { vfs.link(ino.0, new_parent.0, name.as_bytes()).await });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if is_past(ino.0) {
            return self.past_open(ino, flags, reply);
        }
        let (vfs, caller, intent) = (self.vfs.clone(), caller(request), Intent::from_flags(flags.0));
        let is_access = flags.0 & (libc::O_ACCMODE | libc::O_NOATIME) == libc::O_RDONLY;
        let open = async move {
            vfs.admit(ino.0, flags.0, caller).await?;
            let opened = vfs.open(ino.0, intent, caller).await?;
            if is_access {
                vfs.accessed(ino.0);
            }
            Ok(opened)
        };
        self.run(mutation("open", request, ino), open, move |result| match result {
            Ok(opened) => super::opened::opened(reply, &opened),
            Err(e) => reply.error(e),
        });
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        let (vfs, name, caller, intent) = (self.vfs.clone(), name.to_owned(), Caller { umask, ..caller(request) }, Intent::from_flags(flags));
        let about = named(mutation("create", request, parent), &name);
        let teller = vfs.clone();
        self.run(about, async move { vfs.create(parent.0, name.as_bytes(), mode, intent, caller).await }, move |result| match result {
            Ok((told, opened)) => {
                let telling = teller.telling();
                let keep = telling.keep(&told);
                let Some(attributes) = told.attributes() else { return reply.error(Errno::ESTALE) };
                // One time for both: the shorter one, which is that of attributes that may change while the file is written.
                let ttl = keep.attributes.min(keep.entry);
                let generation = Generation(teller.generation(attributes.ino.0));
                super::opened::created(reply, ttl, &file_attr(attributes), generation, &opened);
            }
            Err(e) => reply.error(e),
        });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if is_past(ino.0) {
            return self.past_read(request, ino, handle, offset, size, reply);
        }
        match self.vfs.read_now(handle.0, offset, size) {
            Ok(Some(bytes)) => return reply.data(&bytes),
            Ok(None) => {}
            Err(e) => return reply.error(errno(&e)),
        }
        let vfs = self.vfs.clone();
        let about = About { given_up_on: Signals::Fatal, ..question("read", request, ino) };
        self.data(reply, about, async move { vfs.read(handle.0, offset, size).await });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = data.len() as u32;
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        // As it is now: fcntl(2) may have changed it since the open. Pages of a mapping belong where they are mapped.
        let append = flags.0 & libc::O_APPEND != 0 && !mapped;
        let by_user = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let how = Writing { append, mapped, by_user, durable: flags.0 & libc::O_DSYNC != 0 };
        match self.vfs.write_now(handle.0, offset, data, how) {
            Ok(true) => return reply.written(len),
            Ok(false) => {}
            Err(e) => return reply.error(errno(&e)),
        }
        let given_up_on = if self.vfs.writes_more(handle.0, how) { Signals::None } else { Signals::Fatal };
        let (vfs, data) = (self.vfs.clone(), data.to_vec());
        let operation = async move { vfs.write(handle.0, offset, &data, how).await };
        self.run(About { given_up_on, ..mutation("write", request, ino) }, operation, move |result| match result {
            Ok(()) => reply.written(len),
            Err(e) => reply.error(e),
        });
    }

    fn flush(&self, request: &Request, ino: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        if is_past(ino.0) {
            return reply.ok();
        }
        let unlocks = self.vfs.has_ranges(ino.0, Family::Posix, owner.0);
        if self.vfs.is_flushed(handle.0) && !unlocks {
            return reply.ok();
        }
        let (vfs, caller) = (self.vfs.clone(), caller(request));
        self.empty(reply, mutation("flush", request, ino), (), async move {
            let flushed = vfs.flush(handle.0, caller).await;
            // Who gets the lock sees what was written under it.
            if unlocks {
                vfs.end_ranges(ino.0, Family::Posix, owner.0).await;
            }
            flushed
        });
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        flocked: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if is_past(ino.0) {
            self.vfs.past().release(handle.0);
            return reply.ok();
        }
        let vfs = self.vfs.clone();
        self.empty(reply, mutation("release", request, ino), (), async move {
            let released = vfs.release(handle.0).await;
            if let Some(owner) = flocked {
                vfs.end_ranges(ino.0, Family::Flock, owner.0).await;
            }
            released
        });
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        let wanted = Wanted { owner: owner.0, span: Span { first: start, last: end }, mode: mode_of(kind), wait: false };
        let (vfs, owned, caller) = (self.vfs.clone(), self.vfs.clone(), caller(request));
        self.run(question("getlk", request, ino), async move { vfs.test_range(ino.0, wanted, caller).await }, move |result| match result {
            Ok(Some(row)) => {
                // A process of another host has no number here.
                let pid = if owned.is_of_this_host(&row) { row.process.pid } else { 0 };
                reply.locked(row.span.first, row.span.last, kind_of_lock(row.mode), pid);
            }
            Ok(None) => reply.locked(0, 0, libc::F_UNLCK, 0),
            Err(e) => reply.error(e),
        });
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        _pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let wanted = Wanted { owner: owner.0, span: Span { first: start, last: end }, mode: mode_of(kind), wait: sleep };
        let (vfs, caller) = (self.vfs.clone(), caller(request));
        self.empty(reply, mutation("lock", request, ino), (), async move { vfs.set_range(ino.0, wanted, caller).await });
    }

    fn fsync(&self, request: &Request, ino: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        self.empty(reply, mutation("fsync", request, ino), (), async move { vfs.fsync(handle.0).await });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if is_past(ino.0) {
            return self.past_opendir(request, ino, reply);
        }
        let (vfs, caller) = (self.vfs.clone(), caller(request));
        let open = async move {
            vfs.admit(ino.0, flags.0, caller).await?;
            if flags.0 & libc::O_NOATIME == 0 {
                vfs.accessed(ino.0);
            }
            vfs.open_directory(ino.0)
        };
        self.run(question("opendir", request, ino), open, move |result| match result {
            Ok(opened) => reply.opened(FileHandle(opened.handle), directory_flags(opened)),
            Err(e) => reply.error(e),
        });
    }

    fn readdir(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if is_past(ino.0) {
            return self.past_readdir(ino, handle, offset, reply);
        }
        let vfs = self.vfs.clone();
        self.run(question("readdir", request, ino), async move { vfs.list(handle.0, offset).await }, move |result| match result {
            Ok((_, entries)) => {
                for e in entries {
                    if reply.add(INodeNo(e.ino().0), e.next, file_type(e.kind()), OsStr::from_bytes(e.name())) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(e),
        });
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        if is_past(ino.0) {
            return self.past_readdirplus(request, ino, handle, offset, reply);
        }
        let (vfs, teller) = (self.vfs.clone(), self.vfs.clone());
        self.run(question("readdir", request, ino), async move { vfs.list(handle.0, offset).await }, move |result| match result {
            Ok((listing, entries)) => {
                let mut refused = None;
                let telling = teller.telling();
                for e in &entries {
                    match add_plus(&telling, &listing, &mut reply, e) {
                        Added::Full(id) => {
                            refused = id;
                            break;
                        }
                        Added::Yes => {}
                    }
                }
                reply.ok();
                drop(telling);
                if let Some(id) = refused {
                    teller.forget(id, 1);
                }
            }
            Err(e) => reply.error(e),
        });
    }

    fn releasedir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        if is_past(ino.0) {
            self.vfs.past().release(handle.0)
        } else {
            self.vfs.close_directory(handle.0)
        }
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        self.empty(reply, question("fsync", request, ino), (), async move { vfs.sync_names().await });
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let vfs = self.vfs.clone();
        self.run(question("statfs", request, ino), async move { vfs.stat_fs().await }, move |result| match result {
            Ok(fs) => {
                let blocks = |bytes: u64| bytes / u64::from(BLOCK);
                let (free, free_inodes) = (blocks(fs.available), u64::from(u32::MAX));
                reply.statfs(blocks(fs.capacity), free, free, fs.inodes + free_inodes, free_inodes, BLOCK, 255, BLOCK);
            }
            Err(e) => reply.error(e),
        });
    }

    fn setxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _position: u32, reply: ReplyEmpty) {
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Create,
        };
        let (vfs, name, value, caller) = (self.vfs.clone(), name.to_owned(), value.to_vec(), caller(request));
        self.empty(reply, mutation("setxattr", request, ino), (), async move { vfs.set_xattr(ino.0, name.as_bytes(), &value, mode, caller).await });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if is_past(ino.0) {
            return reply.error(Errno::ENODATA);
        }
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        self.run(question("getxattr", request, ino), async move { vfs.get_xattr(ino.0, name.as_bytes()).await }, move |result| {
            xattr_reply(reply, size, result)
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if is_past(ino.0) {
            return xattr_reply(reply, size, Ok(Vec::new()));
        }
        let vfs = self.vfs.clone();
        self.run(question("listxattr", request, ino), async move { vfs.list_xattrs(ino.0).await }, move |result| xattr_reply(reply, size, result));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        self.empty(reply, mutation("removexattr", request, ino), (), async move { vfs.remove_xattr(ino.0, name.as_bytes()).await });
    }

    fn fallocate(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        let (vfs, caller) = (self.vfs.clone(), caller(request));
        self.empty(reply, mutation("fallocate", request, ino), (), async move { vfs.allocate(handle.0, offset, length, mode, caller).await });
    }

    fn lseek(&self, _request: &Request, ino: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let seek = |offset| if is_past(ino.0) { self.vfs.past().seek(ino.0, offset, data) } else { self.vfs.seek(handle.0, offset, data) };
        match u64::try_from(offset).map_or(Ok(None), seek) {
            Ok(Some(found)) => reply.offset(found as i64),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn ioctl(&self, _: &Request, _: INodeNo, _: FileHandle, _: IoctlFlags, _cmd: u32, _in_data: &[u8], _out_size: u32, reply: ReplyIoctl) {
        reply.error(Errno::ENOTTY);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        source: INodeNo,
        from_handle: FileHandle,
        from: u64,
        target: INodeNo,
        to_handle: FileHandle,
        to: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if is_past(source.0) {
            // The kernel copies through its page cache then.
            return reply.error(Errno::EXDEV);
        }
        let (vfs, caller) = (self.vfs.clone(), caller(request));
        let operation = async move { vfs.copy((from_handle.0, from), (to_handle.0, to), len, caller).await };
        self.run(mutation("copy_file_range", request, target), operation, move |result| match result {
            Ok(copied) => reply.written(copied),
            Err(e) => reply.error(e),
        });
    }
}

/// Whether an entry of a listing fitted.
enum Added {
    Yes,
    /// The node that was referred to in vain.
    Full(Option<u64>),
}

/// Adds one entry with its attributes. Only an entry that fits is referred to by the kernel.
fn add_plus(telling: &Telling<'_>, listing: &Listing, reply: &mut ReplyDirectoryPlus, listed: &Listed) -> Added {
    let (ino, next, name) = (INodeNo(listed.ino().0), listed.next, OsStr::from_bytes(listed.name()));
    let told = telling.introduce_listed(listing, listed);
    if let Some((told, attributes)) = told.as_ref().and_then(|told| told.attributes().map(|attributes| (told, attributes))) {
        let keep = telling.keep(told);
        let ttl = keep.attributes.min(keep.entry);
        let generation = Generation(telling.generation(attributes.ino.0));
        let full = reply.add(ino, next, name, &ttl, &file_attr(attributes), generation);
        return if full { Added::Full(Some(attributes.ino.0)) } else { Added::Yes };
    }
    // Of `.` and `..` the kernel takes number and type, and refers to nothing.
    let attr = file_attr(&Attributes::bare(listed.ino(), listed.kind()));
    if reply.add(ino, next, name, &Duration::ZERO, &attr, Generation(0)) { Added::Full(None) } else { Added::Yes }
}
