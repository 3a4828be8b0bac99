//! Locks that are kept without being used, and those that came with a new file.

use dfs_common::api::lock::{InUse, Recalls};

use super::tests::{Bench, FILE, LEASE, acquire};
use super::*;

impl Bench {
    fn wanted(&mut self, session: u64, known: &[(InodeId, Token)]) -> Vec<(InodeId, Token)> {
        let request = Recalls { session: SessionId(session), known: known.to_vec(), wait_ms: 0 };
        self.state.wanted(self.now, &request).unwrap()
    }

    fn in_use(&mut self, session: u64, token: Token) {
        let owner = Owner { host: "h".into(), pid: 3, program: "vi".into() };
        let (result, effects) = self.state.in_use(self.now, &InUse { session: SessionId(session), ino: FILE, token, owner });
        result.unwrap();
        self.settle(effects);
    }

    /// Asks for a file that `maker` made.
    fn acquire_fresh(&mut self, session: u64, wait_ms: u64, maker: u64) -> (Connection, Acquired) {
        let (connection, request) = (self.connection(), Acquire { fresh: Some(SessionId(maker)), ..acquire(session, 1, wait_ms) });
        let (result, effects) = self.state.acquire(self.now, &request, connection);
        self.settle(effects);
        (connection, result.unwrap())
    }

    fn end(&mut self, session: u64) {
        let effects = self.state.end(self.now, SessionId(session));
        self.settle(effects);
    }

    fn begin(&mut self) {
        let effects = self.state.resume(self.now);
        self.settle(effects);
    }
}

#[test]
fn who_does_not_want_to_wait_gets_a_lock_that_is_not_used() {
    let mut b = Bench::new();
    let token = b.granted(1, 1);
    assert!(b.wanted(1, &[]).is_empty());
    let (asker, result) = b.acquire(2, 1, 0);
    assert_eq!(result.unwrap(), Acquired::Waiting);
    assert_eq!(b.wanted(1, &[]), [(FILE, token)]);
    assert!(b.wanted(1, &[(FILE, token)]).is_empty() && b.wanted(2, &[]).is_empty());
    b.release(1, token);
    assert!(b.heard(asker).unwrap().unwrap() > token);
    assert!(b.wanted(2, &[]).is_empty());
}

#[test]
fn who_does_not_want_to_wait_hears_that_a_lock_is_used() {
    let mut b = Bench::new();
    let token = b.granted(1, 1);
    let asker = b.acquire(2, 1, 0).0;
    let patient = b.waits(3, 1);
    b.in_use(1, Token(token.0 + 7));
    assert!(b.heard(asker).is_none(), "another grant");
    b.in_use(1, token);
    assert_eq!(b.heard(asker), Some(Err(ErrorKind::WouldBlock)));
    assert!(b.heard(patient).is_none());
    b.cancel(3, 1);
    assert_eq!(b.acquire(2, 2, 0).1.unwrap_err().kind(), ErrorKind::WouldBlock, "it was said before");
    b.release(1, token);
    b.granted(2, 3);
}

#[test]
fn a_holder_that_says_nothing_is_believed_to_use_its_lock() {
    let mut b = Bench::new();
    b.granted(1, 1);
    let asker = b.acquire(2, 1, 0).0;
    b.pass(Acquire::IDLE_MS - 1);
    assert!(b.heard(asker).is_none());
    b.pass(1);
    assert_eq!(b.heard(asker), Some(Err(ErrorKind::WouldBlock)));
}

#[test]
fn the_maker_of_a_file_has_its_lock_until_it_gives_it_back() {
    let mut b = Bench::new();
    b.wanted(1, &[]);
    let (waiter, result) = b.acquire_fresh(2, 1000, 1);
    assert_eq!(result, Acquired::Waiting);
    assert_eq!(b.wanted(1, &[]), [(FILE, Token::FRESH)]);
    b.in_use(1, Token::FRESH);
    assert_eq!(b.state.list(b.now, None)[0].holder.owner.program, "vi");
    b.release(1, Token::FRESH);
    let token = b.heard(waiter).unwrap().unwrap();
    assert!(token > Token::FRESH && b.fences.is_empty());
    // The word of who made it is old by now.
    assert_eq!(b.acquire_fresh(3, 1000, 1).1, Acquired::Waiting);
    assert!(b.wanted(1, &[]).is_empty());
}

#[test]
fn the_maker_itself_shares_what_it_has() {
    let mut b = Bench::new();
    assert_eq!(b.acquire_fresh(1, 0, 1).1, Acquired::Granted(Token::FRESH));
    assert_eq!(b.granted(1, 2), Token::FRESH);
}

#[test]
fn a_maker_that_is_gone_is_fenced_first() {
    let mut b = Bench::new();
    b.wanted(1, &[]);
    b.pass(LEASE);
    let (waiter, result) = b.acquire_fresh(2, 0, 1);
    assert_eq!(result, Acquired::Waiting);
    let [(ino, fence)] = b.fences[..] else { panic!("{:?}", b.fences) };
    assert!(ino == FILE && fence > Token::FRESH);
    b.fenced();
    assert!(b.heard(waiter).unwrap().unwrap() > fence);
}

#[test]
fn after_a_restart_a_maker_has_a_lease_to_be_heard_of() {
    let mut b = Bench::new();
    b.begin();
    let waiter = b.acquire_fresh(2, 100_000, 1).0;
    assert!(b.fences.is_empty());
    b.state.renew(b.now + LEASE / 2, SessionId(2));
    b.pass(LEASE - 1);
    assert!(b.fences.is_empty());
    b.pass(1);
    assert_eq!(b.fences.len(), 1);
    b.fenced();
    assert!(b.heard(waiter).unwrap().is_ok());
}

#[test]
fn a_session_that_has_ended_has_made_nothing_that_it_still_holds() {
    let mut b = Bench::new();
    b.begin();
    b.wanted(1, &[]);
    b.end(1);
    b.acquire_fresh(2, 0, 1);
    assert_eq!(b.fences.len(), 1);
}
