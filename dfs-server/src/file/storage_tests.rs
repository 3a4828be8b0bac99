//! What may be deleted when, and what a restart makes of leftovers.

use dfs_common::ids::{InodeId, Version};

use super::super::upload::Parts;
use super::*;
use crate::store::Durability;
use crate::store::memory::MemoryStore;

struct Bench {
    dir: tempfile::TempDir,
    rows: Arc<MemoryStore>,
    storage: Arc<Storage>,
}

impl Bench {
    fn new(limit: Option<u64>) -> Self {
        let (dir, rows) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
        let storage = Storage::open(dir.path(), rows.clone(), limit).unwrap();
        storage.count_blocks().unwrap();
        Self { dir, rows, storage }
    }

    /// As a new process finds it.
    fn restart(&mut self) {
        self.storage = Storage::open(self.dir.path(), self.rows.clone(), None).unwrap();
        self.storage.count_blocks().unwrap();
    }

    fn collect(&self) -> u64 {
        while self.storage.collect(10).unwrap() {}
        self.storage.blocks()
    }
}

fn what(ino: u64) -> VersionOf {
    VersionOf { ino: InodeId(ino), version: Version(1) }
}

/// An upload of one block a letter.
fn upload(letters: &str) -> Arc<Upload> {
    let blocks: Vec<Vec<u8>> = letters.bytes().map(|b| vec![b; 1 << 16]).collect();
    let rows = blocks.iter().enumerate().map(|(i, b)| (i as u32, BlockHash::of(b))).collect();
    let manifest = Manifest::new(16, (blocks.len() as u64) << 16, rows).unwrap();
    let encoded = manifest.encode();
    let lengths: Vec<u32> = blocks.iter().map(|b| b.len() as u32).collect();
    let body = [encoded.clone(), blocks.concat()].concat();
    let parts = Parts { manifest_len: encoded.len() as u32, inline: lengths, ..Parts::default() };
    Arc::new(Upload::parse(&body.into(), &parts, None, |_| unreachable!("nothing is patched")).unwrap())
}

/// The same without its blocks.
fn bare(upload: &Upload) -> Upload {
    let mut bare = upload.clone();
    bare.inline.clear();
    bare
}

fn commit(storage: &Arc<Storage>, what: VersionOf, upload: &Arc<Upload>) {
    let hold = storage.hold(upload);
    storage.put_upload(upload).unwrap();
    storage.add(what, upload, Durability::Process).unwrap();
    hold.settle();
}

#[test]
fn blocks_go_with_their_last_version() {
    let b = Bench::new(None);
    let (ab, bc) = (upload("ab"), upload("bc"));
    commit(&b.storage, what(1), &ab);
    commit(&b.storage, what(2), &bc);
    assert_eq!((b.collect(), b.storage.used()), (3, 3 << 16));
    b.storage.drop_claims(&[(what(1), ab.hash)]).unwrap();
    assert_eq!(b.collect(), 2);
    b.storage.drop_claims(&[(what(2), bc.hash), (what(1), ab.hash)]).unwrap();
    assert_eq!((b.collect(), b.storage.used()), (0, 0));
}

#[test]
fn a_large_manifest_goes_with_its_version() {
    let b = Bench::new(None);
    let many = upload("abcdef");
    commit(&b.storage, what(1), &many);
    assert_eq!(b.collect(), 7);
    b.storage.drop_claims(&[(what(1), many.hash)]).unwrap();
    assert_eq!(b.collect(), 0);
}

#[test]
fn what_was_uploaded_and_not_committed_goes_when_nothing_holds_it() {
    let b = Bench::new(None);
    let ab = upload("ab");
    let hold = b.storage.hold(&ab);
    b.storage.put_upload(&ab).unwrap();
    b.storage.unneeded(ab.blocks().keys().copied().collect());
    assert_eq!(b.collect(), 2, "held");
    b.storage.pin(Some(SessionId(1)), &[*ab.blocks().keys().next().unwrap()]);
    drop(hold);
    assert_eq!(b.collect(), 1, "pinned");
}

