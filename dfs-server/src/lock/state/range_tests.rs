//! Locks on ranges: single steps, and random histories against an array of bytes.

use std::collections::HashMap;

use dfs_common::api::lock::{Family, Mode, Span};
use proptest::prelude::*;

use super::tests::LEASE;
use super::*;

const FILE: InodeId = InodeId(7);
const OTHER: InodeId = InodeId(8);
use Mode::{Exclusive, Shared};

fn posix(number: u64) -> RangeOwner {
    RangeOwner { session: SessionId(number), family: Family::Posix, number }
}

fn flock(number: u64) -> RangeOwner {
    RangeOwner { session: SessionId(number), family: Family::Flock, number }
}

fn bytes(first: u64, last: u64) -> Span {
    Span { first, last }
}

/// A state with a clock, and what every connection heard.
struct Bench {
    state: State,
    now: u64,
    connections: u64,
    requests: u64,
    answers: HashMap<Connection, Result<Token>>,
}

/// A request under way.
#[derive(Clone, Debug)]
struct Asked {
    request: LockRange,
    connection: Connection,
}

impl Asked {
    fn place(&self) -> CancelRange {
        CancelRange { ino: self.request.ino, owner: self.request.owner, request: self.request.request }
    }
}

impl Bench {
    fn new() -> Self {
        Self { state: State::new(LEASE, NO_TOKEN), now: 1000, connections: 0, requests: 0, answers: HashMap::new() }
    }

    fn settle(&mut self, effects: Effects) {
        assert!(effects.fences.is_empty());
        for (connection, answer) in effects.answers {
            assert!(self.answers.insert(connection, answer).is_none(), "answered twice");
        }
    }

    fn send(&mut self, request: LockRange) -> (Asked, Result<Acquired, ErrorKind>) {
        self.connections += 1;
        let connection = Connection(self.connections);
        let (result, effects) = self.state.lock_range(self.now, &request, connection);
        self.settle(effects);
        (Asked { request, connection }, result.map_err(|e| e.kind()))
    }

    fn ask(&mut self, ino: InodeId, owner: RangeOwner, span: Span, mode: Mode, wait_ms: u64) -> (Asked, Result<Acquired, ErrorKind>) {
        self.requests += 1;
        let process = Owner { host: "h".into(), pid: owner.number as u32, program: "p".into() };
        self.send(LockRange { ino, owner, span, mode, request: self.requests, process, wait_ms })
    }

    fn tries(&mut self, owner: RangeOwner, span: Span, mode: Mode) -> Result<(), ErrorKind> {
        self.ask(FILE, owner, span, mode, 0).1.map(|_| ())
    }

    #[track_caller]
    fn waits(&mut self, owner: RangeOwner, span: Span, mode: Mode) -> Asked {
        let (asked, result) = self.ask(FILE, owner, span, mode, 60_000);
        assert_eq!(result, Ok(Acquired::Waiting));
        asked
    }

    fn unlock(&mut self, owner: RangeOwner, span: Span) {
        let (result, effects) = self.state.unlock_range(self.now, &UnlockRange { ino: FILE, owner, span });
        result.unwrap();
        self.settle(effects);
    }

    fn cancel(&mut self, asked: &Asked) {
        let effects = self.state.cancel_range(self.now, &asked.place());
        self.settle(effects);
    }

    fn disconnect(&mut self, asked: &Asked) {
        self.state.disconnected(&Waited::Range(asked.place()), asked.connection);
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        let effects = self.state.tick(self.now);
        self.settle(effects);
    }

    fn heard(&self, asked: &Asked) -> Option<Result<(), ErrorKind>> {
        self.answers.get(&asked.connection).cloned().map(|a| a.map(|_| ()).map_err(|e| e.kind()))
    }

    /// First byte, last byte and mode of what an owner holds.
    fn held(&self, owner: RangeOwner) -> Vec<(u64, u64, Mode)> {
        let rows = self.state.list_ranges(self.now, Some(FILE));
        rows.into_iter().filter(|r| r.owner == owner && !r.waits).map(|r| (r.span.first, r.span.last, r.mode)).collect()
    }

