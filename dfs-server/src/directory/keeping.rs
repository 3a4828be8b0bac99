//! What is kept of the past goes by policy: after its time, or while a file server is
//! short of space.
//!
//! Beside [`super::periodic`], because a removal waits for those who hold leases on what
//! it removes, and who holds it up there is found here. Each step is bounded and goes
//! through the one writer like any request.

use std::time::Duration;

use dfs_common::api::Operation;
use dfs_common::api::directory::Remove;
use dfs_common::ids::ServerId;
use dfs_common::name::Name;
use dfs_common::{Error, ErrorKind, Result};
use tokio::time::{MissedTickBehavior, interval};

use super::Directory;
use super::leases::Author;
use super::state::{self, Limits, Relief, Short};
use super::writer::{Reply, Terms};

/// Between two looks.
const TICK: Duration = Duration::from_millis(250);
/// Between two looks at the whole of RECOVERED.
const RECOVERED_INTERVAL: Duration = Duration::from_secs(60);
/// Between two searches for what can be given back, where files that are open were passed over: most are closed soon.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);
/// Steps of one look.
const STEPS: usize = 20;

/// Where the work has come to.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// When RECOVERED was last looked through.
    recovered: Option<Duration>,
    /// The servers that are short of space, and what was searched for them.
    short: Vec<ServerId>,
    relief: Relief,
    /// When that search began.
    searched: Duration,
}

impl Rounds {
    /// With other servers short of space than before the search starts anew.
    fn note_short(&mut self, short: &[Short]) {
        let servers: Vec<ServerId> = short.iter().map(|server| server.0).collect();
        if servers == self.short {
            return;
        }
        for server in servers.iter().filter(|server| !self.short.contains(server)) {
            log::info!("file server {server} is short of space: removed files and old versions on it go, the oldest first");
        }
        (self.short, self.relief) = (servers, Relief::default());
    }
}

impl Directory {
    /// Works for ever.
    pub(super) async fn keep_by_policy(&self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rounds = Rounds::default();
        loop {
            ticks.tick().await;
            if let Err(e) = self.tidy(&mut rounds).await {
                log::error!("what is kept of the past: {e}");
            }
        }
    }

    pub(super) async fn tidy(&self, rounds: &mut Rounds) -> Result<()> {
        let now = self.now();
        let limits = Limits::new(&self.policy, now.wall);
        self.relieve_servers(rounds).await?;
        for _ in 0..STEPS {
            if !state::is_due(&*self.store.snapshot(), &limits)? {
                break;
            }
            self.submit(Terms::default(), move |change| state::expire(change, &limits).map(|()| Reply::default())).await?;
        }
        if rounds.recovered.is_none_or(|last| now.clock.saturating_sub(last) >= RECOVERED_INTERVAL) {
            rounds.recovered = Some(now.clock);
            self.expire_recovered(limits).await?;
        }
        Ok(())
    }

    /// Drops history until enough is ordered from each server that is short of space, or nothing more of it lies there.
    async fn relieve_servers(&self, rounds: &mut Rounds) -> Result<()> {
        for _ in 0..STEPS {
            let short = {
                // Tables before the store, as the writer locks them.
                let tables = self.tables.lock();
                state::short_of_space(&*self.store.snapshot(), &tables, &self.policy, self.now())?
            };
            rounds.note_short(&short);
            if short.iter().all(|server| server.1 == 0) {
                return Ok(());
            }
            let from = rounds.relief.clone();
            let step = self.submit(Terms::default(), move |change| {
                let relief = state::relieve(change, &short, &from)?;
                Ok(serde_json::to_vec(&relief).expect("plain data").into())
            });
            let unreadable = |e: serde_json::Error| Error::new(ErrorKind::Internal, e.to_string());
            let relief = serde_json::from_slice(&step.await?.body).map_err(unreadable)?;
            if rounds.relief != relief {
                rounds.relief = relief;
                continue;
            }
            let now = self.now().clock;
            if relief.open && now.saturating_sub(rounds.searched) >= SEARCH_INTERVAL {
                (rounds.relief, rounds.searched) = (Relief::default(), now);
            }
            return Ok(());
        }
        Ok(())
    }

    async fn expire_recovered(&self, limits: Limits) -> Result<()> {
        let mut after: Option<Name> = None;
        loop {
            let (old, next) = state::old_recovered(&*self.store.snapshot(), &limits, after.as_ref())?;
            for name in old {
                log::info!("'{name}' among the recovered files is over its time and is removed");
                let terms = Terms { author: Some(Author { operation: Remove::PATH, session: None }), ..Terms::default() };
                self.submit(terms, move |change| state::expire_recovered(change, &limits, &name).map(|()| Reply::default())).await?;
            }
            match next {
                Some(_) => after = next,
                None => return Ok(()),
            }
        }
    }
}
