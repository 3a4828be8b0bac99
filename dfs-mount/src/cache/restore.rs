//! Putting together again what a crash left of a file that was being written: its bytes
//! are compared, block by block, with the version that it was built on.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use dfs_common::attributes::Timestamp;
use dfs_common::block::{BlockHash, Manifest};
use dfs_common::{Error, Result};

use super::file::{modified, open_file, read_filled};
use super::record::Left;
use super::{BlockMap, Content};
use crate::system;

/// The file at `path` as `left` describes it.
pub fn restore(path: &Path, left: &Left) -> Result<Content> {
    let base = Arc::new(Manifest::decode(&left.begun.manifest)?);
    let missing: BTreeSet<u32> = left.begun.missing.iter().flat_map(|&(first, last)| first..=last).collect();
    let file = open_file(path, false)?;
    let size = cut_unfinished(&file, &base, &missing).map_err(|e| Error::from_io(&e, path.display()))?;
    let written = modified(&file);
    let mtime = left.timed.filter(|(_, before)| written <= *before).map_or(written, |(set, _)| set);
    content_of(file, path, left, (&base, &missing), size, mtime)
}

/// The file at `path`, all of whose bytes are new.
pub fn restore_whole(path: &Path, block_bits: u8, mtime: Timestamp) -> Result<Content> {
    let file = open_file(path, false)?;
    let (base, size) = (Arc::new(Manifest::empty(block_bits)), length(&file).map_err(|e| Error::from_io(&e, path.display()))?);
    let map = compare(&file, &base, size, &BTreeSet::new()).map_err(|e| Error::from_io(&e, path.display()))?;
    Ok(Content::changed_from(file, path.to_owned(), dfs_common::ids::Version(0), map, mtime))
}

fn content_of(
    file: File,
    path: &Path,
    left: &Left,
    (base, missing): (&Arc<Manifest>, &BTreeSet<u32>),
    size: u64,
    mtime: Timestamp,
) -> Result<Content> {
    let map = compare(&file, base, size, missing).map_err(|e| Error::from_io(&e, path.display()))?;
    Ok(Content::changed_from(file, path.to_owned(), left.begun.version, map, mtime))
}

fn length(file: &File) -> std::io::Result<u64> {
    file.metadata().map(|m| m.len())
}

/// A write that makes the file longer first overwrites the block in which it ended. Where that block still counts as
/// missing, the write was not finished, and what it put behind the end is not part of the file. Returns the length.
fn cut_unfinished(file: &File, base: &Manifest, missing: &BTreeSet<u32>) -> std::io::Result<u64> {
    let (size, end) = (length(file)?, base.size());
    let is_ragged = !end.is_multiple_of(base.block_size());
    if size > end && is_ragged && missing.contains(&((end / base.block_size()) as u32)) {
        file.set_len(end)?;
        return Ok(end);
    }
    Ok(size)
}

/// What the first `size` bytes of `file` are, as a change of `base`, of which the blocks `missing` never came.
pub(super) fn compare(file: &File, base: &Arc<Manifest>, size: u64, missing: &BTreeSet<u32>) -> std::io::Result<BlockMap> {
    let block_size = base.block_size();
    let (mut dirty, mut gone) = (BTreeSet::new(), BTreeSet::new());
    let mut look = |block: u32| -> std::io::Result<()> {
        let start = u64::from(block) * block_size;
        let bytes = read_filled(file, start, size.saturating_sub(start).min(block_size) as usize)?;
        if base.get(block) == Some(BlockHash::of(&bytes)) {
        } else if bytes.iter().any(|&b| b != 0) {
            dirty.insert(block);
        } else if base.get(block).is_some() {
            gone.insert(block);
        }
        Ok(())
    };
    let is_here = |block: u32| u64::from(block) * block_size < size && !missing.contains(&block);
    for &(block, _) in base.blocks() {
        if is_here(block) {
            look(block)?;
        }
    }
    let mut at = 0;
    while let Some(found) = system::seek_data(file, at)?.filter(|&found| found < size) {
        let block = (found / block_size) as u32;
        if base.get(block).is_none() {
            look(block)?;
        }
        at = (u64::from(block) + 1) * block_size;
    }
    Ok(BlockMap::changed_from(base, size, missing, &dirty, &gone))
}

/// Puts bytes of missing blocks into a file that is not open, and cuts nothing.
pub fn complete(path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let written = open_file(path, false)?.write_all_at(bytes, offset);
    written.map_err(|e| Error::from_io(&e, path.display()))
}

#[cfg(test)]
mod tests {
    use dfs_common::clients::commit::BlockSource;
    use dfs_common::ids::{InodeId, SessionId, Version};
    use proptest::prelude::*;

