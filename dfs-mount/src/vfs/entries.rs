//! What is known of a directory's entries under a lease, and which of them the kernel
//! was told to keep. Pure; time comes in as an argument.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use dfs_common::ids::InodeId;
use dfs_common::name::Name;

/// Absent names that are known at a time; the kernel never says that it has forgotten one.
const ABSENT_MAX: usize = 4096;
/// A directory whose entries are all known is kept so up to this many.
const COMPLETE_MAX: usize = 10_000;

/// The kernel counts from when it takes in the answer, in its own ticks, which is later than when it was given.
const LATER: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Known {
    /// Where the name leads; `None`: it is absent.
    leads_to: Option<InodeId>,
    /// The kernel keeps it until then at the longest.
    kept_until: Option<Instant>,
    /// When it was told so last.
    told: Instant,
}

/// What the kernel may keep under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Where it leads there; `None`: nowhere, or nobody knows.
    pub(crate) leads_to: Option<InodeId>,
    /// When it was told so last.
    pub(crate) told: Instant,
}

impl Known {
    /// Whether the kernel may still keep it.
    fn is_kept(&self, now: Instant) -> bool {
        self.kept_until.is_some_and(|until| until > now)
    }
}

/// What is known of a directory's entries.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    /// There is a lease: what is known holds.
    leased: bool,
    /// Whatever is not known is absent.
    complete: bool,
    /// The kernel's copy of the listing is as leased as the entries.
    pub(crate) listing_kept: bool,
    known: HashMap<Name, Known>,
    absent: usize,
    /// Names that this mount is changing, and what it moves there: the kernel may keep an entry that it was told of under another one.
    changing: Vec<(Name, Option<InodeId>)>,
    /// Names that the kernel is being made to forget, and how often: until that is over it may keep them.
    clearing: HashMap<Name, u32>,
    /// Until then the kernel keeps nothing, because clearing it had to wait.
    contended_until: Option<Instant>,
}

impl Entries {
    /// A lease on the directory was given.
    pub(crate) fn lease(&mut self) {
        self.leased = true;
    }

    /// The directory is new and empty.
    pub(crate) fn is_new(&mut self) {
        (self.leased, self.complete) = (true, true);
    }

    pub(crate) fn is_leased(&self) -> bool {
        self.leased
    }

    /// Where `name` leads, `Some(None)` where it is absent; `None`: not known.
    pub(crate) fn get(&self, name: &Name) -> Option<Option<InodeId>> {
        if !self.leased {
            return None;
        }
        match self.known.get(name) {
            Some(known) => Some(known.leads_to),
            None => self.complete.then_some(None),
        }
    }

    /// The names behind `name` that are known to be there, in order.
    pub(crate) fn behind(&self, name: &Name) -> Vec<(Name, InodeId)> {
        if !self.leased {
            return Vec::new();
        }
        let present = self.known.iter().filter_map(|(known, entry)| entry.leads_to.filter(|_| known > name).map(|ino| (known.clone(), ino)));
        let mut behind: Vec<(Name, InodeId)> = present.collect();
        behind.sort_unstable();
        behind
    }

    /// How long the kernel may keep an entry, of the time `wanted`: not at all where clearing it would have to wait.
    pub(crate) fn keep_for(&self, wanted: Duration, now: Instant) -> Duration {
        if !self.leased || self.contended_until.is_some_and(|until| until > now) { Duration::ZERO } else { wanted }
    }

    /// `name` leads to `leads_to`, and the kernel keeps that for `kept`. False where there is no room for it: the kernel must not keep it then.
    pub(crate) fn learn(&mut self, name: &Name, leads_to: Option<InodeId>, now: Instant, kept: Duration) -> bool {
        if !self.leased {
            return false;
        }
        if leads_to.is_none() && self.absent >= ABSENT_MAX {
            self.known.retain(|_, k| k.leads_to.is_some() || k.is_kept(now));
            self.absent = self.known.values().filter(|k| k.leads_to.is_none()).count();
            if self.absent >= ABSENT_MAX {
                return false;
            }
        }
        let before = self.take(name);
        // What the kernel was told before lasts if it is the longer one.
        let kept_until = (!kept.is_zero()).then(|| now + kept + LATER).max(before.and_then(|k| k.kept_until));
        self.absent += usize::from(leads_to.is_none());
        self.known.insert(name.clone(), Known { leads_to, kept_until, told: now });
        self.complete &= self.known.len() <= COMPLETE_MAX;
        true
    }

    fn take(&mut self, name: &Name) -> Option<Known> {
        let known = self.known.remove(name)?;
        self.absent -= usize::from(known.leads_to.is_none());
        Some(known)
    }

    /// This mount has moved `name` away, or removed it, and the kernel knows that by itself.
    pub(crate) fn gone(&mut self, name: &Name) {
        self.take(name);
    }

    /// The kernel has forgotten the inode: its names are no longer kept, nor known.
    pub(crate) fn forgotten(&mut self, name: &Name, ino: InodeId) {
        if self.known.get(name).is_some_and(|k| k.leads_to == Some(ino)) {
            self.take(name);
            self.complete = false;
        }
    }

    /// An entry is about to change elsewhere. Returns what the kernel may keep there.
    pub(crate) fn changes(&mut self, name: &Name, now: Instant) -> Vec<Kept> {
        self.listing_kept = false;
        self.complete = false;
        let known = self.take(name).filter(|known| known.is_kept(now));
        let moved = self.changing.iter().filter(|(changing, _)| changing == name);
        // What clears it was chosen before; this waits for it.
        let cleared = self.clearing.get(name).map(|_| None);
        let others = moved.map(|(_, moved)| *moved).chain(cleared).map(|leads_to| Kept { leads_to, told: now });
        known.map(|known| Kept { leads_to: known.leads_to, told: known.told }).into_iter().chain(others).collect()
    }

