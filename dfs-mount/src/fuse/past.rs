//! Callbacks about nodes of `.dfs`, which is read-only.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use dfs_common::attributes::{Attributes, FileKind};
use dfs_common::ids::InodeId;
use dfs_common::{Error, ErrorKind};
use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen,
    Request,
};

use super::convert::{errno, file_attr, file_type};
use super::{Adapter, named, question};

/// Others may change what it shows at any time, and nobody tells.
const AT_ONCE: Duration = Duration::ZERO;

impl Adapter {
    pub(super) fn past_lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (vfs, owned) = (self.vfs.clone(), name.to_owned());
        let about = named(question("lookup", request, parent), name);
        self.run(about, async move { vfs.past().lookup(parent.0, owned.as_bytes()).await }, |result| match result {
            Ok(found) => reply.entry_with_ttls(&AT_ONCE, &AT_ONCE, &file_attr(&found), Generation(0)),
            Err(e) => reply.error(e),
        });
    }

    pub(super) fn past_getattr(&self, ino: INodeNo, reply: ReplyAttr) {
        match self.vfs.past().attributes(ino.0) {
            Ok(attributes) => reply.attr(&AT_ONCE, &file_attr(&attributes)),
            Err(e) => reply.error(errno(&e)),
        }
    }

    pub(super) fn past_readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let vfs = self.vfs.clone();
        self.data(reply, question("readlink", request, ino), async move { vfs.past().read_link(ino.0).await });
    }

    pub(super) fn past_open(&self, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        let opened = if writes { Err(Error::from(ErrorKind::ReadOnly)) } else { self.vfs.past().open(ino.0) };
        match opened {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(e) => reply.error(errno(&e)),
        }
    }

    pub(super) fn past_read(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let vfs = self.vfs.clone();
        self.data(reply, question("read", request, ino), async move { vfs.past().read(handle.0, offset, u64::from(size)).await });
    }

    pub(super) fn past_opendir(&self, request: &Request, ino: INodeNo, reply: ReplyOpen) {
        let vfs = self.vfs.clone();
        self.run(question("opendir", request, ino), async move { vfs.past().open_directory(ino.0).await }, |result| match result {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(e) => reply.error(e),
        });
    }

    pub(super) fn past_readdir(&self, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.past_entries(ino, handle, offset, |number, next, name, kind| reply.add(number, next, file_type(kind), name)) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    pub(super) fn past_readdirplus(&self, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let add = |number, next, name: &OsStr, kind| {
            // Node 0: the kernel takes the name, and looks up what it needs.
            let attr = file_attr(&Attributes::bare(InodeId(0), kind));
            reply.add(number, next, name, &AT_ONCE, &attr, Generation(0))
        };
        match self.past_entries(ino, handle, offset, add) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    /// Hands out entries from `offset` on, until `add` says that no more fit.
    fn past_entries(
        &self,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut add: impl FnMut(INodeNo, u64, &OsStr, FileKind) -> bool,
    ) -> Result<(), Errno> {
        let listing = self.vfs.past().listing(handle.0).map_err(|e| errno(&e))?;
        for (entry, next) in listing.iter().zip(1..).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            // The number of a node that was not looked up means nothing to anybody.
            if add(ino, next, OsStr::from_bytes(&entry.name), entry.kind) {
                break;
            }
        }
        Ok(())
    }
}
