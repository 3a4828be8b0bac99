//! The embedded engine: one table of SQLite in WAL mode, behind a log.
//!
//! A commit is one write to the [`log`](super::log) and is kept in memory; a thread takes what has
//! gathered to the database, in one transaction, and then checkpoints that. Many commits
//! change the same rows and pages, and each page costs as much as a whole commit does here.
//! A commit survives the process being killed without a sync, and the loss of power with
//! one of the log ([`Durability::Disk`]). After a clean end everything is in the database.
//! Invariant: what a key is stands in `young`, else in `moving`, else in the database; one process at a time has
//! it open; a lock file sees to it.

use std::cell::Cell;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dfs_common::{Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, ffi, params};

use super::log::{Changes, Left, Log, Place};
use super::overlay::scan_above;
use super::{Batch, Durability, Key, Store, Value, View};

/// What was committed goes to the database after this time at the latest …
const MOVE_INTERVAL: Duration = Duration::from_millis(500);
/// … and once it is this much.
const MOVE_BYTES: usize = 4 << 20;
/// Above this a commit waits until the database has taken what came before.
const WAIT_BYTES: usize = 16 << 20;
/// For so long; then it fails with what keeps the database from it.
const WAIT: Duration = Duration::from_secs(10);
/// Above this many frames (32 MiB) SQLite's own log is made to start over.
const RESTART_FRAMES: i64 = 8_000;
/// How long a checkpoint that makes it start over waits for a read.
const BUSY: Duration = Duration::from_secs(10);
/// What a pair costs in memory besides its bytes.
const PAIR_BYTES: usize = 100;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS high_water (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS moved (one INTEGER PRIMARY KEY CHECK (one = 1), log INTEGER NOT NULL, chain BLOB NOT NULL);
    INSERT OR IGNORE INTO high_water VALUES (1, 0);
    INSERT OR IGNORE INTO moved VALUES (1, 0, zeroblob(32));
";

/// A database file with its log.
#[derive(Debug)]
pub struct SqliteStore {
    shared: Arc<Shared>,
    mover: Option<JoinHandle<()>>,
    /// Locked while the store lives.
    _lock: File,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is much to move, or the end has come.
    work: Condvar,
    /// Something was moved, or could not be.
    moved: Condvar,
}

#[derive(Debug)]
struct State {
    /// For reads.
    connection: Connection,
    log: Log,
    revision: u64,
    /// Committed since the other file of the log was begun.
    young: Changes,
    /// About as much memory as it has.
    young_bytes: usize,
    /// Committed before and on its way to the database. Until that has it, the log's other file stays.
    moving: Option<Arc<Changes>>,
    /// Why the database did not take it.
    problem: Option<Error>,
    ending: bool,
}

impl SqliteStore {
    /// Opens the database at `path`, or creates it. `Busy` where another process has it open.
    pub fn open(path: &Path) -> Result<Self> {
        let lock = lock(path)?;
        let context = |e: rusqlite::Error| database_error(&e).context(path.display());
        let mut second = connect(path).map_err(context)?;
        second.execute_batch(SCHEMA).map_err(context)?;
        let (revision, moved) = progress(&second).map_err(context)?;
        let (log, Left { moving, young, revision: last }) = Log::open(path, moved)?;
        let state = State {
            connection: connect(path).map_err(context)?,
            log,
            revision: revision.max(last),
            young_bytes: young.iter().map(|(key, value)| memory_of(key, value.as_ref())).sum(),
            young,
            moving: moving.map(Arc::new),
            problem: None,
            ending: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), moved: Condvar::new() });
        let moving = shared.clone();
        let mover = std::thread::Builder::new().name("mover".to_owned()).spawn(move || moving.move_until_the_end(&mut second));
        Ok(Self { shared, mover: Some(mover.map_err(|e| Error::from_io(&e, "mover thread"))?), _lock: lock })
    }
}