    /// The kernel shall no longer keep `name`, which stays known. True where it may have it.
    pub(crate) fn uncover(&mut self, name: &Name, now: Instant) -> bool {
        let kept = self.known.get_mut(name).is_some_and(|known| {
            let was_kept = known.is_kept(now);
            known.kept_until = None;
            was_kept
        });
        kept || self.clearing.contains_key(name)
    }

    /// The lease is over. Returns the names that the kernel may keep.
    pub(crate) fn over(&mut self, now: Instant) -> Vec<(Name, Kept)> {
        let known = self.known.iter().filter(|(_, known)| known.is_kept(now)).map(|(name, _)| name);
        let names: HashSet<Name> = known.chain(self.changing.iter().map(|(name, _)| name)).chain(self.clearing.keys()).cloned().collect();
        let kept = names.into_iter().flat_map(|name| self.changes(&name, now).into_iter().map(move |kept| (name.clone(), kept))).collect();
        self.known.clear();
        (self.leased, self.complete, self.listing_kept, self.absent) = (false, false, false, 0);
        kept
    }

    /// This mount begins, or ends, changing `name`, to which it may move `moved`.
    pub(crate) fn begin_change(&mut self, name: Name, moved: Option<InodeId>) {
        self.changing.push((name, moved));
    }

    pub(crate) fn end_change(&mut self, name: &Name) {
        if let Some(at) = self.changing.iter().position(|(n, _)| n == name) {
            self.changing.swap_remove(at);
        }
    }

    /// The kernel begins, or ends, being made to forget `name`.
    pub(crate) fn begin_clear(&mut self, name: Name) {
        *self.clearing.entry(name).or_default() += 1;
    }

    pub(crate) fn end_clear(&mut self, name: &Name) {
        if let Some(count) = self.clearing.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.clearing.remove(name);
            }
        }
    }

    /// The kernel keeps nothing for a while.
    pub(crate) fn contend(&mut self, until: Instant) {
        self.contended_until = Some(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: Duration = Duration::from_secs(10);

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn kept(ino: u64, told: Instant) -> Kept {
        Kept { leads_to: Some(InodeId(ino)), told }
    }

    #[test]
    fn only_what_the_kernel_keeps_is_cleared() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        assert!(!entries.learn(&name("a"), None, now, KEPT), "nothing is known without a lease");
        entries.lease();
        assert!(entries.learn(&name("a"), Some(InodeId(2)), now, KEPT));
        assert!(entries.learn(&name("b"), None, now, Duration::ZERO));
        assert_eq!((entries.get(&name("a")), entries.get(&name("b")), entries.get(&name("c"))), (Some(Some(InodeId(2))), Some(None), None));
        assert!(entries.changes(&name("b"), now).is_empty() && entries.changes(&name("c"), now).is_empty());
        assert_eq!(entries.changes(&name("a"), now), [kept(2, now)]);
        assert!(entries.get(&name("a")).is_none());
        entries.learn(&name("a"), Some(InodeId(2)), now, KEPT);
        assert_eq!(entries.changes(&name("a"), now + KEPT), [kept(2, now)], "the kernel's time begins later");
        entries.learn(&name("a"), Some(InodeId(2)), now, KEPT);
        assert!(entries.changes(&name("a"), now + KEPT + LATER).is_empty(), "the kernel has given it up by then");
    }

    #[test]
    fn a_new_directory_is_known_whole_until_somebody_else_changes_it() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        entries.is_new();
        assert_eq!(entries.get(&name("x")), Some(None));
        entries.learn(&name("x"), Some(InodeId(3)), now, KEPT);
        entries.gone(&name("x"));
        assert_eq!(entries.get(&name("x")), Some(None));
        entries.changes(&name("y"), now);
        assert_eq!((entries.get(&name("y")), entries.get(&name("x"))), (None, None));
    }

    #[test]
    fn a_name_may_be_kept_until_clearing_it_is_over() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        entries.lease();
        entries.learn(&name("a"), Some(InodeId(4)), now, KEPT);
        for _ in 0..2 {
            assert!(entries.uncover(&name("a"), now));
            entries.begin_clear(name("a"));
        }
        assert_eq!(entries.get(&name("a")), Some(Some(InodeId(4))));
        entries.end_clear(&name("a"));
        let cleared = Kept { leads_to: None, told: now };
        assert_eq!(entries.changes(&name("a"), now), [cleared], "an event must not be acknowledged before the kernel has forgotten it");
        assert_eq!(entries.over(now), [(name("a"), cleared)]);
        entries.end_clear(&name("a"));
        assert!(entries.changes(&name("a"), now).is_empty() && !entries.uncover(&name("a"), now));
    }

    #[test]
    fn a_name_that_is_being_changed_here_may_be_kept() {
        let (mut entries, now) = (Entries::default(), Instant::now());
        entries.lease();
        entries.begin_change(name("new"), Some(InodeId(3)));
        assert_eq!(entries.changes(&name("new"), now), [kept(3, now)], "what is moved there");
        entries.end_change(&name("new"));
        assert!(entries.changes(&name("new"), now).is_empty());
        entries.learn(&name("old"), Some(InodeId(4)), now, KEPT);
        assert_eq!(entries.over(now + LATER), [(name("old"), kept(4, now))]);
        assert!(!entries.is_leased());
    }
}
