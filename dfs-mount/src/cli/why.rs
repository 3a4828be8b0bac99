//! `dfs why`: what waits, for what, since when. What the mounts of this machine say of
//! themselves comes first, what the services know is added.
//!
//! It must work when everything else hangs: it opens no session, touches no mount, and
//! waits for nobody longer than [`LIMIT`]. Who does not answer is part of the result.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dfs_common::api::Operation;
use dfs_common::api::directory::{CloseSession, OpenSession, Resolve, SessionRow, Sessions, WaitRow, Waits};
use dfs_common::api::lock::{LockRow, Locks, RangeRow, Ranges};
use dfs_common::clients::Caller;
use dfs_common::credentials::ClusterToken;
use dfs_common::ids::InodeId;
use dfs_common::name::{self, Text};
use dfs_common::transport::Plain;
use dfs_common::{Error, ErrorKind, Result};
use futures_util::future::join_all;
use serde::Serialize;

use super::args::{DEFAULT_SERVER, Globals, Why};
use super::failure::{At, Outcome};
use super::session::missing;
use super::{reasons, render};
use crate::control::{self, Report};
use crate::mountinfo::{self, Row};
use crate::vfs::waits::WaitingRow;

/// How long a service may take to answer.
const LIMIT: Duration = Duration::from_secs(3);

/// Everything that was found. Its lists hold what waits, and nothing else.
#[derive(Debug, Default, Serialize)]
pub(super) struct Findings {
    /// The mounts of this machine that were asked, with their waits.
    pub(super) mounts: Vec<Report>,
    /// Changes that wait until clients have acknowledged them.
    pub(super) changes: Vec<WaitRow>,
    /// The clients that stand in `changes`.
    pub(super) sessions: Vec<SessionRow>,
    /// Write locks that are waited for; of a path, its lock.
    pub(super) locks: Vec<LockRow>,
    /// Locks of programs on files where somebody waits for one; of a path, all of them.
    pub(super) programs: Vec<RangeRow>,
    /// Who did not answer.
    pub(super) silent: Vec<Silent>,
}

/// A mount or a service that did not answer, or refused to.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Silent {
    pub(super) who: String,
    pub(super) refused: bool,
    pub(super) problem: String,
}

impl Silent {
    fn service<O: Operation>(who: &str, error: &Error) -> Self {
        // The reason, without what the line says anyway.
        let message = error.message();
        let problem = message.split_once(&format!("{} in time: ", O::PATH)).map_or(message, |(_, reason)| reason);
        Self { who: who.to_owned(), refused: !error.kind().is_transient(), problem: problem.to_owned() }
    }
}

/// What is asked about.
#[derive(Debug)]
enum Subject {
    Everything,
    /// A process or thread of this machine.
    Process(u32),
    /// A path in the cluster, and the mount that holds it, if it was named through one.
    Path {
        mount: Option<Row>,
        inside: PathBuf,
    },
}

impl Subject {
    fn of(arguments: &Why, mountinfo: &str) -> Outcome<Self> {
        let Some(target) = arguments.target.as_deref() else { return Ok(Self::Everything) };
        if let Some(pid) = target.to_str().and_then(|text| text.parse().ok()) {
            return Ok(Self::Process(pid));
        }
        let absolute = std::path::absolute(target).at(target)?;
        Ok(match mountinfo::holder(mountinfo, &absolute) {
            Some((row, inside)) => Self::Path { mount: Some(row), inside },
            // As everywhere else on this command line: a path in the cluster.
            None => Self::Path { mount: None, inside: Path::new("/").join(target) },
        })
    }

    /// The mounts to ask.
    fn mounts(&self, mountinfo: &str) -> Vec<Row> {
        match self {
            Self::Path { mount, .. } => mount.iter().cloned().collect(),
            _ => {
                let mut rows = mountinfo::ours(mountinfo);
                // A bind mount is the same mount.
                let mut seen = std::collections::HashSet::new();
                rows.retain(|row| seen.insert(row.device.clone()));
                rows
            }
        }
    }

