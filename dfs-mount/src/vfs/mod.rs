//! The file system as the kernel asks for it, one file a family of operations: [`names`],
//! [`attributes`], [`open`], [`io`], [`directories`], and what goes on between requests
//! ([`session`], [`recovery`], [`aside`]).
//!
//! It owns the nodes that the kernel knows, open handles, and this mount's write locks.
//! It knows nothing of FUSE: `fuse.rs` translates, so that everything here runs without
//! a mount. What the kernel is told of a file is what the directory service said last,
//! with this mount's own unpublished changes over it; how long it may keep that is decided
//! by [`leases`] and [`coherence`], and taken back by [`events`].

pub mod accessed;
pub mod acl;
mod ahead;
pub mod aside;
pub mod attributes;
pub mod backing;
pub mod coherence;
pub mod commit;
pub mod directories;
mod entries;
pub mod events;
mod fill;
mod handed;
pub mod handles;
mod held_back;
pub mod interrupt;
pub mod io;
mod knowledge;
mod leases;
pub mod locks;
pub mod names;
pub mod node;
mod nursery;
pub mod open;
mod paging;
pub mod past;
mod process;
pub mod ranges;
mod read_ahead;
pub mod recalls;
mod reclaim;
pub mod recovery;
mod rights;
pub mod session;
pub mod waits;
mod walks;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dfs_common::attributes::{Entry, Timestamp};
use dfs_common::clients::Cluster;
use dfs_common::ids::InodeId;
use dfs_common::name::Name;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cache::Shelf;
use accessed::{AccessTimes, Accesses};
use ahead::Ahead;
use aside::Stats;
use coherence::Place;
use events::KernelCache;
use handles::Handles;
use leases::Leases;
use locks::Locks;
use node::{Node, Nodes};
use nursery::Nursery;
use open::SentBack;
use past::{Past, is_past};
use ranges::Ranges;
use read_ahead::Readers;
use waits::Waits;
use walks::Walks;

/// What a mount may be told to do differently.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long an open for writing waits for its turn; `None`: until it comes or the caller is interrupted.
    pub lock_wait: Option<Duration>,
    /// How long the kernel may keep a name at the most; its lease bounds it too.
    pub entry_ttl: Duration,
    /// The same for attributes.
    pub attr_ttl: Duration,
    /// Whose accesses are noted.
    pub access_times: AccessTimes,
    /// Whether the kernel may serve reads from cache files.
    pub passthrough: bool,
}

/// Who makes a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it does not grant to what it makes.
    pub umask: u32,
    /// Thread, in this process's pid namespace; 0 where it has none here.
    pub pid: u32,
}

/// A mounted file system.
#[derive(Debug)]
pub struct Vfs {
    cluster: Arc<Cluster>,
    shelf: Shelf,
    settings: Settings,
    nodes: Nodes,
    handles: Handles,
    locks: Locks,
    ranges: Ranges,
    past: Past,
    sent_back: SentBack,
    leases: Mutex<Leases>,
    /// Of the namespace, as of the last event.
    revision: AtomicU64,
    kernel: OnceLock<Arc<dyn KernelCache>>,
    /// It can be made to look up every name again.
    kernel_forgets: AtomicBool,
    /// It was made to forget attributes.
    forgotten: Notify,
    /// The session is about to be closed, or is.
    ending: AtomicBool,
    /// Removed inodes that this mount has let go and the directory has not been told of.
    released: Mutex<Vec<InodeId>>,
    release_soon: Notify,
    accesses: Accesses,
    ahead: Ahead,
    readers: Readers,
    walks: Walks,
    nursery: Nursery,
    /// The kernel's number of this mount; 0 where it is not known.
    mount_id: AtomicU64,
    /// The kernel serves from cache files, as far as is known.
    backs: AtomicBool,
    waits: Arc<Waits>,
    stats: Stats,
    /// Something was set aside.
    upload_soon: Notify,
    uploading: tokio::sync::Mutex<()>,
}

impl Vfs {
    /// The file system of `cluster`, whose root is `root`, cached in `shelf`.
    pub fn new(cluster: Arc<Cluster>, root: Entry, shelf: Shelf, settings: Settings) -> Self {
        let nodes = Nodes::default();
        nodes.add_root(root);
        Self {
            past: Past::new(cluster.clone()),
            cluster,
            shelf,
            nodes,
            handles: Handles::default(),
            locks: Locks::default(),
            ranges: Ranges::default(),
            sent_back: SentBack::default(),
            leases: Mutex::default(),
            revision: AtomicU64::new(0),
            kernel: OnceLock::new(),
            kernel_forgets: AtomicBool::new(false),
            forgotten: Notify::new(),
            ending: AtomicBool::new(false),
            released: Mutex::default(),
            release_soon: Notify::new(),
            accesses: Accesses::default(),
            ahead: Ahead::default(),
            readers: Readers::default(),
            walks: Walks::default(),
            nursery: Nursery::default(),
            mount_id: AtomicU64::new(0),
            backs: AtomicBool::new(settings.passthrough),
            waits: Arc::default(),
            stats: Stats::default(),
            upload_soon: Notify::new(),
            uploading: tokio::sync::Mutex::default(),
            settings,
        }
    }

    /// The kernel's number of this mount, by which descriptors of its files are told from those of others.
    pub fn set_mount_id(&self, id: u64) {
        self.mount_id.store(id, Ordering::Relaxed);
    }

    /// The time by which files are written: the directory service's, so that times of all clients compare.
    pub fn now(&self) -> Timestamp {
        self.cluster.now()
    }

    /// What the mount shows of the past.
    pub fn past(&self) -> &Past {
        &self.past
    }

    /// The node behind a kernel's node id. `ReadOnly` for one of the past: what asks for that here would change it.
    fn node(&self, id: u64) -> Result<Arc<Node>> {
        if is_past(id) {
            return Err(ErrorKind::ReadOnly.into());
        }
        self.nodes.get(id).ok_or_else(|| Error::new(ErrorKind::Stale, format!("node {id} is unknown")))
    }

    /// The inode behind a kernel's node id.
    fn ino(&self, id: u64) -> Result<InodeId> {
        self.node(id).map(|n| n.ino)
    }

    /// A name in the directory behind a kernel's node id.
    fn place(&self, directory: u64, name: &[u8]) -> Result<Place> {
        Ok(Place { directory: self.node(directory)?, name: Name::new(name)? })
    }
}
