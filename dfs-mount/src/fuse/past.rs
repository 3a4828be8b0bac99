//! Callbacks about nodes of `.dfs`, which is read-only.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use dfs_common::{Error, ErrorKind};
use fuser::{
    FileHandle, FopenFlags, Generation, INodeNo, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen, Request,
};

use super::convert::{errno, file_attr, file_type};
use super::{Adapter, named, question};
use crate::vfs::past::{Found, is_dots};

/// Others may change what it shows at any time, and nobody tells.
const AT_ONCE: Duration = Duration::ZERO;

impl Adapter {
    pub(super) fn past_lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (vfs, owned) = (self.vfs.clone(), name.to_owned());
        let about = named(question("lookup", request, parent), name);
        let teller = vfs.clone();
        self.run(about, async move { vfs.past().lookup(parent.0, owned.as_bytes()).await }, move |result| match result {
            Ok(found) => reply.entry_with_ttls(&AT_ONCE, &AT_ONCE, &file_attr(&found), Generation(teller.generation(found.ino.0))),
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
        let listing = match self.vfs.past().listing(handle.0) {
            Ok(listing) => listing,
            Err(e) => return reply.error(errno(&e)),
        };
        for (entry, next) in listing.iter().zip(1..).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            // The number of a node that was not looked up means nothing to anybody.
            if reply.add(ino, next, file_type(entry.kind), OsStr::from_bytes(&entry.name)) {
                break;
            }
        }
        reply.ok();
    }

    pub(super) fn past_readdirplus(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let (vfs, teller) = (self.vfs.clone(), self.vfs.clone());
        let found = async move { vfs.past().list_and_look_up(ino.0, handle.0, offset).await };
        self.run(question("readdir", request, ino), found, move |result| match result {
            Ok(found) => {
                let mut full = false;
                for Found { name, next, attributes } in found {
                    let id = attributes.ino.0;
                    full = full
                        || reply.add(
                            INodeNo(id),
                            next,
                            OsStr::from_bytes(&name),
                            &AT_ONCE,
                            &file_attr(&attributes),
                            Generation(teller.generation(id)),
                        );
                    // Of `.` and `..` the kernel takes number and type, and refers to nothing.
                    if full && !is_dots(&name) {
                        teller.past().forget(id, 1);
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(e),
        });
    }
}