    use super::*;
    use crate::cache::Shelf;
    use crate::cache::content::NotYet;
    use crate::cache::record::{Owned, Run};

    const BITS: u8 = 16;
    const BLOCK: usize = 1 << BITS;

    fn shelf(dir: &Path) -> Shelf {
        Shelf::open(dir, Run { cluster: "c".into(), boot: "b".into(), session: SessionId(1) }, 1 << 30).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize, usize, u8),
        Truncate(usize),
        Zero(usize, usize),
        Fetch(usize),
        Commit,
        Copy(usize, usize, usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        // Blocks, their middles and their ends: what lies between is alike.
        let offset = (0usize..12).prop_map(|half| half * BLOCK / 2);
        let len = prop_oneof![Just(1), Just(BLOCK / 2), Just(BLOCK), Just(2 * BLOCK), Just(3 * BLOCK + 5)];
        prop_oneof![
            4 => (offset.clone(), len.clone(), 1u8..).prop_map(|(o, l, b)| Step::Write(o, l, b)),
            2 => (offset.clone(), 0usize..3).prop_map(|(o, more)| Step::Truncate(o + more)),
            1 => (offset.clone(), len.clone()).prop_map(|(o, l)| Step::Zero(o, l)),
            1 => (0usize..6).prop_map(Step::Fetch),
            1 => Just(Step::Commit),
            1 => (offset.clone(), offset, len).prop_map(|(f, t, l)| Step::Copy(f, t, l)),
        ]
    }

    /// A file whose base the servers have, and what programs made of it.
    struct Model {
        base: Vec<u8>,
        truth: Vec<u8>,
    }

    impl Model {
        fn manifest(bytes: &[u8]) -> Manifest {
            let blocks = bytes.chunks(BLOCK).enumerate().filter(|(_, b)| b.iter().any(|&x| x != 0));
            Manifest::new(BITS, bytes.len() as u64, blocks.map(|(i, b)| (i as u32, BlockHash::of(b))).collect()).unwrap()
        }

        /// Carries out `attempt`, fetching what it misses.
        fn change(&self, content: &Content, attempt: impl Fn() -> Result<(), NotYet>) {
            loop {
                match attempt() {
                    Ok(()) => return,
                    Err(NotYet::Missing(blocks)) => self.fetch(content, &blocks),
                    Err(e) => panic!("{e:?}"),
                }
            }
        }

        fn fetch(&self, content: &Content, blocks: &[u32]) {
            for &block in blocks {
                let start = block as usize * BLOCK;
                content.fetched(block, &self.base[start..(start + BLOCK).min(self.base.len())]).unwrap();
            }
        }

        fn apply(&mut self, content: &Content, step: &Step) {
            let now = Timestamp(1);
            match *step {
                Step::Write(offset, len, byte) => {
                    let bytes = vec![byte; len];
                    self.change(content, || content.write(offset as u64, &bytes, false, now));
                    self.truth.resize(self.truth.len().max(offset + len), 0);
                    self.truth[offset..offset + len].fill(byte);
                }
                Step::Truncate(size) => {
                    self.change(content, || content.truncate(size as u64, now));
                    self.truth.resize(size, 0);
                }
                Step::Zero(offset, len) => {
                    self.change(content, || content.zero(offset as u64, len as u64, now));
                    let end = (offset + len).min(self.truth.len());
                    self.truth[offset.min(end)..end].fill(0);
                }
                Step::Fetch(block) => {
                    let missing: Vec<u32> = content.missing().into_iter().skip(block).take(1).collect();
                    self.fetch(content, &missing);
                }
                Step::Commit => {
                    if let Some(plan) = content.begin_commit(now, false).unwrap() {
                        self.check_sent(content, &plan.manifest);
                        content.end_commit(Some((Version(plan.base.0 + 1), &plan.manifest, true)));
                        self.base = self.truth.clone();
                    }
                }
                Step::Copy(from, to, len) => self.copy(content, from, to, len),
            }
        }

        /// What a commit says of blocks, and what it sends of those that changed a little.
        fn check_sent(&self, content: &Content, manifest: &Manifest) {
            for (block, expected) in (0..).zip(self.truth.chunks(BLOCK)) {
                assert!(manifest.get(block).is_none_or(|hash| hash == BlockHash::of(expected)), "block {block}");
                if let Some(changed) = content.changed(block) {
                    let sent = content.read_changed(block, &changed).unwrap();
                    assert!(sent == expected[changed.range()], "block {block}: {changed:?}");
                }
            }
        }

