//! The directory's keys. The first byte names the table, numbers follow big-endian, so
//! that byte order is the order of (table, number, name).
//!
//! | table | behind it | value |
//! |---|---|---|
//! | `a` | counter | lowest number not yet reserved |
//! | `b` | the first of some inodes | [`super::records::Reserved`]: numbers that a session may use |
//! | `c` | | the cluster's name |
//! | `d` | directory, name | [`super::records::Dentry`] |
//! | `e` | session | [`super::records::Number`]: when it expired; its replies are kept for a while |
//! | `h` | directory, name, 0, number from above | [`super::records::Past`]: what the name led to before, newest first |
//! | `i` | inode | [`super::records::Inode`] |
//! | `n` | server | [`super::records::ServerRecord`] |
//! | `o` | inode | [`super::records::Orphan`] |
//! | `q` | server, inode, version | empty: the server shall drop it |
//! | `r` | session, slot | [`super::records::StoredReply`] |
//! | `s` | session | [`super::records::SessionRecord`] |
//! | `t` | time, number | [`super::records::PastName`]: rows of `h` in the order in which they came |
//! | `u` | inode | [`super::records::UnderReplicated`] |
//! | `v` | inode, version | [`super::records::VersionRecord`] |
//! | `w` | time, inode, version | empty: when a version that is kept ceased to be current |
//! | `x` | inode, name | the xattr's value as it is |

use dfs_common::api::directory::VersionOf;
use dfs_common::attributes::Timestamp;
use dfs_common::ids::{InodeId, ServerId, SessionId, Version};

use crate::store::Key;

/// A range of keys: from the first, up to but without the second.
pub(crate) type KeyRange = (Key, Key);

fn key(table: u8, parts: &[&[u8]]) -> Key {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|p| p.len()).sum::<usize>());
    key.push(table);
    parts.iter().for_each(|p| key.extend_from_slice(p));
    key
}

/// Every key that starts with `prefix`.
fn all_below(prefix: Key) -> KeyRange {
    let mut end = prefix.clone();
    // Tables are letters, so the carry stops at the first byte at the latest.
    while end.last() == Some(&0xff) {
        end.pop();
    }
    *end.last_mut().expect("a prefix starts with its table's letter") += 1;
    (prefix, end)
}

pub(crate) fn table(table: u8) -> KeyRange {
    all_below(vec![table])
}

pub(crate) fn cluster() -> Key {
    key(b'c', &[])
}

pub(crate) fn counter(name: &str) -> Key {
    key(b'a', &[name.as_bytes()])
}

pub(crate) fn reserved(first: InodeId) -> Key {
    key(b'b', &[&first.0.to_be_bytes()])
}

pub(crate) fn inode(ino: InodeId) -> Key {
    key(b'i', &[&ino.0.to_be_bytes()])
}

pub(crate) fn dentry(parent: InodeId, name: &[u8]) -> Key {
    key(b'd', &[&parent.0.to_be_bytes(), name])
}

pub(crate) fn dentries(parent: InodeId) -> KeyRange {
    all_below(dentry(parent, b""))
}

/// The name in a key of table `d` or `x`.
pub(crate) fn name_of(key: &[u8]) -> &[u8] {
    key.get(9..).unwrap_or_default()
}

