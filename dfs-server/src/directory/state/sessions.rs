//! Sessions and the removed inodes that they still have open.

use dfs_common::api::directory::OpenSession;
use dfs_common::ids::{InodeId, SessionId};
use dfs_common::{Error, ErrorKind, Result};

use super::change::Change;
use super::keys;
use super::records::{Number, Orphan, Record, SessionRecord};
use crate::store::View;

/// Live sessions at one directory service.
const SESSIONS_MAX: usize = 10_000;
/// The most bytes of each text that a client says of itself.
const TEXT_MAX: usize = 4096;

pub(crate) fn open_session(change: &mut Change<'_>, client: &OpenSession) -> Result<SessionId> {
    let texts = [("host", &client.host), ("program", &client.program), ("mountpoint", &client.mountpoint)];
    if let Some((field, _)) = texts.iter().find(|(_, text)| text.len() > TEXT_MAX) {
        return Err(Error::new(ErrorKind::Invalid, format!("{field} is over {TEXT_MAX} bytes")));
    }
    if change.tables.sessions.len() >= SESSIONS_MAX {
        return Err(Error::new(ErrorKind::TooMany, format!("{SESSIONS_MAX} sessions are open, the most there may be")));
    }
    let session = SessionId(change.tables.session_ids.take());
    let record = SessionRecord { client: client.clone(), opened: change.now.wall };
    change.view.put(keys::session(session), record.encode());
    change.effects.opened = Some((session, record));
    Ok(session)
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its client says so, and repeats nothing.
    Closed,
    /// Its client was silent, and may come back with a mutation of which the answer was lost.
    Expired,
}

/// Ends a session and releases `orphans`, those of its orphans that fit into one commit. Repeating it changes nothing.
pub(crate) fn close_session(change: &mut Change<'_>, session: SessionId, end: End, orphans: &[InodeId]) -> Result<()> {
    let key = keys::session(session);
    if change.view.get(&key)?.is_none() {
        // A repeated request, whose first answer was lost.
        return Ok(());
    }
    change.view.delete(key);
    match end {
        End::Closed => delete_replies(change, session)?,
        End::Expired => {
            let at = change.now.wall;
            change.view.put(keys::expired(session), Number(at.0.max(0).cast_unsigned()).encode());
            change.effects.expired = Some((session, at));
        }
    }
    change.effects.closed = Some(session);
    release(change, session, orphans)
}

fn delete_replies(change: &mut Change<'_>, session: SessionId) -> Result<()> {
    let (from, to) = keys::replies(session);
    for (key, _) in change.view.scan(&from, &to, usize::MAX)? {
        change.view.delete(key);
    }
    Ok(())
}

/// Nobody will ask for the replies of a session that expired long ago.
pub(crate) fn forget_expired(change: &mut Change<'_>, session: SessionId) -> Result<()> {
    delete_replies(change, session)?;
    change.view.delete(keys::expired(session));
    change.effects.forgotten = Some(session);
    Ok(())
}

/// `session` has none of `orphans` open; the ones that nobody else has go, or are only kept. Repeating it changes nothing.
/// Only the last session's word is written: after a restart the others are asked again.
pub(crate) fn release(change: &mut Change<'_>, session: SessionId, orphans: &[InodeId]) -> Result<()> {
    for &ino in orphans {
        change.effects.released.push((ino, session));
        if let Some(kept) = change.tables.open.kept_by_last(session, ino) {
            settle(change, ino, kept)?;
        }
    }
    Ok(())
}

/// Some orphans, at most `limit`, that nobody has open any more, because several sessions said so at once.
pub(crate) fn release_all(change: &mut Change<'_>, limit: usize) -> Result<()> {
    let unheld: Vec<(InodeId, u64)> = change.tables.open.unheld().take(limit).collect();
    for (ino, kept) in unheld {
        settle(change, ino, kept)?;
    }
    Ok(())
}

/// Nobody has `ino` open any more, which row `kept` of the past kept when it was removed: it goes, or is only kept.
fn settle(change: &mut Change<'_>, ino: InodeId, kept: u64) -> Result<()> {
    let key = keys::orphan(ino);
    let mut orphan = match change.view.get(&key)? {
        Some(value) => Orphan::decode(&value)?,
        None => Orphan { sessions: Vec::new(), kept },
    };
    if ![0, kept].contains(&orphan.kept) {
        // Earlier mutations of this commit have brought it back and removed it once more.
        return Ok(());
    }
    change.effects.settled.push(ino);
    if orphan.sessions.is_empty() {
        return Ok(());
    }
    change.effects.orphans -= 1;
    if orphan.kept == 0 {
        change.effects.inodes -= 1;
        return change.free(ino);
    }
    orphan.sessions.clear();
    change.view.put(key, orphan.encode());
    change.count_kept(1);
    Ok(())
}
