//! The service's side of leases: connections that wait for events, mutations that wait
//! for acknowledgements, and who is shown to wait for whom.
//!
//! [`Leases`] decides; here are the lock around it, the clock and the wake-ups. The lock
//! is held over "read and grant" and over "look for holders and commit", so a read lies
//! wholly before or wholly after a change. Taken after the tables' and before the store's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dfs_common::api::directory::{ClaimLeases, Claimed, Event, Events, WaitRow};
use dfs_common::ids::{InodeId, SessionId};
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::state::{Affected, Leases, Told};

/// On whose behalf something is changed, and by which operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Author {
    pub(super) operation: &'static str,
    pub(super) session: Option<SessionId>,
}

/// What wakes those who wait for, or upon, one session.
#[derive(Debug)]
struct Signals {
    events: Arc<Notify>,
    acknowledged: watch::Sender<u64>,
    /// The number of its last request for events.
    poll: u64,
}

/// A mutation that waits.
#[derive(Debug)]
struct Waiting {
    author: Author,
    inodes: Vec<InodeId>,
    pending: BTreeMap<SessionId, u64>,
    since: Instant,
}

/// The leases and those who wait.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) leases: Leases,
    signals: HashMap<SessionId, Signals>,
    waiting: BTreeMap<u64, Waiting>,
    next_wait: u64,
}

/// Leases of all sessions, and who waits for them.
#[derive(Debug)]
pub(super) struct Leasing {
    inner: Mutex<Inner>,
    /// Inodes whose change was given up: unblocked by whoever takes the lock next. A lock of its own, so that a
    /// [`Block`] can be dropped anywhere.
    given_up: Mutex<Vec<InodeId>>,
    /// False: nobody is told anything, so that tests can show what happens then.
    pub(super) invalidates: bool,
    grace: AtomicBool,
    grace_until: Instant,
    grace_over: Notify,
    stop: watch::Sender<bool>,
}

/// The lock. What it leaves behind wakes those whom it concerns.
pub(super) struct Locked<'a>(MutexGuard<'a, Inner>);

impl Deref for Locked<'_> {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.0
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        for session in self.0.leases.take_woken() {
            if let Some(signals) = self.0.signals.get(&session) {
                signals.events.notify_waiters();
            }
        }
    }
}

/// Inodes on which nobody is granted a lease while this lives, because a change of them is on its way.
#[derive(Debug)]
pub(super) struct Block {
    leasing: Arc<Leasing>,
    pub(super) told: Told,
    inodes: Vec<InodeId>,
}

impl Block {
    /// The change is made: leases are granted again.
    pub(super) fn release(mut self, inner: &mut Inner) {
        std::mem::take(&mut self.inodes).into_iter().for_each(|ino| inner.leases.unblock(ino));
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if !self.inodes.is_empty() {
            self.leasing.given_up.lock().append(&mut self.inodes);
        }
    }
}

/// Takes a mutation off the list of those that wait.
struct Listed<'a> {
    leasing: &'a Leasing,
    wait: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.leasing.lock().waiting.remove(&self.wait);
    }
}

impl Leasing {
    /// Around `leases`; those of earlier sessions have run out at `grace_until`.
    pub(super) fn new(leases: Leases, invalidates: bool, grace_until: Instant) -> Arc<Self> {
        let grace = AtomicBool::new(leases.in_grace());
        Arc::new(Self {
            inner: Mutex::new(Inner { leases, signals: HashMap::new(), waiting: BTreeMap::new(), next_wait: 1 }),
            given_up: Mutex::default(),
            invalidates,
            grace,
            grace_until,
            grace_over: Notify::new(),
            stop: watch::Sender::new(false),
        })
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        let mut inner = self.inner.lock();
        let given_up = std::mem::take(&mut *self.given_up.lock());
        given_up.into_iter().for_each(|ino| inner.leases.unblock(ino));
        Locked(inner)
    }

