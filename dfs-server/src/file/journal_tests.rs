//! What a restart finds of the journal, wherever it was cut, and when its files are used again.

use super::*;

fn what(n: u64) -> VersionOf {
    VersionOf { ino: InodeId(n), version: Version(n + 1) }
}

impl Journal {
    /// Whether somebody has waited for the last entry.
    pub(crate) fn is_on_disk(&self) -> bool {
        let inner = self.inner.lock();
        *self.files[inner.current].synced.lock() >= inner.last[inner.current]
    }
}

/// The inodes of what a new process finds.
fn found(dir: &Path) -> Vec<u64> {
    Journal::open(dir).unwrap().1.iter().map(|note| note.what.ino.0).collect()
}

fn write(dir: &Path, n: usize, content: &[u8]) {
    std::fs::write(dir.join(format!("journal.{n}")), content).unwrap();
}

fn read(dir: &Path, n: usize) -> Vec<u8> {
    std::fs::read(dir.join(format!("journal.{n}"))).unwrap()
}

#[test]
fn entries_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, old) = Journal::open(dir.path()).unwrap();
    assert!(old.is_empty() && !journal.has_unsettled());
    let (a, b) = (Bytes::from_static(b"block"), Bytes::from(vec![7; 300_000]));
    let _entries =
        [journal.note(what(1), b"one", &[&a, &b]), journal.note(what(2), b"", &[]), journal.note(what(3), b"three", &[])].map(Option::unwrap);
    let (_, old) = Journal::open(dir.path()).unwrap();
    let expected = [(b"one".as_slice(), vec![&a, &b]), (b"", vec![]), (b"three", vec![])];
    for ((note, (manifest, blocks)), n) in old.iter().zip(expected).zip(1..) {
        assert_eq!((note.what, note.parts.manifest_len as usize), (what(n), manifest.len()));
        assert_eq!(note.parts.inline, blocks.iter().map(|block| block.len() as u32).collect::<Vec<_>>());
        assert_eq!(note.body, [manifest, &blocks.into_iter().flatten().copied().collect::<Vec<u8>>()].concat());
    }
}

#[test]
fn a_torn_entry_hides_no_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let _entries = [1, 2, 3].map(|n| journal.note(what(n), &[n as u8; 20], &[]).unwrap());
    let whole = read(dir.path(), 0);
    let len = PREFIX + HEAD + 20;
    for at in 0..3 * len {
        // Cut there, the rest as it was before, or changed.
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        let mut unwritten = whole.clone();
        unwritten[at..].fill(0);
        for content in [&whole[..at], &damaged, &unwritten] {
            write(dir.path(), 0, content);
            let left = found(dir.path());
            assert_eq!(left, (1..=(at / len) as u64).collect::<Vec<_>>(), "at {at}");
        }
    }
}

#[test]
fn arbitrary_content_is_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    for content in [vec![0xff; 100], vec![0; 100], [72u32.to_le_bytes().as_slice(), &[0xff; 200]].concat(), u32::MAX.to_le_bytes().to_vec()] {
        write(dir.path(), 0, &content);
        assert!(found(dir.path()).is_empty());
    }
}

#[test]
fn nothing_is_found_of_what_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let mut entries = [1, 2, 3].map(|n| journal.note(what(n), b"manifest", &[])).map(Option::unwrap).into_iter();
    let first = entries.next().unwrap();
    drop(entries);
    assert_eq!(journal.over(), first.number - 1, "the first one is under way");
    journal.settle(journal.over());
    assert_eq!(found(dir.path()), [1, 2, 3]);
    drop(first);
    let over = journal.over();
    let fourth = journal.note(what(4), b"manifest", &[]).unwrap();
    journal.settle(over);
    assert_eq!(found(dir.path()), [1, 2, 3, 4], "the next entry says so");
    let fifth = journal.note(what(5), b"manifest", &[]).unwrap();
    assert_eq!(found(dir.path()), [4, 5]);
    drop((fourth, fifth));
    assert!(journal.has_unsettled());
    journal.settle(journal.over());
    assert!(!journal.has_unsettled() && found(dir.path()).is_empty());
    // A new turn: what is left of the last one is not of it.
    let _sixth = journal.note(what(6), b"manifest", &[]).unwrap();
    assert_eq!(found(dir.path()), [6]);
    // Where the disk lacks the entry in front of it, nobody waited for it.
    let mut content = read(dir.path(), 0);
    content[..PREFIX].fill(0);
    write(dir.path(), 0, &content);
    assert!(found(dir.path()).is_empty());
}

#[test]
fn a_full_file_waits_for_what_is_in_the_other_one() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let block = Bytes::from(vec![1; 1 << 20]);
    let note = |n| journal.note(what(n), b"manifest", &[&block]);
    let first = note(1).unwrap();
    let mut entries: Vec<Entry> = (2..=14).map_while(note).collect();
    assert_eq!(entries.len(), 13, "seven in each");
    assert!(note(15).is_none());
    entries.truncate(3);
    journal.settle(journal.over());
    assert!(note(15).is_none(), "the first one is under way");
    drop(first);
    journal.settle(journal.over());
    assert!(note(15).is_none(), "so is the second");
    drop(entries);
    journal.settle(journal.over());
    assert!(note(15).is_some());
    assert!(found(dir.path()).ends_with(&[15]));
    assert!(journal.note(what(16), b"manifest", &[&Bytes::from(vec![0; MAX_BYTES as usize])]).is_none());
}

#[test]
fn one_flush_is_that_of_all_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let [first, second, third] = [1, 2, 3].map(|n| journal.note(what(n), b"manifest", &[]).unwrap());
    second.sync().unwrap();
    assert_eq!(*journal.files[0].synced.lock(), third.number);
    // After a failure nobody is told that the disk has anything more.
    journal.failed.store(true, Ordering::Relaxed);
    first.sync().unwrap();
    third.sync().unwrap();
    assert!(journal.note(what(4), b"manifest", &[]).is_none());
    *journal.files[0].synced.lock() = third.number - 1;
    assert_eq!(third.sync().unwrap_err().kind(), ErrorKind::Internal);
}

#[test]
fn numbers_go_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for n in 1..5 {
        let (journal, old) = Journal::open(dir.path()).unwrap();
        assert_eq!(old.iter().map(|note| note.what.ino.0).collect::<Vec<_>>(), (1..n).rev().take(1).collect::<Vec<_>>());
        journal.settle(journal.over());
        journal.note(what(n), b"manifest", &[]).unwrap().keep();
    }
}
