//! Who is in whose way, among owners of locks on ranges.
//!
//! A lock that another owner holds is in the way for good. An earlier waiter that wants
//! the same bytes is so out of courtesy: first come, first served. Courtesy never makes a
//! circle: who holds something does not let those go first who, by any way round, wait
//! for it. So the only circles are of locks held, and a request that would close one
//! with fcntl's locks is refused.

use std::collections::BTreeSet;

use dfs_common::api::lock::{Mode, RangeOwner, Span};
use dfs_common::ids::InodeId;

use super::ranges::{File, Held, RangePlace, Ranges};
use super::spans::{Piece, excludes, overlap};

/// Waits that are looked at before somebody is let through; with more of them courtesy stays.
const MAX_COURTESY: usize = 1024;
/// Waits that are looked at, once a request, for a circle; one that is longer ends with its waits.
const MAX_LOOK: usize = 10_000;

impl File {
    /// Locks of others that `owner` cannot have `span` beside, one a holder.
    pub(super) fn in_the_way(&self, owner: RangeOwner, span: Span, mode: Mode) -> impl Iterator<Item = (RangeOwner, &Held, &Piece)> {
        let others = self.held.iter().filter(move |(other, _)| **other != owner && other.family == owner.family);
        others.filter_map(move |(&other, held)| held.spans.conflict(span, mode).map(|piece| (other, held, piece)))
    }

    /// Those of other owners who came before place `number` (`None`: all) and cannot have their bytes beside this one.
    fn before(&self, owner: RangeOwner, span: Span, mode: Mode, number: Option<u64>) -> impl Iterator<Item = &RangePlace> {
        let earlier = self.queue.range(..number.unwrap_or(u64::MAX)).map(|(_, place)| place);
        let others = earlier.filter(move |place| place.owner != owner && place.owner.family == owner.family);
        others.filter(move |place| overlap(place.span, span) && excludes(place.mode, mode))
    }
}

impl Ranges {
    /// Whether `owner` cannot have `span` now. One who does not wait (`queues` is false) need not respect a queue that
    /// he does not stand in, except for those whose turn has come.
    pub(super) fn is_blocked(&self, ino: InodeId, owner: RangeOwner, span: Span, mode: Mode, place: Option<u64>, queues: bool) -> bool {
        let Some(file) = self.files.get(&ino) else { return false };
        if file.in_the_way(owner, span, mode).next().is_some() {
            return true;
        }
        let mut before = file.before(owner, span, mode, place).filter(|earlier| queues || earlier.offered).peekable();
        if before.peek().is_none() {
            return false;
        }
        // Nobody waits for one who holds nothing, except out of courtesy.
        let holds = self.owners.get(&owner).is_some_and(|o| !o.holds.is_empty());
        let mut left = MAX_COURTESY;
        let mut waits_for_owner = |earlier: &RangePlace| {
            let direct = file.held.get(&owner).is_some_and(|held| held.spans.conflict(earlier.span, earlier.mode).is_some());
            direct || self.wait_for([earlier.owner], true, Some(owner), &mut left).contains(&owner)
        };
        !holds || before.any(|earlier| !waits_for_owner(earlier))
    }

    /// Whether those who hold what `owner` wants wait for `owner`.
    pub(super) fn would_never_end(&self, ino: InodeId, owner: RangeOwner, span: Span, mode: Mode) -> bool {
        let Some(file) = self.files.get(&ino) else { return false };
        let holders = file.in_the_way(owner, span, mode).map(|(other, ..)| other);
        self.wait_for(holders, false, Some(owner), &mut { MAX_LOOK }).contains(&owner)
    }

    /// Files with waits of those for whom place `number` waits, by any way round.
    pub(super) fn files_of_those_before(&self, ino: InodeId, number: u64) -> BTreeSet<InodeId> {
        let Some((file, place)) = self.files.get(&ino).and_then(|file| Some((file, file.queue.get(&number)?))) else { return BTreeSet::new() };
        let holders = file.in_the_way(place.owner, place.span, place.mode).map(|(other, ..)| other);
        let waiting = self.wait_for(holders, true, None, &mut { MAX_LOOK });
        waiting.iter().filter_map(|owner| self.owners.get(owner)).flat_map(|o| o.waits.iter().map(|(ino, _)| *ino)).collect()
    }

    /// `owners`, and all for whom they wait: for locks that are held, and with `courtesy` for those before them, too.
    /// Ends when `target` is among them, or with the last of the looks that are `left`.
    fn wait_for(
        &self,
        owners: impl IntoIterator<Item = RangeOwner>,
        courtesy: bool,
        target: Option<RangeOwner>,
        left: &mut usize,
    ) -> BTreeSet<RangeOwner> {
        let mut seen: BTreeSet<RangeOwner> = owners.into_iter().collect();
        let mut next: Vec<RangeOwner> = seen.iter().copied().collect();
        while let Some(owner) = next.pop() {
            let Some(whereabouts) = self.owners.get(&owner) else { continue };
            for (ino, number) in &whereabouts.waits {
                if *left == 0 || target.is_some_and(|target| seen.contains(&target)) {
                    return seen;
                }
                *left -= 1;
                let Some((file, place)) = self.files.get(ino).and_then(|file| Some((file, file.queue.get(number)?))) else { continue };
                let holders = file.in_the_way(owner, place.span, place.mode).map(|(other, ..)| other);
                let earlier = file.before(owner, place.span, place.mode, Some(*number)).filter(|_| courtesy).map(|earlier| earlier.owner);
                next.extend(holders.chain(earlier).filter(|other| seen.insert(*other)));
            }
        }
        seen
    }
}
