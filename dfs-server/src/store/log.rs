//! The log before the database: two files that are written in turn, over and over.
//!
//! One holds the commits that the database is about to take, the other one those since.
//! Being written over, they do not grow, so that a sync has no metadata to write. What was
//! there before is told from what is new by a chain: each entry's hash covers the hash of
//! the one before, and the first one's the file's head.
//!
//! Head, little endian: `dfs log\n`, number u64, revision u64, the chain's value at the end
//! of the file before (32), hash of all that (32). Entry: length u32 of what follows the hash, hash (32),
//! revision u64, and for each change: length u32 of the key, length u32 of the value plus 1 (0: deleted), key, value.
//! Invariant: what a file says counts only if it goes on where the database, or the one before it, ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dfs_common::{Error, ErrorKind, Result};

use super::{Key, Value};

const MAGIC: &[u8; 8] = b"dfs log\n";
const HEAD: usize = 88;
/// Length and hash of an entry.
const PREFIX: usize = 36;

pub(super) type Chain = [u8; 32];
/// Changes to apply, in the order of keys.
pub(super) type Changes = BTreeMap<Key, Option<Value>>;

/// The end of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The file's number.
    pub(super) number: u64,
    /// The chain's value there.
    pub(super) chain: Chain,
}

/// The two files.
#[derive(Debug)]
pub(super) struct Log {
    files: [LogFile; 2],
    /// The number of the file that is written; the file itself is its remainder by 2.
    number: u64,
    /// Where its next entry goes.
    end: u64,
    chain: Chain,
    /// What the database has once it has taken the file before.
    before: Place,
    /// The file before may hold what is on no disk yet.
    unsynced_before: bool,
    /// The number of a file of which nobody knows what the disk has, because a sync of it failed.
    doubtful: Option<u64>,
    /// What was taken back stands in the file: nothing may follow it.
    broken: bool,
}

/// The end of what was appended, to come back to.
#[derive(Debug)]
pub(super) struct Mark {
    end: u64,
    chain: Chain,
}

#[derive(Debug)]
struct LogFile {
    file: File,
    path: PathBuf,
}

/// What the files held when they were opened, and the database has not.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Of the file before, where the database has not taken that.
    pub(super) moving: Option<Changes>,
    /// Of the file that is written on.
    pub(super) young: Changes,
    /// The last commit's revision; 0 where there is none.
    pub(super) revision: u64,
}

impl LogFile {
    fn open(path: PathBuf) -> Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        Ok(Self { file: file.map_err(|e| Error::from_io(&e, path.display()))?, path })
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(|e| Error::from_io(&e, self.path.display()))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::from_io(&e, self.path.display()))
    }

    fn content(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.path).map_err(|e| Error::from_io(&e, self.path.display()))
    }
}

