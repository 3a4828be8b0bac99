//! A file server: blocks, manifests, commits; primary for some files, replica for others.
//!
//! It owns bytes and which versions it holds, and refuses to decide what is current:
//! that is the directory's word, which it asks for whenever its own rows leave a doubt.
//! [`storage`] is what lies on the disk ([`blocks`], [`index`] above [`behind`], [`journal`], [`pins`]);
//! [`commit`], [`replicate`] and [`read`] answer requests, [`readers`] knows who may read, [`repair`] and [`heartbeat`]
//! do what the directory asks for; [`http`] only translates.
//!
//! Invariant: a block that a live version names is never deleted, whatever the moment of a crash.

mod blocks;
mod buffers;
mod commit;
mod heartbeat;
mod http;
mod index;
mod journal;
mod patched;
mod pins;
mod read;
mod readers;
mod repair;
mod replicate;
mod storage;
mod upload;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_common::api::directory::VersionOf;
use dfs_common::api::file::FileStatus;
use dfs_common::clients::{Caller, Connect, Peers};
use dfs_common::ids::{InodeId, ServerId};
use dfs_common::transport::Transport;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use self::buffers::Buffers;
use self::read::Manifests;
use self::readers::Readers;
use self::storage::Storage;
use crate::shell::stopped;
use crate::store::Store;

/// The limit of a call to the directory, retries included.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for publishing, which may have to wait until the lease of a client that is gone has run out.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory for the answers to large reads, in KiB.
const READ_MEMORY: usize = 64 << 10;

/// How a file server runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name for people and pins.
    pub name: String,
    /// Where others reach it.
    pub url: String,
    /// Its data directory.
    pub data: PathBuf,
    /// Bytes that blocks may take; `None`: what the disk has.
    pub capacity: Option<u64>,
    /// Copies, this one included, without which a commit fails.
    pub min_copies: u32,
    /// Makes every commit durable, not only those of fsync.
    pub always_sync: bool,
}

/// The service.
#[derive(Debug)]
pub struct FileServer {
    config: Config,
    storage: Arc<Storage>,
    directory: Caller,
    peers: Peers,
    /// From the registration; `None` before it.
    id: Mutex<Option<ServerId>>,
    /// Servers that the directory calls dead, and those that timed out lately: no copy is tried there.
    unreachable: Mutex<Unreachable>,
    manifests: Mutex<Manifests>,
    readers: Mutex<Readers>,
    read_memory: Arc<Semaphore>,
    buffers: Arc<Buffers>,
    /// Files of which it is unknown whether a version was published.
    doubtful: Mutex<BTreeSet<InodeId>>,
    /// Copies under way.
    copying: Mutex<HashSet<VersionOf>>,
    corrupt: AtomicU64,
    started: Instant,
}

#[derive(Debug, Default)]
struct Unreachable {
    dead: HashSet<ServerId>,
    /// A warning about these was logged, and no success since.
    warned: HashSet<ServerId>,
    until: HashMap<ServerId, Instant>,
}

impl FileServer {
    /// Opens the data directory, whose index is in `store`. `connect` opens transports to other file servers.
    pub fn open(config: Config, store: Arc<dyn Store>, directory: Arc<dyn Transport>, connect: Connect) -> Result<Arc<Self>> {
        if config.min_copies == 0 {
            return Err(Error::new(ErrorKind::Invalid, "min_copies: at least 1"));
        }
        let storage = Storage::open(&config.data, store, config.capacity)?;
        Ok(Arc::new(Self {
            config,
            storage,
            directory: Caller::new(directory, DIRECTORY_TIMEOUT),
            peers: Peers::new(connect),
            id: Mutex::default(),
            unreachable: Mutex::default(),
            manifests: Mutex::default(),
            readers: Mutex::default(),
            read_memory: Arc::new(Semaphore::new(READ_MEMORY)),
            buffers: Arc::default(),
            doubtful: Mutex::default(),
            copying: Mutex::default(),
            corrupt: AtomicU64::new(0),
            started: Instant::now(),
        }))
    }

    /// Registers, sends heartbeats, carries out orders, flushes and collects, until `shutdown`.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(heartbeat::serve_directory(self.clone()));
        tasks.spawn(repair::collect(self.storage.clone()));
        tasks.spawn(repair::flush(self.storage.clone()));
        stopped(&mut shutdown).await;
        tasks.shutdown().await;
        // A stop is a good moment to leave nothing to the kernel.
        let storage = self.storage.clone();
        if let Err(e) = blocking(move || storage.flush()).await {
            log::warn!("{e}");
        }
    }

    /// Its id.
    fn id(&self) -> Result<ServerId> {
        let id = *self.id.lock();
        id.ok_or_else(|| Error::new(ErrorKind::Unavailable, format!("file server {} is not registered yet", self.config.name)))
    }

    fn status(&self) -> FileStatus {
        FileStatus {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            server: *self.id.lock(),
            name: self.config.name.clone(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            versions: self.storage.index.versions(),
            blocks: self.storage.blocks(),
            used: self.storage.used(),
            capacity: self.storage.capacity(),
            corrupt: self.corrupt.load(Ordering::Relaxed),
        }
    }

    /// Asks for the addresses of `servers` where one is not known.
    async fn learn(&self, servers: &[ServerId]) {
        if !self.peers.knows(servers)
            && let Err(e) = self.peers.refresh(&self.directory).await
        {
            log::warn!("addresses of file servers: {e}");
        }
    }
}

/// Runs what takes long on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::new(ErrorKind::Internal, format!("a thread of the file server: {e}"))),
    }
}

#[cfg(test)]
mod tests;
