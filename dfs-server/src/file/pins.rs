//! Which blocks must stay although no version may name them: blocks of a commit under
//! way, and blocks that an upload sent or was told it need not send. Pure.
//!
//! Invariant: `counts` has a block exactly as often as there are pins on it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_common::block::{BlockHash, BlockTable};
use dfs_common::ids::SessionId;

use super::upload::Upload;

/// A session's pins end this long after its last request.
pub(super) const PIN_TIME: Duration = Duration::from_secs(600);
/// And each this long after it was made: what was sent ahead of a commit that did without it goes while the session goes on.
const LONGEST: Duration = Duration::from_secs(3600);

/// Who pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pinner {
    /// A client.
    Session(SessionId),
    /// Another server, in this minute since the start: nobody renews these.
    Minute(u64),
}

#[derive(Debug)]
struct PinSet {
    until: Instant,
    /// With the time of the pin.
    blocks: BlockTable<Instant>,
}

/// All pins and holds.
#[derive(Debug, Default)]
pub(super) struct Pins {
    counts: BlockTable<u32>,
    sets: HashMap<Pinner, PinSet>,
    /// Versions on their way in. There are few at a time, and whoever collects looks through them: each has thousands of blocks.
    holds: BTreeMap<u64, Arc<Upload>>,
    next_hold: u64,
}

impl Pins {
    /// True where the block must stay.
    pub(super) fn contains(&self, hash: BlockHash) -> bool {
        self.counts.contains_key(&hash) || self.holds.values().any(|upload| upload.keeps(hash))
    }

    /// Keeps every block of `upload`, and its manifest, until [`Pins::let_go`] or [`Pins::settle`] with the number that it returns.
    pub(super) fn hold(&mut self, upload: Arc<Upload>) -> u64 {
        self.next_hold += 1;
        self.holds.insert(self.next_hold, upload);
        self.next_hold
    }

    /// True where there is a hold for the content with the manifest `hash`.
    pub(super) fn holds(&self, hash: BlockHash) -> bool {
        self.holds.values().any(|upload| upload.hash == hash)
    }

    /// True where no other hold is for the same content.
    pub(super) fn is_alone(&self, hold: u64) -> bool {
        let own = self.holds.get(&hold).map(|upload| upload.hash);
        self.holds.values().filter(|upload| own == Some(upload.hash)).count() <= 1
    }

    /// Ends a hold; returns the blocks that no hold and no pin keeps any more.
    pub(super) fn let_go(&mut self, hold: u64) -> Vec<BlockHash> {
        let Some(upload) = self.holds.remove(&hold) else { return Vec::new() };
        let own = upload.keeps(upload.hash).then_some(upload.hash);
        upload.blocks().keys().copied().chain(own).filter(|&hash| !self.contains(hash)).collect()
    }

    /// Ends a hold on what a version keeps from here on.
    pub(super) fn settle(&mut self, hold: u64) {
        self.holds.remove(&hold);
    }

