//! One run's session at the cluster: opening, keeping alive, resolving paths, write
//! locks, and giving everything back however the run ends.
//!
//! Invariant: every lock or place in a queue that was asked for stands in `holds` until
//! it is given back, so that an interrupted command leaves none behind.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use dfs_common::api::directory::{Access, CloseSession, Make, OpenSession, Resolve, Resolved};
use dfs_common::api::lock::{LockRow, Locks};
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::clients::cluster::connect_plain;
use dfs_common::clients::{Cluster, WriteLock, behalf};
use dfs_common::credentials::ClusterToken;
use dfs_common::ids::{InodeId, Token};
use dfs_common::name::{Name, Text};
use dfs_common::user::NOBODY;
use dfs_common::{ErrorKind, Result};
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use super::args::Globals;
use super::failure::{At, Failure, Outcome};

/// How long the end of a run waits for the servers.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// A wait for a lock is silent for this long.
const SILENT_WAIT: Duration = Duration::from_secs(1);

/// A write lock, or a place in its queue.
#[derive(Clone, Copy, Debug)]
struct Hold {
    ino: InodeId,
    request: u64,
    token: Option<Token>,
}

/// A file under this run's write lock, as it was when the lock was granted.
#[derive(Clone, Debug)]
pub(crate) struct Locked {
    pub(crate) entry: Entry,
    pub(crate) token: Token,
    /// True where this run has made the file.
    pub(crate) created: bool,
}

/// The session and what the commands of one run share.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) json: bool,
    pub(crate) globals: Globals,
    holds: Mutex<Vec<Hold>>,
    asked_for_locks: AtomicBool,
    /// Files that this run reads or writes now: not released when they are removed.
    open: Arc<Mutex<Vec<InodeId>>>,
    /// True while an editor has the terminal: signals from the keyboard are its own.
    pub(crate) deaf: AtomicBool,
    exit: AtomicU8,
}

impl Session {
    /// Connects, and keeps the session alive until the run ends.
    pub(crate) async fn open(globals: &Globals) -> Outcome<Self> {
        let token = ClusterToken::read(&globals.token_file)?;
        let client = OpenSession {
            host: host(),
            pid: std::process::id(),
            program: concat!("dfs ", env!("CARGO_PKG_VERSION")).to_owned(),
            mountpoint: String::new(),
        };
        let cluster = Arc::new(Cluster::open(&globals.server, connect_plain(&token), client, globals.timeout).await?);
        let open = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(keep_alive(cluster.clone(), open.clone()));
        Ok(Self {
            cluster,
            json: globals.json,
            globals: globals.clone(),
            holds: Mutex::default(),
            asked_for_locks: AtomicBool::new(false),
            open,
            deaf: AtomicBool::new(false),
            exit: AtomicU8::new(0),
        })
    }

