//! Lost holders, broken locks, sessions that take over, and those who share a grant.

use super::tests::{Bench, FILE, LEASE};
use super::*;

impl Bench {
    pub(super) fn break_lock(&mut self, token: Option<u64>) -> (Connection, Result<Acquired>) {
        let connection = self.connection();
        let (result, effects) = self.state.break_lock(self.now, &Break { ino: FILE, token: token.map(Token), fresh: None }, connection);
        self.settle(effects);
        (connection, result)
    }

    fn take_over(&mut self, session: u64, from: u64) -> Vec<(InodeId, Token)> {
        let (taken, effects) = self.state.take_over(self.now, &TakeOver { session: SessionId(session), from: SessionId(from) });
        self.settle(effects);
        taken.unwrap().locks
    }

    fn held(&mut self, session: u64) -> u64 {
        self.state.renew(self.now, SessionId(session))
    }
}

#[test]
fn a_vanished_holder_is_fenced_before_the_next_grant() {
    let mut b = Bench::new();
    let first = b.granted(1, 1);
    let two = b.waits(2, 1);
    b.pass(LEASE - 1);
    b.held(2);
    b.pass(1);
    assert_eq!((b.holder(), b.heard(two)), (None, None), "nobody has it before the directory service knows");
    let (ino, fence) = b.fences[0];
    assert!(ino == FILE && fence > first);
    assert!(b.state.list(b.now, None)[0].fencing);
    assert_eq!(b.acquire(3, 1, 0).1.unwrap_err().kind(), ErrorKind::WouldBlock);
    let old = b.waits(1, 2);
    b.fenced();
    let second = b.heard(two).unwrap().unwrap();
    assert!(second >= fence && b.heard(old).is_none(), "the former holder stands in line like everybody");
    b.release(1, first);
    b.cancel(1, 1);
    assert_eq!(b.holder(), Some(2), "what the former holder says of its grant changes nothing");
}

#[test]
fn a_lock_that_nobody_waits_for_is_forgotten_once_it_is_fenced() {
    let mut b = Bench::new();
    b.granted(1, 1);
    b.pass(LEASE);
    assert_eq!((b.leftovers(), b.state.writers.fencing()), ((0, 0, 1), 1));
    b.fenced();
    assert_eq!((b.leftovers(), b.state.writers.fencing()), ((0, 0, 0), 0));
}

#[test]
fn a_restart_goes_on_with_fencing() {
    let mut b = Bench::new();
    let first = b.granted(1, 1);
    b.waits(2, 9);
    b.pass(LEASE - 1);
    b.held(2);
    b.pass(1);
    let asked = b.fences.clone();
    b.restart();
    assert_eq!((b.holder(), &b.fences), (None, &asked));
    let two = b.waits(2, 9);
    let late = b.state.fenced(b.now, FILE, first);
    assert!(late.rows.is_empty(), "an answer to another fence is none to this one");
    b.fenced();
    assert!(b.heard(two).unwrap().unwrap() > asked[0].1);
}

#[test]
fn who_gives_it_back_by_its_own_word_needs_no_fence() {
    let mut b = Bench::new();
    let first = b.granted(1, 1);
    let (two, three, four) = (b.waits(2, 1), b.waits(3, 1), b.waits(4, 1));
    b.release(1, first);
    assert!(b.heard(two).is_some());
    b.cancel(2, 1);
    assert!(b.heard(three).is_some());
    let effects = b.state.end(b.now, SessionId(3));
    b.settle(effects);
    assert!(b.heard(four).is_some() && b.fences.is_empty());
}

#[test]
fn a_vanished_session_that_never_heard_of_its_grant_needs_no_fence() {
    let mut b = Bench::new();
    let first = b.granted(1, 1);
    let two = b.waits(2, 1);
    b.disconnect(2, 1, two);
    b.pass(LEASE - 1);
    b.held(1);
    b.release(1, first);
    assert_eq!(b.holder(), Some(2), "it is offered");
    b.pass(1);
    assert_eq!((b.leftovers(), b.fences.len()), ((0, 0, 0), 0));
}

