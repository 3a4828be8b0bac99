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
        !holds || before.any(|earlier| !self.wait_for([earlier.owner], true).contains(&owner))
    }

    /// Whether those who hold what `owner` wants wait for `owner`.
    pub(super) fn would_never_end(&self, ino: InodeId, owner: RangeOwner, span: Span, mode: Mode) -> bool {
        let Some(file) = self.files.get(&ino) else { return false };
        self.wait_for(file.in_the_way(owner, span, mode).map(|(other, ..)| other), false).contains(&owner)
    }

    /// Files with waits of those for whom place `number` waits, by any way round.
    pub(super) fn files_of_those_before(&self, ino: InodeId, number: u64) -> BTreeSet<InodeId> {
        let Some((file, place)) = self.files.get(&ino).and_then(|file| Some((file, file.queue.get(&number)?))) else { return BTreeSet::new() };
        let holders = file.in_the_way(place.owner, place.span, place.mode).map(|(other, ..)| other);
        let waiting = self.wait_for(holders, true);
        waiting.iter().filter_map(|owner| self.owners.get(owner)).flat_map(|o| o.waits.iter().map(|(ino, _)| *ino)).collect()
    }

    /// `owners`, and all for whom they wait: for locks that are held, and with `courtesy` for those before them, too.
    fn wait_for(&self, owners: impl IntoIterator<Item = RangeOwner>, courtesy: bool) -> BTreeSet<RangeOwner> {
        let mut seen = BTreeSet::new();
        let mut next: Vec<RangeOwner> = owners.into_iter().collect();
        while let Some(owner) = next.pop() {
            if !seen.insert(owner) {
                continue;
            }
            let Some(whereabouts) = self.owners.get(&owner) else { continue };
            for (ino, number) in &whereabouts.waits {
                let Some((file, place)) = self.files.get(ino).and_then(|file| Some((file, file.queue.get(number)?))) else { continue };
                next.extend(file.in_the_way(owner, place.span, place.mode).map(|(other, ..)| other));
                if courtesy {
                    next.extend(file.before(owner, place.span, place.mode, Some(*number)).map(|earlier| earlier.owner));
                }
            }
        }
        seen
    }
}
