//! Blocks on their way to a cache file: each is fetched once, whoever asked for it, and
//! what nobody asked for yet arrives in the order in which it will be read.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::turn::until;

/// Which blocks of one file are being fetched.
#[derive(Debug, Default)]
pub struct Arriving {
    state: Mutex<State>,
    landed: Notify,
}

#[derive(Debug, Default)]
struct State {
    under_way: BTreeSet<u32>,
    /// Behind what was read or fetched last.
    next: u32,
    stream: Stream,
}

/// Whether everything is fetched in the background.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stream {
    #[default]
    None,
    /// Whoever reads something that is missing begins it, behind that: also where it has failed before.
    Wanted,
    Runs,
}

/// Blocks that one fetcher fetches, until this is dropped.
#[derive(Debug)]
pub struct Claim<'a> {
    arriving: &'a Arriving,
    /// Rising.
    pub blocks: Vec<u32>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.blocks.is_empty() {
            let mut state = self.arriving.state.lock();
            state.under_way.retain(|block| self.blocks.binary_search(block).is_err());
            drop(state);
            self.arriving.landed.notify_waiters();
        }
    }
}

impl Arriving {
    /// Those of `blocks` (rising) that nobody fetches yet. The background goes on behind the last one.
    pub fn claim(&self, blocks: &[u32]) -> Claim<'_> {
        let mut state = self.state.lock();
        state.next = blocks.last().map_or(state.next, |last| last + 1);
        let blocks = blocks.iter().copied().filter(|&block| state.under_way.insert(block)).collect();
        Claim { arriving: self, blocks }
    }

    /// The next run of at most `longest` blocks that are missing and that nobody fetches: `missing_from` yields rising missing
    /// blocks, from a given one on. `None` where there is none.
    pub fn claim_next<I: Iterator<Item = u32>>(&self, missing_from: impl Fn(u32) -> I, longest: usize) -> Option<Claim<'_>> {
        let mut state = self.state.lock();
        let free = |block: &u32| !state.under_way.contains(block);
        let first = missing_from(state.next).find(free).or_else(|| missing_from(0).find(free))?;
        let run = (first..).zip(missing_from(first)).take(longest).take_while(|(expected, block)| expected == block && free(block));
        let blocks: Vec<u32> = run.map(|(_, block)| block).collect();
        state.next = first + blocks.len() as u32;
        state.under_way.extend(&blocks);
        Some(Claim { arriving: self, blocks })
    }

    /// Waits until nobody fetches any of `blocks`.
    pub async fn landed(&self, blocks: &[u32]) {
        until(&self.landed, || !blocks.iter().any(|block| self.state.lock().under_way.contains(block))).await;
    }

    /// Everything shall be fetched, once something of it was read.
    pub fn want_stream(&self) {
        let mut state = self.state.lock();
        if state.stream == Stream::None {
            state.stream = Stream::Wanted;
        }
    }

    /// Something was read that had been missing: true where the caller is to fetch the rest.
    pub fn begin_stream(&self) -> bool {
        let mut state = self.state.lock();
        let wanted = state.stream == Stream::Wanted;
        if wanted {
            state.stream = Stream::Runs;
        }
        wanted
    }

    /// Nobody fetches in the background any more, as all is here or as it `failed`.
    pub fn end_stream(&self, failed: bool) {
        self.state.lock().stream = if failed { Stream::Wanted } else { Stream::None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(blocks: &'static [u32]) -> impl Fn(u32) -> Box<dyn Iterator<Item = u32>> {
        move |from| Box::new(blocks.iter().copied().filter(move |&block| block >= from))
    }

    #[test]
    fn the_background_goes_on_behind_what_was_read_and_then_from_the_beginning() {
        let arriving = Arriving::default();
        let all = missing(&[0, 1, 2, 5, 6, 7, 8]);
        let wanted = arriving.claim(&[5]);
        assert_eq!(wanted.blocks, [5]);
        let (a, b) = (arriving.claim_next(&all, 2).unwrap(), arriving.claim_next(&all, 2).unwrap());
        assert_eq!((&a.blocks[..], &b.blocks[..]), (&[6, 7][..], &[8][..]));
        let c = arriving.claim_next(&all, 9).unwrap();
        assert_eq!(c.blocks, [0, 1, 2]);
        assert!(arriving.claim_next(&all, 9).is_none());
        assert!(arriving.claim(&[5, 6]).blocks.is_empty());
        drop(a);
        assert_eq!(arriving.claim(&[5, 6]).blocks, [6]);
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_the_last_block_has_landed() {
        let arriving = Arriving::default();
        let (first, second) = (arriving.claim(&[1]), arriving.claim(&[2]));
        let mut wait = Box::pin(arriving.landed(&[1, 2]));
        assert!(futures_util::poll!(wait.as_mut()).is_pending());
        drop(first);
        assert!(futures_util::poll!(wait.as_mut()).is_pending());
        drop(second);
        wait.await;
    }

    #[test]
    fn one_stream_at_a_time_and_again_after_a_failure() {
        let arriving = Arriving::default();
        assert!(!arriving.begin_stream());
        arriving.want_stream();
        assert!(arriving.begin_stream() && !arriving.begin_stream());
        arriving.want_stream();
        assert!(!arriving.begin_stream());
        arriving.end_stream(true);
        assert!(arriving.begin_stream() && !arriving.begin_stream());
        arriving.end_stream(false);
        assert!(!arriving.begin_stream());
    }
}