#[test]
fn a_restart_finds_what_a_crash_left_and_only_that() {
    let mut b = Bench::new(None);
    let (ab, cd) = (upload("ab"), upload("cd"));
    commit(&b.storage, what(1), &ab);
    b.storage.hold(&cd).keep();
    b.storage.put_upload(&cd).unwrap();
    b.restart();
    b.storage.sweep().unwrap();
    assert_eq!(b.collect(), 2);
    assert!(b.storage.absent(what(9), &bare(&ab)).unwrap().is_empty());
}

#[test]
fn a_version_that_was_being_published_is_indexed_at_start() {
    let mut b = Bench::new(None);
    let (ab, cd) = (upload("ab"), upload("cd"));
    b.storage.hold(&ab).keep();
    b.storage.put_upload(&ab).unwrap();
    let _under_way = [b.storage.note(what(1), &ab, false).unwrap(), b.storage.note(what(2), &cd, false).unwrap()];
    assert!(b.storage.add(what(1), &ab, Durability::Process).unwrap());
    b.restart();
    assert_eq!(b.storage.index.claims(what(1)).unwrap()[0].0, ab.hash);
    assert!(b.storage.index.claims(what(2)).unwrap().is_empty(), "its blocks are missing");
    b.storage.sweep().unwrap();
    assert_eq!(b.collect(), 2);
}

/// What a loss of power leaves of what nobody waited for: nothing, or files without their content.
fn lose_power(b: &mut Bench, uploads: &[&Arc<Upload>]) {
    for hash in uploads.iter().flat_map(|upload| upload.blocks().keys().copied().chain([upload.hash])) {
        let path = b.storage.files.path(hash);
        match hash.0[0] % 2 {
            0 => drop(std::fs::remove_file(path)),
            _ => std::fs::write(path, vec![0; 1 << 16]).unwrap(),
        }
    }
    b.rows = Arc::new(MemoryStore::default());
    b.restart();
}

#[test]
fn what_was_noted_with_its_blocks_is_whole_after_a_loss_of_power() {
    let mut b = Bench::new(None);
    let (small, large, lost) = (upload("ab"), upload("cdefg"), upload("xy"));
    for (n, upload) in [(1, &small), (2, &large)] {
        b.storage.note(what(n), upload, true).unwrap().sync().unwrap();
        commit(&b.storage, what(n), upload);
        assert_eq!(b.storage.unflushed(upload, true).is_empty(), n == 1, "what is more is flushed as files");
    }
    b.storage.files.flush_all().unwrap();
    commit(&b.storage, what(7), &lost);
    lose_power(&mut b, &[&small, &lost]);
    for (n, upload, blocks) in [(1, &small, 2), (2, &large, 5)] {
        let claims = b.storage.index.claims(what(n)).unwrap();
        assert_eq!((claims.len(), claims[0].0, upload.blocks().len()), (1, upload.hash, blocks));
        for &hash in upload.blocks().keys() {
            assert!(matches!(b.storage.files.read(hash).unwrap(), Found::Block(_)));
        }
    }
    assert_eq!(b.storage.manifest(large.hash, None).unwrap().as_ref(), Some(&*large.manifest));
    assert!(b.storage.index.claims(what(7)).unwrap().is_empty());
    b.storage.sweep().unwrap();
    assert_eq!((b.collect(), b.storage.used()), (8, 7 * (1 << 16) + large.encoded.len() as u64), "the manifest of five is a block, too");
}

#[test]
fn what_is_settled_is_not_made_again() {
    let mut b = Bench::new(None);
    let (ab, cd) = (upload("ab"), upload("cd"));
    for (n, upload) in [(1, &ab), (2, &cd)] {
        let entry = b.storage.note(what(n), upload, true).unwrap();
        commit(&b.storage, what(n), upload);
        drop(entry);
        b.storage.flush().unwrap();
        assert!(!b.storage.has_unflushed());
    }
    b.storage.drop_claims(&[(what(1), ab.hash)]).unwrap();
    assert_eq!(b.collect(), 2);
    b.restart();
    assert!(b.storage.index.claims(what(1)).unwrap().is_empty());
    assert_eq!(b.collect(), 2);
}

