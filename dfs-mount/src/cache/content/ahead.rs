//! What of a file that is being written can be hashed and sent before it is committed: the
//! blocks that a program writing from front to back has left behind.
//!
//! Each block is sent once between two commits at the most, and what is written to it
//! meanwhile makes that count for nothing: a hash is only believed for the bytes that it is of.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use dfs_common::Result;
use dfs_common::block::BlockHash;

use super::{Content, State};

/// Whoever has written less than this in a row sends everything with the commit.
const MIN_RUN: u64 = 4 << 20;
/// So many blocks before the last write are left alone: they may still change.
const QUIET: u64 = 4;

/// The last writes, as far as each began where the one before ended.
#[derive(Debug, Default)]
pub(super) struct Run {
    start: u64,
    end: u64,
    /// The first block that was not taken.
    next: u32,
    /// Somebody was told that there is something to send.
    told: bool,
    /// It failed: the commit sends everything.
    failed: bool,
}

impl Run {
    fn wrote(&mut self, offset: u64, len: u64, bits: u8) {
        if offset != self.end {
            self.start = offset;
            self.next = offset.div_ceil(1 << bits) as u32;
        }
        self.end = offset + len;
    }

    /// True where a whole block lies far enough behind.
    fn has_next(&self, bits: u8) -> bool {
        !self.failed && self.is_long() && (u64::from(self.next) + 1 + QUIET) << bits <= self.end
    }

    fn is_long(&self) -> bool {
        self.end - self.start >= MIN_RUN
    }

    /// A commit has succeeded.
    pub(super) fn go_on(&mut self) {
        self.failed = false;
    }
}

/// A block that was taken to be sent.
#[derive(Debug)]
pub struct Taken {
    block: u32,
    ticket: u64,
    /// Its name.
    pub hash: BlockHash,
    /// What it holds.
    pub bytes: Bytes,
}

impl Content {
    /// `len` bytes at `offset` were written.
    pub(super) fn note_run(&self, state: &mut State, offset: u64, len: u64) {
        let bits = state.map.bits();
        state.run.wrote(offset, len, bits);
        if !state.run.told && state.run.has_next(bits) {
            state.run.told = true;
            self.ahead.store(true, Ordering::Relaxed);
        }
    }

    /// The names of the whole blocks that `data` at `offset` consists of, where it goes on with a long run: hashed while the bytes
    /// are in the processor's cache, they need not be read again for that.
    pub(super) fn names(&self, offset: u64, data: &[u8]) -> Vec<(u32, BlockHash)> {
        let bits = {
            let state = self.state.lock();
            if offset != state.run.end || !state.run.is_long() {
                return Vec::new();
            }
            state.map.bits()
        };
        let first = offset.div_ceil(1 << bits);
        let Some(whole) = data.get(((first << bits) - offset) as usize..) else { return Vec::new() };
        (first as u32..).zip(whole.chunks_exact(1 << bits)).map(|(block, bytes)| (block, BlockHash::of(bytes))).collect()
    }

    /// True, once, where there is something to [`Content::take_ahead`] until that returns `None`.
    pub fn has_ahead(&self) -> bool {
        self.ahead.load(Ordering::Relaxed) && self.ahead.swap(false, Ordering::Relaxed)
    }

