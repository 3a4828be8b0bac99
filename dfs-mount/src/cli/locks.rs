//! `dfs locks`: who holds and who waits, and taking a lock from its holder.

use std::ffi::OsStr;

use dfs_common::ErrorKind;
use dfs_common::api::lock::{Break, Family, LockRow, Locks, Mode, Owner, RangeRow, Ranges, Span};
use serde::Serialize;

use super::args::{self, LockCommand};
use super::failure::{At, Failure, Outcome};
use super::render;
use super::session::Session;

/// Both kinds of locks.
#[derive(Serialize)]
struct All {
    /// Of files that are open for writing.
    write: Vec<LockRow>,
    /// Of programs: flock and fcntl.
    programs: Vec<RangeRow>,
}

pub(crate) async fn locks(session: &Session, arguments: &args::Locks) -> Outcome {
    if let Some(LockCommand::Break(one)) = &arguments.command {
        return break_lock(session, &one.path).await;
    }
    let ino = match &arguments.path {
        Some(path) => Some(session.existing(path, true).await?.attributes.ino),
        None => None,
    };
    let lock = &session.cluster.lock;
    let all = All { write: lock.call(&Locks { ino }).await?, programs: lock.call(&Ranges { ino }).await? };
    if session.json {
        return render::json(&all);
    }
    print(&all.write, &all.programs)
}

async fn break_lock(session: &Session, path: &OsStr) -> Outcome {
    let entry = session.existing(path, true).await?;
    let (ino, maker) = (entry.attributes.ino, entry.layout.fresh);
    let rows = session.cluster.lock.call(&Locks { ino: Some(ino) }).await.at(path)?;
    let (token, whose) = match (rows.first(), maker) {
        // With its token, so that a repeated request takes it from nobody else.
        (Some(row), _) => {
            let owner = &row.holder.owner;
            (Some(row.holder.token), format!("{} (process {} on {})", owner.program, owner.pid, owner.host))
        }
        // The lock service has not heard of the lock that came with the file.
        (None, Some(session)) => (None, format!("session {session}, which made the file")),
        (None, None) => return Err(Failure::new(ErrorKind::NotFound, "nobody holds its write lock").at(path)),
    };
    session.cluster.lock.call(&Break { ino, token, fresh: maker }).await.at(path)?;
    if !session.json {
        eprintln!("dfs: {}: taken from {whose}", path.display());
    }
    Ok(())
}

/// Locks with their queues as a table.
pub(super) fn print(write: &[LockRow], programs: &[RangeRow]) -> Outcome {
    let lines = write.iter().flat_map(lock_columns).chain(programs.iter().map(range_columns)).collect();
    render::table(&["INODE", "LOCK", "STATE", "SINCE", "SESSION", "TOKEN", "HOST", "PID", "PROGRAM"], &[0, 3, 4, 5, 7], lines)
}

fn line(ino: String, lock: String, state: String, age_ms: u64, session: String, token: String, owner: &Owner) -> Vec<String> {
    vec![ino, lock, state, render::span(age_ms), session, token, owner.host.clone(), owner.pid.to_string(), owner.program.clone()]
}

/// The holder's line, then one for each in the queue.
fn lock_columns(row: &LockRow) -> Vec<Vec<String>> {
    let (ino, kind, holder) = (row.ino.to_string(), || "write".to_owned(), &row.holder);
    let state = if row.fencing { "lost, fencing" } else { "held" };
    let (session, token) = (holder.session.to_string(), holder.token.to_string());
    let mut lines = vec![line(ino.clone(), kind(), state.to_owned(), holder.age_ms, session, token, &holder.owner)];
    lines.extend(row.queue.iter().enumerate().map(|(place, waiter)| {
        let state = format!("waiting, {}.", place + 1);
        line(ino.clone(), kind(), state, waiter.age_ms, waiter.session.to_string(), String::new(), &waiter.owner)
    }));
    lines
}

fn range_columns(row: &RangeRow) -> Vec<String> {
    let mode = match row.mode {
        Mode::Shared => "shared",
        Mode::Exclusive => "exclusive",
    };
    let kind = match (row.owner.family, row.span) {
        (Family::Flock, _) => format!("flock {mode}"),
        (Family::Posix, Span { first, last: Span::END }) => format!("fcntl {mode} {first}-"),
        (Family::Posix, Span { first, last }) => format!("fcntl {mode} {first}-{last}"),
    };
    let state = if row.waits { "waiting" } else { "held" };
    line(row.ino.to_string(), kind, state.to_owned(), row.age_ms, row.owner.session.to_string(), String::new(), &row.process)
}

#[cfg(test)]
mod tests {
    use dfs_common::api::lock::{Holder, RangeOwner, Waiter};
    use dfs_common::ids::{InodeId, SessionId, Token};

    use super::*;

    fn owner(pid: u32) -> Owner {
        Owner { host: "h".into(), pid, program: "vi".into() }
    }

    #[test]
    fn a_queue_is_shown_in_order() {
        let waiter = |pid| Waiter { session: SessionId(u64::from(pid)), owner: owner(pid), age_ms: 0 };
        let holder = Holder { session: SessionId(1), owner: owner(1), token: Token(9), age_ms: 0 };
        let lines = lock_columns(&LockRow { ino: InodeId(5), holder, queue: vec![waiter(2), waiter(3)], fencing: false });
        let states: Vec<(&str, &str)> = lines.iter().map(|line| (line[2].as_str(), line[7].as_str())).collect();
        assert_eq!(states, [("held", "1"), ("waiting, 1.", "2"), ("waiting, 2.", "3")]);
    }

    #[test]
    fn a_range_is_shown_with_its_bytes() {
        let by = |family| RangeOwner { session: SessionId(1), family, number: 7 };
        let shown = |family, span, mode| {
            range_columns(&RangeRow { ino: InodeId(5), owner: by(family), span, mode, process: owner(1), age_ms: 0, waits: true })[1..3].join("; ")
        };
        assert_eq!(shown(Family::Flock, Span::ALL, Mode::Shared), "flock shared; waiting");
        assert_eq!(shown(Family::Posix, Span { first: 1, last: 2 }, Mode::Exclusive), "fcntl exclusive 1-2; waiting");
        assert_eq!(shown(Family::Posix, Span { first: 4, last: Span::END }, Mode::Shared), "fcntl shared 4-; waiting");
    }
}