impl Log {
    /// Opens the files beside the database at `path`, which has taken all up to `moved`; with what it has not. `Conflict` where the files belong to another state of the database.
    pub(super) fn open(path: &Path, moved: Place) -> Result<(Self, Left)> {
        let name = |which: u32| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!("-log-{which}"));
            PathBuf::from(name)
        };
        let files = [LogFile::open(name(0))?, LogFile::open(name(1))?];
        if let Some(folder) = path.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| Error::from_io(&e, folder.display()))?;
        }
        let mut contents = Vec::new();
        for file in &files {
            let content = file.content()?;
            if let Some(head) = Head::decode(&content).filter(|head| head.before.number >= moved.number) {
                contents.push((head, content));
            }
        }
        contents.sort_by_key(|(head, _)| head.before.number);
        let mut left = Left::default();
        let mut log =
            Self { files, number: moved.number, end: 0, chain: moved.chain, before: moved, unsynced_before: true, doubtful: None, broken: false };
        for (head, content) in contents {
            if head.before == log.place() {
                if log.place() != moved {
                    left.moving = Some(std::mem::take(&mut left.young));
                }
                head.replay(&content, &mut left, &mut log);
            } else if head.before.number == moved.number || head.before.number > moved.number + 1 {
                let message = format!(
                    "the log in {0}-log-0 and {0}-log-1 does not go on where the database ends: where that is from a backup, remove these two files",
                    path.display()
                );
                return Err(Error::new(ErrorKind::Conflict, message));
            } else {
                log::warn!("{}: the power failed, and what was committed last and not synced is lost", path.display());
            }
        }
        if log.place() == moved {
            log.next(left.revision)?;
        }
        Ok((log, left))
    }

    /// Where what was appended ends.
    fn place(&self) -> Place {
        Place { number: self.number, chain: self.chain }
    }

    /// Where the file before ends.
    pub(super) fn before(&self) -> Place {
        self.before
    }

    /// Goes on in the other file, which the database has taken. Where this fails nothing has changed.
    pub(super) fn next(&mut self, revision: u64) -> Result<()> {
        self.check()?;
        let head = Head { revision, before: self.place() };
        let (bytes, chain) = head.encode();
        self.files[(head.number() % 2) as usize].write(&bytes, 0)?;
        (self.number, self.end, self.chain, self.unsynced_before) = (head.number(), HEAD as u64, chain, true);
        self.before = head.before;
        Ok(())
    }

    /// Appends one commit. Where this fails nothing has changed.
    pub(super) fn append(&mut self, revision: u64, changes: &Changes) -> Result<()> {
        self.check()?;
        let (entry, chain) = encode(&self.chain, revision, changes);
        self.files[(self.number % 2) as usize].write(&entry, self.end)?;
        self.end += entry.len() as u64;
        self.chain = chain;
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.broken { Err(Error::new(ErrorKind::Internal, "the log could not be written before: restart the service")) } else { Ok(()) }
    }

    /// The end as it is now, within the file that is written.
    pub(super) fn mark(&self) -> Mark {
        Mark { end: self.end, chain: self.chain }
    }

    /// Takes back what was appended since `mark`. Where not even that can be written, nothing is any more, and the next start finds it.
    pub(super) fn take_back(&mut self, mark: Mark) {
        (self.end, self.chain) = (mark.end, mark.chain);
        if let Err(e) = self.files[(self.number % 2) as usize].write(&[0; PREFIX], self.end) {
            log::error!("{e}; nothing is committed from here on");
            self.broken = true;
        }
    }

    /// Returns when all that was appended is on the disk, or in the database.
    pub(super) fn sync(&mut self) -> Result<()> {
        if self.doubtful.is_some() {
            // What the kernel could not write it may have forgotten: a second sync would prove nothing.
            return Err(Error::new(ErrorKind::Internal, "the log could not be synced before, and the database has not taken it yet"));
        }
        for (number, is_wanted) in [(self.number.wrapping_sub(1), self.unsynced_before), (self.number, true)] {
            if is_wanted {
                self.files[(number % 2) as usize].sync().inspect_err(|_| self.doubtful = Some(number))?;
            }
        }
        self.unsynced_before = false;
        Ok(())
    }

    /// True where a sync has failed since the database took anything.
    pub(super) fn is_doubtful(&self) -> bool {
        self.doubtful.is_some()
    }

    /// The file before is in the database, on the disk.
    pub(super) fn moved(&mut self) {
        self.unsynced_before = false;
        self.doubtful = self.doubtful.filter(|number| *number >= self.number);
    }
}

struct Head {
    revision: u64,
    before: Place,
}

impl Head {
    fn number(&self) -> u64 {
        self.before.number + 1
    }