    /// The request with which an owner waits.
    fn waiting_for(&self, owner: RangeOwner) -> Option<u64> {
        let (ino, number) = self.state.ranges.owners.get(&owner)?.waits.first().copied()?;
        Some(self.state.ranges.place(ino, number)?.request)
    }

    fn restart(&mut self) {
        let mut next = State::new(LEASE, NO_TOKEN);
        for (&ino, file) in &self.state.ranges.files {
            for (&owner, held) in &file.held {
                next.restore_range(self.now, ino, owner, postcard::from_bytes(&postcard::to_stdvec(held).unwrap()).unwrap());
            }
            for (&number, place) in &file.queue {
                next.restore_range_place(self.now, ino, number, postcard::from_bytes(&postcard::to_stdvec(place).unwrap()).unwrap());
            }
        }
        self.state = next;
        let effects = self.state.resume(self.now);
        self.settle(effects);
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.state.ranges.leftovers(), (0, 0, 0, 0, 0, 0));
        assert_eq!(self.state.sessions.counts(), (0, 0));
    }
}

#[test]
fn owners_exclude_each_other_where_they_overlap_and_within_their_family_only() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 9), Exclusive).unwrap();
    assert_eq!(b.tries(posix(2), bytes(9, 20), Shared), Err(ErrorKind::WouldBlock));
    b.tries(posix(2), bytes(10, 20), Shared).unwrap();
    b.tries(posix(3), bytes(15, 30), Shared).unwrap();
    assert_eq!(b.tries(posix(3), bytes(15, 30), Exclusive), Err(ErrorKind::WouldBlock));
    b.tries(flock(2), Span::ALL, Exclusive).unwrap();
    assert_eq!(b.tries(flock(3), Span::ALL, Shared), Err(ErrorKind::WouldBlock));
    b.ask(OTHER, posix(2), Span::ALL, Exclusive, 0).1.unwrap();
    assert_eq!((b.held(posix(3)), b.state.ranges.pieces()), (vec![(15, 30, Shared)], 5));
}

#[test]
fn unlocking_in_the_middle_leaves_two_and_changing_a_part_leaves_three() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 99), Exclusive).unwrap();
    b.unlock(posix(1), bytes(40, 59));
    assert_eq!(b.held(posix(1)), [(0, 39, Exclusive), (60, 99, Exclusive)]);
    b.tries(posix(1), bytes(10, 19), Shared).unwrap();
    assert_eq!(b.held(posix(1)).len(), 4);
    b.tries(posix(2), bytes(10, 19), Shared).unwrap();
    assert_eq!(b.tries(posix(1), bytes(10, 19), Exclusive), Err(ErrorKind::WouldBlock), "a part is not made exclusive under others");
    b.unlock(posix(2), Span::ALL);
    b.tries(posix(1), bytes(10, 59), Exclusive).unwrap();
    assert_eq!(b.held(posix(1)), [(0, 99, Exclusive)]);
    b.unlock(posix(1), Span::ALL);
    b.assert_nothing_left();
}

#[test]
fn waiters_have_their_turns_in_order_and_others_ranges_do_not_wait() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 9), Shared).unwrap();
    let two = b.waits(posix(2), bytes(0, 9), Exclusive);
    let three = b.waits(posix(3), bytes(5, 5), Shared);
    let (_, elsewhere) = b.ask(FILE, posix(4), bytes(10, 10), Exclusive, 60_000);
    assert_eq!(elsewhere, Ok(Acquired::Granted(NO_TOKEN)));
    assert_eq!(b.heard(&three), None, "what is compatible with the holder does not overtake who came first");
    b.unlock(posix(1), Span::ALL);
    assert_eq!((b.heard(&two), b.heard(&three)), (Some(Ok(())), None));
    b.unlock(posix(2), Span::ALL);
    assert_eq!(b.heard(&three), Some(Ok(())));
}

#[test]
fn many_readers_have_their_turn_together() {
    let mut b = Bench::new();
    b.tries(flock(1), Span::ALL, Exclusive).unwrap();
    let readers: Vec<Asked> = (2..20).map(|n| b.waits(flock(n), Span::ALL, Shared)).collect();
    b.unlock(flock(1), Span::ALL);
    assert!(readers.iter().all(|asked| b.heard(asked) == Some(Ok(()))));
}

