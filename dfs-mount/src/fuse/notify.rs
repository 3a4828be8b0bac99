//! Notifications: what the kernel is told unasked, to forget what it keeps.
//!
//! Written as they are to the mount's device, because the library knows no way to make
//! all names old, and takes "keeps no such thing" for success.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;

use crate::vfs::events::KernelCache;

const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
/// A flag of INVAL_ENTRY. A kernel before Linux 6.2 drops the name all the same.
const EXPIRE_ONLY: u32 = 1;
const INC_EPOCH: i32 = 8;
const PRUNE: i32 = 9;
/// Length, code, and 0 where a reply names its request.
const HEADER: usize = 16;

/// The device of one mount.
#[derive(Debug)]
pub(super) struct Notifications {
    device: File,
}

impl Notifications {
    pub(super) fn new(session: &impl AsFd) -> io::Result<Self> {
        Ok(Self { device: File::from(session.as_fd().try_clone_to_owned()?) })
    }

    fn send(&self, code: i32, fixed: &[u8], name: &[u8]) -> io::Result<()> {
        // A name ends with a NUL.
        let end: &[u8] = if name.is_empty() { &[] } else { &[0] };
        let len = HEADER + fixed.len() + name.len() + end.len();
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&(len as u32).to_ne_bytes());
        header[4..8].copy_from_slice(&code.to_ne_bytes());
        let parts = [&header[..], fixed, name, end].map(IoSlice::new);
        let written = (&self.device).write_vectored(&parts)?;
        if written == len { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn inode(&self, id: u64, offset: i64) -> io::Result<()> {
        let mut fixed = [0; 24];
        fixed[..8].copy_from_slice(&id.to_ne_bytes());
        fixed[8..16].copy_from_slice(&offset.to_ne_bytes());
        self.send(INVAL_INODE, &fixed, &[])
    }
}

impl KernelCache for Notifications {
    fn forget_attributes(&self, id: u64) -> io::Result<()> {
        // A negative offset leaves the pages alone.
        self.inode(id, -1)
    }

    fn forget_listing(&self, id: u64) -> io::Result<()> {
        self.inode(id, 0)
    }

    fn forget_entry(&self, directory: u64, name: &[u8], drops: bool) -> io::Result<()> {
        let mut fixed = [0; 16];
        fixed[..8].copy_from_slice(&directory.to_ne_bytes());
        fixed[8..12].copy_from_slice(&(name.len() as u32).to_ne_bytes());
        fixed[12..].copy_from_slice(&(if drops { 0 } else { EXPIRE_ONLY }).to_ne_bytes());
        self.send(INVAL_ENTRY, &fixed, name)
    }

    fn prune(&self, ids: &[u64]) -> io::Result<()> {
        // A count, and room for what is to come; then the ids.
        let mut fixed = vec![0; 16];
        fixed[..4].copy_from_slice(&(ids.len() as u32).to_ne_bytes());
        fixed.extend(ids.iter().flat_map(|id| id.to_ne_bytes()));
        self.send(PRUNE, &fixed, &[])
    }

    fn back(&self, file: &File) -> io::Result<u32> {
        fuser::BackingId::create_raw(&self.device, file)
    }

    fn end_backing(&self, number: u32) -> io::Result<()> {
        crate::system::end_backing(&self.device, number)
    }

    fn forget_all(&self) -> io::Result<()> {
        self.send(INC_EPOCH, &[], &[])
    }
}
