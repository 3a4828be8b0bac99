//! Locks that this mount keeps although nobody here uses them: they cost a request only when
//! somebody else wants them, which the lock service says on a request that always waits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dfs_common::Result;
use dfs_common::ids::{InodeId, Token};
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Vfs;
use super::locks::{Guarded, Locks};
use super::process::program_of;
use crate::turn::until;

/// A lock that nobody has used for so long goes back: should this client die, others wait for it for a lease.
const KEEP: Duration = Duration::from_secs(10);
/// The same where there are more than [`MANY`].
const KEEP_OF_MANY: Duration = Duration::from_secs(1);
const MANY: usize = 1024;
/// Between two looks at that.
const LOOK: Duration = Duration::from_secs(1);
/// An answer may take this much longer than the wait.
const ANSWER_SLACK: Duration = Duration::from_secs(2);
/// Before the lock service is asked again after a failure, and at the most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Before the same lock is looked at again whose grant is on its way.
const CROSSING: Duration = Duration::from_millis(2);
/// Locks that are given back at the same time.
const PARALLEL: usize = 8;

/// Files that are being made. Their locks come with the answers, and others may want them before those arrive.
#[derive(Debug, Default)]
pub(super) struct Making {
    under_way: Mutex<UnderWay>,
    done: Notify,
}

#[derive(Debug, Default)]
struct UnderWay {
    last: u64,
    numbers: BTreeSet<u64>,
    /// Wanted files that may be among them.
    wanted: BTreeSet<InodeId>,
}

/// A file is being made as long as this lives.
pub(super) struct Made<'a>(&'a Making, u64);

impl Drop for Made<'_> {
    fn drop(&mut self) {
        self.0.under_way.lock().numbers.remove(&self.1);
        self.0.done.notify_waiters();
    }
}

impl Making {
    pub(super) fn begin(&self) -> Made<'_> {
        let mut under_way = self.under_way.lock();
        under_way.last += 1;
        let number = under_way.last;
        under_way.numbers.insert(number);
        Made(self, number)
    }

    /// Returns once every file is made that was being made at the call.
    async fn done_so_far(&self) {
        let last = self.under_way.lock().last;
        until(&self.done, || self.under_way.lock().numbers.first().is_none_or(|first| *first > last)).await;
    }

    fn is_busy(&self) -> bool {
        !self.under_way.lock().numbers.is_empty()
    }
}

impl Locks {
    fn all(&self) -> Vec<(InodeId, Arc<Guarded>)> {
        self.slots.lock().iter().map(|(ino, guarded)| (*ino, guarded.clone())).collect()
    }

    /// Locks that others want, and that go back once nobody uses them.
    fn known_wanted(&self) -> Vec<(InodeId, Token)> {
        let wanted = |(ino, guarded): (InodeId, Arc<Guarded>)| {
            let slot = guarded.slot.lock();
            slot.token.filter(|_| slot.is_wanted()).map(|token| (ino, token))
        };
        let mut known: Vec<(InodeId, Token)> = self.all().into_iter().filter_map(wanted).collect();
        known.extend(self.making.under_way.lock().wanted.iter().map(|ino| (*ino, Token::FRESH)));
        known
    }

    /// The session in which they were granted is over: what is not in use is asked for anew. What is in use shows when it is
    /// published.
    pub(super) fn drop_unused(&self) {
        for (ino, guarded) in self.all() {
            {
                let mut slot = guarded.slot.lock();
                if slot.is_unused() {
                    (slot.token, slot.idle_since, slot.registered) = (None, None, false);
                }
            }
            self.tidy(ino, guarded);
        }
    }
}

/// What is to be done about a lock that others want.
enum Answer {
    GiveBack,
    /// This process uses it.
    InUse(u32),
    /// This mount does not have that grant.
    Release,
    /// It may be just on its way here.
    Later,
    /// It may have come with a file whose making this mount has not heard of yet.
    OnceMade,
}

impl Vfs {
    /// Hears which locks others want; returns when the mount ends.
    pub async fn keep_recalls(self: Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        while !self.ending.load(Ordering::Relaxed) {
            match self.next_recalls().await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(e) => {
                    log::debug!("recalls of locks: {e}");
                    sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }

    /// Gives back what nobody has used for long; never returns.
    pub async fn keep_locks(self: Arc<Self>) {
        loop {
            sleep(LOOK).await;
            let locks = self.locks.all();
            let keep = if locks.len() > MANY { KEEP_OF_MANY } else { KEEP };
            let now = Instant::now();
            for (ino, guarded) in locks {
                let is_old = guarded.slot.lock().idle_since.is_some_and(|since| now.saturating_duration_since(since) > keep);
                if is_old {
                    self.give_back(&guarded, ino).await;
                }
                self.locks.tidy(ino, guarded);
            }
        }
    }

    async fn next_recalls(self: &Arc<Self>) -> Result<()> {
        let wait = Duration::from_millis(self.cluster.session().lease_ms / 6).max(Duration::from_millis(100));
        let wanted = self.cluster.recalled_locks(self.locks.known_wanted(), wait, wait + ANSWER_SLACK).await?;
        stream::iter(wanted).for_each_concurrent(PARALLEL, |(ino, token)| self.recalled(ino, token, true)).await;
        Ok(())
    }

    /// The lock of what may be a new file is wanted, whose making is still to be heard of.
    fn recalled_once_made(self: &Arc<Self>, ino: InodeId, token: Token) {
        if !self.locks.making.under_way.lock().wanted.insert(ino) {
            return;
        }
        let vfs = self.clone();
        tokio::spawn(async move {
            vfs.locks.making.done_so_far().await;
            vfs.locks.making.under_way.lock().wanted.remove(&ino);
            vfs.recalled(ino, token, false).await;
        });
    }

    async fn recalled(self: &Arc<Self>, ino: InodeId, token: Token, may_be_new: bool) {
        let guarded = self.locks.slot(ino);
        let answer = {
            // Whoever asks the service may be just about to hear of this grant.
            let is_asking = guarded.asking.try_lock().is_err();
            let mut slot = guarded.slot.lock();
            match slot.token {
                Some(held) if held == token => {
                    (slot.wanted, slot.registered) = (Some(token), true);
                    if slot.is_unused() { Answer::GiveBack } else { Answer::InUse(slot.users.first().map_or(0, |user| user.process)) }
                }
                _ if is_asking => {
                    slot.wanted = Some(token);
                    Answer::Later
                }
                _ if may_be_new && token == Token::FRESH && slot.token.is_none() && self.locks.making.is_busy() => Answer::OnceMade,
                _ => {
                    slot.refuse(token);
                    Answer::Release
                }
            }
        };
        let told = match answer {
            Answer::GiveBack => {
                self.give_back(&guarded, ino).await;
                Ok(())
            }
            Answer::InUse(process) => self.cluster.lock_in_use(ino, token, process, &program_of(process)).await,
            Answer::Release => self.cluster.release_lock(ino, token).await,
            Answer::Later => {
                sleep(CROSSING).await;
                Ok(())
            }
            Answer::OnceMade => {
                self.recalled_once_made(ino, token);
                Ok(())
            }
        };
        if let Err(e) = told {
            // It is not known as wanted, and so comes again with the next answer.
            guarded.slot.lock().wanted = None;
            log::debug!("lock of inode {ino}: {e}");
            sleep(FIRST_PAUSE).await;
        }
        self.locks.tidy(ino, guarded);
    }
}