#[test]
fn an_owners_own_upgrade_does_not_wait_for_those_who_wait_for_it() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 4), Shared).unwrap();
    let two = b.waits(posix(2), bytes(0, 9), Exclusive);
    let three = b.waits(posix(3), bytes(5, 9), Shared);
    assert_eq!(b.ask(FILE, posix(1), bytes(0, 4), Exclusive, 60_000).1, Ok(Acquired::Granted(NO_TOKEN)));
    let (_, behind) = b.ask(FILE, posix(1), bytes(5, 9), Exclusive, 60_000);
    assert_eq!(behind, Ok(Acquired::Granted(NO_TOKEN)), "nor for those who wait for those");
    assert_eq!((b.heard(&two), b.heard(&three)), (None, None));
}

#[test]
fn courtesy_yields_where_a_later_wait_would_make_a_circle_of_it() {
    let mut b = Bench::new();
    // 1 holds 0, 2 holds 9; 3 wants both; 2 wants 0..0 shared behind 3, then 1 wants 9.
    b.tries(posix(1), bytes(0, 0), Shared).unwrap();
    b.tries(posix(2), bytes(9, 9), Exclusive).unwrap();
    b.waits(posix(3), bytes(0, 0), Exclusive);
    let two = b.waits(posix(2), bytes(0, 0), Shared);
    let one = b.waits(posix(1), bytes(9, 9), Shared);
    assert_eq!((b.heard(&two), b.heard(&one)), (Some(Ok(())), None), "2 is let through, as 3 waits for 1, who waits for 2");
    b.unlock(posix(2), Span::ALL);
    assert_eq!(b.heard(&one), Some(Ok(())));
}

#[test]
fn a_circle_of_posix_locks_is_refused_at_once() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 0), Exclusive).unwrap();
    b.ask(OTHER, posix(2), Span::ALL, Exclusive, 0).1.unwrap();
    b.tries(posix(3), bytes(2, 2), Exclusive).unwrap();
    let two = b.waits(posix(2), bytes(0, 0), Shared);
    b.waits(posix(3), bytes(0, 0), Shared);
    assert_eq!(b.ask(OTHER, posix(1), bytes(5, 6), Shared, 60_000).1, Err(ErrorKind::Deadlock), "across files");
    assert_eq!(b.ask(OTHER, posix(1), bytes(5, 6), Shared, 0).1, Err(ErrorKind::WouldBlock), "who does not wait closes no circle");
    b.cancel(&two);
    assert_eq!(b.ask(OTHER, posix(1), bytes(5, 6), Shared, 60_000).1, Ok(Acquired::Waiting));
}

#[test]
fn two_owners_that_both_want_more_of_what_they_share_are_a_circle() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 9), Shared).unwrap();
    b.tries(posix(2), bytes(0, 9), Shared).unwrap();
    let one = b.waits(posix(1), bytes(0, 9), Exclusive);
    assert_eq!(b.ask(FILE, posix(2), bytes(0, 9), Exclusive, 60_000).1, Err(ErrorKind::Deadlock));
    b.unlock(posix(2), Span::ALL);
    assert_eq!(b.heard(&one), Some(Ok(())));
}

#[test]
fn a_flock_conversion_gives_up_the_old_lock_first() {
    let mut b = Bench::new();
    b.tries(flock(1), Span::ALL, Shared).unwrap();
    b.tries(flock(2), Span::ALL, Shared).unwrap();
    let one = b.waits(flock(1), Span::ALL, Exclusive);
    assert_eq!(b.held(flock(1)), []);
    let (_, two) = b.ask(FILE, flock(2), Span::ALL, Exclusive, 60_000);
    assert_eq!((two, b.heard(&one)), (Ok(Acquired::Waiting), Some(Ok(()))), "so two that convert do not wait for each other");
    b.tries(flock(1), Span::ALL, Shared).unwrap();
    assert_eq!(b.held(flock(1)), [(0, Span::END, Shared)], "sharing what was one's own never waits");
    b.tries(flock(3), Span::ALL, Shared).unwrap();
    assert_eq!(b.tries(flock(3), Span::ALL, Exclusive), Err(ErrorKind::WouldBlock));
    assert_eq!(b.held(flock(3)), [], "as on a local file system, the old one is lost where the new one is not to be had");
    let mut request = b.ask(FILE, flock(1), Span::ALL, Shared, 0).0.request;
    request.span = bytes(0, 5);
    assert_eq!(b.send(request).1, Err(ErrorKind::Invalid));
}

