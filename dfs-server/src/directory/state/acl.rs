//! POSIX access control lists: the form that they have in their extended attributes,
//! and how they and the mode follow each other. Pure arithmetic on one list.
//!
//! The form is the kernel's: version 2 as u32, then {tag u16, permissions u16, id u32}
//! each, little endian, in the order of the tags.

use dfs_common::user::User;
use dfs_common::{Error, ErrorKind, Result};

pub(super) use dfs_common::xattr::{ACCESS, DEFAULT};

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const NAMED_GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A list that has been checked; it has an owner, a group, others, and a mask where it names anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl {
    rows: Vec<Row>,
}

impl Acl {
    /// Reads and checks an attribute's value; `None` where it has no rows, which means no list.
    pub(super) fn decode(value: &[u8]) -> Result<Option<Self>> {
        let invalid = |why: &str| Error::new(ErrorKind::Invalid, format!("access control list: {why}"));
        let (version, rest) = value.split_at_checked(4).ok_or_else(|| invalid("too short"))?;
        if version != VERSION.to_le_bytes() {
            return Err(Error::new(ErrorKind::NotSupported, "access control list: only version 2 is known"));
        }
        let chunks = rest.chunks_exact(8);
        if !chunks.remainder().is_empty() {
            return Err(invalid("its last row is cut off"));
        }
        let rows: Vec<Row> = chunks
            .map(|c| Row {
                tag: u16::from_le_bytes([c[0], c[1]]),
                permissions: u16::from_le_bytes([c[2], c[3]]),
                id: u32::from_le_bytes([c[4], c[5], c[6], c[7]]),
            })
            .collect();
        if rows.is_empty() {
            return Ok(None);
        }
        if rows.iter().any(|row| row.permissions > 7) {
            return Err(invalid("permissions are read, write and execute"));
        }
        if rows.iter().any(|row| ![OWNER, USER, GROUP, NAMED_GROUP, MASK, OTHER].contains(&row.tag)) {
            return Err(invalid("unknown tag"));
        }
        if !rows.is_sorted_by_key(|row| row.tag) {
            return Err(invalid("its rows are not in the order of their tags"));
        }
        let count = |tag| rows.iter().filter(|row| row.tag == tag).count();
        let named = count(USER) + count(NAMED_GROUP);
        if [OWNER, GROUP, OTHER].iter().any(|&tag| count(tag) != 1) || count(MASK) > 1 || (named > 0 && count(MASK) == 0) {
            return Err(invalid("owner, group and others stand once, and a mask where somebody is named"));
        }
        if rows.iter().any(|row| matches!(row.tag, USER | NAMED_GROUP) && row.id == NO_ID) {
            return Err(invalid("a named row needs an id"));
        }
        Ok(Some(Self { rows }))
    }