#[test]
fn what_is_added_once_more_is_young_again() {
    let b = Bench::new(None);
    let ab = upload("ab");
    let claim = (what(1), ab.hash);
    b.storage.put_upload(&ab).unwrap();
    assert!(b.storage.index.add(claim, (&ab.manifest, &ab.encoded), None, 1, Durability::Process).unwrap());
    // Between a look at the rows and the removal of what is old the client has tried again.
    assert!(!b.storage.add(what(1), &ab, Durability::Process).unwrap());
    b.storage.drop_older(&[claim], 1).unwrap();
    assert_eq!((b.storage.index.has(claim).unwrap(), b.collect()), (true, 2));
    b.storage.drop_older(&[claim], seconds()).unwrap();
    assert_eq!((b.storage.index.has(claim).unwrap(), b.collect()), (false, 0));
}

#[test]
fn what_is_refused_stays_while_the_same_is_on_its_way_in_once_more() {
    let b = Bench::new(None);
    let ab = upload("ab");
    let claim = (what(1), ab.hash);
    commit(&b.storage, what(1), &ab);
    let (refused, again) = (b.storage.hold(&ab), b.storage.hold(&ab));
    assert!(!refused.undo(claim).unwrap() && b.storage.index.has(claim).unwrap());
    drop(again);
    assert!(refused.undo(claim).unwrap() && !b.storage.index.has(claim).unwrap());
    drop(refused);
    assert_eq!(b.collect(), 0);
}

#[test]
fn a_full_server_says_so_and_keeps_what_it_has() {
    let b = Bench::new(Some(3 << 16));
    let (ab, cd) = (upload("ab"), upload("cd"));
    commit(&b.storage, what(1), &ab);
    let hold = b.storage.hold(&cd);
    assert_eq!(b.storage.put_upload(&cd).unwrap_err().kind(), ErrorKind::NoSpace);
    drop(hold);
    assert_eq!(b.collect(), 2);
    b.storage.put_upload(&ab).unwrap();
    assert_eq!(b.storage.capacity(), 3 << 16);
}

#[test]
fn a_block_of_a_wrong_length_counts_as_missing() {
    let b = Bench::new(None);
    let ab = upload("ab");
    commit(&b.storage, what(1), &ab);
    let hash = *ab.blocks().keys().next().unwrap();
    std::fs::write(b.storage.files.path(hash), b"short").unwrap();
    let bare = bare(&ab);
    assert_eq!(b.storage.absent(what(9), &bare).unwrap(), [hash]);
    assert_eq!(b.storage.files.len(hash), None);
}

#[test]
fn reads_across_blocks_and_holes() {
    let b = Bench::new(None);
    let (block, size) = (BlockHash::of(&[7u8; 1 << 16]), (3 << 16) - 5);
    let manifest = Manifest::new(16, size, vec![(1, block)]).unwrap();
    b.storage.put(block, &[7; 1 << 16], WriteBack::Later).unwrap();
    let mut content = vec![9; 1 << 17];
    assert!(b.storage.read_into(&manifest, 1000, &mut content, Check::Hash).unwrap().is_empty());
    let expected: Vec<u8> = (1000..1000 + (1 << 17)).map(|at| if at >> 16 == 1 { 7 } else { 0 }).collect();
    assert_eq!(content, expected);
    content.fill(9);
    assert!(b.storage.read_into(&manifest, 2 << 16, &mut content[..100], Check::Hash).unwrap().is_empty(), "the hole behind it");
    assert_eq!(content[..101], [vec![0; 100], vec![9]].concat());
    assert!(b.storage.read_into(&manifest, (1 << 16) + 9, &mut content[..100], Check::Length).unwrap().is_empty(), "within the block");
    assert_eq!(content[..101], [vec![7; 100], vec![9]].concat());
    let mut found = |check| b.storage.read_into(&manifest, 1000, &mut content, check).unwrap();
    std::fs::write(b.storage.files.path(block), vec![8; 1 << 16]).unwrap();
    assert_eq!(found(Check::Hash), [(1, Found::Corrupt)]);
    assert_eq!(found(Check::Length), [], "who reads finds that");
    std::fs::write(b.storage.files.path(block), b"rubbish").unwrap();
    assert_eq!(found(Check::Length), [(1, Found::Corrupt)]);
    b.storage.discard(block);
    assert_eq!(found(Check::Length), [(1, Found::Missing)]);
}