    /// Whether a wait concerns it; `ino` is the path's inode, if that is known.
    fn concerns(&self, wait: &WaitingRow, ino: Option<InodeId>) -> bool {
        match self {
            Self::Everything => true,
            Self::Process(pid) => wait.pid == *pid || wait.thread == *pid,
            Self::Path { inside, .. } => {
                let below = wait.path.as_ref().map(|path| Path::new(path).starts_with(name::encode(inside.as_os_str().as_bytes())));
                // Rather a wait too many than the one that was looked for missing.
                below.unwrap_or(ino.is_none()) || (ino.is_some() && wait.ino == ino)
            }
        }
    }
}

pub(crate) async fn why(globals: &Globals, arguments: &Why) -> Outcome {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").at("/proc/self/mountinfo")?;
    let subject = Subject::of(arguments, &mountinfo)?;
    let mut findings = Findings::default();
    ask_mounts(&subject, &mountinfo, &mut findings).await;
    if matches!(subject, Subject::Process(_)) {
        // What other mounts do, and their services, is another matter.
        findings.mounts.retain(|mount| mount.waits.iter().any(|wait| subject.concerns(wait, None)));
    }
    let ino = ask_services(globals, &subject, &mut findings).await?;
    for mount in &mut findings.mounts {
        mount.waits.retain(|wait| subject.concerns(wait, ino));
    }
    if globals.json { render::json(&findings) } else { reasons::print(&findings, arguments.target.as_deref()) }
}

async fn ask_mounts(subject: &Subject, mountinfo: &str, findings: &mut Findings) {
    let rows = subject.mounts(mountinfo);
    for (row, answer) in rows.iter().zip(join_all(rows.iter().map(control::ask)).await) {
        match answer {
            Ok(report) => findings.mounts.push(report),
            Err(e) => findings.silent.push(Silent {
                who: format!("the mount at {}", row.mountpoint.display()),
                refused: e.kind() == std::io::ErrorKind::PermissionDenied,
                problem: e.to_string(),
            }),
        }
    }
}

/// The services of one cluster.
struct Services {
    directory: Caller,
    lock: Option<Caller>,
    /// The directory service, once it has not answered: it is not asked again.
    silent: Option<Silent>,
}

impl Services {
    fn caller(url: &str, token: &ClusterToken) -> Result<Caller> {
        Ok(Caller::new(Arc::new(Plain::new(url, token)?), LIMIT))
    }

    /// Of the directory service at `url`. Where the lock service is, the mounts know, or the directory says.
    async fn find(url: &str, token: &ClusterToken, mounts: &[Report]) -> Result<Self> {
        let mut services = Self { directory: Self::caller(url, token)?, lock: None, silent: None };
        let known = mounts.iter().find(|mount| mount.source == url).map(|mount| mount.lock_url.clone());
        let lock_url = match known {
            Some(url) => Some(url),
            None => services.lock_url().await,
        };
        services.lock = lock_url.map(|url| Self::caller(&url, token)).transpose()?;
        Ok(services)
    }

    fn is_silent<O: Operation>(&mut self, error: &Error) {
        self.silent.get_or_insert_with(|| Silent::service::<O>(self.directory.peer(), error));
    }

    /// The directory service tells it to clients.
    async fn lock_url(&mut self) -> Option<String> {
        let client = OpenSession { host: super::session::host(), pid: std::process::id(), program: "dfs why".to_owned(), mountpoint: String::new() };
        let session = match self.directory.call(&client).await {
            Ok(session) => session,
            Err(e) => {
                self.is_silent::<OpenSession>(&e);
                return None;
            }
        };
        if let Err(e) = self.directory.call(&CloseSession { session: session.session }).await {
            log::info!("closing the session: {e}");
        }
        Some(session.lock_url)
    }