#[cfg(test)]
impl SqliteStore {
    /// Copies the files to the folder `to` as they are at a moment between two commits, half moved or not.
    pub(super) fn copy_files(&self, to: &Path) {
        let mut state = self.shared.state.lock();
        while state.moving.is_some() {
            self.shared.moved.wait(&mut state);
        }
        let folder = PathBuf::from(state.connection.path().expect("a file")).parent().expect("a folder").to_owned();
        for file in std::fs::read_dir(folder).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.shared.state.lock().ending = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.mover.take()
            && thread.join().is_err()
        {
            log::error!("the mover thread panicked");
        }
    }
}

impl View for SqliteStore {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        self.shared.state.lock().get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        self.shared.state.lock().scan(from, to, limit)
    }
}

impl Store for SqliteStore {
    fn commit(&self, batch: &Batch, durability: Durability) -> Result<u64> {
        let mut state = self.shared.state.lock();
        if state.young_bytes > WAIT_BYTES {
            self.shared.make_room(&mut state)?;
        }
        for (key, expected) in &batch.expected {
            if state.get(key)? != *expected {
                return Err(Error::new(ErrorKind::Conflict, "a row changed since it was read"));
            }
        }
        let (revision, mark) = (state.revision + 1, state.log.mark());
        state.log.append(revision, &batch.changes)?;
        if durability == Durability::Disk
            && let Err(e) = state.log.sync()
        {
            state.log.take_back(mark);
            return Err(e);
        }
        state.revision = revision;
        for (key, value) in &batch.changes {
            state.young_bytes += memory_of(key, value.as_ref());
            state.young.insert(key.clone(), value.clone());
        }
        if state.young_bytes > MOVE_BYTES {
            self.shared.work.notify_one();
        }
        Ok(revision)
    }

    fn snapshot(&self) -> Box<dyn View + '_> {
        Box::new(Snapshot { state: self.shared.state.lock(), begun: Cell::new(false) })
    }
}

/// About what a change takes up in memory.
fn memory_of(key: &Key, value: Option<&Value>) -> usize {
    PAIR_BYTES + key.len() + value.map_or(0, Vec::len)
}

impl State {
    /// What was done to `key` since the database was told.
    fn recent(&self, key: &[u8]) -> Option<&Option<Value>> {
        self.young.get(key).or_else(|| self.moving.as_ref()?.get(key))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        match self.recent(key) {
            Some(change) => Ok(change.clone()),
            None => get(&self.connection, key).map_err(|e| database_error(&e)),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        let database = |from: &[u8], limit| scan(&self.connection, from, to, limit).map_err(|e| database_error(&e));
        let moving = |from: &[u8], limit| match &self.moving {
            Some(moving) => scan_above(moving, from, to, limit, database),
            None => database(from, limit),
        };
        scan_above(&self.young, from, to, limit, moving)
    }
}

/// Several reads: the lock is held, and the database's own taken once, as that costs more than a read.
struct Snapshot<'a> {
    state: MutexGuard<'a, State>,
    begun: Cell<bool>,
}

impl Snapshot<'_> {
    fn begin(&self) {
        if !self.begun.get() {
            // Where this fails each read is a transaction of its own and reports what is wrong.
            self.begun.set(run(&self.state.connection, "BEGIN").is_ok());
        }
    }
}

impl View for Snapshot<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        if self.state.recent(key).is_none() {
            self.begin();
        }
        self.state.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        self.begin();
        self.state.scan(from, to, limit)
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        if self.begun.get()
            && let Err(e) = run(&self.state.connection, "COMMIT")
        {
            log::error!("end of a read: {e}");
        }
    }
}

impl Shared {
    /// Waits until the database has taken what came before.
    fn make_room(&self, state: &mut MutexGuard<'_, State>) -> Result<()> {
        let deadline = Instant::now() + WAIT;
        self.work.notify_one();
        while state.young_bytes > WAIT_BYTES {
            if self.moved.wait_until(state, deadline).timed_out() || state.problem.is_some() {
                let problem = state.problem.clone();
                return Err(problem.unwrap_or_else(|| Error::new(ErrorKind::TimedOut, "the database does not keep up with its log")));
            }
        }
        Ok(())
    }

