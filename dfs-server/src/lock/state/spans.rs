//! What one owner has locked of a file: pieces that are in order, do not overlap, and
//! are as few as they can be (fcntl(2) splits and merges).

use dfs_common::api::lock::{Mode, Span};
use serde::{Deserialize, Serialize};

/// Bytes that are locked in one way, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) mode: Mode,
    /// When the oldest part of it was granted.
    pub(super) since: u64,
}

impl Piece {
    pub(super) fn span(&self) -> Span {
        Span { first: self.first, last: self.last }
    }
}

/// Whether two locks of different owners exclude each other where they overlap.
pub(super) fn excludes(a: Mode, b: Mode) -> bool {
    a == Mode::Exclusive || b == Mode::Exclusive
}

/// Whether two ranges share a byte.
pub(super) fn overlap(a: Span, b: Span) -> bool {
    a.first <= b.last && b.first <= a.last
}

/// The pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spans(Vec<Piece>);

impl Spans {
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.0
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that share a byte with `span`.
    fn touching(&self, span: Span) -> impl Iterator<Item = &Piece> {
        let from = self.0.partition_point(|p| p.last < span.first);
        self.0[from..].iter().take_while(move |p| p.first <= span.last)
    }

    /// The first piece that another owner's lock would collide with.
    pub(super) fn conflict(&self, span: Span, mode: Mode) -> Option<&Piece> {
        self.touching(span).find(|p| excludes(p.mode, mode))
    }

    /// Whether all of `span` is locked in just this way.
    pub(super) fn covers(&self, span: Span, mode: Mode) -> bool {
        self.touching(span).next().is_some_and(|p| p.mode == mode && p.first <= span.first && span.last <= p.last)
    }

    /// What is locked within `span`.
    pub(super) fn within(&self, span: Span) -> Vec<Piece> {
        self.touching(span).map(|p| Piece { first: p.first.max(span.first), last: p.last.min(span.last), ..*p }).collect()
    }

    /// Unlocks `span`.
    pub(super) fn clear(&mut self, span: Span) {
        let mut next = Vec::with_capacity(self.0.len() + 1);
        for piece in &self.0 {
            if !overlap(piece.span(), span) {
                next.push(*piece);
                continue;
            }
            if piece.first < span.first {
                next.push(Piece { last: span.first - 1, ..*piece });
            }
            if piece.last > span.last {
                next.push(Piece { first: span.last + 1, ..*piece });
            }
        }
        self.0 = next;
    }

    /// Locks the bytes of `piece` in its way, whatever was there.
    pub(super) fn set(&mut self, piece: Piece) {
        self.clear(piece.span());
        let mut at = self.0.partition_point(|p| p.first < piece.first);
        self.0.insert(at, piece);
        let joins = |a: &Piece, b: &Piece| a.mode == b.mode && a.last + 1 == b.first;
        // First with the piece behind, then with the one before.
        if self.0.get(at + 1).is_some_and(|next| joins(&self.0[at], next)) {
            self.merge(at);
        }
        if at > 0 && joins(&self.0[at - 1], &self.0[at]) {
            at -= 1;
            self.merge(at);
        }
    }

    /// Makes one piece of those at `at` and behind it.
    fn merge(&mut self, at: usize) {
        let second = self.0.remove(at + 1);
        let first = &mut self.0[at];
        first.last = second.last;
        first.since = first.since.min(second.since);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each byte by itself.
    type Bytes = [Option<Mode>; 24];

    fn any_step() -> impl Strategy<Value = (Span, Option<Mode>)> {
        let mode = prop_oneof![Just(None), Just(Some(Mode::Shared)), Just(Some(Mode::Exclusive))];
        (0u64..24, 0u64..24, mode).prop_map(|(a, b, mode)| (Span { first: a.min(b), last: a.max(b) }, mode))
    }

    proptest! {
        #[test]
        fn random_locks_are_what_an_array_of_bytes_says(steps in proptest::collection::vec(any_step(), 1..60), probe in any_step()) {
            let (mut spans, mut bytes) = (Spans::default(), Bytes::default());
            for (now, (span, mode)) in steps.into_iter().enumerate() {
                bytes[span.first as usize..=span.last as usize].fill(mode);
                match mode {
                    None => spans.clear(span),
                    Some(mode) => spans.set(Piece { first: span.first, last: span.last, mode, since: now as u64 }),
                }
                let mut seen = Bytes::default();
                for piece in spans.pieces() {
                    seen[piece.first as usize..=piece.last as usize].fill(Some(piece.mode));
                }
                prop_assert_eq!(seen, bytes);
                for pair in spans.pieces().windows(2) {
                    prop_assert!(pair[0].last < pair[1].first, "in order, without overlap");
                    prop_assert!(pair[0].mode != pair[1].mode || pair[0].last + 1 < pair[1].first, "as few as they can be");
                }
            }
            let (span, mode) = (probe.0, probe.1.unwrap_or(Mode::Shared));
            let part = &bytes[span.first as usize..=span.last as usize];
            let first = part.iter().position(|b| b.is_some_and(|b| excludes(b, mode))).map(|at| span.first + at as u64);
            prop_assert_eq!(spans.conflict(span, mode).map(|p| p.first.max(span.first)), first);
            prop_assert_eq!(spans.covers(span, mode), part.iter().all(|b| *b == Some(mode)));
            let mut alone = Spans::default();
            spans.within(span).into_iter().for_each(|p| alone.set(p));
            spans.clear(span);
            alone.pieces().iter().for_each(|p| spans.set(*p));
            let kept: u64 = spans.pieces().iter().map(|p| p.last - p.first + 1).sum();
            prop_assert_eq!(kept, bytes.iter().flatten().count() as u64, "what is taken out and put back is what was there");
        }
    }

    #[test]
    fn a_range_may_go_on_for_ever() {
        let mut spans = Spans::default();
        spans.set(Piece { first: 10, last: Span::END, mode: Mode::Exclusive, since: 1 });
        spans.set(Piece { first: 0, last: 9, mode: Mode::Exclusive, since: 2 });
        assert!(spans.covers(Span::ALL, Mode::Exclusive) && spans.len() == 1);
        spans.clear(Span { first: 5, last: Span::END });
        assert_eq!(spans.pieces(), [Piece { first: 0, last: 4, mode: Mode::Exclusive, since: 1 }]);
    }
}
