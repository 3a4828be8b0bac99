//! Who may believe what without asking: leases of sessions on inodes, the events that
//! take them back, and which inodes nobody is granted while a change of them is on its way.
//!
//! It knows no connection, no clock and no namespace: what a change affects comes in as
//! [`Affected`]. Invariant: a lease is in the table until its session has acknowledged
//! the event that ended it, or is gone; so whoever could answer from an old state is found here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use dfs_common::api::directory::{ClaimLeases, Claimed, Event, Events, Granted};
use dfs_common::ids::{InodeId, SessionId};
use dfs_common::{Error, ErrorKind, Result};

use super::affected::Affected;
use super::history::History;

/// Numbers of one start of the service: starts × 2^32 and the 2^32 behind it.
const NUMBERS: u64 = 1 << 32;
/// Leases that are recalled at a time.
const RECALL: usize = ClaimLeases::MAX_HELD / 64;

/// One session's lease on one inode.
#[derive(Clone, Copy, Debug)]
struct Lease {
    /// When it was granted last, as the table's count of grants.
    used: u64,
    /// The event with whose acknowledgement it ends; 0: none.
    ending: u64,
}

/// An event that was not acknowledged yet.
#[derive(Debug)]
struct Sent {
    event: Event,
    at: Duration,
}

/// A session that holds leases.
#[derive(Debug)]
struct Holder {
    /// The last number given to it.
    last: u64,
    acknowledged: u64,
    held: HashMap<InodeId, Lease>,
    /// How many of these end with an event that is under way.
    ending: usize,
    /// Not acknowledged yet, in order of their numbers.
    events: VecDeque<Sent>,
}

impl Holder {
    fn send(&mut self, ino: InodeId, affected: Option<&Affected>, now: Duration) -> u64 {
        self.last += 1;
        let over = affected.is_none_or(|affected| affected.over);
        let event = Event { number: self.last, ino, name: affected.and_then(|affected| affected.name.clone()), over };
        self.events.push_back(Sent { event, at: now });
        if over && let Some(lease) = self.held.get_mut(&ino) {
            self.ending += usize::from(lease.ending == 0);
            lease.ending = self.last;
        }
        self.last
    }
}

/// All leases.
#[derive(Debug)]
pub(crate) struct Leases {
    base: u64,
    holders: HashMap<SessionId, Holder>,
    /// The same leases by inode.
    by_inode: BTreeSet<(InodeId, SessionId)>,
    /// Directories that one session has to itself, with the event whose acknowledgement ends that; 0: none.
    exclusive: HashMap<InodeId, (SessionId, u64)>,
    /// Inodes that are about to change, with the number of changes.
    blocked: HashMap<InodeId, u32>,
    history: History,
    /// Sessions from before the start that have not claimed since: they may hold leases that nobody knows of here.
    survivors: BTreeSet<SessionId>,
    /// False once nobody waits for the survivors any more.
    grace: bool,
    grants: u64,
    sent: u64,
    /// Sessions with events that nobody was woken for yet.
    woken: Vec<SessionId>,
}

impl Leases {
    /// No leases; the service was started `starts` times, its namespace is at `revision`, and `survivors` may
    /// hold leases from before.
    pub(crate) fn new(starts: u64, revision: u64, survivors: BTreeSet<SessionId>) -> Self {
        Self {
            base: starts * NUMBERS,
            holders: HashMap::new(),
            by_inode: BTreeSet::new(),
            exclusive: HashMap::new(),
            blocked: HashMap::new(),
            history: History::new(revision),
            grace: !survivors.is_empty(),
            survivors,
            grants: 0,
            sent: 0,
            woken: Vec::new(),
        }
    }

    /// Whether changes wait because sessions from before the start may hold leases.
    pub(crate) fn in_grace(&self) -> bool {
        self.grace
    }

    /// The survivors' leases have run out.
    pub(crate) fn end_grace(&mut self) {
        self.grace = false;
    }

