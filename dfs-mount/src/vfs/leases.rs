//! What this mount may believe without asking: until when, and which answers are already
//! old when they arrive.
//!
//! The directory service numbers, for each session, the events that it sends and this
//! session's own changes; an answer carries the number as of which it is true. Here is
//! the memory of the last of these. Pure, but for the lock around it: time comes in as
//! an argument.
//!
//! Invariant: whatever the kernel is told to keep, it is told with this lock held, after
//! looking whether an event has made it old; and an event is noted here first, then
//! cleared from the kernel's caches. So nothing that is old is kept.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use dfs_common::api::directory::Granted;
use dfs_common::ids::InodeId;
use dfs_common::name::Name;

/// Changes that are remembered; an answer from before all of them gives no lease.
const REMEMBERED: usize = 8192;

/// How old an answer is, and what leases came with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stamp {
    /// Which claim it was made under: numbers of different claims do not compare.
    claim: u64,
    event: u64,
    granted: bool,
    except: Vec<InodeId>,
    /// A directory that this mount has to itself.
    exclusive: Option<InodeId>,
    /// For an answer that is given from what is leased here: how many changes had been noted by then. Its number would not
    /// do, because this mount's own changes may be noted before events with lower numbers arrive.
    noted: Option<u64>,
}

impl Stamp {
    /// Of an answer with `granted` to a request that was sent under `claim`; one without gives nothing, and nobody knows how old it is.
    pub(crate) fn of(claim: u64, granted: Option<Granted>) -> Self {
        granted.map_or_else(Self::default, |g| Self {
            claim,
            event: g.event,
            granted: !g.nothing,
            except: g.except,
            exclusive: g.exclusive,
            noted: None,
        })
    }

    /// Whether the answer gave a lease on `ino`.
    pub(crate) fn grants(&self, ino: InodeId) -> bool {
        self.granted && !self.except.contains(&ino)
    }
}

/// What changed.
#[derive(Clone, Debug)]
struct Changed {
    ino: InodeId,
    /// Only this entry of a directory, and the directory's attributes.
    name: Option<Name>,
    /// The changes noted so far, this one included.
    noted: u64,
}

/// The memory.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    changes: BTreeMap<u64, Vec<Changed>>,
    /// Of each inode in `changes` the highest number, and the changes noted with the last of them: where a stamp is above, nobody
    /// need look through all of them, which matters while leases are called back by the thousand.
    last: HashMap<InodeId, (u64, u64)>,
    count: usize,
    /// Changes noted so far, forgotten ones included.
    noted: u64,
    /// Claims so far.
    claim: u64,
    /// Answers from before this number give nothing.
    floor: u64,
    /// The highest number that was heard of.
    latest: u64,
    believed_until: Option<Instant>,
    /// Set while leases are being claimed: what would be granted now might be missing in the claim.
    paused: bool,
}

impl Leases {
    /// Notes a change: by an event, or by this mount itself.
    pub(crate) fn changed(&mut self, number: u64, ino: InodeId, name: Option<Name>) {
        self.latest = self.latest.max(number);
        self.noted += 1;
        let last = self.last.entry(ino).or_default();
        *last = (last.0.max(number), self.noted);
        self.changes.entry(number).or_default().push(Changed { ino, name, noted: self.noted });
        self.count += 1;
        while self.count > REMEMBERED
            && let Some((number, changes)) = self.changes.pop_first()
        {
            self.count -= changes.len();
            for changed in changes {
                // All others of this inode had lower numbers, so they are forgotten, too.
                if self.last.get(&changed.ino).is_some_and(|last| last.0 == number) {
                    self.last.remove(&changed.ino);
                }
            }
            self.floor = self.floor.max(number);
        }
    }

    /// The number of the present claim, which a request's answer belongs to.
    pub(crate) fn claim(&self) -> u64 {
        self.claim
    }

    /// The number as of which an answer is true; `None` where nobody knows.
    pub(crate) fn number(&self, stamp: &Stamp) -> Option<u64> {
        (stamp.event > 0 && stamp.claim == self.claim).then_some(stamp.event)
    }

    /// Whether the answer, of the present claim, gives `directory` to this mount alone.
    pub(crate) fn is_exclusive(&self, stamp: &Stamp, directory: InodeId) -> bool {
        stamp.claim == self.claim && stamp.exclusive == Some(directory)
    }

    /// The stamp of an answer that is given from what is leased here, `granted` or not.
    pub(crate) fn cached(&self, granted: bool) -> Stamp {
        Stamp { claim: self.claim, event: self.latest, granted, noted: Some(self.noted), ..Stamp::default() }
    }

    /// Whether the attributes of `ino` in an answer are still leased.
    pub(crate) fn covers(&self, stamp: &Stamp, ino: InodeId) -> bool {
        self.is_current(stamp, ino, |_| true)
    }

    /// Whether what an answer said of `name` in `directory` is still leased.
    pub(crate) fn covers_entry(&self, stamp: &Stamp, directory: InodeId, name: &Name) -> bool {
        self.is_current(stamp, directory, |changed| changed.name.as_ref().is_none_or(|n| n == name))
    }

    /// Whether `directory` itself is still leased: its entries, as far as no event has named them.
    pub(crate) fn covers_directory(&self, stamp: &Stamp, directory: InodeId) -> bool {
        self.is_current(stamp, directory, |changed| changed.name.is_none())
    }