    fn encode(&self) -> (Vec<u8>, Chain) {
        let mut bytes = Vec::with_capacity(HEAD);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.number().to_le_bytes());
        bytes.extend_from_slice(&self.revision.to_le_bytes());
        bytes.extend_from_slice(&self.before.chain);
        let chain = *blake3::hash(&bytes).as_bytes();
        bytes.extend_from_slice(&chain);
        (bytes, chain)
    }

    /// `None` where `content` has no whole head.
    fn decode(content: &[u8]) -> Option<Self> {
        let head = content.get(..HEAD)?;
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
        let whole = head.starts_with(MAGIC) && blake3::hash(&head[..HEAD - 32]).as_bytes()[..] == head[HEAD - 32..];
        let before = Place { number: number(8).checked_sub(1)?, chain: head[24..56].try_into().expect("32 bytes") };
        whole.then(|| Self { revision: number(16), before })
    }

    /// Adds the entries of its file, which `content` is, to `left`; `log` goes on behind them.
    fn replay(&self, content: &[u8], left: &mut Left, log: &mut Log) {
        let (_, mut chain) = self.encode();
        left.revision = self.revision.max(left.revision);
        let mut rest = &content[HEAD..];
        while let Some((changes, revision, next, after)) = decode(&chain, rest) {
            left.young.extend(changes);
            left.revision = revision;
            (chain, rest) = (next, after);
        }
        (log.number, log.chain, log.before) = (self.number(), chain, self.before);
        log.end = (content.len() - rest.len()) as u64;
    }
}

fn hash(chain: &Chain, body: &[u8]) -> Chain {
    *blake3::Hasher::new().update(chain).update(body).finalize().as_bytes()
}

fn encode(chain: &Chain, revision: u64, changes: &Changes) -> (Vec<u8>, Chain) {
    let length: usize = changes.iter().map(|(key, value)| 8 + key.len() + value.as_ref().map_or(0, Vec::len)).sum();
    let mut entry = vec![0; PREFIX];
    entry.reserve(8 + length);
    entry.extend_from_slice(&revision.to_le_bytes());
    for (key, value) in changes {
        entry.extend_from_slice(&(key.len() as u32).to_le_bytes());
        entry.extend_from_slice(&value.as_ref().map_or(0, |value| value.len() as u32 + 1).to_le_bytes());
        entry.extend_from_slice(key);
        entry.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    let body = (entry.len() - PREFIX) as u32;
    entry[..4].copy_from_slice(&body.to_le_bytes());
    let next = hash(chain, &entry[PREFIX..]);
    entry[4..PREFIX].copy_from_slice(&next);
    (entry, next)
}

type Decoded<'a> = (Vec<(Key, Option<Value>)>, u64, Chain, &'a [u8]);

/// The entry at the start of `bytes`, and what follows it; `None` where the chain ends.
fn decode<'a>(chain: &Chain, bytes: &'a [u8]) -> Option<Decoded<'a>> {
    let (length, rest) = take_u32(bytes)?;
    let (found, rest) = rest.split_first_chunk::<32>()?;
    let (body, rest) = rest.split_at_checked(length)?;
    if hash(chain, body) != *found {
        return None;
    }
    let (revision, mut body) = body.split_first_chunk::<8>()?;
    let mut changes = Vec::new();
    while !body.is_empty() {
        let (key_length, after) = take_u32(body)?;
        let (value_length, after) = take_u32(after)?;
        let (key, after) = after.split_at_checked(key_length)?;
        let (value, after) = after.split_at_checked(value_length.saturating_sub(1))?;
        changes.push((key.to_vec(), (value_length > 0).then(|| value.to_vec())));
        body = after;
    }
    Some((changes, u64::from_le_bytes(*revision), *found, rest))
}

