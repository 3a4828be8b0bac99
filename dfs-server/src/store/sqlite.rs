//! The embedded engine: one table of SQLite in WAL mode.
//!
//! A commit survives the process being killed without an fsync, and the loss of power
//! with one ([`Durability::Disk`]). Checkpoints run on a thread and a connection of
//! their own, because one in the writer costs milliseconds now and then. The revision
//! is counted in memory above a high-water mark that is stored once in many commits.
//! Invariant: one process at a time has the database open; a lock file sees to it.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use dfs_common::{Error, ErrorKind, Result};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OptionalExtension, ffi, params};

use super::{Batch, Durability, Key, Store, Value, View};

/// Revisions that one stored high-water mark covers.
const REVISION_STEP: u64 = 1 << 16;
/// Between two looks at the write-ahead log.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(300);
/// Above this many frames (32 MiB) the log is made to start over.
const RESTART_FRAMES: i64 = 8_000;
/// How long a commit waits for a checkpoint that makes the log start over.
const BUSY: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS high_water (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL);
    INSERT OR IGNORE INTO high_water VALUES (1, 0);
";

/// A database file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Mutex<Writer>,
    commits: Arc<AtomicU64>,
    /// Dropped first, which ends the thread.
    stop: Option<mpsc::Sender<()>>,
    checkpointer: Option<JoinHandle<()>>,
    /// Locked while the store lives.
    _lock: File,
}

#[derive(Debug)]
struct Writer {
    connection: Connection,
    revision: u64,
    high_water: u64,
}

impl SqliteStore {
    /// Opens the database at `path`, or creates it. `Busy` where another process has it open.
    pub fn open(path: &Path) -> Result<Self> {
        let lock = lock(path)?;
        let context = |e: rusqlite::Error| database_error(&e).context(path.display());
        let connection = connect(path).map_err(context)?;
        connection.execute_batch(SCHEMA).map_err(context)?;
        let revision = connection.query_row("SELECT revision FROM high_water", [], |row| row.get::<_, i64>(0)).map_err(context)?.cast_unsigned();
        let (stop, stopped) = mpsc::channel();
        let commits = Arc::new(AtomicU64::new(1));
        let second = connect(path).map_err(context)?;
        let counter = commits.clone();
        let checkpointer = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || checkpoint_until(&stopped, &second, &counter))
            .map_err(|e| Error::from_io(&e, "checkpoint thread"))?;
        let writer = Writer { connection, revision, high_water: revision };
        Ok(Self { writer: Mutex::new(writer), commits, stop: Some(stop), checkpointer: Some(checkpointer), _lock: lock })
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.checkpointer.take()
            && thread.join().is_err()
        {
            log::error!("the checkpoint thread panicked");
        }
    }
}

impl View for SqliteStore {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        get(&self.writer.lock().connection, key).map_err(|e| database_error(&e))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        scan(&self.writer.lock().connection, from, to, limit).map_err(|e| database_error(&e))
    }
}

impl Store for SqliteStore {
    fn commit(&self, batch: &Batch, durability: Durability) -> Result<u64> {
        let mut writer = self.writer.lock();
        let result = writer.commit(batch, durability);
        self.commits.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn snapshot(&self) -> Box<dyn View + '_> {
        let writer = self.writer.lock();
        // Where this fails each read is a transaction of its own and reports what is wrong.
        let begun = writer.run("BEGIN").is_ok();
        Box::new(Snapshot { writer, begun })
    }
}

/// Reads within one transaction: locking the database costs more than a read.
struct Snapshot<'a> {
    writer: MutexGuard<'a, Writer>,
    begun: bool,
}

impl View for Snapshot<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        get(&self.writer.connection, key).map_err(|e| database_error(&e))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        scan(&self.writer.connection, from, to, limit).map_err(|e| database_error(&e))
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        if self.begun
            && let Err(e) = self.writer.run("COMMIT")
        {
            log::error!("end of a read: {e}");
        }
    }
}