    fn is_current(&self, stamp: &Stamp, ino: InodeId, concerns: impl Fn(&Changed) -> bool) -> bool {
        if self.paused || !stamp.grants(ino) || stamp.claim != self.claim || stamp.event < self.floor {
            return false;
        }
        let Some(&(number, noted)) = self.last.get(&ino) else { return true };
        if stamp.noted.map_or(number <= stamp.event, |seen| noted <= seen) {
            return true;
        }
        let makes_old = |changed: &Changed| changed.ino == ino && concerns(changed);
        match stamp.noted {
            Some(noted) => !self.changes.values().flatten().any(|changed| changed.noted > noted && makes_old(changed)),
            None => !self.changes.range(stamp.event + 1..).flat_map(|(_, changes)| changes).any(makes_old),
        }
    }

    /// A request for events or a claim that was sent at `sent` was answered: leases live for `lease` from then.
    pub(crate) fn renewed(&mut self, sent: Instant, lease: Duration) {
        let until = sent + lease / 2;
        self.believed_until = Some(self.believed_until.map_or(until, |before| before.max(until)));
    }

    /// How long leases may still be believed; zero if not at all.
    pub(crate) fn believed_for(&self, now: Instant) -> Duration {
        self.believed_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Leases are about to be claimed.
    pub(crate) fn pause(&mut self) {
        self.paused = true;
    }

    /// They were, as of `event`: no earlier answer gives any.
    pub(crate) fn claimed(&mut self, event: u64) {
        self.paused = false;
        self.claim += 1;
        self.floor = event;
        self.latest = event;
        self.changes.clear();
        self.last.clear();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(5);
    const DIR: InodeId = InodeId(6);

    fn stamp(event: u64) -> Stamp {
        Stamp::of(0, Some(Granted { event, ..Granted::default() }))
    }

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn an_event_makes_earlier_answers_old_and_no_others() {
        let mut leases = Leases::default();
        leases.changed(7, FILE, None);
        leases.changed(9, DIR, Some(name("a")));
        assert!(!leases.covers(&stamp(6), FILE) && leases.covers(&stamp(7), FILE) && leases.covers(&stamp(6), InodeId(8)));
        assert!(!leases.covers(&stamp(8), DIR), "an entry changes its directory's attributes");
        assert!(!leases.covers_entry(&stamp(8), DIR, &name("a")) && leases.covers_entry(&stamp(8), DIR, &name("b")));
        assert!(leases.covers_directory(&stamp(8), DIR));
        leases.changed(10, DIR, None);
        assert!(!leases.covers_entry(&stamp(9), DIR, &name("b")) && !leases.covers_directory(&stamp(9), DIR));
    }

    #[test]
    fn an_event_that_arrives_after_a_later_change_of_our_own_makes_what_was_told_before_old() {
        let mut leases = Leases::default();
        leases.changed(12, FILE, None);
        let told = leases.cached(true);
        assert!(leases.covers_entry(&told, DIR, &name("a")));
        leases.changed(11, DIR, Some(name("a")));
        assert!(!leases.covers_entry(&told, DIR, &name("a")) && leases.covers_entry(&told, DIR, &name("b")));
        assert!(leases.covers_entry(&leases.cached(true), DIR, &name("a")));
    }

    #[test]
    fn what_was_not_granted_is_not_leased() {
        let leases = Leases::default();
        assert!(!leases.covers(&Stamp::of(0, None), FILE));
        let refused = Stamp::of(0, Some(Granted { event: 3, except: vec![FILE], ..Granted::default() }));
        assert!(!leases.covers(&refused, FILE) && leases.covers(&refused, DIR));
        assert!(!leases.covers(&Stamp::of(0, Some(Granted { event: 3, nothing: true, ..Granted::default() })), DIR));
    }

    #[test]
    fn what_is_no_longer_remembered_counts_as_changed() {
        let mut leases = Leases::default();
        for number in 1..=REMEMBERED as u64 + 10 {
            leases.changed(number, DIR, None);
        }
        assert!(!leases.covers(&stamp(5), FILE) && leases.covers(&stamp(20), FILE));
        assert_eq!((leases.count, leases.last.len()), (REMEMBERED, 1));
        for number in 1..=REMEMBERED as u64 {
            leases.changed(1 << 20 | number, InodeId(100 + number), None);
        }
        assert_eq!(leases.last.len(), REMEMBERED, "of what is forgotten nothing is left");
        leases.claimed(1 << 40);
        assert!(!leases.covers(&stamp(1 << 41), FILE), "of an earlier claim");
        let new = Stamp { claim: 1, ..stamp(1 << 40) };
        assert!(leases.covers(&new, FILE) && leases.number(&new) == Some(1 << 40));
    }

    #[test]
    fn belief_ends_half_a_lease_after_the_renewal_was_sent() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(leases.believed_for(start), Duration::ZERO);
        leases.renewed(start, 10 * second);
        assert_eq!(leases.believed_for(start + second), 4 * second);
        leases.renewed(start - second, 10 * second);
        assert_eq!(leases.believed_for(start + second), 4 * second, "answers may overtake one another");
        assert_eq!(leases.believed_for(start + 6 * second), Duration::ZERO);
    }
}
