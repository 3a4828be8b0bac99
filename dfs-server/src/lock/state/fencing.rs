//! Locks whose holder is lost: nobody gets one before the directory service refuses what
//! the former holder may still send.
//!
//! A lock is fenced with a token above all before it; the next grant has a higher one. A
//! holder that gave the lock back by its own word, and one that never heard of its grant,
//! has nothing under way, and needs no fence.

use dfs_common::api::lock::{Break, TakeOver, TakenOver};
use dfs_common::ids::{InodeId, SessionId, Token};
use dfs_common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::sessions::Kind;
use super::writers::{ANY_REQUEST, Holding, Writers};
use super::{Acquired, Connection, NO_TOKEN, Row, Step, invalid};

/// A lock that is taken from its holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::lock) struct Fencing {
    /// Commits with a token below this one will be refused.
    pub(super) token: Token,
    /// Who had it.
    pub(super) former: Holding,
    /// Those who wait for the directory service to know.
    #[serde(skip)]
    pub(super) breakers: Vec<Connection>,
}

impl Writers {
    /// Takes the lock from its holder; it passes on when [`Writers::fenced`] is called.
    pub(super) fn fence(&mut self, step: &mut Step<'_>, ino: InodeId) {
        let Some(former) = self.take_holder(step, ino) else { return };
        let token = self.next_token(&mut step.effects);
        let Some(lock) = self.locks.get_mut(&ino) else { return };
        lock.fencing = Some(Fencing { token, former, breakers: Vec::new() });
        self.fencing += 1;
        step.effects.rows.insert(Row::Fencing(ino));
        step.effects.fences.push((ino, token));
    }

    pub(super) fn fenced(&mut self, step: &mut Step<'_>, ino: InodeId, token: Token) {
        let Some(lock) = self.locks.get_mut(&ino) else { return };
        let Some(fencing) = lock.fencing.take_if(|f| f.token == token) else { return };
        self.fencing -= 1;
        step.effects.rows.insert(Row::Fencing(ino));
        step.effects.answers.extend(fencing.breakers.into_iter().map(|c| (c, Ok(NO_TOKEN))));
        self.grant_to_first(step, ino);
    }

    pub(super) fn break_lock(&mut self, step: &mut Step<'_>, request: &Break, connection: Connection) -> Result<Acquired> {
        let ino = request.ino;
        self.hear_of_maker(step, ino, request.fresh);
        let Some(lock) = self.locks.get(&ino) else {
            return match request.token {
                Some(_) => Ok(Acquired::Granted(NO_TOKEN)),
                None => Err(Error::new(ErrorKind::NotFound, format!("nobody holds the write lock of inode {ino}"))),
            };
        };
        let meant = |holder: &Holding| request.token.is_none_or(|token| token == holder.token);
        match (&lock.holder, &lock.fencing) {
            (Some(holder), _) if meant(holder) => self.fence(step, ino),
            (None, Some(fencing)) if meant(&fencing.former) => {}
            _ => return Ok(Acquired::Granted(NO_TOKEN)),
        }
        if let Some(fencing) = self.locks.get_mut(&ino).and_then(|lock| lock.fencing.as_mut()) {
            fencing.breakers.push(connection);
        }
        Ok(Acquired::Waiting)
    }

    pub(super) fn stops_waiting_for_fence(&mut self, ino: InodeId, connection: Connection) {
        if let Some(fencing) = self.locks.get_mut(&ino).and_then(|lock| lock.fencing.as_mut()) {
            fencing.breakers.retain(|c| *c != connection);
        }
    }

    /// Moves what `from` holds to another session. Asked again it answers the same, so that a lost answer loses nothing.
    pub(super) fn take_over(&mut self, step: &mut Step<'_>, request: &TakeOver) -> Result<TakenOver> {
        let TakeOver { session, from } = *request;
        if session.0 == 0 || session == from {
            return Err(invalid("a session takes over from another one, and has a number above 0"));
        }
        step.sessions.ended(from);
        for ino in step.sessions.files(from, Kind::Write) {
            self.leave_all(step, from, ino, "another session has taken over");
            if self.holder(ino).is_some_and(|h| h.session == from) {
                self.hand_over(step, ino, session, from);
            }
            self.share_with_own(step, ino);
        }
        let taken = |ino: InodeId| self.holder(ino).filter(|h| h.session == session && h.request == ANY_REQUEST).map(|h| (ino, h.token));
        Ok(TakenOver { locks: step.sessions.files(session, Kind::Write).into_iter().filter_map(taken).collect() })
    }

    fn hand_over(&mut self, step: &mut Step<'_>, ino: InodeId, session: SessionId, from: SessionId) {
        // It is told the token now.
        self.end_offer(ino);
        let Some(holder) = self.locks.get_mut(&ino).and_then(|lock| lock.holder.as_mut()) else { return };
        holder.hand_over(session);
        step.effects.rows.insert(Row::Holder(ino));
        step.effects.recalls.insert(session);
        step.sessions.add(step.now, session, Kind::Write, ino);
        self.forget_file(step, from, ino);
    }

    /// What the directory service must still be told.
    pub(super) fn fences(&self) -> Vec<(InodeId, Token)> {
        self.locks.iter().filter_map(|(&ino, lock)| lock.fencing.as_ref().map(|f| (ino, f.token))).collect()
    }

    /// The row of a lock that is being fenced.
    pub(in crate::lock) fn fencing_of(&self, ino: InodeId) -> Option<&Fencing> {
        self.locks.get(&ino)?.fencing.as_ref()
    }

    pub(super) fn restore_fencing(&mut self, ino: InodeId, fencing: Fencing) {
        self.fencing += 1;
        self.locks.entry(ino).or_default().fencing = Some(fencing);
    }
}
