//! A page of a listing in postcard, for who asks for it: a fifth of the bytes and of the
//! work of the same page as JSON.
//!
//! The shape of what travels is [`Form`] and [`Row`], apart from the types that JSON is made
//! of, so that neither form moves with the other. Postcard says nothing of shapes: whatever
//! changes here gets another media type ([`crate::wire::PACKED`]), and who does not know that one answers with JSON.

use std::borrow::Cow;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{List, Page, PageEntry};
use crate::api::Packed;
use crate::attributes::{Attributes, Entry, FileKind, Layout, Timestamp};
use crate::block::BlockHash;
use crate::ids::{InodeId, ServerId, SessionId, Version};
use crate::name::Name;
use crate::{Error, ErrorKind, Result};

/// Bytes that are not copied before they are checked.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Borrowed;
        impl<'de> Visitor<'de> for Borrowed {
            type Value = &'de [u8];
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_borrowed_bytes<E: de::Error>(self, bytes: &'de [u8]) -> std::result::Result<Self::Value, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_bytes(Borrowed).map(Raw)
    }
}

/// A page: the fields of [`Page`].
#[derive(Serialize, Deserialize)]
struct Form<R> {
    parent: InodeId,
    end: bool,
    rows: R,
}

/// The entries as they are sent.
struct Sent<'a>(&'a [PageEntry]);

impl Serialize for Sent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Row::of))
    }
}

/// The entries as they are received, each of them checked.
struct Received(Vec<PageEntry>);

impl<'de> Deserialize<'de> for Received {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Rows;
        impl<'de> Visitor<'de> for Rows {
            type Value = Vec<PageEntry>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("entries")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> std::result::Result<Self::Value, A::Error> {
                // Whoever says that more follow than there may be finds no memory set aside for them.
                let mut entries = Vec::with_capacity(rows.size_hint().unwrap_or(0).min(List::MAX_LIMIT as usize));
                while let Some(row) = rows.next_element::<Row<'de>>()? {
                    entries.push(row.entry().map_err(de::Error::custom)?);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_seq(Rows).map(Received)
    }
}

/// An entry: name and attributes, then its layout.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    name: Raw<'a>,
    ino: InodeId,
    kind: FileKind,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    rdev: u32,
    size: u64,
    stored: u64,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    crtime: Timestamp,
    version: Version,
    has_xattrs: bool,
    placement: Cow<'a, [ServerId]>,
    holders: Cow<'a, [ServerId]>,
    #[serde(borrow)]
    manifest: Option<Raw<'a>>,
    fresh: Option<SessionId>,
}

impl<'a> Row<'a> {
    fn of(PageEntry { name, entry: Entry { attributes: a, layout } }: &'a PageEntry) -> Self {
        Self {
            name: Raw(name.as_bytes()),
            ino: a.ino,
            kind: a.kind,
            mode: a.mode,
            uid: a.uid,
            gid: a.gid,
            nlink: a.nlink,
            rdev: a.rdev,
            size: a.size,
            stored: a.stored,
            atime: a.atime,
            mtime: a.mtime,
            ctime: a.ctime,
            crtime: a.crtime,
            version: a.version,
            has_xattrs: a.has_xattrs,
            placement: Cow::Borrowed(&layout.placement),
            holders: Cow::Borrowed(&layout.holders),
            manifest: layout.manifest.as_ref().map(|hash| Raw(&hash.0)),
            fresh: layout.fresh,
        }
    }

    fn entry(self) -> Result<PageEntry> {
        let attributes = Attributes {
            ino: self.ino,
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            rdev: self.rdev,
            size: self.size,
            stored: self.stored,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            crtime: self.crtime,
            version: self.version,
            has_xattrs: self.has_xattrs,
        };
        let hash = |raw: Raw<'_>| raw.0.try_into().map(BlockHash).map_err(|_| corrupt(format!("a manifest's hash of {} bytes", raw.0.len())));
        let manifest = self.manifest.map(hash).transpose()?;
        let layout = Layout { placement: self.placement.into_owned(), holders: self.holders.into_owned(), manifest, fresh: self.fresh };
        Ok(PageEntry { name: Name::new(self.name.0)?, entry: Entry { attributes, layout } })
    }
}

fn corrupt(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("packed listing: {why}"))
}

impl Packed for List {
    fn pack(page: &Page) -> Vec<u8> {
        let form = Form { parent: page.parent, end: page.end, rows: Sent(&page.entries) };
        /// About what an entry takes.
        const ROW: usize = 128;
        postcard::to_extend(&form, Vec::with_capacity(page.entries.len() * ROW)).expect("wire types serialize")
    }

    fn unpack(bytes: &[u8]) -> Result<Page> {
        let (form, rest): (Form<Received>, _) = postcard::take_from_bytes(bytes).map_err(corrupt)?;
        if !rest.is_empty() {
            return Err(corrupt(format!("{} bytes too many", rest.len())));
        }
        Ok(Page { parent: form.parent, entries: form.rows.0, end: form.end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let attributes = Attributes {
            mode: 0o6755,
            uid: 1,
            gid: u32::MAX,
            nlink: 2,
            size: u64::MAX,
            stored: 7,
            atime: Timestamp(i64::MIN),
            mtime: Timestamp(-1),
            ctime: Timestamp(1_700_000_000_123_456_789),
            version: Version(9),
            has_xattrs: true,
            ..Attributes::bare(InodeId(5), FileKind::BlockDevice)
        };
        let manifest = Some(BlockHash::of(b"x"));
        let layout = Layout { placement: vec![ServerId(3), ServerId(300)], holders: vec![ServerId(1)], manifest, fresh: Some(SessionId(4)) };
        let bare = Entry { attributes: Attributes::bare(InodeId(6), FileKind::Directory), layout: Layout::default() };
        let name = |bytes: &[u8]| Name::new(bytes).unwrap();
        let entries =
            vec![PageEntry { name: name(b"a\xff%\n"), entry: Entry { attributes, layout } }, PageEntry { name: name(&[b'z'; 255]), entry: bare }];
        Page { parent: InodeId(1), entries, end: true }
    }

    #[test]
    fn both_forms_say_the_same() {
        let json: Page = serde_json::from_slice(&serde_json::to_vec(&page()).unwrap()).unwrap();
        assert_eq!((List::unpack(&List::pack(&page())).unwrap(), json), (page(), page()));
        let empty = Page { parent: InodeId(1), entries: Vec::new(), end: false };
        assert_eq!(List::unpack(&List::pack(&empty)).unwrap(), empty);
    }

    #[test]
    fn what_is_not_a_page_is_corrupt() {
        let bytes = List::pack(&page());
        for cut in 0..bytes.len() {
            assert_eq!(List::unpack(&bytes[..cut]).unwrap_err().kind(), ErrorKind::Corrupt, "{cut}");
        }
        assert_eq!(List::unpack(&[&bytes[..], &[0]].concat()).unwrap_err().kind(), ErrorKind::Corrupt);
        let with_name = |name: &[u8]| {
            let mut page = page();
            page.entries.truncate(1);
            let mut bytes = List::pack(&page);
            // Behind the parent, the end, the number of rows and the length of the name.
            bytes[4..8].copy_from_slice(name);
            List::unpack(&bytes)
        };
        assert!(with_name(b"good").is_ok());
        assert_eq!(with_name(b"b/d\xff").unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(List::unpack(&[1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f]).unwrap_err().kind(), ErrorKind::Corrupt, "more rows than bytes");
    }
}