    /// The attribute's value.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for row in &self.rows {
            out.extend_from_slice(&row.tag.to_le_bytes());
            out.extend_from_slice(&row.permissions.to_le_bytes());
            out.extend_from_slice(&if matches!(row.tag, USER | NAMED_GROUP) { row.id } else { NO_ID }.to_le_bytes());
        }
        out
    }

    /// True where the mode says all of it.
    pub(super) fn is_mode(&self) -> bool {
        self.rows.len() == 3
    }

    /// `mode` with its nine permission bits as this list has them. The group's are the mask's, where there is one.
    pub(super) fn mode(&self, mode: u32) -> u32 {
        let bits = |tag| self.rows.iter().find(|row| row.tag == tag).map(|row| u32::from(row.permissions));
        let group = bits(MASK).or(bits(GROUP)).unwrap_or(0);
        mode & !0o777 | bits(OWNER).unwrap_or(0) << 6 | group << 3 | bits(OTHER).unwrap_or(0)
    }

    /// Whether the list of an inode of `uid` and `gid` lets `user` have all of `wanted`, as Linux's posix_acl_permission
    /// decides: the first row that names the user, else any of its groups' rows that is enough, else others'.
    pub(super) fn grants(&self, uid: u32, gid: u32, user: &User, wanted: u16) -> bool {
        let mask = self.rows.iter().find(|row| row.tag == MASK).map_or(7, |row| row.permissions);
        let has = |permissions: u16| permissions & wanted == wanted;
        let mut is_member = false;
        for row in &self.rows {
            match row.tag {
                OWNER if user.uid == uid => return has(row.permissions),
                USER if user.uid == row.id => return has(row.permissions & mask),
                GROUP | NAMED_GROUP if user.is_in(if row.tag == GROUP { gid } else { row.id }) => {
                    is_member = true;
                    if has(row.permissions) {
                        return has(row.permissions & mask);
                    }
                }
                OTHER => return !is_member && has(row.permissions),
                _ => {}
            }
        }
        false
    }

    /// chmod: the mode's bits go to owner, others, and mask or else group.
    pub(super) fn set_mode(&mut self, mode: u32) {
        self.each_class(mode, |row, bits| row.permissions = bits);
    }

    /// As the access list of something that is made with `mode` where this is the default.
    pub(super) fn inherited(&self, mode: u32) -> Self {
        let mut acl = self.clone();
        acl.each_class(mode, |row, bits| row.permissions &= bits);
        acl
    }

    fn each_class(&mut self, mode: u32, apply: impl Fn(&mut Row, u16)) {
        let group = if self.rows.iter().any(|row| row.tag == MASK) { MASK } else { GROUP };
        for row in &mut self.rows {
            let shift = match row.tag {
                OWNER => 6,
                OTHER => 0,
                tag if tag == group => 3,
                _ => continue,
            };
            apply(row, (mode >> shift & 7) as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn acl(rows: &[(u16, u16, u32)]) -> Acl {
        Acl { rows: rows.iter().map(|&(tag, permissions, id)| Row { tag, permissions, id }).collect() }
    }

    fn named() -> Acl {
        acl(&[(OWNER, 7, NO_ID), (USER, 7, 1000), (GROUP, 5, NO_ID), (MASK, 6, NO_ID), (OTHER, 0, NO_ID)])
    }

    #[test]
    fn the_mask_stands_for_the_group_in_the_mode() {
        assert_eq!(named().mode(0o4777), 0o4760);
        assert_eq!(acl(&[(OWNER, 6, NO_ID), (GROUP, 4, NO_ID), (OTHER, 1, NO_ID)]).mode(0), 0o641);
        let mut changed = named();
        changed.set_mode(0o2315);
        assert_eq!(changed, acl(&[(OWNER, 3, NO_ID), (USER, 7, 1000), (GROUP, 5, NO_ID), (MASK, 1, NO_ID), (OTHER, 5, NO_ID)]));
    }

    #[test]
    fn what_is_handed_down_grants_no_more_than_was_asked_for() {
        let made = named().inherited(0o640);
        assert_eq!(made, acl(&[(OWNER, 6, NO_ID), (USER, 7, 1000), (GROUP, 5, NO_ID), (MASK, 4, NO_ID), (OTHER, 0, NO_ID)]));
        assert_eq!(made.mode(0), 0o640);
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        assert_eq!(Acl::decode(&VERSION.to_le_bytes()).unwrap(), None);
        assert_eq!(Acl::decode(&named().encode()).unwrap(), Some(named()));
        for value in [
            Vec::new(),
            vec![2, 0, 0],
            [named().encode(), vec![0]].concat(),
            acl(&[(OWNER, 7, NO_ID)]).encode(),
            acl(&[(OWNER, 8, NO_ID), (GROUP, 0, NO_ID), (OTHER, 0, NO_ID)]).encode(),
            acl(&[(GROUP, 7, NO_ID), (OWNER, 0, NO_ID), (OTHER, 0, NO_ID)]).encode(),
            acl(&[(OWNER, 7, NO_ID), (USER, 7, 1), (GROUP, 0, NO_ID), (OTHER, 0, NO_ID)]).encode(),
            acl(&[(OWNER, 7, NO_ID), (USER, 7, NO_ID), (GROUP, 0, NO_ID), (MASK, 7, NO_ID), (OTHER, 0, NO_ID)]).encode(),
            acl(&[(OWNER, 7, NO_ID), (GROUP, 0, NO_ID), (OTHER, 0, NO_ID), (0x40, 0, NO_ID)]).encode(),
        ] {
            assert_eq!(Acl::decode(&value).unwrap_err().kind(), ErrorKind::Invalid, "{value:?}");
        }
        assert_eq!(Acl::decode(&[1, 0, 0, 0]).unwrap_err().kind(), ErrorKind::NotSupported);
    }

    proptest! {
        #[test]
        fn arbitrary_values_are_refused_or_survive(mut value in proptest::collection::vec(any::<u8>(), 0..60)) {
            if value.len() >= 4 {
                value[..4].copy_from_slice(&VERSION.to_le_bytes());
            }
            if let Ok(Some(acl)) = Acl::decode(&value) {
                prop_assert_eq!(Acl::decode(&acl.encode()).unwrap().unwrap().mode(0), acl.mode(0));
            }
        }

        #[test]
        fn mode_and_list_agree_after_a_chmod(mode in 0u32..0o10000) {
            let mut changed = named();
            changed.set_mode(mode);
            prop_assert_eq!(changed.mode(mode), mode);
        }
    }
}
