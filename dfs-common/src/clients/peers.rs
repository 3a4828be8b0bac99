//! The file servers of a cluster as one client sees them: how to reach each, how busy
//! it is with our requests, and whether it failed lately.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::behalf;
use super::caller::{Caller, more_groups};
use super::steps::{self, Target};
use crate::api::directory::{Liveness, ServerRow, Servers};
use crate::ids::ServerId;
use crate::transport::Transport;
use crate::wire::{Request, Response};
use crate::{Error, ErrorKind, Result};

/// How a client opens a transport to a URL.
pub type Connect = Arc<dyn Fn(&str) -> Result<Arc<dyn Transport>> + Send + Sync>;

/// A server that failed is tried last for this long.
const PENALTY: Duration = Duration::from_secs(5);
/// How long one exchange with a file server may take, at the most, before another one is tried.
const ATTEMPT: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Peer {
    url: String,
    transport: Arc<dyn Transport>,
    in_flight: AtomicU32,
    failed: Mutex<Option<Instant>>,
    reported_dead: bool,
}

/// All file servers that the directory has named.
pub struct Peers {
    connect: Connect,
    attempt: Duration,
    peers: Mutex<HashMap<ServerId, Arc<Peer>>>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("peers", &self.peers.lock().len()).finish_non_exhaustive()
    }
}

impl Peers {
    /// None yet; `connect` opens transports.
    pub fn new(connect: Connect) -> Self {
        Self { connect, attempt: ATTEMPT, peers: Mutex::default() }
    }

    /// For calls that end after `timeout`: one server that does not answer leaves time for another one.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.attempt = ATTEMPT.min(timeout / 2);
        self
    }

    /// How long one exchange may take.
    pub(super) fn attempt(&self) -> Duration {
        self.attempt
    }

    /// Takes over what the directory says; a server whose URL is unchanged keeps its connections.
    pub fn update(&self, rows: &[ServerRow]) -> Result<()> {
        let mut peers = self.peers.lock();
        for row in rows {
            let dead = row.state == Liveness::Dead;
            if peers.get(&row.server).is_some_and(|p| p.url == row.url && p.reported_dead == dead) {
                continue;
            }
            let transport = match peers.get(&row.server) {
                Some(old) if old.url == row.url => old.transport.clone(),
                _ => (self.connect)(&row.url)?,
            };
            let peer = Peer { url: row.url.clone(), transport, in_flight: AtomicU32::new(0), failed: Mutex::default(), reported_dead: dead };
            peers.insert(row.server, Arc::new(peer));
        }
        Ok(())
    }

    /// Asks the directory for all servers.
    pub async fn refresh(&self, directory: &Caller) -> Result<()> {
        self.update(&directory.call(&Servers {}).await?)
    }

    /// True where every one of `servers` can be addressed without asking the directory.
    pub fn knows(&self, servers: &[ServerId]) -> bool {
        let peers = self.peers.lock();
        servers.iter().all(|s| peers.contains_key(s))
    }

    /// `servers` in the order in which to try them: healthy before failed ones, less busy before busier ones.
    pub fn order(&self, servers: &[ServerId]) -> Vec<ServerId> {
        let peers = self.peers.lock();
        let now = Instant::now();
        let rank = |server: &ServerId| {
            let Some(peer) = peers.get(server) else { return (2, 0) };
            let failed = peer.failed.lock().is_some_and(|at| now - at < PENALTY);
            (u32::from(failed || peer.reported_dead), peer.in_flight.load(Ordering::Relaxed))
        };
        let mut order = servers.to_vec();
        // Equal ranks: a different first choice each time spreads idle clients' reads.
        if order.len() > 1 {
            let turn = spread() % order.len();
            order.rotate_left(turn);
        }
        order.sort_by_key(rank);
        order
    }

    /// One exchange with `server`: `Unavailable` where it does not answer, otherwise its reply.
    pub async fn send(&self, server: ServerId, request: Request) -> Result<Response> {
        self.send_within(server, request, self.attempt).await
    }

    /// The same with a limit of its own, if that is shorter.
    pub async fn send_within(&self, server: ServerId, mut request: Request, limit: Duration) -> Result<Response> {
        request.user = request.user.or_else(behalf::user);
        let reply = self.exchange(server, request.clone(), limit).await?;
        match more_groups(&request, &reply) {
            Some(user) => self.exchange(server, request.user(Some(user)), limit).await,
            None => Ok(reply),
        }
    }

    async fn exchange(&self, server: ServerId, request: Request, limit: Duration) -> Result<Response> {
        let limit = limit.min(self.attempt);
        let peer = self.peers.lock().get(&server).cloned();
        let peer = peer.ok_or_else(|| Error::new(ErrorKind::Unavailable, format!("file server {server} is not known")))?;
        let _busy = Busy::new(&peer.in_flight);
        let noted = steps::note(|| Target::Answer { server: peer.url.clone(), resource: request.path.clone() });
        let result = match timeout(limit, peer.transport.send(request)).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(ErrorKind::Unavailable, format!("{} did not answer within {:.1} s", peer.url, limit.as_secs_f64()))),
        };
        if let Err(problem) = &result {
            noted.failed(problem);
        }
        *peer.failed.lock() = result.is_err().then(Instant::now);
        result
    }
}

/// A number that differs from call to call.
fn spread() -> usize {
    static TURN: AtomicU32 = AtomicU32::new(0);
    TURN.fetch_add(1, Ordering::Relaxed) as usize
}

/// Counts a request as under way while it lives.
struct Busy<'a>(&'a AtomicU32);

impl<'a> Busy<'a> {
    fn new(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
