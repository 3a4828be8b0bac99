//! What FUSE itself costs: a file system in this process's memory that answers every
//! request at once and lets the kernel keep whatever it can keep, for ever. Nobody
//! else can change it, so nothing is ever checked. What it takes for a row of `dfs bench`
//! is about what the kernel and the way to it and back take; measured beside the others:
//!
//! ```text
//! cargo run --release -p dfs-mount --example fuse_floor -- MOUNTPOINT
//! dfs bench MOUNTPOINT DIRECTORY --only stat,open,find,du,create,create-8,untar,cp-r,rm-r,git-status
//! ```
//!
//! It serves until it is unmounted, and forgets everything then.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, SystemTime};

use clap::Parser;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

const FOR_EVER: Duration = Duration::from_secs(86_400);
const NO_HANDLE: FileHandle = FileHandle(0);

/// Measures what FUSE itself costs.
#[derive(Debug, Parser)]
struct Arguments {
    /// An empty directory.
    mountpoint: std::path::PathBuf,
}

/// A file or a directory.
#[derive(Debug)]
struct Inode {
    attributes: FileAttr,
    content: Vec<u8>,
    entries: BTreeMap<OsString, u64>,
}

/// Of everything there is.
#[derive(Debug)]
struct Inodes {
    all: HashMap<u64, Inode>,
    last: u64,
}

impl Inodes {
    fn add(&mut self, kind: FileType, mode: u32, (uid, gid): (u32, u32)) -> FileAttr {
        self.last += 1;
        let now = SystemTime::now();
        let attributes = FileAttr {
            ino: INodeNo(self.last),
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: (mode & 0o7777) as u16,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        self.all.insert(self.last, Inode { attributes, content: Vec::new(), entries: BTreeMap::new() });
        attributes
    }

    fn get(&mut self, ino: INodeNo) -> Result<&mut Inode, Errno> {
        self.all.get_mut(&ino.0).ok_or(Errno::ESTALE)
    }

    fn make(&mut self, request: &Request, parent: INodeNo, name: &OsStr, kind: FileType, mode: u32) -> Result<FileAttr, Errno> {
        if self.get(parent)?.entries.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let attributes = self.add(kind, mode, (request.uid(), request.gid()));
        self.get(parent)?.entries.insert(name.to_owned(), attributes.ino.0);
        Ok(attributes)
    }

    fn find(&mut self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let ino = *self.get(parent)?.entries.get(name).ok_or(Errno::ENOENT)?;
        Ok(self.get(INodeNo(ino))?.attributes)
    }

    fn remove(&mut self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let ino = self.find(parent, name)?.ino;
        if !self.get(ino)?.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.get(parent)?.entries.remove(name);
        self.all.remove(&ino.0);
        Ok(())
    }

    /// What `ino` lists after `offset`, in the order in which it was made: a number of an inode is where it was, also when others are gone.
    fn listing(&mut self, ino: INodeNo, offset: u64) -> Vec<(OsString, FileAttr)> {
        let Ok(directory) = self.get(ino) else { return Vec::new() };
        let mut entries: Vec<(u64, OsString)> =
            directory.entries.iter().filter(|(_, ino)| **ino > offset).map(|(name, ino)| (*ino, name.clone())).collect();
        entries.sort_unstable();
        entries.into_iter().filter_map(|(ino, name)| self.get(INodeNo(ino)).ok().map(|inode| (name, inode.attributes))).collect()
    }
}

/// The file system.
#[derive(Debug)]
struct Floor(Mutex<Inodes>);

fn empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

fn entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
        Err(e) => reply.error(e),
    }
}

fn attributes(reply: ReplyAttr, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.attr(&FOR_EVER, &attributes),
        Err(e) => reply.error(e),
    }
}

impl Filesystem for Floor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let flags = InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO | InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_MAX_PAGES;
        config.add_capabilities(flags).map_err(|missing| std::io::Error::other(format!("this kernel lacks {missing:?}")))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.0.lock().find(parent, name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attributes(reply, self.0.lock().get(ino).map(|inode| inode.attributes));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut inodes = self.0.lock();
        let changed = inodes.get(ino).map(|Inode { attributes, content, .. }| {
            attributes.perm = mode.map_or(attributes.perm, |mode| (mode & 0o7777) as u16);
            (attributes.uid, attributes.gid) = (uid.unwrap_or(attributes.uid), gid.unwrap_or(attributes.gid));
            if let Some(size) = size {
                content.resize(size as usize, 0);
                attributes.size = size;
            }
            *attributes
        });
        attributes(reply, changed);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        entry(reply, self.0.lock().make(request, parent, name, FileType::Directory, mode));
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        match self.0.lock().make(request, parent, name, FileType::RegularFile, mode) {
            Ok(attributes) => reply.created(&FOR_EVER, &attributes, Generation(0), NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE),
            Err(e) => reply.error(e),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.0.lock().remove(parent, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.0.lock().remove(parent, name));
    }

    fn rename(&self, _: &Request, parent: INodeNo, name: &OsStr, to: INodeNo, new_name: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        let mut inodes = self.0.lock();
        let mut rename = || {
            let moved = inodes.find(parent, name)?.ino.0;
            inodes.get(parent)?.entries.remove(name);
            let replaced = inodes.get(to)?.entries.insert(new_name.to_owned(), moved);
            replaced.and_then(|ino| inodes.all.remove(&ino));
            Ok(())
        };
        let renamed = rename();
        empty(reply, renamed);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, size: u32, _: OpenFlags, _: Option<LockOwner>, reply: ReplyData) {
        match self.0.lock().get(ino) {
            Ok(Inode { content, .. }) => {
                let (from, to) = ((offset as usize).min(content.len()), (offset as usize + size as usize).min(content.len()));
                reply.data(&content[from..to]);
            }
            Err(e) => reply.error(e),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.lock().get(ino) {
            Ok(Inode { content, attributes, .. }) => {
                let end = offset as usize + data.len();
                content.resize(end.max(content.len()), 0);
                content[offset as usize..end].copy_from_slice(data);
                (attributes.size, attributes.blocks) = (content.len() as u64, content.len().div_ceil(512) as u64);
                reply.written(data.len() as u32);
            }
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Not ENOSYS, after which the kernel would not ask again: who serves locks must hear of each close.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (name, attributes) in self.0.lock().listing(ino, offset) {
            if reply.add(attributes.ino, attributes.ino.0, attributes.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        for (name, attributes) in self.0.lock().listing(ino, offset) {
            if reply.add(attributes.ino, attributes.ino.0, name, &FOR_EVER, &attributes, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let plenty = 1 << 24;
        reply.statfs(plenty, plenty, plenty, plenty, plenty, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut inodes = Inodes { all: HashMap::new(), last: 0 };
    inodes.add(FileType::Directory, 0o755, (0, 0));
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::FSName("fuse-floor".to_owned()), MountOption::DefaultPermissions];
    (config.n_threads, config.clone_fd) = (Some(2), true);
    let session = fuser::Session::new(Floor(Mutex::new(inodes)), &arguments.mountpoint, &config)?;
    session.run()?;
    Ok(())
}