    /// Ends the session. That the servers are gone by now is no failure of the command.
    pub(crate) async fn close(&self) {
        let ended = async {
            // Who never asked for a lock owes the lock service nothing, and needs not wait for it.
            if self.asked_for_locks.load(Ordering::Relaxed) {
                return self.cluster.close().await;
            }
            self.cluster.directory.call(&CloseSession { session: self.cluster.id() }).await.map(|_| ())
        };
        match timeout(CLOSE_LIMIT, ended).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => log::info!("closing the session: {e}"),
            Err(_) => log::info!("closing the session: no answer"),
        }
    }

    /// Returns when the user or the system wants the run to end.
    pub(crate) async fn interrupted(&self) -> std::io::Result<()> {
        let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        loop {
            tokio::select! {
                _ = int.recv() => if !self.deaf.load(Ordering::Relaxed) { return Ok(()) },
                _ = term.recv() => return Ok(()),
            }
        }
    }

    /// Gives back what an abandoned command left: its locks and its places in queues.
    pub(crate) async fn abandon(&self) {
        let holds = std::mem::take(&mut *self.holds.lock());
        self.open.lock().clear();
        self.deaf.store(false, Ordering::Relaxed);
        for Hold { ino, request, token } in holds {
            let ended = async {
                self.cluster.cancel_lock(ino, request).await?;
                match token {
                    Some(token) => self.cluster.release_lock(ino, token).await,
                    None => Ok(()),
                }
            };
            if !matches!(timeout(CLOSE_LIMIT, ended).await, Ok(Ok(()))) {
                log::warn!("the lock of inode {ino} ends with the session");
            }
        }
    }

    /// Prints the failure of one of several objects; the run goes on and ends with its exit code.
    pub(crate) fn report(&self, failure: &Failure) {
        failure.print(self.json);
        let _ = self.exit.compare_exchange(0, failure.exit_code(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Ends the run with `code`, whatever else is reported.
    pub(crate) fn set_exit(&self, code: u8) {
        self.exit.store(code, Ordering::Relaxed);
    }

    /// The exit code of what was reported, which starts again at 0.
    pub(crate) fn take_exit(&self) -> u8 {
        self.exit.swap(0, Ordering::Relaxed)
    }

    /// Where `path` leads.
    pub(crate) async fn resolve(&self, path: &OsStr, follow: bool) -> Outcome<Resolved> {
        self.cluster.directory.call(&Resolve { path: Text(path.as_bytes().to_vec()), follow }).await.at(path)
    }

    /// What is at `path`; not found where nothing is.
    pub(crate) async fn existing(&self, path: &OsStr, follow: bool) -> Outcome<Entry> {
        self.resolve(path, follow).await?.entry.ok_or_else(|| missing().at(path))
    }

    /// The directory that `path` leads to, also through symlinks; `None` where it leads to anything else or nowhere.
    pub(crate) async fn directory_at(&self, path: &OsStr) -> Outcome<Option<InodeId>> {
        match self.resolve(path, true).await {
            Ok(found) => Ok(found.entry.filter(|entry| entry.attributes.kind == FileKind::Directory).map(|entry| entry.attributes.ino)),
            Err(e) if e.is(ErrorKind::NotFound) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The directory and the name for something new at `path`; `Exists` where it is taken.
    pub(crate) async fn vacant(&self, path: &OsStr) -> Outcome<(InodeId, Name)> {
        let found = self.resolve(path, false).await?;
        match (found.entry, found.name) {
            (None, Some(name)) => Ok((found.parent, name)),
            _ => Err(Failure::new(ErrorKind::Exists, "the name is taken").at(path)),
        }
    }

    /// Creates an inode of this caller.
    pub(crate) async fn make(&self, parent: InodeId, name: Name, kind: FileKind, target: Option<Text>) -> Result<Entry> {
        let mode = match kind {
            FileKind::Directory => 0o777 & !umask(),
            FileKind::Symlink => 0o777,
            _ => 0o666 & !umask(),
        };
        let (uid, gid) = behalf::current().map_or((NOBODY, NOBODY), |user| (user.user().uid, user.user().gid));
        let make = Make { uid, gid, target, ..Make::new(parent, name, kind, mode) };
        self.cluster.directory.call(&make).await.map(|made| made.entry)
    }

    /// Marks `ino` as in use by the running command.
    pub(crate) fn using(&self, ino: InodeId) {
        self.open.lock().push(ino);
    }

    /// The end of [`Session::using`].
    pub(crate) fn unused(&self, ino: InodeId) {
        self.open.lock().retain(|&other| other != ino);
    }

    /// Takes the write lock of the file at `path`, which is created if there is none.
    pub(crate) async fn lock(&self, path: &OsStr, program: &str, wait: Duration) -> Outcome<Locked> {
        let start = Instant::now();
        let mut made = None;
        loop {
            let entry = match self.resolve(path, true).await? {
                Resolved { entry: Some(entry), .. } => entry,
                Resolved { parent, name: Some(name), .. } => match self.make(parent, name, FileKind::File, None).await {
                    Ok(entry) => {
                        made = Some(entry.attributes.ino);
                        entry
                    }
                    // Somebody else was faster.
                    Err(e) if e.kind() == ErrorKind::Exists && start.elapsed() <= wait => continue,
                    Err(e) => return Err(e).at(path),
                },
                Resolved { .. } => return Err(Failure::new(ErrorKind::IsDirectory, "is a directory").at(path)),
            };
            writable(&entry).at(path)?;
            let ino = entry.attributes.ino;
            if made != Some(ino) {
                self.cluster.directory.call(&Access::write(ino)).await.at(path)?;
            }
            let token = self.acquire(&entry, path, program, wait.saturating_sub(start.elapsed())).await.at(path)?;
            // While we waited, the file may have got a new version, or the name another file.
            match self.resolve(path, true).await {
                Ok(Resolved { entry: Some(entry), .. }) if entry.attributes.ino == ino => {
                    self.cluster.learn(&entry).await.at(path)?;
                    self.using(ino);
                    return Ok(Locked { entry, token, created: made == Some(ino) });
                }
                Ok(_) => self.release(ino, token).await,
                Err(e) => {
                    self.release(ino, token).await;
                    return Err(e);
                }
            }
        }
    }

    async fn acquire(&self, entry: &Entry, path: &OsStr, program: &str, wait: Duration) -> Outcome<Token> {
        let (ino, fresh) = (entry.attributes.ino, entry.layout.fresh);
        self.asked_for_locks.store(true, Ordering::Relaxed);
        let request = self.cluster.next_lock_request();
        self.holds.lock().push(Hold { ino, request, token: None });
        let asked = self.cluster.acquire_lock(WriteLock { ino, request, pid: std::process::id(), program, fresh }, Some(wait), false);
        tokio::pin!(asked);
        let granted = tokio::select! {
            granted = &mut asked => granted,
            () = sleep(SILENT_WAIT) => {
                if !self.json && std::io::stderr().is_terminal() {
                    let holder = self.holder(ino).await;
                    eprintln!("dfs: {}: waiting for the write lock{holder}", path.display());
                }
                asked.await
            }
        };
        let token = match granted {
            Ok(token) => token,
            Err(e) => {
                self.holds.lock().retain(|hold| hold.request != request);
                // The lock service's message says who has it.
                return Err(e.into());
            }
        };
        if let Some(hold) = self.holds.lock().iter_mut().find(|hold| hold.request == request) {
            hold.token = Some(token);
        }
        Ok(token)
    }

    /// ", held by …" as far as it is known.
    async fn holder(&self, ino: InodeId) -> String {
        let rows = timeout(CLOSE_LIMIT, self.cluster.lock.call(&Locks { ino: Some(ino) })).await;
        match rows.ok().and_then(Result::ok).and_then(|rows| rows.into_iter().next()) {
            Some(LockRow { holder, queue, .. }) => {
                let owner = &holder.owner;
                let held = Duration::from_millis(holder.age_ms).as_secs();
                format!(", held by {} (process {} on {}) for {held} s, {} in line", owner.program, owner.pid, owner.host, queue.len())
            }
            None => String::new(),
        }
    }

    /// Gives a lock back. A failure is only logged: the lock ends with the session at the latest.
    pub(crate) async fn release(&self, ino: InodeId, token: Token) {
        if let Err(e) = self.cluster.release_lock(ino, token).await {
            log::warn!("releasing the lock of inode {ino}: {e}");
        }
        self.holds.lock().retain(|hold| hold.token != Some(token));
        self.unused(ino);
    }
}

/// Renews until the run ends; removed files that no command uses are let go.
async fn keep_alive(cluster: Arc<Cluster>, open: Arc<Mutex<Vec<InodeId>>>) {
    let period = Duration::from_millis(cluster.session().lease_ms / 3).max(Duration::from_millis(100));
    let mut released = Vec::new();
    loop {
        sleep(period).await;
        match cluster.renew(std::mem::take(&mut released)).await {
            Ok(renewed) => {
                let open = open.lock();
                released = renewed.orphans.into_iter().filter(|ino| !open.contains(ino)).collect();
            }
            Err(e) => log::warn!("renewing the session: {e}"),
        }
    }
}

fn writable(entry: &Entry) -> Outcome {
    match entry.attributes.kind {
        FileKind::File => Ok(()),
        FileKind::Directory => Err(Failure::new(ErrorKind::IsDirectory, "is a directory")),
        _ => Err(Failure::new(ErrorKind::Invalid, "is not a regular file")),
    }
}

pub(crate) fn missing() -> Failure {
    Failure::new(ErrorKind::NotFound, "no such file or directory")
}

/// This machine's name.
pub(super) fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}

/// The process's umask.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o022)
}
