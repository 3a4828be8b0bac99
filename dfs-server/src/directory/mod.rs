//! The directory service: names, inodes, versions and where each lives, which file
//! servers are alive, client sessions and their leases.
//!
//! It never touches a byte of a file. [`state`] holds what operations mean, pure;
//! [`writer`] commits what waits as one batch; [`leases`] lets waiting clients hear of
//! changes first; [`http`] only translates; [`periodic`] is what happens without a request,
//! [`keeping`] what of the past goes without one. Invariant: an answer to a mutation leaves
//! only after its rows, and the stored reply beside them, are committed.

mod http;
mod keeping;
mod leases;
mod periodic;
mod state;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use dfs_common::api::directory::LockWait;
use dfs_common::attributes::Timestamp;
use dfs_common::block::{MAX_BLOCK_BITS, MIN_BLOCK_BITS};
use dfs_common::ids::{RECOVERED, ROOT};
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::store::{Batch, Durability, Store};
use leases::Leasing;
use state::records::{Inode, Number, Record};
pub use state::{Keep, Pin};
use state::{Leases, Moment, Policy, Tables, keys, make_top};
use writer::Queue;

/// How a directory service runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Copies that each new file gets, 1 to 16.
    pub copies: u32,
    /// What is kept of the past.
    pub keep: Keep,
    /// A session ends this long after its last request.
    pub lease: Duration,
    /// Between two heartbeats of a file server.
    pub heartbeat: Duration,
    /// Where clients find the lock service.
    pub lock_url: String,
    /// Subtrees whose new files go to certain servers.
    pub pins: Vec<Pin>,
    /// Subtrees whose opens for writing do not wait as long as it takes.
    pub lock_waits: Vec<LockWait>,
    /// log2 of the block size for new files.
    pub block_bits: u8,
    /// False: holders of leases are not told of changes. For tests, which must find what goes wrong then.
    pub invalidate: bool,
}

/// The service. [`dfs_common::wire::Service`] answers its requests, [`Directory::run`] does the rest.
#[derive(Debug)]
pub struct Directory {
    config: Config,
    policy: Policy,
    store: Arc<dyn Store>,
    tables: Mutex<Tables>,
    leasing: Arc<Leasing>,
    queue: Queue,
    /// Requests answered, by resource; every resource is in it from the start.
    requests: Mutex<BTreeMap<&'static str, u64>>,
    cluster: String,
    revision: AtomicU64,
    started: Instant,
}

impl Directory {
    /// Opens the state in `store`; a new one gets a root directory, one for recovered files, and a random cluster name.
    pub fn open(config: Config, store: Arc<dyn Store>) -> Result<Arc<Self>> {
        check(&config)?;
        let started = Instant::now();
        let cluster = match store.get(&keys::cluster())? {
            Some(name) => String::from_utf8(name).map_err(|_| Error::new(ErrorKind::Corrupt, "the stored cluster name is no text"))?,
            None => create_cluster(&*store)?,
        };
        make_recovered(&*store)?;
        let tables = Tables::load(&*store, config.heartbeat, Duration::ZERO)?;
        let (starts, revision) = count_start(&*store)?;
        let with_mountpoint = tables.sessions.iter().filter(|(_, live)| !live.record.client.mountpoint.is_empty());
        let leases = Leases::new(starts, revision, with_mountpoint.map(|(session, _)| *session).collect());
        // Clients believe what they hold for half a lease after they were last answered.
        let leasing = Leasing::new(leases, config.invalidate, started + config.lease / 2);
        let policy = Policy { copies: config.copies, keep: config.keep, pins: config.pins.clone() };
        Ok(Arc::new(Self {
            config,
            policy,
            store,
            tables: Mutex::new(tables),
            leasing,
            queue: Queue::default(),
            requests: Mutex::new(dfs_common::api::directory::PATHS.iter().map(|path| (*path, 0)).collect()),
            cluster,
            revision: AtomicU64::new(revision),
            started,
        }))
    }

    fn now(&self) -> Moment {
        Moment { wall: Timestamp::from_system_time(SystemTime::now()), clock: self.started.elapsed() }
    }
}

/// Counts this start, so that its numbers are above those of all starts before; with the revision as it is now.
fn count_start(store: &dyn Store) -> Result<(u64, u64)> {
    let key = keys::counter("start");
    let starts = store.get(&key)?.map(|value| Number::decode(&value)).transpose()?.map_or(0, |number| number.0) + 1;
    let changes = BTreeMap::from([(key, Some(Number(starts).encode()))]);
    let revision = store.commit(&Batch { changes, ..Batch::default() }, Durability::Process)?;
    Ok((starts, revision))
}

fn check(config: &Config) -> Result<()> {
    let invalid = |why: String| Err(Error::new(ErrorKind::Invalid, why));
    if !(1..=16).contains(&config.copies) {
        return invalid(format!("copies: 1 to 16, not {}", config.copies));
    }
    if config.keep.versions == 0 {
        return invalid("keep_versions: at least 1, the current one".to_owned());
    }
    if config.keep.free_percent > 90 {
        return invalid(format!("history_free: 0 to 90 percent, not {}", config.keep.free_percent));
    }
    if config.lease < Duration::from_millis(100) || config.heartbeat < Duration::from_millis(10) {
        return invalid("a lease has at least 100 ms, a heartbeat at least 10 ms".to_owned());
    }
    if !(MIN_BLOCK_BITS..=MAX_BLOCK_BITS).contains(&config.block_bits) {
        return invalid(format!("blocks of 2^{} bytes: 2^{MIN_BLOCK_BITS} to 2^{MAX_BLOCK_BITS} are known", config.block_bits));
    }
    match config.pins.iter().find(|pin| !pin.path.starts_with('/') || pin.servers.is_empty()) {
        Some(pin) => invalid(format!("pin '{}': a path from the root and at least one server are needed", pin.path)),
        None => Ok(()),
    }
}

fn create_cluster(store: &dyn Store) -> Result<String> {
    let mut random = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random));
    read.map_err(|e| Error::from_io(&e, "/dev/urandom"))?;
    let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let root = make_top(ROOT, 0o755, Timestamp::from_system_time(SystemTime::now()));
    let changes = BTreeMap::from([(keys::cluster(), Some(name.clone().into_bytes())), (keys::inode(ROOT), Some(root.encode()))]);
    store.commit(&Batch { changes, expected: BTreeMap::from([(keys::cluster(), None)]) }, Durability::Disk)?;
    Ok(name)
}

/// Makes the directory of recovered files where an older service has left none.
fn make_recovered(store: &dyn Store) -> Result<()> {
    let key = keys::inode(RECOVERED);
    let Some(value) = store.get(&key)? else {
        let directory = make_top(RECOVERED, 0o700, Timestamp::from_system_time(SystemTime::now()));
        let changes = BTreeMap::from([(key, Some(directory.encode()))]);
        return store.commit(&Batch { changes, ..Batch::default() }, Durability::Process).map(|_| ());
    };
    let inode = Inode::decode(&value)?;
    // Only the two directories at the top lie in themselves.
    if inode.is_directory() && inode.parent == RECOVERED {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!(
            "inode {RECOVERED} is reserved for recovered files, and in this database, which an older version made, it is something else: copy the files to a new cluster"
        ),
    ))
}