#[test]
fn a_repeated_request_changes_nothing() {
    let mut b = Bench::new();
    let (first, _) = b.ask(FILE, posix(1), bytes(0, 9), Exclusive, 0);
    let two = b.waits(posix(2), bytes(0, 4), Exclusive);
    assert_eq!(b.send(first.request).1, Ok(Acquired::Granted(NO_TOKEN)));
    let (again, result) = b.send(two.request.clone());
    assert_eq!((result, b.heard(&two), b.state.ranges.waiting()), (Ok(Acquired::Waiting), Some(Err(ErrorKind::Interrupted)), 1));
    b.disconnect(&two);
    b.unlock(posix(1), Span::ALL);
    assert_eq!(b.heard(&again), Some(Ok(())));
    assert_eq!(b.send(two.request).1, Ok(Acquired::Granted(NO_TOKEN)), "a lost answer");
    assert_eq!(b.held(posix(2)), [(0, 4, Exclusive)]);
}

#[test]
fn a_turn_is_kept_for_a_lost_connection_and_then_passes_on() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 9), Exclusive).unwrap();
    let (two, three) = (b.waits(posix(2), bytes(0, 9), Exclusive), b.waits(posix(3), bytes(0, 9), Exclusive));
    b.disconnect(&two);
    b.unlock(posix(1), Span::ALL);
    assert_eq!(b.tries(posix(4), bytes(0, 0), Shared), Err(ErrorKind::WouldBlock), "nobody else has it meanwhile");
    b.pass(OFFER_MS - 1);
    assert_eq!((b.heard(&three), b.send(two.request.clone()).1), (None, Ok(Acquired::Granted(NO_TOKEN))));
    b.unlock(posix(2), Span::ALL);
    assert_eq!(b.heard(&three), Some(Ok(())));
    let (four, five) = (b.waits(posix(4), bytes(0, 9), Exclusive), b.waits(posix(5), bytes(0, 9), Exclusive));
    b.disconnect(&four);
    b.unlock(posix(3), Span::ALL);
    b.pass(OFFER_MS);
    assert_eq!(b.heard(&five), Some(Ok(())));
}

#[test]
fn a_cancelled_request_leaves_what_was_before() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 9), Shared).unwrap();
    b.tries(posix(2), bytes(5, 9), Shared).unwrap();
    let one = b.waits(posix(1), bytes(4, 20), Exclusive);
    b.unlock(posix(2), Span::ALL);
    assert_eq!(b.heard(&one), Some(Ok(())));
    b.cancel(&one);
    assert_eq!(b.held(posix(1)), [(0, 9, Shared)], "the answer was on its way when the program was interrupted");
    b.cancel(&one);
    let (weaker, _) = b.ask(FILE, posix(1), bytes(0, 3), Exclusive, 0);
    let (shared, _) = b.ask(FILE, posix(1), bytes(0, 3), Shared, 0);
    b.cancel(&weaker);
    b.tries(posix(2), bytes(0, 3), Shared).unwrap();
    b.cancel(&shared);
    assert_eq!(b.held(posix(1)), [(0, 9, Shared)], "what others share by now stays shared");
    let two = b.waits(posix(2), bytes(0, 9), Exclusive);
    b.cancel(&two);
    assert_eq!(b.heard(&two), Some(Err(ErrorKind::Interrupted)));
}

#[test]
fn waits_end_in_time() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 9), Exclusive).unwrap();
    let (two, _) = b.ask(FILE, posix(2), bytes(0, 9), Exclusive, 500);
    b.pass(499);
    assert_eq!(b.heard(&two), None);
    b.pass(1);
    assert_eq!(b.heard(&two), Some(Err(ErrorKind::Busy)));
}

