//! Which sessions may know of which inodes: only they can have one open when its last name goes.
//!
//! Whatever an answer tells a session of is noted before the answer leaves, under the lock under which
//! mutations are committed. It is kept in memory, and bounded: of more than [`EXACT`] inodes
//! those with the lower numbers, the older ones, are forgotten, and the session counts as aware of everything below.
//! Invariant: it errs in one direction only. Who is not named by [`Aware::of`] was never told of that inode, neither in
//! this session nor in an earlier one of the same client.

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::ids::{InodeId, SessionId};

/// The most inodes that are remembered one by one for a session.
const EXACT: usize = 8192;
/// Stands for all clients whose session has ended, and which may go on in another one with what they are told.
const ENDED: SessionId = SessionId(0);
/// Above every inode.
const ALL: InodeId = InodeId(u64::MAX);

/// What one session was told of.
#[derive(Debug, Default)]
struct Known {
    /// Everything below, perhaps.
    below: InodeId,
    /// And these, which are not below, in the order in which it was told; those that are gone for good may be among them.
    inodes: Vec<InodeId>,
    /// Nobody has said yet what its client knew before: it counts as aware of everything.
    earlier: Option<Earlier>,
}

/// Since when a session is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Earlier {
    Opened,
    /// From before this start of the service, which has forgotten what it told.
    Survived,
}

impl Known {
    fn level(&self) -> InodeId {
        if self.earlier.is_some() { ALL } else { self.below }
    }
}

/// Who may know what.
#[derive(Debug)]
pub(crate) struct Aware {
    sessions: BTreeMap<SessionId, Known>,
    /// The inodes of all sessions.
    by_inode: BTreeSet<(InodeId, SessionId)>,
    /// Below which number each session counts as aware of everything, where that is not 0.
    by_level: BTreeSet<(InodeId, SessionId)>,
}

impl Aware {
    /// Nobody knows anything.
    pub(super) fn new() -> Self {
        Self { sessions: BTreeMap::from([(ENDED, Known::default())]), by_inode: BTreeSet::new(), by_level: BTreeSet::new() }
    }

    /// A session begins. One without a mountpoint never says what it knew before.
    pub(super) fn open(&mut self, session: SessionId, has_mountpoint: bool) {
        let below = if has_mountpoint { InodeId(0) } else { ALL };
        self.insert(session, Known { below, earlier: Some(Earlier::Opened), ..Known::default() });
    }

    /// A session is there from before the start.
    pub(super) fn survive(&mut self, session: SessionId) {
        self.insert(session, Known { earlier: Some(Earlier::Survived), ..Known::default() });
    }

    fn insert(&mut self, session: SessionId, known: Known) {
        self.by_level.insert((known.level(), session));
        self.sessions.insert(session, known);
    }