    /// Leases, and events sent since the start.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.by_inode.len() as u64, self.sent)
    }

    /// Leases of one session.
    pub(crate) fn count_of(&self, session: SessionId) -> u64 {
        self.holders.get(&session).map_or(0, |holder| holder.held.len() as u64)
    }

    /// Starts a session's leases anew, on those of `held` that have not changed since `revision` of the client.
    pub(crate) fn claim(&mut self, request: &ClaimLeases, revision: u64) -> Claimed {
        let session = request.session;
        // What a survivor holds was true at the start: nothing was changed without its word before.
        let since = if self.survivors.remove(&session) { self.history.start() } else { request.revision };
        self.grace &= !self.survivors.is_empty();
        let base = self.base;
        let holder = self.holders.entry(session).or_insert_with(|| Holder {
            last: base,
            acknowledged: base,
            held: HashMap::new(),
            ending: 0,
            events: VecDeque::new(),
        });
        for ino in holder.held.drain().map(|(ino, _)| ino) {
            self.by_inode.remove(&(ino, session));
        }
        self.exclusive.retain(|_, (of, _)| *of != session);
        // Answers and events on their way belong to what was before. Whoever waits for an event waits on, until
        // the client, which then knows what it has lost, acknowledges this number.
        holder.events.clear();
        holder.ending = 0;
        holder.last += 1;
        let changed = self.history.since(since);
        let mut lost = Vec::new();
        for &ino in &request.held {
            let is_others = self.exclusive.contains_key(&ino);
            if is_others || self.blocked.contains_key(&ino) || changed.as_ref().is_none_or(|changed| changed.contains(&ino)) {
                lost.push(ino);
                continue;
            }
            self.grants += 1;
            holder.held.insert(ino, Lease { used: self.grants, ending: 0 });
            self.by_inode.insert((ino, session));
        }
        Claimed { event: holder.last, revision, lost }
    }

    /// Grants `session` leases on `inodes`, except where a change is on its way or `stale` says that the answer is
    /// old already. With `fresh` the answer's number is a new one: higher than that of every answer before.
    /// `None` for a session that holds no leases.
    pub(crate) fn grant(
        &mut self,
        session: SessionId,
        inodes: &[InodeId],
        fresh: bool,
        stale: impl Fn(InodeId) -> bool,
        now: Duration,
    ) -> Option<Granted> {
        let holder = self.holders.get_mut(&session)?;
        holder.last += u64::from(fresh);
        let mut granted = Granted { event: holder.last, except: Vec::new(), exclusive: None, nothing: inodes.is_empty() };
        for &ino in inodes {
            // Who has a directory to itself tells nobody of what it makes there, so nobody else holds a lease on it.
            let is_others = self.exclusive.get(&ino).is_some_and(|(of, _)| *of != session);
            if is_others || self.blocked.contains_key(&ino) || stale(ino) {
                granted.except.push(ino);
                continue;
            }
            self.grants += 1;
            let lease = Lease { used: self.grants, ending: 0 };
            match holder.held.insert(ino, lease) {
                Some(old) => holder.ending -= usize::from(old.ending != 0),
                None => {
                    self.by_inode.insert((ino, session));
                }
            }
        }
        if holder.held.len() - holder.ending > ClaimLeases::MAX_HELD {
            self.recall_oldest(session, now);
        }
        Some(granted)
    }

    /// Ends the leases that were granted longest ago; they count until the session has acknowledged.
    fn recall_oldest(&mut self, session: SessionId, now: Duration) {
        let Some(holder) = self.holders.get_mut(&session) else { return };
        let mut oldest: Vec<(u64, InodeId)> = holder.held.iter().filter(|(_, l)| l.ending == 0).map(|(ino, l)| (l.used, *ino)).collect();
        let count = RECALL.min(oldest.len() - 1);
        oldest.select_nth_unstable(count);
        oldest[..count].sort_unstable();
        for &(_, ino) in &oldest[..count] {
            let number = holder.send(ino, None, now);
            ends(&mut self.exclusive, ino, session, number);
        }
        self.sent += count as u64;
        self.woken.push(session);
    }

    /// Whether anybody but `requester` holds a lease on `ino`.
    pub(crate) fn is_held_by_others(&self, ino: InodeId, requester: Option<SessionId>) -> bool {
        self.holders_of(ino).any(|session| Some(session) != requester)
    }

    /// Gives `session` the directory `ino` to itself, if nobody else holds a lease on it, or is about to. True where it has it now.
    pub(crate) fn make_exclusive(&mut self, ino: InodeId, session: SessionId) -> bool {
        let leased = self.holders.get(&session).and_then(|holder| holder.held.get(&ino)).is_some_and(|lease| lease.ending == 0);
        if !leased || self.blocked.contains_key(&ino) || self.is_held_by_others(ino, Some(session)) {
            return false;
        }
        *self.exclusive.entry(ino).or_insert((session, 0)) == (session, 0)
    }

    /// Those of `inodes` that are directories which somebody but `requester` has to itself.
    pub(crate) fn exclusive_of_others(&self, inodes: &[InodeId], requester: Option<SessionId>) -> Vec<InodeId> {
        if self.exclusive.is_empty() {
            return Vec::new();
        }
        let is_others = |ino: &&InodeId| self.exclusive.get(ino).is_some_and(|(session, _)| Some(*session) != requester);
        inodes.iter().filter(is_others).copied().collect()
    }

    fn holders_of(&self, ino: InodeId) -> impl Iterator<Item = SessionId> + '_ {
        self.by_inode.range((ino, SessionId(0))..=(ino, SessionId(u64::MAX))).map(|pair| pair.1)
    }

    /// Grants nobody a lease on `ino` until [`Leases::unblock`].
    pub(crate) fn block(&mut self, ino: InodeId) {
        *self.blocked.entry(ino).or_insert(0) += 1;
    }

    /// One change of `ino` is over.
    pub(crate) fn unblock(&mut self, ino: InodeId) {
        let count = self.blocked.get_mut(&ino).expect("only what was blocked is unblocked");
        *count -= 1;
        if *count == 0 {
            self.blocked.remove(&ino);
        }
    }

    /// Tells every holder but `requester`. Returns the number that each session has to acknowledge.
    pub(crate) fn tell(&mut self, affected: &[Affected], requester: Option<SessionId>, now: Duration) -> BTreeMap<SessionId, u64> {
        let mut pending = BTreeMap::new();
        for thing in affected {
            let sessions: Vec<SessionId> = self.holders_of(thing.ino).filter(|session| Some(*session) != requester).collect();
            for session in sessions {
                let Some(holder) = self.holders.get_mut(&session) else { continue };
                let ending = holder.held.get(&thing.ino).map_or(0, |lease| lease.ending);
                let number = if thing.over && ending != 0 {
                    // It was told that the lease is over, and has got no new one.
                    ending
                } else {
                    self.sent += 1;
                    self.woken.push(session);
                    let number = holder.send(thing.ino, Some(thing), now);
                    ends(&mut self.exclusive, thing.ino, session, number);
                    number
                };
                let highest = pending.entry(session).or_insert(0);
                *highest = number.max(*highest);
            }
        }
        pending
    }

    /// Takes note that everything up to `after` has taken effect at `session`. Returns how far it has come.
    pub(crate) fn acknowledge(&mut self, session: SessionId, after: u64) -> Result<u64> {
        let holder = self.holders.get_mut(&session).ok_or_else(|| unclaimed(session))?;
        if after > holder.last {
            return Err(Error::new(ErrorKind::Invalid, format!("event {after} was not sent to session {session}; the last one is {}", holder.last)));
        }
        holder.acknowledged = holder.acknowledged.max(after);
        while holder.events.front().is_some_and(|sent| sent.event.number <= after) {
            let Some(Sent { event: Event { number, ino, over, .. }, .. }) = holder.events.pop_front() else { break };
            if self.exclusive.get(&ino) == Some(&(session, number)) {
                self.exclusive.remove(&ino);
            }
            if over && holder.held.get(&ino).is_some_and(|lease| lease.ending == number) {
                holder.held.remove(&ino);
                holder.ending -= 1;
                self.by_inode.remove(&(ino, session));
            }
        }
        Ok(holder.acknowledged)
    }

    /// The events of `session` behind `after`.
    pub(crate) fn events(&self, session: SessionId, after: u64) -> Result<Vec<Event>> {
        let holder = self.holders.get(&session).ok_or_else(|| unclaimed(session))?;
        let behind = holder.events.iter().skip_while(|sent| sent.event.number <= after);
        Ok(behind.take(Events::MAX_EVENTS).map(|sent| sent.event.clone()).collect())
    }

    /// Whether `session` still has to acknowledge `number`.
    pub(crate) fn is_awaited(&self, session: SessionId, number: u64) -> bool {
        self.holders.get(&session).is_some_and(|holder| holder.acknowledged < number)
    }

    /// Sessions that have left an event unacknowledged for `limit`.
    pub(crate) fn overdue(&self, limit: Duration, now: Duration) -> Vec<SessionId> {
        let late = |holder: &Holder| holder.events.front().is_some_and(|sent| now.saturating_sub(sent.at) > limit);
        self.holders.iter().filter(|(_, holder)| late(holder)).map(|(session, _)| *session).collect()
    }

    /// The service stood still for `gap`: nobody could acknowledge anything.
    pub(crate) fn forgive(&mut self, gap: Duration) {
        self.holders.values_mut().flat_map(|holder| holder.events.iter_mut()).for_each(|sent| sent.at += gap);
    }

    /// A session is gone, and what it held with it.
    pub(crate) fn end(&mut self, session: SessionId) {
        self.survivors.remove(&session);
        self.grace &= !self.survivors.is_empty();
        self.exclusive.retain(|_, (of, _)| *of != session);
        let Some(holder) = self.holders.remove(&session) else { return };
        for ino in holder.held.into_keys() {
            self.by_inode.remove(&(ino, session));
        }
    }

    /// Takes note of a committed change.
    pub(crate) fn changed(&mut self, revision: u64, inodes: &[InodeId]) {
        self.history.push(revision, inodes);
    }

    /// Sessions that have got events since the last call.
    pub(crate) fn take_woken(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.woken)
    }
}