impl Writer {
    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(|_| ())
    }

    fn commit(&mut self, batch: &Batch, durability: Durability) -> Result<u64> {
        let disk = durability == Durability::Disk;
        if disk {
            self.connection.pragma_update(None, "synchronous", "FULL").map_err(|e| database_error(&e))?;
        }
        let revision = self.revision + 1;
        // SQLite syncs nothing for a transaction that changes nothing, so one for the disk always moves the mark.
        let high_water = if disk || revision > self.high_water { revision + REVISION_STEP } else { self.high_water };
        let result = self
            .run("BEGIN IMMEDIATE")
            .map_err(|e| database_error(&e))
            .and_then(|()| self.apply(batch, high_water))
            .and_then(|()| self.run("COMMIT").map_err(|e| database_error(&e)));
        if result.is_err() && !self.connection.is_autocommit() {
            self.run("ROLLBACK").map_err(|e| database_error(&e))?;
        }
        if disk {
            self.connection.pragma_update(None, "synchronous", "NORMAL").map_err(|e| database_error(&e))?;
        }
        result?;
        (self.revision, self.high_water) = (revision, high_water);
        Ok(revision)
    }

    fn apply(&self, batch: &Batch, high_water: u64) -> Result<()> {
        for (key, expected) in &batch.expected {
            if get(&self.connection, key).map_err(|e| database_error(&e))? != *expected {
                return Err(Error::new(ErrorKind::Conflict, "a row changed since it was read"));
            }
        }
        let change = || -> rusqlite::Result<()> {
            let mut put = self.connection.prepare_cached("INSERT OR REPLACE INTO kv VALUES (?1, ?2)")?;
            let mut delete = self.connection.prepare_cached("DELETE FROM kv WHERE key = ?1")?;
            for (key, value) in &batch.changes {
                match value {
                    Some(value) => put.execute(params![key, value])?,
                    None => delete.execute(params![key])?,
                };
            }
            if high_water > self.high_water {
                self.connection.prepare_cached("UPDATE high_water SET revision = ?1")?.execute(params![high_water.cast_signed()])?;
            }
            Ok(())
        };
        change().map_err(|e| database_error(&e))
    }
}

fn get(connection: &Connection, key: &[u8]) -> rusqlite::Result<Option<Value>> {
    connection.prepare_cached("SELECT value FROM kv WHERE key = ?1")?.query_row(params![key], |row| row.get(0)).optional()
}

fn scan(connection: &Connection, from: &[u8], to: &[u8], limit: usize) -> rusqlite::Result<Vec<(Key, Value)>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached("SELECT key, value FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3")?;
    statement.query_map(params![from, to, limit], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// A connection that never checkpoints on its own.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "page_size", 4096)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(16);
    Ok(connection)
}

/// Takes the lock file beside `path`.
fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(|e| Error::from_io(&e, name.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::new(ErrorKind::Busy, format!("{} is in use by another process (it holds {})", path.display(), name.display())))
        }
        Err(TryLockError::Error(e)) => Err(Error::from_io(&e, name.display())),
    }
}

fn checkpoint_until(stopped: &mpsc::Receiver<()>, connection: &Connection, commits: &AtomicU64) {
    let mut seen = 0;
    while stopped.recv_timeout(CHECKPOINT_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
        let now = commits.load(Ordering::Relaxed);
        if now == seen {
            continue;
        }
        let checkpoint = |mode: &str| connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get::<_, i64>(1));
        // The log's length counts from its start, so one that is read to the end while commits go on only ever grows.
        let result = checkpoint("PASSIVE").and_then(|frames| if frames > RESTART_FRAMES { checkpoint("RESTART") } else { Ok(frames) });
        match result {
            Ok(_) => seen = now,
            Err(e) => log::warn!("checkpoint: {e}"),
        }
    }
}

fn database_error(error: &rusqlite::Error) -> Error {
    let kind = match error.sqlite_error().map(|e| (e.code, e.extended_code)) {
        Some((ffi::ErrorCode::DiskFull, _)) => ErrorKind::NoSpace,
        // The index of the log lies on the same disk and is extended by a call that knows no other code.
        Some((_, ffi::SQLITE_IOERR_SHMSIZE)) => ErrorKind::NoSpace,
        Some((ffi::ErrorCode::ReadOnly, _)) => ErrorKind::ReadOnly,
        Some((ffi::ErrorCode::DatabaseCorrupt | ffi::ErrorCode::NotADatabase, _)) => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("database: {error}"))
}