    /// A session with a mountpoint claims its leases. Its client may know of inodes below `next`, the number of the next new one, from
    /// elsewhere, unless it `begins`: it had no session before.
    pub(crate) fn claim(&mut self, session: SessionId, begins: bool, next: InodeId) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let Some(earlier) = known.earlier.take() else { return };
        let below = if begins && earlier == Earlier::Opened { known.below } else { next };
        self.by_level.remove(&(ALL, session));
        self.raise(session, below);
    }

    /// `session` counts as aware of everything below `below` from now on, if it does not already.
    fn raise(&mut self, session: SessionId, below: InodeId) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let before = known.level();
        known.below = known.below.max(below);
        for ino in known.inodes.extract_if(.., |ino| *ino < known.below) {
            self.by_inode.remove(&(ino, session));
        }
        let level = known.level();
        self.by_level.remove(&(before, session));
        if level > InodeId(0) {
            self.by_level.insert((level, session));
        }
    }

    /// `session` is told of `inodes`.
    pub(crate) fn tell(&mut self, session: SessionId, inodes: &[InodeId]) {
        let session = if self.sessions.contains_key(&session) { session } else { ENDED };
        let Some(known) = self.sessions.get_mut(&session) else { return };
        for &ino in inodes {
            if ino >= known.below && self.by_inode.insert((ino, session)) {
                known.inodes.push(ino);
            }
        }
        if known.inodes.len() > EXACT {
            known.inodes.retain(|ino| self.by_inode.contains(&(*ino, session)));
            if let Some(forgotten) = known.inodes.len().checked_sub(EXACT / 2).filter(|forgotten| *forgotten > 0) {
                let (_, first, _) = known.inodes.select_nth_unstable(forgotten);
                let first = *first;
                self.raise(session, first);
            }
        }
    }

    /// The sessions that may know of `ino`, in order.
    pub(super) fn of(&self, ino: InodeId) -> Vec<SessionId> {
        let told = self.by_inode.range((ino, ENDED)..=(ino, SessionId(u64::MAX)));
        let perhaps = self.by_level.range((InodeId(ino.0.saturating_add(1)), ENDED)..);
        let mut sessions: Vec<SessionId> = told.chain(perhaps).map(|pair| pair.1).collect();
        if sessions.contains(&ENDED) {
            sessions = self.sessions.keys().copied().filter(|session| *session != ENDED).collect();
        }
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }

    /// A session is gone.
    pub(super) fn end(&mut self, session: SessionId) {
        let Some(known) = self.sessions.remove(&session) else { return };
        self.by_level.remove(&(known.level(), session));
        for ino in known.inodes {
            self.by_inode.remove(&(ino, session));
        }
    }

    /// An inode is gone for good: its number is never used again.
    pub(super) fn forget(&mut self, ino: InodeId) {
        let told: Vec<SessionId> = self.by_inode.range((ino, ENDED)..=(ino, SessionId(u64::MAX))).map(|pair| pair.1).collect();
        for session in told {
            self.by_inode.remove(&(ino, session));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: SessionId = SessionId(1);
    const TWO: SessionId = SessionId(2);
    const NEXT: InodeId = InodeId(100);

    /// Two mounts that begin.
    fn two() -> Aware {
        let mut aware = Aware::new();
        for session in [ONE, TWO] {
            aware.open(session, true);
            aware.claim(session, true, NEXT);
        }
        aware
    }

    #[test]
    fn a_session_knows_what_it_was_told() {
        let mut aware = two();
        assert_eq!(aware.of(InodeId(7)), []);
        aware.tell(ONE, &[InodeId(7), InodeId(7), InodeId(9)]);
        aware.tell(TWO, &[InodeId(9)]);
        assert_eq!([7, 8, 9].map(|ino| aware.of(InodeId(ino))), [vec![ONE], vec![], vec![ONE, TWO]]);
        aware.forget(InodeId(9));
        aware.end(ONE);
        assert_eq!([7, 9].map(|ino| aware.of(InodeId(ino))), [vec![], vec![]]);
        assert_eq!((aware.by_inode.len(), aware.by_level.len(), aware.sessions.len()), (0, 0, 2));
    }

    #[test]
    fn who_has_not_said_what_it_knew_counts_as_aware_of_everything() {
        let mut aware = Aware::new();
        aware.open(ONE, true);
        aware.open(TWO, false);
        aware.survive(SessionId(3));
        aware.tell(ONE, &[InodeId(5), InodeId(200)]);
        assert_eq!(aware.of(InodeId(1 << 40)), [ONE, TWO, SessionId(3)]);
        // What it was told before it claimed is not forgotten.
        aware.claim(ONE, true, NEXT);
        assert_eq!([5, 6, 200].map(|ino| aware.of(InodeId(ino)).contains(&ONE)), [true, false, true]);
        // A client that goes on in another session, and one that this service does not know: everything that there is.
        aware.open(SessionId(4), true);
        aware.claim(SessionId(4), false, NEXT);
        aware.claim(SessionId(3), true, NEXT);
        assert_eq!(aware.of(InodeId(99)), [TWO, SessionId(3), SessionId(4)]);
        assert_eq!(aware.of(InodeId(100)), [TWO]);
        // It says so once.
        aware.claim(ONE, false, NEXT);
        assert!(!aware.of(InodeId(6)).contains(&ONE));
    }

    #[test]
    fn what_is_told_in_a_session_that_has_ended_may_be_known_to_all() {
        let mut aware = two();
        aware.end(ONE);
        aware.tell(ONE, &[InodeId(7)]);
        aware.open(SessionId(3), true);
        aware.claim(SessionId(3), false, InodeId(5));
        assert_eq!(aware.of(InodeId(7)), [TWO, SessionId(3)]);
        assert_eq!(aware.of(InodeId(8)), []);
        aware.end(ENDED);
        aware.forget(InodeId(7));
        assert_eq!(aware.of(InodeId(7)), []);
    }

    #[test]
    fn of_too_many_the_older_ones_count_as_all() {
        let mut aware = two();
        let count = EXACT as u64 * 5;
        for ino in (2..=count * 2).step_by(2) {
            aware.tell(ONE, &[InodeId(ino)]);
        }
        assert!(aware.by_inode.len() <= EXACT);
        assert_eq!(aware.by_level.len(), 1);
        for ino in 1..=count * 2 {
            assert!(aware.of(InodeId(ino)) == [ONE] || ino % 2 == 1);
        }
        assert_eq!(aware.of(InodeId(count * 2 - 1)), [], "the newer ones are known exactly");
        assert_eq!(aware.of(InodeId(1)), [ONE]);
        aware.end(ONE);
        assert_eq!((aware.by_inode.len(), aware.by_level.len()), (0, 0));
    }

    /// What happens: a session is opened (with a mountpoint), claims, is told, ends; an inode goes.
    #[derive(Clone, Debug)]
    enum Step {
        Open(u64, bool),
        Survive(u64),
        Claim(u64, bool),
        Tell(u64, Vec<u64>),
        TellMany(u64, u64),
        End(u64),
        Forget(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let (session, ino) = (1u64..5, 0u64..40_000);
        prop_oneof![
            2 => (session.clone(), any::<bool>()).prop_map(|(s, m)| Step::Open(s, m)),
            1 => session.clone().prop_map(Step::Survive),
            3 => (session.clone(), any::<bool>()).prop_map(|(s, b)| Step::Claim(s, b)),
            6 => (session.clone(), proptest::collection::vec(ino.clone(), 1..4)).prop_map(|(s, i)| Step::Tell(s, i)),
            1 => (session.clone(), ino.clone()).prop_map(|(s, i)| Step::TellMany(s, i)),
            2 => session.prop_map(Step::End),
            1 => ino.prop_map(Step::Forget),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nobody_who_may_know_is_missed(steps in proptest::collection::vec(any_step(), 1..40)) {
            let mut aware = Aware::new();
            // Of each live session whether its client has begun in it, and what it was told, by whichever session.
            let mut live: BTreeMap<SessionId, (bool, BTreeSet<InodeId>)> = BTreeMap::new();
            let mut ended: BTreeSet<InodeId> = BTreeSet::new();
            let mut next = 0;
            for step in steps {
                let mut tell = |aware: &mut Aware, session: u64, inos: Vec<InodeId>| {
                    aware.tell(SessionId(session), &inos);
                    next = inos.iter().map(|ino| ino.0 + 1).fold(next, u64::max);
                    live.get_mut(&SessionId(session)).map_or(&mut ended, |known| &mut known.1).extend(inos);
                };
                match step {
                    Step::Tell(session, inos) => tell(&mut aware, session, inos.into_iter().map(InodeId).collect()),
                    Step::TellMany(session, from) => tell(&mut aware, session, (from..from + EXACT as u64 + 1).map(InodeId).collect()),
                    Step::Open(session, has_mountpoint) if !live.contains_key(&SessionId(session)) => {
                        live.insert(SessionId(session), (false, BTreeSet::new()));
                        aware.open(SessionId(session), has_mountpoint);
                    }
                    Step::Survive(session) if !live.contains_key(&SessionId(session)) => {
                        live.insert(SessionId(session), (false, (0..next).map(InodeId).collect()));
                        aware.survive(SessionId(session));
                    }
                    Step::Claim(session, begins) => {
                        aware.claim(SessionId(session), begins, InodeId(next));
                        if let Some(known) = live.get_mut(&SessionId(session)).filter(|known| !known.0) {
                            known.0 = true;
                            if !begins {
                                known.1.extend((0..next).map(InodeId));
                            }
                        }
                    }
                    Step::End(session) => {
                        live.remove(&SessionId(session));
                        aware.end(SessionId(session));
                    }
                    Step::Forget(ino) => {
                        let ino = InodeId(ino);
                        aware.forget(ino);
                        ended.remove(&ino);
                        live.values_mut().for_each(|known| known.1.retain(|told| *told != ino));
                    }
                    Step::Open(..) | Step::Survive(_) => {}
                }
                for ino in (0..50_000).step_by(97).chain(ended.iter().take(50).map(|ino| ino.0)).map(InodeId) {
                    let of = aware.of(ino);
                    prop_assert!(of.is_sorted() && of.iter().all(|session| live.contains_key(session)));
                    for (session, (has_claimed, told)) in &live {
                        let may = !has_claimed || told.contains(&ino) || ended.contains(&ino);
                        prop_assert!(!may || of.contains(session), "{session} may know of {ino}");
                    }
                }
                prop_assert!(aware.by_inode.len() <= (live.len() + 1) * EXACT && aware.by_level.len() <= live.len() + 1);
            }
        }
    }
}