#[test]
fn a_session_lives_by_its_requests_and_takes_its_locks_with_it() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 9), Exclusive).unwrap();
    let two = b.waits(posix(2), bytes(0, 9), Exclusive);
    for _ in 0..2 {
        b.pass(LEASE / 3);
        b.state.renew(b.now, SessionId(1));
        b.state.renew(b.now, SessionId(2));
    }
    assert_eq!((b.held(posix(1)).len(), b.heard(&two)), (1, None));
    b.state.renew(b.now, SessionId(2));
    b.pass(LEASE - 1);
    b.state.renew(b.now, SessionId(2));
    b.pass(1);
    assert_eq!((b.held(posix(1)).len(), b.heard(&two)), (0, Some(Ok(()))));
    let three = b.waits(posix(3), bytes(0, 9), Exclusive);
    let effects = b.state.take_over(b.now, &TakeOver { session: SessionId(4), from: SessionId(2) }).1;
    b.settle(effects);
    assert_eq!(b.heard(&three), Some(Ok(())), "programs of a session that is taken over are gone");
    let effects = b.state.end(b.now, SessionId(3));
    b.settle(effects);
    b.assert_nothing_left();
}

#[test]
fn a_restart_keeps_locks_and_places() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(0, 9), Shared).unwrap();
    b.tries(flock(1), Span::ALL, Exclusive).unwrap();
    let (two, three) = (b.waits(posix(2), bytes(0, 9), Exclusive), b.waits(posix(3), bytes(3, 4), Shared));
    b.restart();
    let three = b.send(three.request).0;
    let two = b.send(two.request).0;
    b.unlock(posix(1), bytes(0, 8));
    assert_eq!((b.heard(&two), b.heard(&three)), (None, None));
    b.unlock(posix(1), bytes(9, 9));
    assert_eq!((b.heard(&two), b.heard(&three)), (Some(Ok(())), None));
    b.restart();
    b.unlock(posix(2), Span::ALL);
    assert_eq!(b.tries(posix(4), bytes(3, 4), Exclusive), Err(ErrorKind::WouldBlock), "the turn of 3 is kept");
    b.restart();
    assert_eq!(b.tries(posix(4), bytes(3, 4), Exclusive), Err(ErrorKind::WouldBlock), "once more");
    b.pass(OFFER_MS);
    b.tries(posix(4), bytes(3, 4), Exclusive).unwrap();
    assert_eq!(b.held(flock(1)).len(), 1);
}

#[test]
fn who_is_in_the_way_can_be_seen() {
    let mut b = Bench::new();
    b.tries(posix(1), bytes(20, 29), Exclusive).unwrap();
    b.tries(posix(2), bytes(5, 9), Shared).unwrap();
    let test = |b: &mut Bench, owner, span, mode| b.state.test_range(b.now, &TestRange { ino: FILE, owner, span, mode }).unwrap();
    let found = test(&mut b, posix(3), Span::ALL, Exclusive).unwrap();
    assert_eq!((found.owner, found.span, found.process.pid), (posix(2), bytes(5, 9), 2), "the first one");
    assert_eq!(test(&mut b, posix(3), Span::ALL, Shared).unwrap().owner, posix(1));
    assert_eq!(test(&mut b, posix(1), bytes(20, 40), Exclusive), None, "nobody is in his own way");
    b.waits(posix(3), bytes(0, 5), Exclusive);
    let rows = b.state.list_ranges(b.now, None);
    assert_eq!((rows.len(), rows.iter().filter(|r| r.waits).count()), (3, 1));
}