    fn move_until_the_end(&self, connection: &mut Connection) {
        let mut state = self.state.lock();
        loop {
            if !state.ending && (state.young_bytes <= MOVE_BYTES || state.problem.is_some()) {
                self.work.wait_for(&mut state, MOVE_INTERVAL);
            }
            let took = self.move_once(&mut state, connection);
            if let Err(e) = &took
                // Once for each new reason: it may last.
                && state.problem.as_ref().is_none_or(|before| before.kind() != e.kind())
            {
                log::error!("the database does not take what is in its log: {e}");
            }
            state.problem = took.err();
            self.moved.notify_all();
            // What cannot be moved now is found in the log by the next process.
            if state.ending && (state.problem.is_some() || (state.young.is_empty() && state.moving.is_none())) {
                return;
            }
        }
    }

    /// Takes what was committed so far to the database. Commits go on meanwhile, in the log's other file.
    fn move_once(&self, state: &mut MutexGuard<'_, State>, connection: &mut Connection) -> Result<()> {
        let moving = match &state.moving {
            Some(moving) => moving.clone(),
            None if state.young.is_empty() && !state.log.is_doubtful() => return Ok(()),
            None => {
                let revision = state.revision;
                state.log.next(revision)?;
                let moving = Arc::new(std::mem::take(&mut state.young));
                (state.moving, state.young_bytes) = (Some(moving.clone()), 0);
                moving
            }
        };
        let (revision, end) = (state.revision, state.log.before());
        MutexGuard::unlocked(state, || take(connection, &moving, revision, end)).map_err(|e| database_error(&e))?;
        state.moving = None;
        state.log.moved();
        MutexGuard::unlocked(state, || {
            if let Err(e) = checkpoint(connection) {
                log::warn!("checkpoint: {e}");
            }
        });
        Ok(())
    }
}

/// The last revision that is stored, and how far the log is.
fn progress(connection: &Connection) -> rusqlite::Result<(u64, Place)> {
    let sql = "SELECT revision, log, chain FROM high_water, moved";
    let number = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(i64::cast_unsigned);
    connection.query_row(sql, [], |row| Ok((number(row, 0)?, Place { number: number(row, 1)?, chain: row.get(2)? })))
}

/// Stores `changes`, which are all up to `end` of the log, and returns when the disk has them.
fn take(connection: &mut Connection, changes: &Changes, revision: u64, end: Place) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO kv VALUES (?1, ?2)")?;
        let mut delete = transaction.prepare_cached("DELETE FROM kv WHERE key = ?1")?;
        for (key, value) in changes {
            match value {
                Some(value) => put.execute(params![key, value])?,
                None => delete.execute(params![key])?,
            };
        }
        transaction.prepare_cached("UPDATE high_water SET revision = max(revision, ?1)")?.execute([revision.cast_signed()])?;
        transaction.prepare_cached("UPDATE moved SET log = ?1, chain = ?2")?.execute(params![end.number.cast_signed(), end.chain])?;
    }
    transaction.commit()
}

fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    let checkpoint = |mode: &str| connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get::<_, i64>(1));
    // The log's length counts from its start, so one that is read to the end while commits go on only ever grows.
    let frames = checkpoint("PASSIVE")?;
    if frames > RESTART_FRAMES { checkpoint("RESTART").map(|_| ()) } else { Ok(()) }
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(|_| ())
}

fn get(connection: &Connection, key: &[u8]) -> rusqlite::Result<Option<Value>> {
    connection.prepare_cached("SELECT value FROM kv WHERE key = ?1")?.query_row(params![key], |row| row.get(0)).optional()
}

fn scan(connection: &Connection, from: &[u8], to: &[u8], limit: usize) -> rusqlite::Result<Vec<(Key, Value)>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached("SELECT key, value FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3")?;
    statement.query_map(params![from, to, limit], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// A connection that never checkpoints on its own. A transaction of it is on the disk when it is committed.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "page_size", 4096)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(16);
    // A plan that depends on what is asked for is made anew for each scan, which costs more than a short scan.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
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