    /// The service stops: whoever waits is answered, and comes back to the next one.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(super) fn claim(&self, request: &ClaimLeases, revision: impl Fn() -> u64) -> Claimed {
        let mut inner = self.lock();
        let claimed = inner.leases.claim(request, revision());
        inner.signals.entry(request.session).or_insert_with(|| Signals {
            events: Arc::new(Notify::new()),
            acknowledged: watch::Sender::new(0),
            poll: 0,
        });
        self.look_for_end_of_grace(&inner);
        claimed
    }

    /// A session is gone; nobody waits for it any more.
    pub(super) fn end(&self, inner: &mut Inner, session: SessionId) {
        inner.leases.end(session);
        if let Some(signals) = inner.signals.remove(&session) {
            signals.events.notify_waiters();
        }
        self.look_for_end_of_grace(inner);
    }

    fn look_for_end_of_grace(&self, inner: &Inner) {
        if self.grace.load(Ordering::Relaxed) && !inner.leases.in_grace() {
            self.grace.store(false, Ordering::Relaxed);
            self.grace_over.notify_waiters();
        }
    }

    /// Takes an acknowledgement and waits for what comes behind it. No event: the wait is over, or another request
    /// of the session has come.
    pub(super) async fn events(&self, request: &Events, revision: impl Fn() -> u64) -> Result<(Vec<Event>, u64)> {
        let deadline = Instant::now() + Duration::from_millis(request.wait_ms);
        let mut stop = self.stop.subscribe();
        let (poll, signal) = self.acknowledge(request)?;
        let mut is_over = false;
        loop {
            let notified = signal.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let inner = self.lock();
                let Some(signals) = inner.signals.get(&request.session) else {
                    return Err(Error::new(ErrorKind::SessionExpired, format!("session {} has ended", request.session)));
                };
                let replaced = signals.poll != poll;
                let events = if replaced { Vec::new() } else { inner.leases.events(request.session, request.after)? };
                if replaced || is_over || !events.is_empty() {
                    return Ok((events, revision()));
                }
            }
            tokio::select! {
                () = notified => {}
                () = sleep_until(deadline) => is_over = true,
                () = stopped(&mut stop) => return Err(stopping()),
            }
        }
    }

    fn acknowledge(&self, request: &Events) -> Result<(u64, Arc<Notify>)> {
        let mut inner = self.lock();
        let acknowledged = inner.leases.acknowledge(request.session, request.after)?;
        let signals = inner.signals.get_mut(&request.session).expect("who has claimed has signals");
        signals.poll += 1;
        signals.events.notify_waiters();
        signals.acknowledged.send_replace(acknowledged);
        Ok((signals.poll, signals.events.clone()))
    }

    /// Blocks what is `affected` and not in `block` yet, and tells its holders. Returns whom to wait for.
    pub(super) fn tell(
        self: &Arc<Self>,
        inner: &mut Inner,
        block: Option<Block>,
        affected: Vec<Affected>,
        author: Author,
        now: Duration,
    ) -> (Block, BTreeMap<SessionId, u64>) {
        let mut block = block.unwrap_or_else(|| Block { leasing: self.clone(), told: Told::default(), inodes: Vec::new() });
        let mut news = Vec::with_capacity(affected.len());
        for thing in affected {
            if !block.told.has_inode(thing.ino) {
                inner.leases.block(thing.ino);
                block.inodes.push(thing.ino);
            }
            if block.told.insert(&thing) {
                news.push(thing);
            }
        }
        let pending = inner.leases.tell(&news, author.session, now);
        (block, pending)
    }

    /// Waits until each session in `pending` has acknowledged its number or is gone.
    pub(super) async fn acknowledged(&self, author: Author, block: &Block, pending: BTreeMap<SessionId, u64>) -> Result<()> {
        let receivers: Vec<(watch::Receiver<u64>, u64)> = {
            let inner = self.lock();
            let receiver = |(session, number): (&SessionId, &u64)| Some((inner.signals.get(session)?.acknowledged.subscribe(), *number));
            pending.iter().filter_map(receiver).collect()
        };
        let _listed = self.list(author, block.inodes.clone(), pending);
        let mut stop = self.stop.subscribe();
        let all = async {
            for (mut receiver, number) in receivers {
                // An error means that the session is gone.
                let _ = receiver.wait_for(|acknowledged| *acknowledged >= number).await;
            }
        };
        tokio::select! {
            () = all => Ok(()),
            () = stopped(&mut stop) => Err(stopping()),
        }
    }

    /// Waits until every session from before the start has claimed its leases, or they have run out.
    pub(super) async fn after_grace(&self, author: Author) -> Result<()> {
        if !self.grace.load(Ordering::Relaxed) || !self.invalidates {
            return Ok(());
        }
        let _listed = self.list(author, Vec::new(), BTreeMap::new());
        let mut stop = self.stop.subscribe();
        loop {
            let notified = self.grace_over.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if !self.grace.load(Ordering::Relaxed) {
                return Ok(());
            }
            tokio::select! {
                () = notified => {}
                () = sleep_until(self.grace_until) => {
                    let mut inner = self.lock();
                    inner.leases.end_grace();
                    self.look_for_end_of_grace(&inner);
                }
                () = stopped(&mut stop) => return Err(stopping()),
            }
        }
    }

    fn list(&self, author: Author, inodes: Vec<InodeId>, pending: BTreeMap<SessionId, u64>) -> Listed<'_> {
        let mut inner = self.lock();
        let wait = inner.next_wait;
        inner.next_wait += 1;
        inner.waiting.insert(wait, Waiting { author, inodes, pending, since: Instant::now() });
        Listed { leasing: self, wait }
    }

    /// Mutations that wait, the oldest first.
    pub(super) fn waits(&self) -> Vec<WaitRow> {
        let inner = self.lock();
        let row = |waiting: &Waiting| WaitRow {
            operation: waiting.author.operation.to_owned(),
            session: waiting.author.session,
            inodes: waiting.inodes.iter().copied().collect::<BTreeSet<_>>().into_iter().collect(),
            waits_for: waiting.pending.iter().filter(|(s, n)| inner.leases.is_awaited(**s, **n)).map(|(s, _)| *s).collect(),
            since_ms: waiting.since.elapsed().as_millis() as u64,
        };
        inner.waiting.values().map(row).collect()
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the service is gone, which is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn stopping() -> Error {
    Error::new(ErrorKind::Unavailable, "the directory service is stopping; ask again")
}