#[test]
fn there_is_a_limit_of_everything() {
    let mut b = Bench::new();
    let most = super::ranges::MAX_PIECES as u64;
    for n in 0..most {
        b.tries(posix(1), bytes(3 * n, 3 * n + 1), Exclusive).unwrap();
    }
    assert_eq!(b.tries(posix(2), bytes(2, 2), Exclusive), Err(ErrorKind::TooMany));
    b.ask(OTHER, posix(2), bytes(2, 2), Exclusive, 0).1.unwrap();
    b.tries(posix(1), Span::ALL, Exclusive).unwrap();
    assert_eq!(b.held(posix(1)), [(0, Span::END, Exclusive)], "one piece instead of many fits");
    for (first, last) in [(5, 4), (0, u64::MAX), (u64::MAX, u64::MAX)] {
        assert_eq!(b.tries(posix(2), bytes(first, last), Shared), Err(ErrorKind::Invalid));
    }
}

/// Bytes of the model's file.
const LEN: u64 = 12;

#[derive(Clone, Debug)]
enum Move {
    Lock(u64, u64, u64, Mode, bool),
    Unlock(u64, u64, u64),
    Cancel(usize),
    Disconnect(usize),
    Again(usize),
    Pass(u64),
    End(u64),
    Restart,
}

fn any_move() -> impl Strategy<Value = Move> {
    let (owner, byte) = (1u64..5, 0..LEN);
    let mode = prop_oneof![Just(Shared), Just(Exclusive)];
    let lock = (owner.clone(), byte.clone(), byte.clone(), mode, any::<bool>());
    prop_oneof![
        8 => lock.prop_map(|(owner, a, b, mode, wait)| Move::Lock(owner, a.min(b), a.max(b), mode, wait)),
        6 => (owner.clone(), byte.clone(), byte).prop_map(|(owner, a, b)| Move::Unlock(owner, a.min(b), a.max(b))),
        2 => (0usize..20).prop_map(Move::Cancel),
        2 => (0usize..20).prop_map(Move::Disconnect),
        2 => (0usize..20).prop_map(Move::Again),
        1 => (1u64..4_000).prop_map(Move::Pass),
        1 => owner.prop_map(Move::End),
        1 => Just(Move::Restart),
    ]
}

/// What each owner has of each byte.
type Model = HashMap<RangeOwner, [Option<Mode>; LEN as usize]>;

fn apply(model: &mut Model, owner: RangeOwner, span: Span, mode: Option<Mode>) {
    model.entry(owner).or_default()[span.first as usize..=span.last as usize].fill(mode);
}

fn free(model: &Model, owner: RangeOwner, span: Span, mode: Mode) -> bool {
    let excludes = |m: &Option<Mode>| m.is_some_and(|m| m == Exclusive || mode == Exclusive);
    !model.iter().any(|(other, bytes)| *other != owner && bytes[span.first as usize..=span.last as usize].iter().any(excludes))
}

fn seen(b: &Bench) -> Model {
    let mut model = Model::new();
    for row in b.state.list_ranges(b.now, Some(FILE)).into_iter().filter(|r| !r.waits) {
        apply(&mut model, row.owner, row.span, Some(row.mode));
    }
    model
}

/// No two owners have what excludes each other, and nobody waits without a reason.
fn check_invariants(b: &Bench) {
    let now = seen(b);
    for row in b.state.list_ranges(b.now, None) {
        assert!(row.waits || free(&now, row.owner, row.span, row.mode), "{row:?} among {now:?}");
    }
    let Some(file) = b.state.ranges.files.get(&FILE) else { return };
    let mut earlier: Vec<&RangePlace> = Vec::new();
    for place in file.queue.values() {
        let behind = earlier.iter().any(|e| e.owner != place.owner && super::spans::overlap(e.span, place.span));
        let blocked = !free(&now, place.owner, place.span, place.mode);
        assert!(blocked || behind || place.offered, "{place:?} waits for nobody");
        earlier.push(place);
    }
    // Somebody can go on: whoever waits does so, in the end, for one who does not, or whose turn it is.
    let stuck = |place: &&RangePlace| !place.offered && !free(&now, place.owner, place.span, place.mode);
    let waiting: BTreeSet<RangeOwner> = file.queue.values().map(|p| p.owner).collect();
    let holders_wait = now.keys().all(|owner| waiting.contains(owner));
    assert!(waiting.is_empty() || !holders_wait || file.queue.values().any(|p| !stuck(&p)), "a circle nobody noticed: {now:?} {:?}", file.queue);
}

