//! Locks that their holders may not use: whoever has been given one keeps it until
//! somebody else wants it, and the maker of a file has its lock before this service has
//! heard of the file.

use dfs_common::api::lock::{InUse, Recalls};
use dfs_common::ids::{InodeId, SessionId, Token};
use dfs_common::{ErrorKind, Result};

use super::sessions::{Kind, Sessions};
use super::writers::{Holding, Writers};
use super::{MAX_NAME, Row, Step, invalid};

impl Writers {
    /// Where nobody is known to hold the lock of `ino`, and the directory service says that `maker` was given it with the
    /// file, that session holds it. One that is gone may have left a commit under way, so that it is fenced.
    pub(super) fn hear_of_maker(&mut self, step: &mut Step<'_>, ino: InodeId, maker: Option<SessionId>) {
        let Some(maker) = maker.filter(|maker| maker.0 != 0 && !self.locks.contains_key(&ino) && !self.given_back.contains(&ino)) else { return };
        let lives = step.sessions.may_live(step.now, maker);
        self.locks.entry(ino).or_default().holder = Some(Holding::fresh(maker, step.now));
        step.sessions.add(step.now, maker, Kind::Write, ino);
        step.effects.rows.insert(Row::Holder(ino));
        if !lives {
            self.fence(step, ino);
        }
    }

    /// What a session holds and others wait for, but for what it knows.
    pub(super) fn wanted(&self, sessions: &Sessions, request: &Recalls) -> Vec<(InodeId, Token)> {
        let wanted = |ino: InodeId| {
            let lock = self.locks.get(&ino)?;
            let holder = lock.holder.as_ref().filter(|h| h.session == request.session)?;
            let is_wanted = lock.queue.values().any(|place| place.session != request.session);
            is_wanted.then_some((ino, holder.token)).filter(|lock| !request.known.contains(lock))
        };
        sessions.files(request.session, Kind::Write).into_iter().filter_map(wanted).take(Recalls::MAX_KNOWN).collect()
    }

    /// The holder says that it uses the lock: those who do not want to wait hear that.
    pub(super) fn in_use(&mut self, step: &mut Step<'_>, request: &InUse) -> Result<()> {
        if request.owner.host.len() > MAX_NAME || request.owner.program.len() > MAX_NAME {
            return Err(invalid(format!("host and program have at most {MAX_NAME} bytes")));
        }
        let Some(lock) = self.locks.get_mut(&request.ino) else { return Ok(()) };
        let Some(holder) = lock.holder.as_mut().filter(|h| h.session == request.session && h.token == request.token) else { return Ok(()) };
        if holder.use_by(&request.owner) {
            step.effects.rows.insert(Row::Holder(request.ino));
        }
        let impatient: Vec<u64> = lock.queue.iter().filter(|(_, place)| place.impatient).map(|(&number, _)| number).collect();
        let message = self.held_by(step.now, request.ino);
        for number in impatient {
            let connection = self.leave(step, request.ino, number);
            step.effects.answer(connection, ErrorKind::WouldBlock, message.clone());
        }
        Ok(())
    }
}
