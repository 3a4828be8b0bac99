//! What the journal of a cache directory says: its records, their form on disk, and what
//! a sequence of them amounts to. Pure.
//!
//! On disk a record is the length of its payload (u32, little endian), the first 8 bytes
//! of the payload's BLAKE3, and the payload (postcard). Reading ends at the first record
//! that is not whole: the one that was being written when the process died.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dfs_common::attributes::{Attributes, Timestamp};
use dfs_common::block::Manifest;
use dfs_common::ids::{InodeId, SessionId, Version};
use serde::{Deserialize, Serialize};

const HEADER: usize = 12;

/// One mount of the cache directory, from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The cluster's random name.
    pub cluster: String,
    /// The kernel's random name of this boot: after another one, what was not synced may be missing.
    pub boot: String,
    /// The session that held the locks.
    pub session: SessionId,
}

/// Whose a file is, for the case that nobody can be asked any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl From<&Attributes> for Owned {
    fn from(attributes: &Attributes) -> Self {
        Self { uid: attributes.uid, gid: attributes.gid, mode: attributes.mode }
    }
}

/// A file that is being written, at the moment at which that begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The file.
    pub ino: InodeId,
    /// Where it was, as far as that is known; for people.
    pub path: String,
    /// Whose it was.
    pub owned: Owned,
    /// The version that the changes are built on.
    pub version: Version,
    /// Its manifest, encoded.
    pub manifest: Bytes,
    /// Blocks of it that are not in the cache file, as runs (first, last).
    pub missing: Vec<(u32, u32)>,
}

/// One entry of the journal. `file` is the number in the cache file's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A mount starts, or goes on under a new session: what follows is its.
    Start(Run),
    /// Noted before the open for writing returns.
    Begin(u64, Begun),
    /// These missing blocks are in the cache file now: noted after their bytes.
    Present(u64, Vec<(u32, u32)>),
    /// The file was cut: no block from this one on is missing any more. Noted after the cut.
    Cut(u64, u32),
    /// A program set the modification time, when the cache file's own was the second one.
    Timed(u64, Timestamp, Timestamp),
    /// The content was published as this version with this manifest.
    Rebased(u64, Version, Bytes),
    /// Everything that was written is elsewhere.
    End(u64),
    /// As `Begin`, with the manifest as what differs from the last one of another file, which may have ended.
    BeginSince(u64, u64, Begun),
    /// As `Rebased`, with what differs from the file's manifest before.
    Changed(u64, Version, Bytes),
}

impl Record {
    /// The file that it is about.
    pub fn file(&self) -> Option<u64> {
        match self {
            Self::Start(_) => None,
            Self::Begin(file, _)
            | Self::Present(file, _)
            | Self::Cut(file, _)
            | Self::Timed(file, ..)
            | Self::Rebased(file, ..)
            | Self::BeginSince(file, ..)
            | Self::Changed(file, ..)
            | Self::End(file) => Some(*file),
        }
    }

    /// Its form on disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        out = postcard::to_extend(self, out).expect("a record serializes into memory");
        let len = u32::try_from(out.len() - HEADER).expect("a manifest is below 64 MiB");
        let check = *blake3::hash(&out[HEADER..]).as_bytes();
        out[..4].copy_from_slice(&len.to_le_bytes());
        out[4..HEADER].copy_from_slice(&check[..HEADER - 4]);
        out
    }

    /// The first record of `bytes` and how long it is; `None` where it is not whole.
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let (header, rest) = bytes.split_at_checked(HEADER)?;
        let payload = rest.get(..u32::from_le_bytes(header[..4].try_into().ok()?) as usize)?;
        if blake3::hash(payload).as_bytes()[..HEADER - 4] != header[4..] {
            return None;
        }
        Some((postcard::from_bytes(payload).ok()?, HEADER + payload.len()))
    }
}

/// Rising numbers as runs (first, last).
pub fn runs(blocks: impl IntoIterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == block => *last = block,
            _ => runs.push((block, block)),
        }
    }
    runs
}

/// A file that was being written when the journal ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// In [`History::runs`].
    pub run: usize,
    /// As of now: version, manifest and missing blocks have moved on since the beginning.
    pub begun: Begun,
    /// The last modification time that a program set, and the cache file's own then.
    pub timed: Option<(Timestamp, Timestamp)>,
}

/// What a journal amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Mounts, in order.
    pub runs: Vec<Run>,
    /// Files that were being written, by number.
    pub files: BTreeMap<u64, Left>,
    /// The last manifests of others, by which later ones are told.
    ended: BTreeMap<u64, Bytes>,
    /// Bytes of whole records.
    pub len: usize,
}

