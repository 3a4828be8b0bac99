//! Single steps, and random histories against a naive model.

use proptest::prelude::*;

use super::*;

const LEASE: u64 = 30_000;
const FILE: InodeId = InodeId(7);

fn acquire(session: u64, request: u64, wait_ms: u64) -> Acquire {
    Acquire { session: SessionId(session), ino: FILE, request, owner: Owner::default(), wait_ms, shares: false }
}

/// A state with a clock, and what every connection heard.
struct Bench {
    state: State,
    now: u64,
    connections: u64,
    answers: HashMap<Connection, Result<Token>>,
    tokens: Vec<Token>,
}

impl Bench {
    fn new() -> Self {
        Self { state: State::new(LEASE, Token(0)), now: 1000, connections: 0, answers: HashMap::new(), tokens: Vec::new() }
    }

    fn settle(&mut self, effects: Effects) {
        assert!(self.state.last_token <= self.state.reserved);
        for (connection, answer) in effects.answers {
            self.tokens.extend(answer.as_ref().ok());
            assert!(self.answers.insert(connection, answer).is_none(), "answered twice");
        }
    }

    fn acquire(&mut self, session: u64, request: u64, wait_ms: u64) -> (Connection, Result<Acquired>) {
        self.connections += 1;
        let connection = Connection(self.connections);
        let (result, effects) = self.state.acquire(self.now, &acquire(session, request, wait_ms), connection);
        self.settle(effects);
        (connection, result)
    }

    fn granted(&mut self, session: u64, request: u64) -> Token {
        match self.acquire(session, request, 0).1 {
            Ok(Acquired::Granted(token)) => token,
            other => panic!("{other:?}"),
        }
    }

    fn waits(&mut self, session: u64, request: u64) -> Connection {
        let (connection, result) = self.acquire(session, request, 600_000);
        assert_eq!(result.unwrap(), Acquired::Waiting);
        connection
    }

    fn release(&mut self, session: u64, token: Token) {
        let effects = self.state.release(self.now, &Release { session: SessionId(session), ino: FILE, token });
        self.settle(effects);
    }

    fn cancel(&mut self, session: u64, request: u64) {
        let effects = self.state.cancel(self.now, &Cancel { session: SessionId(session), ino: FILE, request });
        self.settle(effects);
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        let effects = self.state.tick(self.now);
        self.settle(effects);
    }

    fn heard(&self, connection: Connection) -> Option<Result<Token, ErrorKind>> {
        self.answers.get(&connection).cloned().map(|a| a.map_err(|e| e.kind()))
    }

    fn holder(&self) -> Option<u64> {
        self.state.holder(FILE).map(|h| h.session.0)
    }

    /// What a restart makes of it, by way of the stored form.
    fn restart(&mut self) {
        let mut next = State::new(LEASE, self.state.reserved);
        for (&ino, lock) in &self.state.locks {
            if let Some(holder) = &lock.holder {
                next.restore_holder(self.now, ino, postcard::from_bytes(&postcard::to_stdvec(holder).unwrap()).unwrap());
            }
            for (&number, place) in &lock.queue {
                next.restore_place(self.now, ino, number, postcard::from_bytes(&postcard::to_stdvec(place).unwrap()).unwrap());
            }
        }
        self.state = next;
    }
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
    assert_eq!((b.holder(), b.state.sessions.len(), b.state.timers.len()), (None, 0, 0));
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
    b.state.disconnected(FILE, SessionId(2), 9, two);
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
    b.state.disconnected(FILE, SessionId(2), 9, two);
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
    b.state.disconnected(FILE, SessionId(2), 9, old);
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
    assert_eq!((b.state.sessions.len(), b.state.timers.len(), b.state.locks()), (0, 0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Acquire(u64, u64, u64),
    Release(u64),
    Cancel(u64, u64),
    Disconnect(u64, u64),
    End(u64),
    Renew(u64),
    Pass(u64),
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let session = 1u64..6;
    prop_oneof![
        6 => (session.clone(), 1u64..3, prop_oneof![Just(0), 1u64..100_000]).prop_map(|(s, r, w)| Step::Acquire(s, r, w)),
        4 => session.clone().prop_map(Step::Release),
        2 => (session.clone(), 1u64..3).prop_map(|(s, r)| Step::Cancel(s, r)),
        2 => (session.clone(), 1u64..3).prop_map(|(s, r)| Step::Disconnect(s, r)),
        1 => session.clone().prop_map(Step::End),
        2 => session.prop_map(Step::Renew),
        3 => (1u64..20_000).prop_map(Step::Pass),
        1 => Just(Step::Restart),
    ]
}

/// What must hold after every step.
fn check_invariants(b: &Bench) {
    let state = &b.state;
    let places: usize = state.locks.values().map(|l| l.queue.len()).sum();
    assert_eq!(state.waiters, places as u64);
    for (ino, lock) in &state.locks {
        assert!(lock.holder.is_some(), "a lock without a holder is forgotten");
        let sessions = lock.queue.values().map(|p| p.session).chain(lock.holder.iter().map(|h| h.session));
        for session in sessions {
            assert!(state.sessions[&session].files.contains(ino));
        }
    }
    for session in state.sessions.values() {
        assert!(!session.files.is_empty());
    }
    let offers = state.locks.values().filter(|l| l.holder.as_ref().is_some_and(|h| h.offered_until.is_some())).count();
    assert_eq!(state.timers.len(), places + offers + state.sessions.len());
}

proptest! {
    #[test]
    fn random_histories_keep_order_and_tokens(steps in proptest::collection::vec(any_step(), 1..120)) {
        let mut b = Bench::new();
        let mut last = Token(0);
        for step in steps {
            // Whoever is first among those that stay must be the next holder.
            let before = b.state.locks.get(&FILE).cloned().unwrap_or_default();
            match step {
                Step::Acquire(s, r, w) => { b.acquire(s, r, w).1.ok(); }
                Step::Release(s) => {
                    let token = b.state.holder(FILE).map_or(Token(1), |h| h.token);
                    b.release(s, token);
                }
                Step::Cancel(s, r) => b.cancel(s, r),
                Step::Disconnect(s, r) => {
                    let place = before.queue.values().find(|p| **p == (SessionId(s), r));
                    if let Some(connection) = place.and_then(|p| p.connection) {
                        b.state.disconnected(FILE, SessionId(s), r, connection);
                    }
                }
                Step::End(s) => { let effects = b.state.end(b.now, SessionId(s)); b.settle(effects); }
                Step::Renew(s) => { b.state.renew(b.now, SessionId(s)); }
                Step::Pass(ms) => b.pass(ms),
                Step::Restart => b.restart(),
            }
            check_invariants(&b);
            let after = b.state.locks.get(&FILE).cloned().unwrap_or_default();
            if let (Some(old), Some(new)) = (&before.holder, &after.holder) && old.token != new.token {
                prop_assert!(new.token > last);
                let overtaken = before.queue.values().take_while(|p| (p.session, p.request) != (new.session, new.request));
                for place in overtaken {
                    prop_assert!(!after.queue.values().any(|p| p == place), "{place:?} was overtaken by {new:?}");
                }
            }
            last = last.max(after.holder.map_or(last, |h| h.token));
        }
        prop_assert!(b.tokens.is_sorted_by(|a, b| a < b));
    }
}
