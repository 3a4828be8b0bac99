//! What is known of a block that was written to: which block a server has was there before,
//! where the two differ, and its hash, if nothing was written since it was hashed. Pure.

use dfs_common::block::BlockHash;
use dfs_common::patch::Changed;

/// A dirty block. Invariant: its bytes are those of `base` up to `keep` and zeros from there on, but for those of `hull`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dirty {
    /// `None` for zeros.
    base: Option<BlockHash>,
    keep: u32,
    /// The first byte, and the one behind the last, of all that was written.
    hull: (u32, u32),
    stored: Stored,
    /// The name of its bytes, if nothing was written since they were hashed.
    name: Option<BlockHash>,
}

/// Whether a server was sent these bytes ahead of the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Never,
    /// They are on their way, as they were at this ticket.
    Taken(u64),
    /// It has them, under the block's name.
    Sent,
    /// It has others: that is enough for one commit.
    Before,
}

impl Dirty {
    /// A block of `len` bytes that servers have as `base` (`None`: a hole) is about to change.
    pub(super) fn since(base: Option<BlockHash>, len: u32) -> Self {
        // Zeros go on as zeros, however long the block becomes.
        let keep = if base.is_some() { len } else { u32::MAX };
        Self { base, keep, hull: (0, 0), stored: Stored::Never, name: None }
    }

    /// All of it may be new.
    pub(super) fn unlike_anything() -> Self {
        Self { base: None, keep: 0, hull: (0, 0), stored: Stored::Never, name: None }
    }

    /// Bytes `first..end` of it were written; before, it had `len` bytes.
    pub(super) fn wrote(&mut self, (first, end): (u32, u32), len: u32) {
        if self.is_sent() {
            (self.base, self.keep, self.hull) = (self.name, len, (0, 0));
        }
        if self.stored != Stored::Never {
            self.stored = Stored::Before;
        }
        self.hull = hull(self.hull, (first, end));
        self.name = None;
    }

    /// The name of its bytes, where it is known.
    pub(super) fn name(&self) -> Option<BlockHash> {
        self.name
    }

    /// Whoever has just written all of its bytes has hashed them.
    pub(super) fn named(&mut self, name: BlockHash) {
        self.name = Some(name);
    }

    /// It is hashed again, unless a server has it under its name.
    pub(super) fn forget_name(&mut self) {
        if !self.is_sent() {
            self.name = None;
        }
    }

    /// It has `len` bytes from now on, fewer than before: should it become longer again, what was behind is zeros.
    pub(super) fn cut(&mut self, len: u32) {
        if self.base.is_some() {
            self.keep = self.keep.min(len);
        }
        self.hull = (self.hull.0.min(len), self.hull.1.min(len));
    }

    /// Where it differs from its base, being `len` bytes long.
    pub(super) fn changed(&self, len: u32) -> Changed {
        let (first, end) = if self.keep < len { hull(self.hull, (self.keep, len)) } else { self.hull };
        Changed { base: self.base, first, end }
    }

    /// True where servers have it under its name.
    pub(super) fn is_sent(&self) -> bool {
        self.stored == Stored::Sent
    }

    /// It is about to be hashed and sent. False where that was so before.
    pub(super) fn take(&mut self, ticket: u64) -> bool {
        let is_first = self.stored == Stored::Never;
        if is_first {
            self.stored = Stored::Taken(ticket);
        }
        is_first
    }

    /// What was taken has arrived under this name. False where it was changed meanwhile.
    pub(super) fn taken(&mut self, ticket: u64, hash: BlockHash) -> bool {
        let is_same = self.stored == Stored::Taken(ticket);
        if is_same {
            (self.stored, self.name) = (Stored::Sent, Some(hash));
        }
        is_same
    }
}

/// Both ranges and what lies between them; one without bytes is nowhere.
fn hull(a: (u32, u32), b: (u32, u32)) -> (u32, u32) {
    match (a.0 < a.1, b.0 < b.1) {
        (true, true) => (a.0.min(b.0), a.1.max(b.1)),
        (true, false) => a,
        (false, _) => b,
    }
}