/// The first number in a key.
pub(crate) fn number_of(key: &[u8]) -> u64 {
    key.get(1..9).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

pub(crate) fn xattr(ino: InodeId, name: &[u8]) -> Key {
    key(b'x', &[&ino.0.to_be_bytes(), name])
}

pub(crate) fn xattrs(ino: InodeId) -> KeyRange {
    all_below(xattr(ino, b""))
}

pub(crate) fn version(what: VersionOf) -> Key {
    key(b'v', &[&what.ino.0.to_be_bytes(), &what.version.0.to_be_bytes()])
}

pub(crate) fn versions(ino: InodeId) -> KeyRange {
    all_below(key(b'v', &[&ino.0.to_be_bytes()]))
}

/// The version in a key of table `v`.
pub(crate) fn version_of(key: &[u8]) -> VersionOf {
    let version = key.get(9..17).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
    VersionOf { ino: InodeId(number_of(key)), version: Version(version) }
}

/// The row of the past with this number. A name holds no 0, so that rows lie in order of names.
pub(crate) fn past(parent: InodeId, name: &[u8], number: u64) -> Key {
    key(b'h', &[&parent.0.to_be_bytes(), name, &[0], &(!number).to_be_bytes()])
}

pub(crate) fn past_of_name(parent: InodeId, name: &[u8]) -> KeyRange {
    all_below(key(b'h', &[&parent.0.to_be_bytes(), name, &[0]]))
}

pub(crate) fn past_of_directory(parent: InodeId) -> KeyRange {
    all_below(key(b'h', &[&parent.0.to_be_bytes()]))
}

/// The name in a key of table `h`.
pub(crate) fn past_name(key: &[u8]) -> &[u8] {
    key.get(9..key.len().saturating_sub(9)).unwrap_or_default()
}

/// What a name led to until `at`, a time after 1970; numbers tell rows of the same time apart.
pub(crate) fn past_time(at: Timestamp, number: u64) -> Key {
    key(b't', &[&at.0.max(0).to_be_bytes(), &number.to_be_bytes()])
}

/// The number in a key of table `t`.
pub(crate) fn past_number(key: &[u8]) -> u64 {
    key.get(9..17).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// A version that ceased to be current `at` a time after 1970.
pub(crate) fn superseded(at: Timestamp, what: VersionOf) -> Key {
    key(b'w', &[&at.0.max(0).to_be_bytes(), &what.ino.0.to_be_bytes(), &what.version.0.to_be_bytes()])
}

/// The version in a key of table `w`.
pub(crate) fn superseded_version(key: &[u8]) -> VersionOf {
    let number = |at: usize| key.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
    VersionOf { ino: InodeId(number(9)), version: Version(number(17)) }
}

pub(crate) fn drop_order(server: ServerId, what: VersionOf) -> Key {
    key(b'q', &[&server.0.to_be_bytes(), &what.ino.0.to_be_bytes(), &what.version.0.to_be_bytes()])
}

pub(crate) fn drop_orders(server: ServerId) -> KeyRange {
    all_below(key(b'q', &[&server.0.to_be_bytes()]))
}

/// The version in a key of table `q`.
pub(crate) fn dropped_version(key: &[u8]) -> VersionOf {
    let number = |at: usize| key.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
    VersionOf { ino: InodeId(number(5)), version: Version(number(13)) }
}

pub(crate) fn reply(session: SessionId, slot: u16) -> Key {
    key(b'r', &[&session.0.to_be_bytes(), &slot.to_be_bytes()])
}

pub(crate) fn replies(session: SessionId) -> KeyRange {
    all_below(key(b'r', &[&session.0.to_be_bytes()]))
}

pub(crate) fn session(session: SessionId) -> Key {
    key(b's', &[&session.0.to_be_bytes()])
}

pub(crate) fn expired(session: SessionId) -> Key {
    key(b'e', &[&session.0.to_be_bytes()])
}

pub(crate) fn orphan(ino: InodeId) -> Key {
    key(b'o', &[&ino.0.to_be_bytes()])
}

pub(crate) fn under_replicated(ino: InodeId) -> Key {
    key(b'u', &[&ino.0.to_be_bytes()])
}

pub(crate) fn server(server: ServerId) -> Key {
    key(b'n', &[&server.0.to_be_bytes()])
}

/// The server in a key of table `n`.
pub(crate) fn server_of(key: &[u8]) -> ServerId {
    ServerId(key.get(1..5).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_s_range_holds_its_names_and_no_others() {
        for ino in [0, 1, 255, 256, u64::MAX] {
            let (from, to) = dentries(InodeId(ino));
            for name in [&b"\x01"[..], b"a", &[0xff; 255]] {
                let key = dentry(InodeId(ino), name);
                assert!(from <= key && key < to);
                assert_eq!((number_of(&key), name_of(&key)), (ino, name));
            }
            let other = dentry(InodeId(ino.wrapping_add(1)), b"a");
            assert!(other < from || other >= to);
        }
    }

    #[test]
    fn the_past_lies_in_order_of_names_the_newest_first() {
        let dir = InodeId(7);
        let keys = [past(dir, b"a", 9), past(dir, b"a", 2), past(dir, b"a\x01", 5), past(dir, b"ab", 7), past(InodeId(8), b"a", 1)];
        assert!(keys.is_sorted());
        assert_eq!(keys.each_ref().map(|key| past_name(key)), [&b"a"[..], b"a", b"a\x01", b"ab", b"a"]);
        let (from, to) = past_of_name(dir, b"a");
        assert_eq!(keys.iter().filter(|key| (&from..&to).contains(key)).count(), 2);
        let (from, to) = past_of_directory(dir);
        assert_eq!(keys.iter().filter(|key| (&from..&to).contains(key)).count(), 4);
    }

    #[test]
    fn versions_come_back() {
        let what = VersionOf { ino: InodeId(7), version: Version(300) };
        assert_eq!(version_of(&version(what)), what);
        assert_eq!(dropped_version(&drop_order(ServerId(9), what)), what);
        assert_eq!(superseded_version(&superseded(Timestamp(5), what)), what);
        assert_eq!(server_of(&server(ServerId(70_000))), ServerId(70_000));
    }
}