    /// Ends one pin; true where nothing keeps the block any more.
    fn unpin_one(&mut self, hash: BlockHash) -> bool {
        if let Some(count) = self.counts.get_mut(&hash) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&hash);
            }
        }
        !self.contains(hash)
    }

    /// Keeps a block for `pinner`.
    pub(super) fn pin(&mut self, now: Instant, pinner: Pinner, hash: BlockHash) {
        let set = self.sets.entry(pinner).or_insert_with(|| PinSet { until: now + PIN_TIME, blocks: BlockTable::default() });
        if set.blocks.insert(hash, now).is_none() {
            *self.counts.entry(hash).or_insert(0) += 1;
        }
    }

    /// A session was heard of.
    pub(super) fn renew(&mut self, now: Instant, session: SessionId) {
        if let Some(set) = self.sets.get_mut(&Pinner::Session(session)) {
            set.until = now + PIN_TIME;
        }
    }

    /// Blocks that `session` (or, for none, another server) pinned and that a version now keeps.
    pub(super) fn unpin(&mut self, session: Option<SessionId>, hashes: impl Iterator<Item = BlockHash>) {
        let matches = |pinner: &Pinner| match (pinner, session) {
            (Pinner::Session(s), Some(session)) => *s == session,
            (Pinner::Minute(_), None) => true,
            _ => false,
        };
        let sets: Vec<Pinner> = self.sets.keys().filter(|p| matches(p)).copied().collect();
        if sets.is_empty() {
            return;
        }
        for hash in hashes {
            for pinner in &sets {
                if self.sets.get_mut(pinner).is_some_and(|set| set.blocks.remove(&hash).is_some()) {
                    self.unpin_one(hash);
                }
            }
        }
        self.sets.retain(|_, set| !set.blocks.is_empty());
    }

    /// Ends what is over; returns the blocks that nothing keeps any more.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<BlockHash> {
        let mut over = Vec::new();
        self.sets.retain(|_, set| {
            let all = set.until <= now;
            over.extend(set.blocks.extract_if(|_, pinned| all || *pinned + LONGEST <= now).map(|(hash, _)| hash));
            !set.blocks.is_empty()
        });
        over.retain(|&hash| self.unpin_one(hash));
        over
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::block::Manifest;

    use super::*;

    fn upload(blocks: &[BlockHash]) -> Arc<Upload> {
        let rows = (0..).zip(blocks).map(|(n, &hash)| (n, hash)).collect();
        let manifest = Manifest::new(16, (blocks.len() as u64) << 16, rows).unwrap();
        Arc::new(Upload::without_blocks(manifest.encode().into()).unwrap())
    }

    #[test]
    fn holds_keep_the_blocks_and_the_manifest() {
        let mut pins = Pins::default();
        let [a, b, c, d, e] = [b"a", b"b", b"c", b"d", b"e"].map(|name| BlockHash::of(name));
        let (few, many) = (upload(&[a, b]), upload(&[b, c, d, e, a]));
        let holds = [pins.hold(few.clone()), pins.hold(many.clone()), pins.hold(few.clone())];
        assert!(pins.contains(a) && pins.contains(e) && pins.contains(many.hash) && !pins.contains(few.hash));
        pins.pin(Instant::now(), Pinner::Minute(1), c);
        pins.settle(holds[0]);
        let mut free = pins.let_go(holds[1]);
        free.sort_unstable();
        let mut expected = [d, e, many.hash];
        expected.sort_unstable();
        assert_eq!(free, expected, "others are held or pinned");
        assert!(pins.let_go(holds[1]).is_empty());
        assert_eq!(pins.let_go(holds[2]).len(), 2);
        assert!(!pins.contains(a) && pins.contains(c));
    }

    #[test]
    fn pins_end_with_their_session_and_holds_do_not() {
        let (start, mut pins) = (Instant::now(), Pins::default());
        let (a, b) = (BlockHash::of(b"a"), BlockHash::of(b"b"));
        let session = SessionId(1);
        for hash in [a, a, b] {
            pins.pin(start, Pinner::Session(session), hash);
        }
        let hold = pins.hold(upload(&[b]));
        pins.renew(start + PIN_TIME / 2, session);
        assert!(pins.expire(start + PIN_TIME).is_empty());
        assert_eq!(pins.expire(start + PIN_TIME * 2), [a]);
        assert!(!pins.contains(a) && pins.contains(b));
        assert!(pins.let_go(hold) == [b] && pins.counts.is_empty() && pins.sets.is_empty());
    }

    #[test]
    fn what_nobody_commits_is_free_after_an_hour_though_its_session_goes_on() {
        let (start, mut pins) = (Instant::now(), Pins::default());
        let (a, b, session) = (BlockHash::of(b"a"), BlockHash::of(b"b"), SessionId(1));
        pins.pin(start, Pinner::Session(session), a);
        pins.pin(start, Pinner::Session(session), b);
        let mut now = start;
        while now < start + LONGEST {
            now += PIN_TIME / 2;
            pins.renew(now, session);
            assert!(now >= start + LONGEST || pins.expire(now).is_empty());
            if now == start + PIN_TIME {
                pins.pin(now, Pinner::Session(session), b);
            }
        }
        assert_eq!((pins.expire(now), pins.contains(b)), (vec![a], true), "b was pinned again meanwhile");
    }

    #[test]
    fn a_commit_takes_over_what_its_session_pinned() {
        let (now, mut pins) = (Instant::now(), Pins::default());
        let a = BlockHash::of(b"a");
        pins.pin(now, Pinner::Session(SessionId(1)), a);
        pins.pin(now, Pinner::Minute(3), a);
        pins.unpin(Some(SessionId(2)), [a].into_iter());
        pins.unpin(Some(SessionId(1)), [a].into_iter());
        assert!(pins.contains(a));
        pins.unpin(None, [a].into_iter());
        assert!(!pins.contains(a) && pins.sets.is_empty());
    }
}