    /// The next block that its writer has left behind, hashed.
    pub fn take_ahead(&self) -> Option<Taken> {
        let (block, ticket, span, name) = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let bits = state.map.bits();
            loop {
                if state.committing || state.aside || !state.run.has_next(bits) {
                    state.run.told = false;
                    return None;
                }
                let block = state.run.next;
                state.run.next += 1;
                if let Some(ticket) = state.map.take(block) {
                    // Stores to a mapping go past whoever names what is written.
                    let name = if state.mapped { None } else { state.map.name(block) };
                    break (block, ticket, state.map.span(block), name);
                }
            }
        };
        // Whatever is written from here on makes the ticket void, and under the name that was known servers take nothing else.
        match self.bytes(span) {
            Ok(bytes) => Some(Taken { block, ticket, hash: name.unwrap_or_else(|| BlockHash::of(&bytes)), bytes }),
            Err(e) => {
                self.sent_ahead(None, &Err(e));
                None
            }
        }
    }

    /// What became of a block that was taken. After a failure nothing more is taken until the next commit.
    pub fn sent_ahead(&self, taken: Option<&Taken>, result: &Result<()>) {
        let mut state = self.state.lock();
        match (taken, result) {
            (Some(taken), Ok(())) => {
                state.map.taken(taken.block, taken.ticket, taken.hash);
            }
            (_, Err(e)) => {
                log::debug!("nothing more is sent ahead of a commit: {e}");
                (state.run.failed, state.run.told) = (true, false);
            }
            (None, Ok(())) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use dfs_common::attributes::Timestamp;
    use dfs_common::block::Manifest;
    use dfs_common::clients::commit::BlockSource;
    use dfs_common::ids::Version;

    use super::*;
    use crate::cache::BlockMap;
    use crate::cache::file::open_file;

    const BITS: u8 = 16;
    const BLOCK: u64 = 1 << BITS;

    fn content(dir: &Path) -> Content {
        let path = dir.join("f");
        Content::new(open_file(&path, true).unwrap(), path, Version(0), BlockMap::new(Manifest::empty(BITS), true))
    }

    fn write(content: &Content, offset: u64, len: u64, byte: u8) {
        content.write(offset, &vec![byte; len as usize], false, Timestamp(1)).unwrap();
    }

    fn taken(content: &Content) -> Vec<Taken> {
        std::iter::from_fn(|| content.take_ahead()).collect()
    }

    #[test]
    fn what_a_writer_has_left_behind_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let content = content(dir.path());
        let mut blocks = Vec::new();
        for at in (0..MIN_RUN + BLOCK).step_by(4096) {
            write(&content, at, 4096, (at / BLOCK) as u8);
            assert!(at + 4096 >= MIN_RUN || !content.has_ahead(), "not for little");
            if content.has_ahead() {
                blocks.extend(taken(&content));
            }
        }
        let count = (MIN_RUN / BLOCK + 1 - QUIET) as u32;
        assert_eq!(blocks.iter().map(|taken| taken.block).collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
        // All of it once more, and at random: nothing is taken for the second time.
        write(&content, 0, MIN_RUN, 9);
        for at in [7, 3, 60, 1] {
            write(&content, at * BLOCK, BLOCK, 8);
        }
        assert!(taken(&content).is_empty());
    }

    #[test]
    fn who_writes_here_and_there_sends_nothing_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let content = content(dir.path());
        for n in 0..400u64 {
            write(&content, (n * 7919 % 200) * BLOCK, BLOCK, 1);
        }
        assert!(!content.has_ahead() && taken(&content).is_empty());
    }

    #[test]
    fn a_block_that_changes_while_it_is_sent_is_never_published_under_the_old_hash() {
        let dir = tempfile::tempdir().unwrap();
        let content = content(dir.path());
        write(&content, 0, MIN_RUN, 1);
        let blocks = taken(&content);
        // Between the hash and the answer, and after the answer.
        write(&content, 2 * BLOCK + 5, 1, 2);
        for taken in &blocks {
            content.sent_ahead(Some(taken), &Ok(()));
        }
        write(&content, 3 * BLOCK + 5, 1, 2);
        content.truncate(MIN_RUN - 1, Timestamp(1)).unwrap();
        let plan = content.begin_commit(Timestamp(1), false).unwrap().unwrap();
        for &(index, hash) in plan.manifest.blocks() {
            assert_eq!(hash, BlockHash::of(&BlockSource::read(&content, index).unwrap()), "block {index}");
        }
        assert_ne!(plan.manifest.get(2), plan.manifest.get(1));
        assert!(content.take_ahead().is_none(), "not while a commit is under way");
    }

    #[test]
    fn whole_blocks_of_a_long_run_are_not_hashed_again() {
        let dir = tempfile::tempdir().unwrap();
        let content = content(dir.path());
        let unnamed = || content.map().dirty().collect::<Vec<_>>();
        write(&content, 0, MIN_RUN, 1);
        let before = unnamed();
        assert_eq!(before.len() as u64, MIN_RUN / BLOCK, "not before the run is a long one");
        // Two whole blocks and the beginning of another one, its rest, and a whole one elsewhere.
        write(&content, MIN_RUN, 2 * BLOCK + 5, 2);
        let third = (MIN_RUN / BLOCK) as u32 + 2;
        assert_eq!(unnamed(), [&before[..], &[third]].concat());
        write(&content, MIN_RUN + 2 * BLOCK + 5, BLOCK - 5, 3);
        write(&content, MIN_RUN + 9 * BLOCK, BLOCK, 4);
        assert_eq!(unnamed(), [&before[..], &[third, third + 7]].concat());
        // A name is only that of the bytes that were written with it.
        write(&content, MIN_RUN + BLOCK + 7, 1, 5);
        assert_eq!(unnamed(), [&before[..], &[third - 1, third, third + 7]].concat());
        let plan = content.begin_commit(Timestamp(1), false).unwrap().unwrap();
        for &(index, hash) in plan.manifest.blocks() {
            assert_eq!(hash, BlockHash::of(&BlockSource::read(&content, index).unwrap()), "block {index}");
        }
        content.end_commit(None);
        assert!(unnamed().contains(&(third - 2)), "what was refused is looked at again");
    }

    #[test]
    fn after_a_failure_the_commit_sends_everything() {
        let dir = tempfile::tempdir().unwrap();
        let content = content(dir.path());
        write(&content, 0, MIN_RUN, 1);
        let first = content.take_ahead().unwrap();
        content.sent_ahead(Some(&first), &Err(dfs_common::ErrorKind::Unavailable.into()));
        write(&content, MIN_RUN, MIN_RUN, 1);
        assert!(taken(&content).is_empty());
        let plan = content.begin_commit(Timestamp(1), false).unwrap().unwrap();
        content.end_commit(Some((Version(1), &plan.manifest, false)));
        write(&content, 2 * MIN_RUN, MIN_RUN, 1);
        assert!(!taken(&content).is_empty(), "servers may answer again");
    }
}