impl History {
    /// Reads a journal up to its first record that is not whole.
    pub fn read(bytes: &[u8]) -> Self {
        let mut history = Self::default();
        while let Some((record, len)) = Record::decode(&bytes[history.len..]) {
            history.len += len;
            history.apply(record);
        }
        history
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Start(run) => self.runs.push(run),
            Record::Begin(file, begun) => {
                // Every journal starts with a run.
                let Some(run) = self.runs.len().checked_sub(1) else { return };
                self.files.insert(file, Left { run, begun, timed: None });
            }
            Record::Present(file, blocks) => self.change(file, |left| left.begun.missing = without(&left.begun.missing, &blocks)),
            Record::Cut(file, from) => self.change(file, |left| left.begun.missing = without(&left.begun.missing, &[(from, u32::MAX)])),
            Record::Timed(file, mtime, written) => self.change(file, |left| left.timed = Some((mtime, written))),
            Record::Rebased(file, version, manifest) => self.change(file, |left| (left.begun.version, left.begun.manifest) = (version, manifest)),
            Record::End(file) => {
                self.ended.extend(self.files.remove(&file).map(|left| (file, left.begun.manifest)));
            }
            Record::BeginSince(file, since, begun) => {
                let base = self.files.get(&since).map(|left| &left.begun.manifest).or_else(|| self.ended.get(&since));
                let manifest = changed(base, begun.manifest);
                self.apply(Record::Begin(file, Begun { manifest, ..begun }));
            }
            Record::Changed(file, version, delta) => {
                let manifest = changed(self.files.get(&file).map(|left| &left.begun.manifest), delta);
                self.apply(Record::Rebased(file, version, manifest));
            }
        }
    }

    fn change(&mut self, file: u64, change: impl FnOnce(&mut Left)) {
        if let Some(left) = self.files.get_mut(&file) {
            change(left);
        }
    }

    /// The shortest journal that amounts to the same. Where `settled`, of the earlier runs only those of files that are left.
    pub fn compacted(&self, settled: bool) -> Vec<Record> {
        let used: BTreeSet<usize> = self.files.values().map(|left| left.run).collect();
        let mut records = Vec::new();
        for (index, run) in self.runs.iter().enumerate() {
            if settled && !used.contains(&index) && index + 1 < self.runs.len() {
                continue;
            }
            records.push(Record::Start(run.clone()));
            for (file, left) in self.files.iter().filter(|(_, left)| left.run == index) {
                records.push(Record::Begin(*file, left.begun.clone()));
                records.extend(left.timed.map(|(mtime, written)| Record::Timed(*file, mtime, written)));
            }
        }
        records
    }
}

/// The manifest that `delta` makes of `base`. Where it makes none, `delta` itself: whoever reads that finds that it is no
/// manifest, and the file is kept as it is.
fn changed(base: Option<&Bytes>, delta: Bytes) -> Bytes {
    let manifest = base.and_then(|base| Manifest::decode(base).ok()).and_then(|base| Manifest::from_delta(&base, &delta).ok());
    manifest.map_or(delta, |manifest| manifest.encode().into())
}