proptest! {
    #[test]
    fn random_histories_are_what_an_array_of_bytes_says(steps in proptest::collection::vec(any_move(), 1..80)) {
        let mut b = Bench::new();
        let mut asked: Vec<Asked> = Vec::new();
        for step in steps {
            let mut model = seen(&b);
            let answered: BTreeSet<u64> = b.answers.keys().map(|c| c.0).collect();
            let mut exact = true;
            match step {
                Move::Lock(owner, first, last, mode, wait) => {
                    let (owner, span) = (posix(owner), bytes(first, last));
                    // A process of one thread: while it waits it asks for nothing else.
                    if b.waiting_for(owner).is_some() {
                        continue;
                    }
                    let offered = b.state.ranges.files.get(&FILE).is_some_and(|file| file.queue.values().any(|p| p.offered));
                    let (one, result) = b.ask(FILE, owner, span, mode, if wait { 10_000 } else { 0 });
                    match result {
                        Ok(Acquired::Granted(_)) => {
                            prop_assert!(free(&model, owner, span, mode));
                            apply(&mut model, owner, span, Some(mode));
                        }
                        Err(ErrorKind::WouldBlock) => prop_assert!(!wait && (offered || !free(&model, owner, span, mode))),
                        Err(ErrorKind::Deadlock) => prop_assert!(wait && !free(&model, owner, span, mode)),
                        other => prop_assert_eq!(other, Ok(Acquired::Waiting)),
                    }
                    asked.push(one);
                }
                Move::Unlock(owner, first, last) => {
                    b.unlock(posix(owner), bytes(first, last));
                    apply(&mut model, posix(owner), bytes(first, last), None);
                }
                // These restore or drop what the model does not remember.
                Move::Cancel(n) => {
                    exact = false;
                    if let Some(one) = asked.get(n).cloned() {
                        b.cancel(&one);
                    }
                }
                Move::Disconnect(n) => {
                    if let Some(one) = asked.get(n).cloned() {
                        b.disconnect(&one);
                    }
                }
                Move::Again(n) => {
                    exact = false;
                    if let Some(one) = asked.get(n).cloned()
                        && b.waiting_for(one.request.owner).is_none_or(|request| request == one.request.request)
                    {
                        asked[n] = b.send(one.request).0;
                    }
                }
                Move::Pass(ms) => {
                    for session in 1..5 {
                        b.state.renew(b.now, SessionId(session));
                    }
                    b.pass(ms);
                }
                Move::End(owner) => {
                    let effects = b.state.end(b.now, SessionId(owner));
                    b.settle(effects);
                    model.remove(&posix(owner));
                }
                Move::Restart => b.restart(),
            }
            for one in &asked {
                if !answered.contains(&one.connection.0) && b.heard(one) == Some(Ok(())) {
                    apply(&mut model, one.request.owner, one.request.span, Some(one.request.mode));
                }
            }
            check_invariants(&b);
            if exact {
                model.retain(|_, bytes| bytes.iter().any(Option::is_some));
                prop_assert_eq!(seen(&b), model);
            }
        }
        (1..5).for_each(|session| {
            let effects = b.state.end(b.now, SessionId(session));
            b.settle(effects);
        });
        b.assert_nothing_left();
    }
}

#[test]
fn a_crowd_is_served_in_time() {
    let mut b = Bench::new();
    for n in 1..=500 {
        b.tries(posix(n), bytes(1000 + n, 1000 + n), Exclusive).unwrap();
    }
    b.tries(posix(1), bytes(0, 99), Shared).unwrap();
    let crowd: Vec<Asked> = (2..=500).map(|n| b.waits(posix(n), bytes(0, 99), if n % 2 == 0 { Exclusive } else { Shared })).collect();
    assert_eq!(b.ask(FILE, posix(1), bytes(50, 60), Exclusive, 60_000).1, Ok(Acquired::Granted(NO_TOKEN)));
    b.unlock(posix(1), Span::ALL);
    for asked in crowd {
        assert_eq!(b.heard(&asked), Some(Ok(())));
        b.unlock(asked.request.owner, Span::ALL);
    }
    b.assert_nothing_left();
}
