//! What the kernel was told of a node's attributes, and whether it can be trusted to have taken that in.
//!
//! A kernel that is told to forget attributes takes in no answer that is on its way then, neither what it
//! may keep nor the size. Nobody can tell which answers those were: a thread may have noted long before it
//! asks what it compares with. Two rules make up for it. For a while after an order to forget a file's answers
//! are for no time, so that no second order follows; and the next open is sent back to look its name up, which
//! it does after the order.

use std::time::{Duration, Instant};

use dfs_common::attributes::FileKind;
use dfs_common::ids::Version;

/// For so long after it was given an answer may be on its way, and one that was asked for before after an order to forget.
pub(super) const SETTLES: Duration = Duration::from_secs(1);

/// What the kernel does with a node's attributes after it was told them.
#[derive(Clone, Copy, Debug)]
enum Keeping {
    /// It asks each time.
    Nothing,
    /// It was told that it may keep them, and not yet to forget them.
    Attributes,
    /// It asks each time, because it was told to forget them then.
    Forgot(Instant),
}

/// Whether answers may have been lost to an order to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// What it was told last it has.
    Nothing,
    /// The order is under way.
    Now,
    /// The order returned then, and nobody has come back from looking the name up since.
    Perhaps(Instant),
}

/// What the kernel knows of one node's attributes.
#[derive(Debug)]
pub(crate) struct Knowledge {
    /// That it was told of last.
    version: Version,
    keeping: Keeping,
    lost: Lost,
}

impl Knowledge {
    pub(super) fn new(version: Version) -> Self {
        Self { version, keeping: Keeping::Nothing, lost: Lost::Nothing }
    }

    /// It is being told of this version, at `now`.
    pub(super) fn was_told(&mut self, version: Version, now: impl FnOnce() -> Instant) {
        self.version = version;
        if let Lost::Perhaps(at) = self.lost
            && now().saturating_duration_since(at) >= SETTLES
        {
            self.lost = Lost::Nothing;
        }
    }

    /// Whether it surely has this version's size.
    pub(super) fn knows(&self, version: Version) -> bool {
        self.version == version && self.lost == Lost::Nothing
    }

    /// How long the kernel, which is about to be told the attributes, may keep them, of the time `wanted`.
    ///
    /// After an order to forget the first answers about a file are not for keeping: nothing has to be forgotten, and they
    /// arrive. If the next one could meet the same fate, and the next, a reader would go on with the size from before.
    pub(super) fn keep_for(&mut self, kind: FileKind, wanted: Duration, now: Instant) -> Duration {
        match self.keeping {
            Keeping::Forgot(at) if kind == FileKind::File => {
                if now.saturating_duration_since(at) >= SETTLES {
                    self.keeping = Keeping::Nothing;
                }
                Duration::ZERO
            }
            _ if wanted.is_zero() => wanted,
            _ => {
                self.keeping = Keeping::Attributes;
                wanted
            }
        }
    }

    /// Whether it may have attributes that it does not ask for again.
    pub(super) fn keeps(&self) -> bool {
        matches!(self.keeping, Keeping::Attributes)
    }

    /// The attributes are old. True where the kernel keeps them, and has to be told so: that is followed by [`Knowledge::has_forgotten`].
    pub(super) fn forgets(&mut self, now: Instant) -> bool {
        let kept = self.keeps();
        if kept {
            (self.keeping, self.lost) = (Keeping::Forgot(now), Lost::Now);
        }
        kept
    }

    /// The order has returned: what is asked from here on arrives.
    pub(super) fn has_forgotten(&mut self, now: Instant) {
        if self.lost == Lost::Now {
            self.lost = Lost::Perhaps(now);
        }
    }

    /// True while an order is under way.
    pub(super) fn is_forgetting(&self) -> bool {
        self.lost == Lost::Now
    }

    /// Somebody who was sent back after the last order has looked the name up.
    pub(super) fn was_looked_up(&mut self) {
        if matches!(self.lost, Lost::Perhaps(_)) {
            self.lost = Lost::Nothing;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_file_whose_attributes_were_forgotten_is_not_kept_at_once_again() {
        let (mut kernel, now, kind) = (Knowledge::new(Version(1)), Instant::now(), FileKind::File);
        assert!(!kernel.forgets(now), "what was never kept need not be forgotten");
        assert!(kernel.keep_for(kind, Duration::ZERO, now).is_zero() && !kernel.forgets(now), "nor what is kept for no time");
        assert!(kernel.keep_for(kind, MINUTE, now) == MINUTE && kernel.keeps() && kernel.forgets(now) && !kernel.forgets(now));
        for half in 1..=2 {
            assert!(kernel.keep_for(kind, MINUTE, now + half * SETTLES / 2).is_zero(), "what it is told now must arrive");
        }
        assert_eq!(kernel.keep_for(kind, MINUTE, now + SETTLES), MINUTE, "it has arrived");
        let mut directory = Knowledge::new(Version(0));
        assert!(directory.keep_for(FileKind::Directory, MINUTE, now) == MINUTE && directory.forgets(now));
        assert_eq!(directory.keep_for(FileKind::Directory, MINUTE, now), MINUTE, "every path leads through it");
    }

    #[test]
    fn what_was_told_around_an_order_to_forget_is_known_once_it_was_looked_up() {
        let (mut kernel, now) = (Knowledge::new(Version(1)), Instant::now());
        kernel.keep_for(FileKind::File, MINUTE, now);
        assert!(kernel.knows(Version(1)) && !kernel.knows(Version(2)));
        assert!(kernel.forgets(now));
        kernel.was_told(Version(2), || now + MINUTE);
        kernel.was_looked_up();
        assert!(kernel.is_forgetting() && !kernel.knows(Version(2)), "an answer that the order may meet");
        kernel.has_forgotten(now);
        kernel.was_told(Version(2), || now + SETTLES / 2);
        assert!(!kernel.is_forgetting() && !kernel.knows(Version(2)), "it may have been asked for before");
        kernel.was_looked_up();
        assert!(kernel.knows(Version(2)));
        kernel.has_forgotten(now);
        assert!(kernel.knows(Version(2)), "no order was under way");
    }

    #[test]
    fn long_after_an_order_to_forget_every_answer_counts() {
        let (mut kernel, now) = (Knowledge::new(Version(1)), Instant::now());
        kernel.keep_for(FileKind::File, MINUTE, now);
        kernel.forgets(now);
        kernel.has_forgotten(now);
        kernel.was_told(Version(2), || now + SETTLES);
        assert!(kernel.knows(Version(2)) && !kernel.knows(Version(1)));
    }
}
