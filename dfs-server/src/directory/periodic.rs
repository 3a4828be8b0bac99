//! What happens without a request: sessions expire, orphans of ended sessions go, dead
//! servers are noticed, files that lack copies are found.
//!
//! Each step is bounded and goes through the one writer like any request.

use std::sync::Arc;
use std::time::Duration;

use dfs_common::Result;
use dfs_common::attributes::Timestamp;
use dfs_common::ids::{InodeId, SessionId};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::Directory;
use super::state::{self, End};
use super::writer::{Reply, Terms};

/// Between two looks.
const TICK: Duration = Duration::from_millis(250);
/// A look that comes this much late means that the whole service stood still (a stopped process, a
/// suspended machine): nobody could renew anything meanwhile.
const STALL: Duration = Duration::from_secs(2);
/// A client whose session has expired may ask for so long what became of its last mutations.
const KEEP_REPLIES: Duration = Duration::from_secs(600);
/// Orphans that one commit releases.
const RELEASES: usize = 1000;
/// Commits of releases in one look.
const RELEASE_COMMITS: usize = 50;

/// Where the searches through all files have come to.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    last: Option<Duration>,
    /// Set while files are searched for lost copies.
    sweep: Option<InodeId>,
    settle: InodeId,
}

impl Directory {
    /// Works until `shutdown` says true (or its sender is gone).
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        tokio::select! {
            () = self.look_on() => {}
            () = self.keep_by_policy() => {}
            _ = shutdown.wait_for(|stop| *stop) => self.leasing.stop(),
        }
    }

    async fn look_on(&self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rounds = Rounds::default();
        loop {
            ticks.tick().await;
            if let Err(e) = self.look(&mut rounds).await {
                log::error!("periodic work: {e}");
            }
        }
    }

    pub(super) async fn look(&self, rounds: &mut Rounds) -> Result<()> {
        let now = self.now().clock;
        let gap = rounds.last.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        rounds.last = Some(now);
        if gap > STALL {
            log::warn!("the service stood still for {} ms; leases are extended by that", gap.as_millis());
            self.tables.lock().forgive(gap);
            self.leasing.lock().leases.forgive(gap);
        }
        self.expire_sessions(now).await?;
        self.end_deaf_sessions(now).await?;
        self.forget_expired_before(Timestamp(self.now().wall.0.saturating_sub(KEEP_REPLIES.as_nanos() as i64))).await?;
        self.release_left_behind().await?;
        self.watch_servers(rounds, now);
        self.search_copies(rounds).await
    }

    async fn expire_sessions(&self, now: Duration) -> Result<()> {
        let silent = self.tables.lock().silent(self.config.lease, now);
        for session in silent {
            log::info!("session {session} has expired");
            self.end_session(session, End::Expired).await?;
        }
        Ok(())
    }

    /// Ends sessions that renew and acknowledge nothing: they would hold up everybody for ever.
    async fn end_deaf_sessions(&self, now: Duration) -> Result<()> {
        let deaf = self.leasing.lock().leases.overdue(self.config.lease, now);
        for session in deaf {
            log::warn!("session {session} has left an event unacknowledged for {} ms: it is ended", self.config.lease.as_millis());
            self.end_session(session, End::Expired).await?;
        }
        Ok(())
    }

    /// Ends a session. Orphans beyond the first are released by the next looks.
    pub(super) async fn end_session(&self, session: SessionId, end: End) -> Result<()> {
        let orphans = self.tables.lock().orphans_of(session, RELEASES);
        self.submit(Terms::default(), move |change| state::close_session(change, session, end, &orphans).map(|()| Reply::default())).await?;
        Ok(())
    }

    /// Drops the replies of sessions that expired before `limit`.
    pub(super) async fn forget_expired_before(&self, limit: Timestamp) -> Result<()> {
        for _ in 0..RELEASE_COMMITS {
            let old = self.tables.lock().expired_before(limit);
            let Some(session) = old else { break };
            self.submit(Terms::default(), move |change| state::forget_expired(change, session).map(|()| Reply::default())).await?;
        }
        Ok(())
    }

    async fn release_left_behind(&self) -> Result<()> {
        for _ in 0..RELEASE_COMMITS {
            let left = self.tables.lock().left_behind(RELEASES);
            let Some((session, orphans)) = left else { break };
            self.submit(Terms::default(), move |change| state::release(change, session, &orphans).map(|()| Reply::default())).await?;
        }
        for _ in 0..RELEASE_COMMITS {
            if self.tables.lock().open.unheld().next().is_none() {
                break;
            }
            self.submit(Terms::default(), |change| state::release_all(change, RELEASES).map(|()| Reply::default())).await?;
        }
        Ok(())
    }

    fn watch_servers(&self, rounds: &mut Rounds, now: Duration) {
        let mut tables = self.tables.lock();
        for (id, dead) in tables.servers.transitions(now) {
            let name = tables.servers.get(id).map_or("?", |s| s.record.name.as_str());
            if dead {
                log::warn!("file server {id} ('{name}') is dead; searching for files that lack copies now");
                rounds.sweep = Some(InodeId(0));
            } else {
                log::info!("file server {id} ('{name}') is back");
            }
        }
    }

    async fn search_copies(&self, rounds: &mut Rounds) -> Result<()> {
        if let Some(from) = rounds.sweep {
            rounds.sweep = self.search(from, state::sweep).await?;
        }
        if !self.tables.lock().under.is_empty() {
            rounds.settle = self.search(rounds.settle, state::settle).await?.unwrap_or_default();
        }
        Ok(())
    }

    /// One slice of a search behind `from`; returns where to go on.
    async fn search(&self, from: InodeId, slice: fn(&mut state::Change<'_>, InodeId) -> Result<Option<InodeId>>) -> Result<Option<InodeId>> {
        let next = self.submit(Terms::default(), move |change| {
            let next = slice(change, from)?;
            Ok(next.map_or_else(Vec::new, |ino| ino.0.to_be_bytes().to_vec()).into())
        });
        let next = next.await?;
        Ok(next.body.try_into().ok().map(|bytes| InodeId(u64::from_be_bytes(bytes))))
    }
}