    /// The inode behind a path. That there is none is an error only where no mount may be about to create it.
    async fn resolve(&mut self, inside: &Path, must_exist: bool, mounts: &[Report]) -> Outcome<Option<InodeId>> {
        let path: &OsStr = inside.as_os_str();
        let answer = match self.silent {
            None => self.directory.call(&Resolve { path: Text(path.as_bytes().to_vec()), follow: false }).await,
            Some(_) => Err(ErrorKind::Unavailable.into()),
        };
        match answer {
            Ok(resolved) => match resolved.entry {
                Some(entry) => Ok(Some(entry.attributes.ino)),
                None if must_exist => Err(missing().at(path)),
                None => Ok(None),
            },
            Err(e) if e.kind() == ErrorKind::NotFound => {
                if must_exist {
                    Err(e).at(path)
                } else {
                    Ok(None)
                }
            }
            Err(e) => {
                self.is_silent::<Resolve>(&e);
                let is_it = |wait: &&WaitingRow| wait.name.is_none() && wait.path.as_deref().map(Path::new) == Some(inside);
                Ok(mounts.iter().flat_map(|mount| &mount.waits).find(is_it).and_then(|wait| wait.ino))
            }
        }
    }

    /// Changes that wait, write locks, and who is in both.
    async fn ask(&mut self, subject: &Subject, ino: Option<InodeId>, mounts: &[Report], findings: &mut Findings) {
        let waited_for = mounts.iter().flat_map(|mount| &mount.waits).filter(|wait| subject.concerns(wait, ino)).filter_map(|wait| wait.ino);
        let mut wanted: Option<Vec<InodeId>> = match subject {
            Subject::Everything => None,
            // What it waits for is all that a process is asked about.
            Subject::Process(_) => Some(waited_for.collect()),
            Subject::Path { .. } => Some(ino.into_iter().chain(waited_for).collect()),
        };
        wanted.iter_mut().for_each(Vec::dedup);
        // Most often it is about one file; who asks about several gets all locks, and picks.
        let ino = wanted.as_deref().and_then(|wanted| if let [ino] = wanted { Some(*ino) } else { None });
        let is_silent = self.silent.is_some();
        let changes = async {
            if is_silent { Ok((Vec::new(), Vec::new())) } else { tokio::try_join!(waits(&self.directory), self.directory.call(&Sessions {})) }
        };
        let locks = async {
            match &self.lock {
                Some(lock) => {
                    let write = Locks { ino };
                    Some((lock.peer().to_owned(), tokio::try_join!(lock.call(&write), ranges(lock, ino))))
                }
                None => None,
            }
        };
        let (changes, locks) = tokio::join!(changes, locks);
        match changes {
            Ok((mut changes, mut sessions)) => {
                changes.retain(|row| wanted.as_ref().is_none_or(|wanted| row.inodes.iter().any(|ino| wanted.contains(ino))));
                sessions.retain(|row| changes.iter().any(|c| c.session == Some(row.session) || c.waits_for.contains(&row.session)));
                findings.changes = changes;
                findings.sessions = sessions;
            }
            Err(e) => self.is_silent::<Waits>(&e),
        }
        match locks {
            Some((_, Ok((mut rows, mut programs)))) => {
                rows.retain(|row| wanted.as_ref().map_or(!row.queue.is_empty(), |wanted| wanted.contains(&row.ino)));
                findings.locks = rows;
                let contended: Vec<InodeId> = programs.iter().filter(|row| row.waits).map(|row| row.ino).collect();
                programs.retain(|row| wanted.as_ref().unwrap_or(&contended).contains(&row.ino));
                findings.programs = programs;
            }
            Some((who, Err(e))) => findings.silent.push(Silent::service::<Locks>(&who, &e)),
            None => {}
        }
    }
}

