//! `dfs status`, `servers`, `sessions`, `locks`, `history`: what the services say of
//! themselves, without a change.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::time::Duration;

use dfs_common::api::directory::{self, DirectoryStatus, Liveness, ServerRow, Servers, Sessions, Versions};
use dfs_common::api::lock::{self, LockRow, LockStatus};
use dfs_common::api::{Operation, file};
use dfs_common::block::BlockHash;
use dfs_common::ids::ServerId;
use dfs_common::name;
use dfs_common::wire::{Method, Request};
use dfs_common::{Error, ErrorKind, Result};
use futures_util::future::join_all;
use serde::Serialize;

use super::args::{Locks, OnePath, Status};
use super::failure::{At, Failure, Outcome};
use super::render;
use super::session::Session;

/// A role that does not answer within this is shown as such.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The whole cluster at one moment. A role that does not answer has an error instead of a status.
#[derive(Debug, Serialize)]
struct Everything {
    directory: DirectoryStatus,
    lock: Option<LockStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lock_error: Option<String>,
    file_servers: Vec<FileServer>,
}

#[derive(Debug, Serialize)]
struct FileServer {
    #[serde(flatten)]
    row: ServerRow,
    status: Option<file::FileStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Everything {
    async fn ask(session: &Session) -> Outcome<Self> {
        let cluster = &session.cluster;
        let directory = cluster.directory.call(&directory::Status {}).await?;
        let rows = cluster.directory.call(&Servers {}).await?;
        cluster.peers.update(&rows)?;
        let asked = rows.into_iter().map(|row| async {
            let (status, error) = split(file_status(session, row.server).await);
            FileServer { row, status, error }
        });
        let (lock, file_servers) = tokio::join!(cluster.lock.call_within(&lock::Status {}, ANSWER_LIMIT), join_all(asked));
        let (lock, lock_error) = split(lock);
        Ok(Self { directory, lock, lock_error, file_servers })
    }

    /// Servers that are alive for the directory and answer us.
    fn answering(&self) -> usize {
        self.file_servers.iter().filter(|server| server.row.state == Liveness::Alive && server.status.is_some()).count()
    }
}

fn split<T>(result: Result<T>) -> (Option<T>, Option<String>) {
    match result {
        Ok(value) => (Some(value), None),
        Err(e) => (None, Some(e.message().to_owned())),
    }
}

async fn file_status(session: &Session, server: ServerId) -> Result<file::FileStatus> {
    let request = Request::new(Method::Post, file::Status::PATH).json(&file::Status {});
    match tokio::time::timeout(ANSWER_LIMIT, session.cluster.peers.send(server, request)).await {
        Ok(reply) => reply?.parse_json(),
        Err(_) => Err(Error::new(ErrorKind::TimedOut, format!("no answer within {} s", ANSWER_LIMIT.as_secs()))),
    }
}

pub(crate) async fn status(session: &Session, arguments: &Status) -> Outcome {
    let all = Everything::ask(session).await?;
    if session.json {
        render::json(&all)?
    } else {
        print(&all)?
    }
    let Some(expected) = arguments.expect else { return Ok(()) };
    if let Some(problem) = &all.lock_error {
        return Err(Failure::new(ErrorKind::Unavailable, format!("the lock service does not answer: {problem}")));
    }
    if all.answering() < expected {
        return Err(Failure::new(ErrorKind::Unavailable, format!("{} of {expected} file servers answer", all.answering())));
    }
    Ok(())
}

fn print(all: &Everything) -> Outcome {
    let d = &all.directory;
    let mut out = format!(
        "cluster {}\ndirectory  {}, up {}, {} inodes, {} sessions, {} removed but open, {} files with too few copies\n",
        d.cluster,
        d.program,
        render::span(d.uptime_ms),
        d.inodes,
        d.sessions,
        d.orphans,
        d.under_replicated
    );
    out += &match (&all.lock, &all.lock_error) {
        (Some(l), _) => {
            format!(
                "lock       {}, up {}, {} held, {} waiting, last token {}\n\n",
                l.program,
                render::span(l.uptime_ms),
                l.locks,
                l.waiters,
                l.last_token
            )
        }
        (None, problem) => format!("lock       does not answer: {}\n\n", problem.as_deref().unwrap_or("no reason given")),
    };
    render::text(&out)?;
    let rows = all.file_servers.iter().map(|server| {
        let mut row = server_columns(&server.row);
        match (&server.status, &server.error) {
            (Some(s), _) => row.extend([s.versions.to_string(), s.blocks.to_string(), s.corrupt.to_string(), render::span(s.uptime_ms)]),
            (None, problem) => row.extend(["-".into(), "-".into(), "-".into(), problem.clone().unwrap_or_default()]),
        }
        row
    });
    let header = ["ID", "NAME", "STATE", "USED", "CAPACITY", "HEARD", "URL", "VERSIONS", "BLOCKS", "CORRUPT", "UP"];
    render::table(&header, &[0, 3, 4, 5, 7, 8, 9], rows.collect())
}

fn server_columns(row: &ServerRow) -> Vec<String> {
    let state = match row.state {
        Liveness::Alive => "alive",
        Liveness::Suspect => "suspect",
        Liveness::Dead => "dead",
    };
    let heard = format!("{} ago", render::span(row.idle_ms));
    vec![row.server.to_string(), row.name.clone(), state.to_owned(), render::bytes(row.used), render::bytes(row.capacity), heard, row.url.clone()]
}

pub(crate) async fn servers(session: &Session) -> Outcome {
    let rows = session.cluster.directory.call(&Servers {}).await?;
    if session.json {
        return render::json(&rows);
    }
    render::table(&["ID", "NAME", "STATE", "USED", "CAPACITY", "HEARD", "URL"], &[0, 3, 4, 5], rows.iter().map(server_columns).collect())
}

pub(crate) async fn sessions(session: &Session) -> Outcome {
    let rows = session.cluster.directory.call(&Sessions {}).await?;
    if session.json {
        return render::json(&rows);
    }
    let columns = rows.into_iter().map(|row| {
        let client = row.client;
        let (age, idle) = (render::span(row.age_ms), format!("{} ago", render::span(row.idle_ms)));
        vec![row.session.to_string(), client.host, client.pid.to_string(), client.program, client.mountpoint, row.leases.to_string(), age, idle]
    });
    render::table(&["ID", "HOST", "PID", "PROGRAM", "MOUNTPOINT", "LEASES", "AGE", "HEARD"], &[0, 2, 5, 6, 7], columns.collect())
}

pub(crate) async fn locks(session: &Session, arguments: &Locks) -> Outcome {
    let ino = match &arguments.path {
        Some(path) => Some(session.existing(path, true).await?.attributes.ino),
        None => None,
    };
    let rows = session.cluster.lock.call(&lock::Locks { ino }).await?;
    if session.json {
        return render::json(&rows);
    }
    print_locks(&rows)
}

/// Locks with their queues as a table.
pub(super) fn print_locks(rows: &[LockRow]) -> Outcome {
    let header = ["INODE", "STATE", "SINCE", "SESSION", "TOKEN", "HOST", "PID", "PROGRAM"];
    render::table(&header, &[0, 2, 3, 4, 6], rows.iter().flat_map(lock_columns).collect())
}

/// The holder's line, then one for each in the queue.
fn lock_columns(row: &LockRow) -> Vec<Vec<String>> {
    let line = |state: String, age_ms, session: String, token: String, owner: &lock::Owner| {
        vec![row.ino.to_string(), state, render::span(age_ms), session, token, owner.host.clone(), owner.pid.to_string(), owner.program.clone()]
    };
    let holder = &row.holder;
    let mut lines = vec![line("held".to_owned(), holder.age_ms, holder.session.to_string(), holder.token.to_string(), &holder.owner)];
    lines.extend(
        row.queue
            .iter()
            .enumerate()
            .map(|(place, waiter)| line(format!("waiting, {}.", place + 1), waiter.age_ms, waiter.session.to_string(), String::new(), &waiter.owner)),
    );
    lines
}

pub(crate) async fn history(session: &Session, arguments: &OnePath) -> Outcome {
    let path: &OsStr = &arguments.path;
    let ino = session.existing(path, true).await?.attributes.ino;
    let rows = session.cluster.directory.call(&Versions { ino }).await.at(path)?;
    if session.json {
        return render::json(&rows);
    }
    let names: HashMap<ServerId, String> = session.cluster.directory.call(&Servers {}).await?.into_iter().map(|row| (row.server, row.name)).collect();
    let named = |id: &ServerId| names.get(id).cloned().unwrap_or_else(|| format!("server {id}"));
    let columns = rows.iter().map(|row| {
        let holders: Vec<String> = row.holders.iter().map(named).collect();
        vec![
            row.version.to_string(),
            row.size.to_string(),
            render::full_time(row.published),
            name::encode(row.by.as_bytes()),
            short(row.manifest),
            holders.join(", "),
        ]
    });
    render::table(&["VERSION", "SIZE", "PUBLISHED", "BY", "CONTENT", "SERVERS"], &[0, 1], columns.collect())
}

/// Enough of a hash to tell two versions apart.
fn short(hash: BlockHash) -> String {
    hash.to_string().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use dfs_common::api::lock::{Holder, Owner, Waiter};
    use dfs_common::ids::{InodeId, SessionId, Token};

    use super::*;

    #[test]
    fn a_queue_is_shown_in_order() {
        let owner = |pid| Owner { host: "h".into(), pid, program: "vi".into() };
        let waiter = |pid| Waiter { session: SessionId(u64::from(pid)), owner: owner(pid), age_ms: 0 };
        let holder = Holder { session: SessionId(1), owner: owner(1), token: Token(9), age_ms: 0 };
        let lines = lock_columns(&LockRow { ino: InodeId(5), holder, queue: vec![waiter(2), waiter(3)], fencing: false });
        let states: Vec<(&str, &str)> = lines.iter().map(|line| (line[1].as_str(), line[6].as_str())).collect();
        assert_eq!(states, [("held", "1"), ("waiting, 1.", "2"), ("waiting, 2.", "3")]);
    }
}
