//! Write locks: single steps, and random histories against a naive model.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::lock::state::sessions::Kind;
use crate::lock::state::writers::Lock;

pub(super) const LEASE: u64 = 30_000;
pub(super) const FILE: InodeId = InodeId(7);

pub(super) fn acquire(session: u64, request: u64, wait_ms: u64) -> Acquire {
    Acquire { session: SessionId(session), ino: FILE, request, owner: Owner::default(), wait_ms, unaware: false, fresh: None }
}

fn stored<T: serde::Serialize + serde::de::DeserializeOwned>(row: &T) -> T {
    postcard::from_bytes(&postcard::to_stdvec(row).unwrap()).unwrap()
}

/// A state with a clock, and what every connection heard.
pub(super) struct Bench {
    pub(super) state: State,
    pub(super) now: u64,
    connections: u64,
    answers: HashMap<Connection, Result<Token>>,
    tokens: Vec<Token>,
    pub(super) fences: Vec<(InodeId, Token)>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self { state: State::new(LEASE, Token(0)), now: 1000, connections: 0, answers: HashMap::new(), tokens: Vec::new(), fences: Vec::new() }
    }

    pub(super) fn connection(&mut self) -> Connection {
        self.connections += 1;
        Connection(self.connections)
    }

    pub(super) fn settle(&mut self, effects: Effects) {
        assert!(self.state.writers.last_token() <= self.state.writers.reserved());
        self.fences.extend(effects.fences);
        for (connection, answer) in effects.answers {
            self.tokens.extend(answer.as_ref().ok().filter(|t| **t != NO_TOKEN && !self.tokens.contains(t)));
            assert!(self.answers.insert(connection, answer).is_none(), "answered twice");
        }
    }

    pub(super) fn acquire(&mut self, session: u64, request: u64, wait_ms: u64) -> (Connection, Result<Acquired>) {
        let connection = self.connection();
        let (result, effects) = self.state.acquire(self.now, &acquire(session, request, wait_ms), connection);
        self.settle(effects);
        (connection, result)
    }

    pub(super) fn granted(&mut self, session: u64, request: u64) -> Token {
        match self.acquire(session, request, 0).1 {
            Ok(Acquired::Granted(token)) => token,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn waits(&mut self, session: u64, request: u64) -> Connection {
        let (connection, result) = self.acquire(session, request, 600_000);
        assert_eq!(result.unwrap(), Acquired::Waiting);
        connection
    }

    pub(super) fn release(&mut self, session: u64, token: Token) {
        let effects = self.state.release(self.now, &Release { session: SessionId(session), ino: FILE, token });
        self.settle(effects);
    }

    pub(super) fn cancel(&mut self, session: u64, request: u64) {
        let effects = self.state.cancel(self.now, &Cancel { session: SessionId(session), ino: FILE, request });
        self.settle(effects);
    }

    /// The directory service has answered everything.
    pub(super) fn fenced(&mut self) {
        for (ino, token) in std::mem::take(&mut self.fences) {
            let effects = self.state.fenced(self.now, ino, token);
            self.settle(effects);
        }
    }

    pub(super) fn leftovers(&self) -> (usize, usize, usize) {
        let (sessions, leases) = self.state.sessions.counts();
        (sessions, leases + self.state.writers.timers(), self.state.writers.locks.len())
    }

    pub(super) fn disconnect(&mut self, session: u64, request: u64, connection: Connection) {
        let waited = Waited::Write(Cancel { session: SessionId(session), ino: FILE, request });
        self.state.disconnected(&waited, connection);
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now += ms;
        let effects = self.state.tick(self.now);
        self.settle(effects);
    }

    pub(super) fn heard(&self, connection: Connection) -> Option<Result<Token, ErrorKind>> {
        self.answers.get(&connection).cloned().map(|a| a.map_err(|e| e.kind()))
    }

    pub(super) fn holder(&self) -> Option<u64> {
        self.state.writers.holder(FILE).map(|h| h.session.0)
    }

    /// What a restart makes of it, by way of the stored form.
    pub(super) fn restart(&mut self) {
        let mut next = State::new(LEASE, self.state.writers.reserved());
        for (&ino, lock) in &self.state.writers.locks {
            if let Some(holder) = &lock.holder {
                next.restore_holder(self.now, ino, stored(holder));
            }
            if let Some(fencing) = &lock.fencing {
                next.restore_fencing(ino, stored(fencing));
            }
            for (&number, place) in &lock.queue {
                next.restore_place(self.now, ino, number, stored(place));
            }
        }
        self.state = next;
        self.fences.clear();
        let effects = self.state.resume(self.now);
        self.settle(effects);
    }
}

/// A client whose grant's answer got lost asks anew, and must not wait for itself.
#[test]
fn who_does_not_know_of_its_grant_gets_it_again() {
    let mut bench = Bench::new();
    let token = bench.granted(1, 1);
    bench.acquire(2, 1, 1000).1.unwrap();
    assert!(matches!(bench.acquire(1, 2, 0).1, Err(e) if e.kind() == ErrorKind::WouldBlock));
    let connection = bench.connection();
    let unaware = Acquire { unaware: true, ..acquire(1, 3, 1000) };
    let (result, effects) = bench.state.acquire(bench.now, &unaware, connection);
    bench.settle(effects);
    assert!(matches!(result, Ok(Acquired::Granted(again)) if again == token));
}

#[test]
fn waiters_get_it_in_order() {
    let mut b = Bench::new();
    let first = b.granted(1, 1);
    let (two, three) = (b.waits(2, 1), b.waits(3, 1));
    assert_eq!(b.acquire(4, 1, 0).1.unwrap_err().kind(), ErrorKind::WouldBlock);
    b.release(1, first);
    let second = b.heard(two).unwrap().unwrap();
    assert!(second > first && b.heard(three).is_none());
    b.release(2, second);
    assert!(b.heard(three).unwrap().unwrap() > second);
    b.release(1, first);
    assert_eq!(b.holder(), Some(3), "a repeated release of an older grant changes nothing");
}

#[test]
fn a_session_that_holds_it_gets_the_same_token() {
    let mut b = Bench::new();
    let token = b.granted(1, 1);
    assert_eq!(b.granted(1, 2), token);
    b.cancel(1, 1);
    assert_eq!(b.holder(), Some(1), "an older request no longer owns the grant");
    b.cancel(1, 2);
    assert_eq!(b.leftovers(), (0, 0, 0));
}

#[test]
fn a_service_that_stood_still_takes_no_lock_away() {
    let mut b = Bench::new();
    b.granted(1, 1);
    b.pass(LEASE - 1);
    b.now += 3 * LEASE;
    b.state.forgive(3 * LEASE);
    b.pass(0);
    assert_eq!(b.holder(), Some(1));
    b.pass(1);
    assert_eq!(b.holder(), None);
}

#[test]
fn waits_and_leases_end() {
    let mut b = Bench::new();
    b.granted(1, 1);
    let (two, result) = b.acquire(2, 1, 500);
    assert_eq!(result.unwrap(), Acquired::Waiting);
    b.pass(499);
    assert_eq!(b.heard(two), None);
    b.pass(1);
    assert_eq!(b.heard(two), Some(Err(ErrorKind::Busy)));
    let three = b.waits(3, 1);
    b.pass(20_000);
    b.state.renew(b.now, SessionId(3));
    b.pass(LEASE - 20_000);
    b.fenced();
    assert!(b.heard(three).unwrap().is_ok(), "the holder's lease is over");
    b.pass(LEASE);
    assert_eq!(b.holder(), None);
}

#[test]
fn a_lost_connection_keeps_its_place_and_a_grant_waits_for_it() {
    let mut b = Bench::new();
    let token = b.granted(1, 1);
    let two = b.waits(2, 9);
    let three = b.waits(3, 1);
    b.disconnect(2, 9, two);
    b.release(1, token);
    assert_eq!((b.holder(), b.heard(three)), (Some(2), None));
    b.pass(OFFER_MS - 1);
    assert!(b.granted(2, 9) > token);
    b.pass(OFFER_MS);
    assert_eq!(b.holder(), Some(2), "a grant that was taken up stays");
}

#[test]
fn a_grant_that_nobody_takes_up_passes_on() {
    let mut b = Bench::new();
    let token = b.granted(1, 1);
    let two = b.waits(2, 9);
    let three = b.waits(3, 1);
    b.disconnect(2, 9, two);
    b.release(1, token);
    b.pass(OFFER_MS);
    assert!(b.heard(three).unwrap().is_ok());
}

#[test]
fn asking_again_takes_up_the_place() {
    let mut b = Bench::new();
    let token = b.granted(1, 1);
    let (old, _) = (b.waits(2, 9), b.waits(3, 1));
    let new = b.waits(2, 9);
    assert_eq!(b.heard(old), Some(Err(ErrorKind::Interrupted)));
    b.disconnect(2, 9, old);
    b.release(1, token);
    assert!(b.heard(new).unwrap().is_ok());
}

#[test]
fn a_restart_keeps_holder_queue_and_tokens() {
    let mut b = Bench::new();
    let token = b.granted(1, 1);
    b.waits(2, 9);
    b.waits(3, 1);
    b.restart();
    assert_eq!(b.holder(), Some(1));
    let three = b.waits(3, 1);
    let two = b.waits(2, 9);
    b.release(1, token);
    let second = b.heard(two).unwrap().unwrap();
    assert!(second > token && b.heard(three).is_none());
}

#[test]
fn nonsense_is_refused_and_leaves_nothing() {
    let mut b = Bench::new();
    let long = Acquire { owner: Owner { host: "x".repeat(300), ..Owner::default() }, ..acquire(1, 1, 0) };
    for bad in [acquire(0, 1, 0), acquire(1, 1, u64::MAX), long, Acquire { ino: InodeId(0), ..acquire(1, 1, 0) }] {
        assert_eq!(b.state.acquire(b.now, &bad, Connection(1)).0.unwrap_err().kind(), ErrorKind::Invalid);
    }
    b.cancel(5, 5);
    b.release(5, Token(5));
    assert_eq!(b.leftovers(), (0, 0, 0));
}

#[derive(Clone, Debug)]
enum Move {
    Acquire(u64, u64, u64),
    Release(u64),
    Cancel(u64, u64),
    Disconnect(u64, u64),
    End(u64),
    Renew(u64),
    Pass(u64),
    Break(Option<u64>),
    TakeOver(u64, u64),
    Fenced,
    Restart,
}

fn any_move() -> impl Strategy<Value = Move> {
    let session = 1u64..6;
    prop_oneof![
        6 => (session.clone(), 1u64..4, prop_oneof![Just(0), 1u64..100_000]).prop_map(|(s, r, w)| Move::Acquire(s, r, w)),
        4 => session.clone().prop_map(Move::Release),
        2 => (session.clone(), 1u64..4).prop_map(|(s, r)| Move::Cancel(s, r)),
        2 => (session.clone(), 1u64..4).prop_map(|(s, r)| Move::Disconnect(s, r)),
        1 => session.clone().prop_map(Move::End),
        2 => session.clone().prop_map(Move::Renew),
        3 => (1u64..20_000).prop_map(Move::Pass),
        1 => proptest::option::of(1u64..20).prop_map(Move::Break),
        1 => (session.clone(), session).prop_map(|(s, from)| Move::TakeOver(s, from)),
        3 => Just(Move::Fenced),
        1 => Just(Move::Restart),
    ]
}

impl Bench {
    fn perform(&mut self, step: Move, before: &Lock) {
        let held = before.holder.as_ref().map_or(Token(1), |h| h.token);
        match step {
            Move::Acquire(s, r, w) => drop(self.acquire(s, r, w)),
            Move::Release(s) => self.release(s, held),
            Move::Cancel(s, r) => self.cancel(s, r),
            Move::Disconnect(s, r) => {
                let place = before.queue.values().find(|p| **p == (SessionId(s), r));
                if let Some(connection) = place.and_then(|p| p.connection) {
                    self.disconnect(s, r, connection);
                }
            }
            Move::End(s) => {
                let effects = self.state.end(self.now, SessionId(s));
                self.settle(effects);
            }
            Move::Renew(s) => {
                self.state.renew(self.now, SessionId(s));
            }
            Move::Pass(ms) => self.pass(ms),
            Move::Break(token) => drop(self.break_lock(token)),
            Move::TakeOver(s, from) => {
                let (_, effects) = self.state.take_over(self.now, &TakeOver { session: SessionId(s), from: SessionId(from) });
                self.settle(effects);
            }
            Move::Fenced => self.fenced(),
            Move::Restart => self.restart(),
        }
    }
}

/// What must hold after every step.
fn check_invariants(b: &Bench) {
    let (writers, sessions) = (&b.state.writers, &b.state.sessions);
    let places: usize = writers.locks.values().map(|l| l.queue.len()).sum();
    assert_eq!(writers.waiters(), places as u64);
    let mut involved = BTreeSet::new();
    for (ino, lock) in &writers.locks {
        assert!(lock.holder.is_some() != lock.fencing.is_some(), "a lock has a holder or is fenced, or is forgotten");
        for session in lock.queue.values().map(|p| p.session).chain(lock.holder.iter().map(|h| h.session)) {
            assert!(sessions.has(session, Kind::Write, *ino));
            involved.insert(session);
        }
        if let (Some(holder), Some(first)) = (&lock.holder, lock.queue.values().next()) {
            assert!(first.session != holder.session || first.connection.is_none(), "nobody waits for his own session alone");
        }
    }
    let offers = writers.locks.values().filter(|l| l.holder.as_ref().is_some_and(|h| h.offered_until.is_some())).count();
    assert_eq!(writers.timers(), places + offers);
    assert_eq!(sessions.counts(), (involved.len(), involved.len()));
    let fencing: Vec<_> = writers.locks.iter().filter_map(|(&ino, l)| l.fencing.as_ref().map(|f| (ino, f.token))).collect();
    assert_eq!((writers.fencing(), &b.fences), (fencing.len() as u64, &fencing), "each lost lock is to be fenced once");
}

proptest! {
    #[test]
    fn random_histories_keep_order_and_tokens(steps in proptest::collection::vec(any_move(), 1..120)) {
        let mut b = Bench::new();
        let mut last = Token(0);
        for step in steps {
            // Whoever is first among those that stay must be the next holder.
            let before = b.state.writers.locks.get(&FILE).cloned().unwrap_or_default();
            let taken_over = matches!(step, Move::TakeOver(..));
            let by_word = matches!(step, Move::Release(_) | Move::Cancel(..) | Move::End(_));
            let told = matches!(step, Move::Fenced);
            b.perform(step, &before);
            check_invariants(&b);
            let after = b.state.writers.locks.get(&FILE).cloned().unwrap_or_default();
            if let (Some(old), Some(new)) = (&before.holder, &after.holder) {
                if old.token == new.token {
                    prop_assert!(old.session == new.session || taken_over, "a grant stays with its session");
                } else {
                    prop_assert!(by_word || old.offered_until.is_some(), "{new:?} got the lock of {old:?} without a fence");
                }
            }
            if let (Some(fencing), Some(new)) = (&before.fencing, &after.holder) {
                prop_assert!(told && new.token > fencing.token, "{new:?} before {fencing:?}");
            }
            if let Some(new) = after.holder.as_ref().filter(|new| new.token > last) {
                let overtaken = before.queue.values().take_while(|p| (p.session, p.request) != (new.session, new.request));
                for place in overtaken {
                    prop_assert!(!after.queue.values().any(|p| p == place), "{place:?} was overtaken by {new:?}");
                }
            }
            let newest = after.holder.as_ref().map(|h| h.token).max(after.fencing.as_ref().map(|f| f.token));
            prop_assert!(newest.is_none_or(|token| token >= last));
            last = last.max(newest.unwrap_or(last));
        }
        prop_assert!(b.tokens.is_sorted_by(|a, b| a < b));
    }
}