/// An event of `ino` was sent to `session`.
fn ends(exclusive: &mut HashMap<InodeId, (SessionId, u64)>, ino: InodeId, session: SessionId, number: u64) {
    if let Some((_, ending)) = exclusive.get_mut(&ino).filter(|(of, ending)| *of == session && *ending == 0) {
        *ending = number;
    }
}

fn unclaimed(session: SessionId) -> Error {
    Error::new(ErrorKind::Unclaimed, format!("session {session} has not claimed its leases here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;
    const INO: InodeId = InodeId(7);
    const ONE: SessionId = SessionId(1);
    const TWO: SessionId = SessionId(2);

    fn table() -> Leases {
        let mut leases = Leases::new(1, 10, BTreeSet::new());
        for session in [ONE, TWO] {
            leases.claim(&ClaimLeases { session, revision: 0, held: Vec::new() }, 10);
        }
        leases
    }

    fn over() -> Affected {
        Affected { ino: INO, name: None, over: true }
    }

    fn grant(leases: &mut Leases, session: SessionId) -> Granted {
        leases.grant(session, &[INO], false, |_| false, NOW).unwrap()
    }

    #[test]
    fn a_lease_counts_until_its_end_is_acknowledged() {
        let mut leases = table();
        grant(&mut leases, ONE);
        let pending = leases.tell(&[over()], Some(TWO), NOW);
        assert!(leases.is_held_by_others(INO, Some(TWO)) && !leases.is_held_by_others(INO, Some(ONE)));
        assert_eq!(leases.tell(&[over()], Some(TWO), NOW), pending, "the same event serves a second change");
        assert_eq!((leases.counts(), leases.take_woken()), ((1, 1), vec![ONE]));
        leases.acknowledge(ONE, pending[&ONE] - 1).unwrap();
        assert!(leases.is_held_by_others(INO, None) && leases.is_awaited(ONE, pending[&ONE]));
        leases.acknowledge(ONE, pending[&ONE]).unwrap();
        assert!(!leases.is_held_by_others(INO, None) && !leases.is_awaited(ONE, pending[&ONE]));
        assert_eq!(leases.counts(), (0, 1));
    }

    #[test]
    fn a_lease_that_was_granted_behind_an_event_outlives_it() {
        let mut leases = table();
        grant(&mut leases, ONE);
        let first = leases.tell(&[over()], None, NOW)[&ONE];
        assert_eq!(grant(&mut leases, ONE).event, first);
        let second = leases.tell(&[over()], None, NOW)[&ONE];
        assert!(second > first, "the lease behind the first event has to be taken back by another");
        leases.acknowledge(ONE, first).unwrap();
        assert!(leases.is_held_by_others(INO, None));
        leases.acknowledge(ONE, second).unwrap();
        assert!(!leases.is_held_by_others(INO, None));
    }

    #[test]
    fn blocks_count_and_a_stale_answer_is_as_blocked() {
        let mut leases = table();
        leases.block(INO);
        leases.block(INO);
        leases.unblock(INO);
        assert_eq!(grant(&mut leases, ONE).except, [INO]);
        leases.unblock(INO);
        assert_eq!(leases.grant(ONE, &[INO], true, |_| true, NOW).unwrap().except, [INO]);
        assert_eq!(leases.counts().0, 0);
        assert_eq!(grant(&mut leases, ONE).except, []);
        assert!(leases.grant(ONE, &[], false, |_| false, NOW).unwrap().nothing);
        assert_eq!(leases.grant(SessionId(9), &[INO], false, |_| false, NOW), None, "it has not claimed");
    }

    #[test]
    fn events_stay_until_acknowledged_and_age() {
        let mut leases = table();
        grant(&mut leases, ONE);
        let name = dfs_common::name::Name::new(b"n").unwrap();
        let entry = Affected { ino: INO, name: Some(name.clone()), over: false };
        let number = leases.tell(&[entry], None, NOW)[&ONE];
        let expected = [Event { number, ino: INO, name: Some(name), over: false }];
        for after in [0, number - 1] {
            assert_eq!(leases.events(ONE, after).unwrap(), expected);
        }
        assert_eq!(leases.events(ONE, number).unwrap(), []);
        let lease = Duration::from_secs(30);
        assert_eq!(leases.overdue(lease, lease), []);
        assert_eq!(leases.overdue(lease, lease + Duration::from_millis(1)), [ONE]);
        leases.forgive(Duration::from_secs(1));
        assert_eq!(leases.overdue(lease, lease + Duration::from_millis(1)), []);
        assert_eq!(leases.acknowledge(ONE, number + 1).unwrap_err().kind(), ErrorKind::Invalid);
        leases.acknowledge(ONE, number).unwrap();
        assert_eq!(leases.overdue(lease, lease * 9), []);
        assert!(leases.is_held_by_others(INO, None), "the lease on a directory stays");
    }

    #[test]
    fn an_end_leaves_nothing() {
        let mut leases = Leases::new(1, 10, BTreeSet::from([ONE]));
        assert!(leases.in_grace());
        leases.claim(&ClaimLeases { session: TWO, revision: 10, held: vec![INO, INO] }, 10);
        assert_eq!((leases.in_grace(), leases.count_of(TWO)), (true, 1));
        let number = leases.tell(&[over()], None, NOW)[&TWO];
        leases.end(TWO);
        leases.end(ONE);
        assert_eq!((leases.in_grace(), leases.is_awaited(TWO, number), leases.counts().0), (false, false, 0));
        assert_eq!(leases.acknowledge(TWO, number).unwrap_err().kind(), ErrorKind::Unclaimed);
    }

    fn is_alone(leases: &Leases, session: SessionId) -> bool {
        let other = if session == ONE { TWO } else { ONE };
        leases.exclusive_of_others(&[INO], Some(session)).is_empty() && leases.exclusive_of_others(&[INO], Some(other)) == [INO]
    }

    fn looked_at() -> Affected {
        Affected { over: false, ..over() }
    }

    #[test]
    fn a_directory_is_for_one_session_that_holds_a_lease_and_nobody_else_does() {
        let mut leases = table();
        assert!(!leases.make_exclusive(INO, ONE), "no lease");
        grant(&mut leases, ONE);
        assert!(!leases.make_exclusive(INO, TWO) && leases.exclusive_of_others(&[INO], None).is_empty());
        leases.block(INO);
        assert!(!leases.make_exclusive(INO, ONE), "somebody waits");
        leases.unblock(INO);
        assert!(leases.make_exclusive(INO, ONE) && leases.make_exclusive(INO, ONE), "as often as it likes");
        assert!(is_alone(&leases, ONE));
        assert_eq!(leases.exclusive_of_others(&[InodeId(8), INO, InodeId(9)], None), [INO]);
        let mut leases = table();
        grant(&mut leases, ONE);
        grant(&mut leases, TWO);
        assert!(!leases.make_exclusive(INO, ONE) && !leases.make_exclusive(INO, TWO));
    }

    #[test]
    fn it_ends_with_the_first_event_that_is_acknowledged() {
        let mut leases = table();
        grant(&mut leases, ONE);
        assert!(leases.make_exclusive(INO, ONE));
        leases.tell(&[looked_at()], Some(ONE), NOW);
        assert!(leases.make_exclusive(INO, ONE), "its own change tells it nothing");
        let elsewhere = Affected { ino: InodeId(8), ..looked_at() };
        assert_eq!(leases.tell(&[elsewhere], None, NOW), BTreeMap::new());
        let first = leases.tell(&[looked_at()], Some(TWO), NOW)[&ONE];
        let second = leases.tell(&[looked_at()], None, NOW)[&ONE];
        assert!(second > first && is_alone(&leases, ONE));
        assert!(!leases.make_exclusive(INO, ONE), "what has been asked for comes first");
        leases.acknowledge(ONE, first - 1).unwrap();
        assert!(is_alone(&leases, ONE));
        leases.acknowledge(ONE, first).unwrap();
        assert!(!is_alone(&leases, ONE));
        assert!(leases.make_exclusive(INO, ONE), "the lease has stayed");
        leases.acknowledge(ONE, second).unwrap();
        assert!(is_alone(&leases, ONE), "an event from before says nothing of it");
    }

    #[test]
    fn it_ends_with_its_lease_its_session_and_a_new_claim() {
        let alone = || {
            let mut leases = table();
            grant(&mut leases, ONE);
            assert!(leases.make_exclusive(INO, ONE));
            leases
        };
        let mut leases = alone();
        let number = leases.tell(&[over()], None, NOW)[&ONE];
        assert!(is_alone(&leases, ONE) && !leases.make_exclusive(INO, ONE));
        leases.acknowledge(ONE, number).unwrap();
        assert!(!is_alone(&leases, ONE) && !leases.make_exclusive(INO, ONE));
        let mut leases = alone();
        leases.end(TWO);
        assert!(is_alone(&leases, ONE));
        leases.end(ONE);
        assert!(!is_alone(&leases, ONE));
        let mut leases = alone();
        leases.claim(&ClaimLeases { session: TWO, revision: 0, held: Vec::new() }, 10);
        assert!(is_alone(&leases, ONE));
        leases.claim(&ClaimLeases { session: ONE, revision: 10, held: vec![INO] }, 10);
        assert!(!is_alone(&leases, ONE) && leases.make_exclusive(INO, ONE));
    }

    #[test]
    fn it_ends_where_its_lease_is_called_back() {
        let mut leases = table();
        grant(&mut leases, ONE);
        assert!(leases.make_exclusive(INO, ONE));
        let newer: Vec<InodeId> = (100..100 + ClaimLeases::MAX_HELD as u64).map(InodeId).collect();
        leases.grant(ONE, &newer, false, |_| false, NOW).unwrap();
        let recalled = leases.events(ONE, 0).unwrap()[0].clone();
        assert_eq!((recalled.ino, recalled.over), (INO, true), "the oldest one");
        assert!(is_alone(&leases, ONE), "until it has acknowledged");
        // Granted anew meanwhile: the lease stays, for itself and for others.
        grant(&mut leases, ONE);
        assert!(!leases.make_exclusive(INO, ONE));
        leases.acknowledge(ONE, recalled.number).unwrap();
        assert!(!is_alone(&leases, ONE) && leases.is_held_by_others(INO, Some(TWO)));
        assert!(leases.make_exclusive(INO, ONE));
    }
}