#[test]
fn a_broken_lock_passes_on_when_it_is_fenced_and_the_session_stays() {
    let mut b = Bench::new();
    assert_eq!(b.break_lock(None).1.unwrap_err().kind(), ErrorKind::NotFound);
    let first = b.granted(1, 1);
    let two = b.waits(2, 1);
    let (breaker, result) = b.break_lock(None);
    assert_eq!(result.unwrap(), Acquired::Waiting);
    assert_eq!((b.heard(breaker), b.heard(two), b.held(1)), (None, None, 0));
    let (again, _) = b.break_lock(Some(first.0));
    assert_eq!(b.fences.len(), 1, "one that is being fenced is not fenced again");
    b.fenced();
    assert_eq!((b.heard(breaker), b.heard(again)), (Some(Ok(NO_TOKEN)), Some(Ok(NO_TOKEN))));
    assert!(b.heard(two).unwrap().is_ok());
    assert_eq!(b.break_lock(Some(first.0)).1.unwrap(), Acquired::Granted(NO_TOKEN), "repeated, it takes the lock from nobody else");
    assert_eq!(b.holder(), Some(2));
}

#[test]
fn a_session_takes_over_what_another_one_held_with_the_same_tokens() {
    let mut b = Bench::new();
    let token = b.granted(1, 7);
    let two = b.waits(2, 1);
    assert_eq!(b.take_over(5, 4), []);
    assert_eq!(b.take_over(5, 1), [(FILE, token)]);
    assert_eq!(b.take_over(5, 1), [(FILE, token)], "a lost answer loses nothing");
    b.restart();
    assert_eq!((b.holder(), b.held(5), b.held(1)), (Some(5), 1, 0));
    b.cancel(5, 7);
    assert_eq!(b.holder(), Some(5), "numbers of the earlier session's requests mean nothing");
    let two_again = b.waits(2, 1);
    b.release(5, token);
    assert!(b.heard(two_again).unwrap().unwrap() > token && b.fences.is_empty());
    assert_eq!((b.take_over(5, 1), b.heard(two)), (vec![], None));
}

#[test]
fn a_session_that_is_taken_over_leaves_the_queues() {
    let mut b = Bench::new();
    let first = b.granted(9, 1);
    let (one, two) = (b.waits(1, 1), b.waits(2, 1));
    assert_eq!(b.take_over(5, 1), []);
    assert_eq!(b.heard(one), Some(Err(ErrorKind::SessionExpired)));
    b.release(9, first);
    assert!(b.heard(two).unwrap().is_ok());
}

#[test]
fn an_offer_that_is_taken_over_is_no_offer_any_more() {
    let mut b = Bench::new();
    let first = b.granted(9, 1);
    let one = b.waits(1, 1);
    b.disconnect(1, 1, one);
    b.release(9, first);
    assert_eq!(b.take_over(5, 1).len(), 1);
    b.pass(OFFER_MS);
    assert_eq!(b.holder(), Some(5));
}

#[test]
fn the_holders_own_mount_stands_in_line_behind_others() {
    let mut b = Bench::new();
    let token = b.granted(1, 1);
    assert_eq!(b.granted(1, 2), token, "as long as nobody waits, it shares what it has");
    let two = b.waits(2, 1);
    assert_eq!(b.granted(1, 2), token, "the same request is the same grant");
    let own = b.waits(1, 3);
    assert_eq!(b.acquire(1, 4, 0).1.unwrap_err().kind(), ErrorKind::WouldBlock);
    let three = b.waits(3, 1);
    b.release(1, token);
    let second = b.heard(two).unwrap().unwrap();
    assert_eq!((b.heard(own), b.heard(three)), (None, None));
    b.release(2, second);
    let third = b.heard(own).unwrap().unwrap();
    assert!(third > second && b.heard(three).is_none());
}

#[test]
fn the_holders_own_mount_shares_again_when_the_others_are_gone() {
    let mut b = Bench::new();
    let token = b.granted(1, 1);
    b.waits(2, 1);
    let (own, later) = (b.waits(1, 2), b.waits(1, 3));
    b.disconnect(1, 3, later);
    b.cancel(2, 1);
    assert_eq!((b.heard(own), b.heard(later)), (Some(Ok(token)), None));
    assert_eq!(b.granted(1, 3), token, "one whose connection was gone hears it when it asks again");
    b.restart();
    b.cancel(1, 2);
    b.cancel(1, 1);
    assert_eq!(b.holder(), Some(1), "others of the session use the grant");
    b.cancel(1, 3);
    assert_eq!(b.leftovers(), (0, 0, 0));
}

#[test]
fn a_grant_with_many_requests_ends_by_release_only() {
    let mut b = Bench::new();
    let token = b.granted(1, 1);
    (2..100).for_each(|request| assert_eq!(b.granted(1, request), token));
    (1..100).for_each(|request| b.cancel(1, request));
    assert_eq!(b.holder(), Some(1));
    b.release(1, token);
    assert_eq!(b.leftovers(), (0, 0, 0));
}