fn take_u32(bytes: &[u8]) -> Option<(usize, &[u8])> {
    bytes.split_first_chunk::<4>().map(|(number, rest)| (u32::from_le_bytes(*number) as usize, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: u8, value: Option<&[u8]>) -> Changes {
        BTreeMap::from([(vec![key], value.map(<[u8]>::to_vec))])
    }

    /// Opens the log in `dir` where the database has everything up to `moved`, and what is left in it.
    fn open(dir: &Path, moved: Place) -> (Log, Left) {
        Log::open(&dir.join("db"), moved).unwrap()
    }

    fn keys(left: &Left) -> Vec<u8> {
        left.moving.iter().flatten().chain(&left.young).map(|change| change.0[0]).collect()
    }

    /// Entries 1 and 2 in the first file, 3 and 4 in the second one, which follows it. The end of the first one, and the second's number.
    fn filled(dir: &Path) -> (Place, u64) {
        let (mut log, _) = open(dir, Place::default());
        for revision in 1..=4 {
            if revision == 3 {
                log.next(2).unwrap();
            }
            log.append(revision, &change(revision as u8, Some(b"value"))).unwrap();
        }
        (log.before(), log.number)
    }

    #[test]
    fn it_is_read_in_order_and_written_on() {
        let dir = tempfile::tempdir().unwrap();
        let (first, number) = filled(dir.path());
        assert_eq!(keys(&open(dir.path(), first).1), [3, 4], "the first file is in the database");
        let (mut log, left) = open(dir.path(), Place::default());
        assert_eq!((keys(&left), left.young.len(), left.revision, log.number, log.before()), (vec![1, 2, 3, 4], 2, 4, number, first));
        log.append(5, &change(5, None)).unwrap();
        assert_eq!(keys(&open(dir.path(), first).1), [3, 4, 5]);
        // Shorter than what is written over: what follows is of another chain.
        log.next(5).unwrap();
        log.append(6, &change(3, None)).unwrap();
        let (_, left) = open(dir.path(), log.before());
        assert_eq!((left.young, left.revision, left.moving), (change(3, None), 6, None));
    }

    #[test]
    fn what_is_taken_back_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path(), Place::default());
        log.append(1, &change(1, None)).unwrap();
        let mark = log.mark();
        log.append(2, &change(2, Some(&[7; 100]))).unwrap();
        log.take_back(mark);
        assert_eq!(keys(&open(dir.path(), Place::default()).1), [1]);
        log.append(2, &change(3, None)).unwrap();
        log.append(3, &change(4, None)).unwrap();
        assert_eq!(keys(&open(dir.path(), Place::default()).1), [1, 3, 4]);
    }

    #[test]
    fn a_file_without_entries_counts_too() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path(), Place::default());
        log.next(0).unwrap();
        log.append(1, &change(1, None)).unwrap();
        let (log, left) = open(dir.path(), Place::default());
        assert_eq!((left.moving, left.young, log.before().number), (Some(Changes::new()), change(1, None), 1));
    }

    #[test]
    fn a_torn_tail_hides_what_came_after_it() {
        for cut in [1, 5, 40] {
            let dir = tempfile::tempdir().unwrap();
            let (first, number) = filled(dir.path());
            let path = dir.path().join(format!("db-log-{}", (number - 1) % 2));
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            assert_eq!(keys(&open(dir.path(), first).1), [3, 4], "unless the database has it");
            let (mut log, left) = open(dir.path(), Place::default());
            assert_eq!((keys(&left), log.number), (vec![1], number - 1), "entries 3 and 4 build on entry 2");
            log.append(2, &change(9, None)).unwrap();
            assert_eq!(keys(&open(dir.path(), Place::default()).1), [1, 9]);
            std::fs::write(&path, b"").unwrap();
            assert!(keys(&open(dir.path(), Place::default()).1).is_empty(), "nothing of the first file was on the disk");
        }
    }

    #[test]
    fn a_database_from_a_backup_is_not_mixed_with_a_later_log() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path(), Place::default());
        for revision in 1..4 {
            log.append(revision, &change(7, None)).unwrap();
            log.next(revision).unwrap();
        }
        let place = log.before();
        assert!(keys(&open(dir.path(), place).1).is_empty());
        for other in [Place::default(), Place { chain: [1; 32], ..place }] {
            let error = Log::open(&dir.path().join("db"), other).unwrap_err();
            assert!(error.kind() == ErrorKind::Conflict && error.message().contains("db-log-0"), "{error}");
        }
    }

    #[test]
    fn damage_of_any_byte_shows() {
        let dir = tempfile::tempdir().unwrap();
        let (first, number) = filled(dir.path());
        let path = dir.path().join(format!("db-log-{}", number % 2));
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            let (_, left) = open(dir.path(), first);
            assert!(keys(&left).len() < 2, "byte {at}");
            assert!(left.young.iter().all(|(key, value)| key[0] == 3 && value.as_deref() == Some(b"value")), "byte {at}");
        }
    }
}