/// A service of an earlier version has no such list.
async fn ranges(lock: &Caller, ino: Option<InodeId>) -> Result<Vec<RangeRow>> {
    match lock.call(&Ranges { ino }).await {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// A service of an earlier version has no such list.
async fn waits(directory: &Caller) -> Result<Vec<WaitRow>> {
    match directory.call(&Waits {}).await {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// Adds what the services know. Returns the inode that a path leads to.
async fn ask_services(globals: &Globals, subject: &Subject, findings: &mut Findings) -> Outcome<Option<InodeId>> {
    let token = match ClusterToken::read(&globals.token_file) {
        Ok(token) => token,
        Err(e) => {
            findings.silent.push(Silent { who: "the token file".to_owned(), refused: true, problem: e.message().to_owned() });
            return Ok(None);
        }
    };
    let mut urls: Vec<String> = findings.mounts.iter().map(|mount| mount.source.clone()).collect();
    if let Subject::Path { mount: Some(row), .. } = subject {
        urls.push(row.source.clone());
    } else if urls.is_empty() || globals.server != DEFAULT_SERVER {
        urls.push(globals.server.trim_end_matches('/').to_owned());
    }
    urls.sort();
    urls.dedup();
    let mut ino = None;
    let mounts = &findings.mounts;
    let answers = join_all(urls.iter().map(|url| ask_cluster(url, &token, subject, mounts))).await;
    for answer in answers {
        let (found, more) = answer?;
        ino = ino.or(found);
        findings.changes.extend(more.changes);
        findings.sessions.extend(more.sessions);
        findings.locks.extend(more.locks);
        findings.programs.extend(more.programs);
        findings.silent.extend(more.silent);
    }
    Ok(ino)
}

/// The same for one cluster: what it knows, and the inode that a path leads to there.
async fn ask_cluster(url: &str, token: &ClusterToken, subject: &Subject, mounts: &[Report]) -> Outcome<(Option<InodeId>, Findings)> {
    let mut services = Services::find(url, token, mounts).await?;
    let ino = match subject {
        Subject::Path { mount, inside } => services.resolve(inside, mount.is_none(), mounts).await?,
        _ => None,
    };
    let mut found = Findings::default();
    services.ask(subject, ino, mounts, &mut found).await;
    found.silent.extend(services.silent);
    found.silent.dedup();
    Ok((ino, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "36 22 0:40 / /mnt/dfs rw - fuse.dfs-mount http://h:1 rw\n37 22 0:40 /a /bind rw - fuse.dfs-mount http://h:1 rw\n";

    fn subject(target: &str) -> Subject {
        Subject::of(&Why { target: Some(target.into()) }, MOUNTINFO).unwrap()
    }

    fn wait(pid: u32, ino: u64, path: Option<&str>) -> WaitingRow {
        WaitingRow {
            operation: "getattr".into(),
            pid,
            program: "cat".into(),
            thread: pid + 1,
            ino: Some(InodeId(ino)),
            name: None,
            path: path.map(str::to_owned),
            since_ms: 1,
            steps: Vec::new(),
            problem: None,
        }
    }

    #[test]
    fn a_number_is_a_process_and_all_else_a_path() {
        assert!(subject("17").concerns(&wait(17, 1, None), None) && subject("18").concerns(&wait(17, 1, None), None));
        assert!(!subject("19").concerns(&wait(17, 1, None), None));
        let inside = |target: &str| match subject(target) {
            Subject::Path { mount, inside } => (mount.map(|row| row.id), inside.display().to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(inside("/mnt/dfs/a/17"), (Some(36), "/a/17".to_owned()));
        assert_eq!(inside("/bind/17"), (Some(37), "/a/17".to_owned()));
        assert_eq!(inside("a/b"), (None, "/a/b".to_owned()));
    }

    #[test]
    fn a_path_concerns_its_inode_and_what_is_below() {
        let path = subject("/mnt/dfs/a");
        assert!(path.concerns(&wait(1, 9, Some("/a/b")), Some(InodeId(5))));
        assert!(path.concerns(&wait(1, 5, Some("/other/name")), Some(InodeId(5))));
        assert!(!path.concerns(&wait(1, 9, Some("/ab")), Some(InodeId(5))) && !path.concerns(&wait(1, 9, None), Some(InodeId(5))));
        assert!(path.concerns(&wait(1, 9, None), None), "nobody knows");
        assert!(subject("/mnt/dfs").concerns(&wait(1, 9, Some("/x")), Some(InodeId(1))));
    }

    #[test]
    fn bind_mounts_are_asked_once() {
        assert_eq!(Subject::Everything.mounts(MOUNTINFO).len(), 1);
    }
}