        fn copy(&mut self, content: &Content, from: usize, to: usize, len: usize) {
            let len = len.min(self.truth.len().saturating_sub(from));
            if from < to + len && to < from + len {
                return;
            }
            use crate::cache::content::CopyNotYet::{Source, Target};
            loop {
                match content.copy_from(content, from as u64, to as u64, len as u64, Timestamp(1)) {
                    Ok(_) => break,
                    Err(Source(blocks) | Target(NotYet::Missing(blocks))) => self.fetch(content, &blocks),
                    Err(e) => panic!("{e:?}"),
                }
            }
            if len > 0 {
                let bytes = self.truth[from..from + len].to_vec();
                self.truth.resize(self.truth.len().max(to + len), 0);
                self.truth[to..to + len].copy_from_slice(&bytes);
            }
        }

        /// Every byte, missing ones from the base.
        fn check(&self, content: &Content) {
            let map = content.map();
            assert_eq!(map.size(), self.truth.len() as u64);
            for (block, expected) in self.truth.chunks(BLOCK).enumerate() {
                let start = block * BLOCK;
                let bytes = if map.is_missing(block as u32) {
                    assert_eq!(map.hash(block as u32), Some(BlockHash::of(&self.base[start..(start + BLOCK).min(self.base.len())])));
                    self.base[start..(start + BLOCK).min(self.base.len())].to_vec()
                } else {
                    BlockSource::read(content, block as u32).unwrap().to_vec()
                };
                assert!(bytes == expected, "block {block}");
                assert!(map.holds_data(block as u32) || bytes.iter().all(|&b| b == 0), "block {block} is taken for a hole");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn what_was_written_comes_back_byte_for_byte(
            blocks in proptest::collection::vec(0u8..4, 0..5), rest in prop_oneof![Just(0), Just(5), Just(BLOCK / 2)],
            steps in proptest::collection::vec(any_step(), 0..12)
        ) {
            let mut base: Vec<u8> = blocks.iter().flat_map(|&b| vec![b; BLOCK]).collect();
            base.extend(std::iter::repeat_n(9, rest));
            let dir = tempfile::tempdir().unwrap();
            let first = shelf(dir.path());
            let manifest = Model::manifest(&base);
            let content = first.create(InodeId(5), Version(1), BlockMap::new(manifest.clone(), false), true).unwrap();
            first.mark_writing(InodeId(5), &content, || "/f".into(), Owned::default()).unwrap();
            let mut model = Model { truth: base.clone(), base };
            for step in &steps {
                model.apply(&content, step);
            }
            model.check(&content);
            let unchanged = !content.is_changed();
            drop((first, content)); // A crash.
            let second = shelf(dir.path());
            let left = second.left();
            let (file, left) = left.files.iter().next().unwrap();
            let restored = restore(&second.writing_path(left.begun.ino, *file), left).unwrap();
            model.check(&restored);
            if unchanged {
                prop_assert!(!restored.is_changed());
            }
        }
    }

    #[test]
    fn the_time_that_a_program_set_comes_back_unless_it_wrote_again() {
        for writes_again in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let first = shelf(dir.path());
            let content = first.create(InodeId(5), Version(0), BlockMap::new(Manifest::empty(BITS), true), true).unwrap();
            first.mark_writing(InodeId(5), &content, || "/f".into(), Owned::default()).unwrap();
            content.write(0, b"text", false, Timestamp(1)).unwrap();
            content.set_mtime(Timestamp(77)).unwrap();
            if writes_again {
                // The disk's clock ticks in steps of some milliseconds.
                let before = std::fs::metadata(content.path()).unwrap().modified().unwrap();
                while std::fs::metadata(content.path()).unwrap().modified().unwrap() == before {
                    content.write(0, b"more", false, Timestamp(2)).unwrap();
                }
            }
            drop((first, content));
            let second = shelf(dir.path());
            let left = second.left();
            let (file, left) = left.files.iter().next().unwrap();
            let restored = restore(&second.writing_path(left.begun.ino, *file), left).unwrap();
            let mtime = restored.changes().unwrap().2;
            assert_eq!(mtime == Some(Timestamp(77)), !writes_again);
        }
    }

    #[test]
    fn a_write_that_was_not_finished_in_its_first_block_has_not_happened() {
        let dir = tempfile::tempdir().unwrap();
        let base = Model::manifest(&[7; BLOCK + 100]);
        let path = dir.path().join("f");
        let file = open_file(&path, true).unwrap();
        file.set_len(base.size()).unwrap();
        // It overwrites the block in which the file ends, and makes it longer: the bytes are there, the record is not.
        file.write_all_at(&[8; 5000], BLOCK as u64).unwrap();
        assert_eq!(cut_unfinished(&file, &base, &BTreeSet::from([0, 1])).unwrap(), base.size());
        file.set_len(base.size() + 50).unwrap();
        assert_eq!(cut_unfinished(&file, &base, &BTreeSet::from([0])).unwrap(), base.size() + 50);
    }
}