/// The numbers in `runs` that are not in `gone`.
fn without(runs: &[(u32, u32)], gone: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut left = runs.to_vec();
    for &(from, to) in gone {
        let cut = |(first, last): (u32, u32)| {
            let before = (first < from).then(|| (first, last.min(from.saturating_sub(1))));
            let after = (last > to).then(|| (first.max(to.saturating_add(1)), last));
            before.into_iter().chain(after)
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left
}

#[cfg(test)]
mod tests {
    use dfs_common::block::BlockHash;
    use proptest::prelude::*;

    use super::*;

    fn run(session: u64) -> Run {
        Run { cluster: "c".into(), boot: "b".into(), session: SessionId(session) }
    }

    fn begun(ino: u64, missing: &[(u32, u32)]) -> Begun {
        Begun {
            ino: InodeId(ino),
            path: "/a/b".into(),
            owned: Owned::default(),
            version: Version(3),
            manifest: manifest(0).encode().into(),
            missing: missing.to_vec(),
        }
    }

    /// Of two blocks, the second one of which is `n`'s own.
    fn manifest(n: u64) -> Manifest {
        Manifest::new(16, 2 << 16, vec![(0, BlockHash::of(b"")), (1, BlockHash::of(&n.to_le_bytes()))]).unwrap()
    }

    #[test]
    fn a_manifest_is_told_by_the_one_before() {
        let delta = |n: u64, before: u64| Bytes::from(manifest(n).encode_delta(&manifest(before)));
        let since =
            |file: u64, other: u64, n: u64, before: u64| Record::BeginSince(file, other, Begun { manifest: delta(n, before), ..begun(1, &[]) });
        let mut records = vec![Record::Start(run(1)), Record::Begin(7, begun(1, &[])), Record::Changed(7, Version(4), delta(4, 0))];
        let last = |records: &[Record], file: u64| History::read(&encoded(records)).files[&file].begun.manifest.clone();
        assert_eq!(last(&records, 7), manifest(4).encode());
        records.extend([Record::End(7), since(8, 7, 5, 4), since(9, 8, 6, 5)]);
        assert_eq!((last(&records, 8), last(&records, 9)), (manifest(5).encode().into(), manifest(6).encode().into()));
        records.push(since(10, 99, 7, 6));
        assert!(Manifest::decode(&last(&records, 10)).is_err(), "of nothing that is known nothing is made");
    }

    fn encoded(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(Record::encode).collect()
    }

    #[test]
    fn a_journal_amounts_to_what_is_being_written() {
        let records = [
            Record::Start(run(1)),
            Record::Begin(7, begun(1, &[(0, 9)])),
            Record::Begin(8, begun(2, &[])),
            Record::Present(7, vec![(0, 0), (4, 5)]),
            Record::Cut(7, 8),
            Record::End(8),
            Record::Start(run(2)),
            Record::Rebased(7, Version(4), Bytes::from_static(b"new")),
            Record::Timed(7, Timestamp(5), Timestamp(6)),
        ];
        let history = History::read(&encoded(&records));
        assert_eq!(history.runs, [run(1), run(2)]);
        let left = &history.files[&7];
        assert_eq!((left.run, &left.begun.missing[..], left.begun.version), (0, &[(1, 3), (6, 7)][..], Version(4)));
        assert_eq!(left.timed, Some((Timestamp(5), Timestamp(6))));
        assert_eq!(history.files.len(), 1);
    }

    #[test]
    fn a_torn_tail_and_a_changed_byte_end_the_journal() {
        let records = [Record::Start(run(1)), Record::Begin(7, begun(1, &[])), Record::End(7)];
        let bytes = encoded(&records);
        let whole = encoded(&records[..2]).len();
        for end in whole..bytes.len() {
            let history = History::read(&bytes[..end]);
            assert_eq!((history.len, history.files.len()), (whole, 1), "{end}");
        }
        let mut bad = bytes.clone();
        bad[whole - 1] ^= 1;
        assert!(History::read(&bad).files.is_empty());
    }

    #[test]
    fn runs_without_files_go_once_all_is_settled() {
        let records = [Record::Start(run(1)), Record::Start(run(2)), Record::Begin(7, begun(1, &[])), Record::Start(run(3))];
        let history = History::read(&encoded(&records));
        assert_eq!(History::read(&encoded(&history.compacted(false))).runs, history.runs);
        assert_eq!(History::read(&encoded(&history.compacted(true))).runs, [run(2), run(3)]);
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let file = 0u64..3;
        let blocks = || proptest::collection::btree_set(0u32..20, 0..6).prop_map(runs);
        prop_oneof![
            (file.clone(), blocks()).prop_map(|(file, missing)| Record::Begin(file, begun(file, &missing))),
            (file.clone(), blocks()).prop_map(|(file, blocks)| Record::Present(file, blocks)),
            (file.clone(), 0u32..20).prop_map(|(file, from)| Record::Cut(file, from)),
            (file.clone(), any::<i64>()).prop_map(|(file, at)| Record::Timed(file, Timestamp(at), Timestamp(at))),
            (file.clone(), any::<u64>()).prop_map(|(file, v)| Record::Rebased(file, Version(v), Bytes::from_static(b"m"))),
            file.clone().prop_map(Record::End),
            (file, 0u64..20).prop_map(|(file, hash)| Record::Changed(file, Version(hash), manifest(hash).encode_delta(&manifest(0)).into())),
            (1u64..9).prop_map(|s| Record::Start(run(s))),
        ]
    }

    proptest! {
        #[test]
        fn compaction_changes_nothing_wherever_it_comes(records in proptest::collection::vec(any_record(), 0..40), at in 0usize..40) {
            let records: Vec<Record> = std::iter::once(Record::Start(run(1))).chain(records).collect();
            let at = at.min(records.len());
            let before = History::read(&encoded(&records[..at]));
            let compacted = [before.compacted(false), records[at..].to_vec()].concat();
            let (whole, short) = (History::read(&encoded(&records)), History::read(&encoded(&compacted)));
            prop_assert_eq!((whole.runs, whole.files), (short.runs, short.files));
        }

        #[test]
        fn what_is_taken_out_of_runs_is_out(all in proptest::collection::btree_set(0u32..30, 0..30), gone in proptest::collection::btree_set(0u32..30, 0..30)) {
            let expected: Vec<(u32, u32)> = runs(all.difference(&gone).copied());
            let left = without(&runs(all), &runs(gone));
            let flat = |r: &[(u32, u32)]| r.iter().flat_map(|&(a, b)| a..=b).collect::<Vec<_>>();
            prop_assert_eq!(flat(&left), flat(&expected));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = History::read(&bytes);
        }
    }
}
