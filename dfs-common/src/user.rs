//! Who asks: the user on whose behalf a client makes a request, as it stands in the header
//! `dfs-user`, and what the credentials that a request came with let it do.

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// The most supplementary groups of one request. A user with more is known by the lowest of them.
pub const MAX_GROUPS: usize = 1024;
/// No user and no group has this number: it is -1, which chown(2) takes for "leave it".
const NO_ID: u32 = u32::MAX;
/// Who root is on a client whose root is not trusted, unless it is said otherwise.
pub const NOBODY: u32 = 65_534;

/// A user, in decimal `UID:GID`, or `UID:GID:GROUP,GROUP…` with all supplementary groups (`UID:GID:` for none).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups; `None` where the client has not looked them up, because most requests need none of them.
    pub groups: Option<Vec<u32>>,
}

impl User {
    /// Whether nothing is refused to it.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether `gid` is among its groups, as far as they are known.
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.as_ref().is_some_and(|groups| groups.contains(&gid))
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)?;
        let Some(groups) = &self.groups else { return Ok(()) };
        for (at, group) in groups.iter().enumerate() {
            write!(f, "{}{group}", if at == 0 { ':' } else { ',' })?;
        }
        if groups.is_empty() { f.write_str(":") } else { Ok(()) }
    }
}

impl FromStr for User {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::new(ErrorKind::Invalid, "expected UID:GID or UID:GID:GROUP,GROUP");
        let id = |text: &str| {
            let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
            text.parse().ok().filter(|&id| is_plain && id != NO_ID).ok_or_else(wrong)
        };
        let (uid, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (gid, list) = rest.split_once(':').map_or((rest, None), |(gid, list)| (gid, Some(list)));
        let groups = match list {
            None => None,
            Some("") => Some(Vec::new()),
            Some(list) if list.split(',').count() > MAX_GROUPS => {
                return Err(Error::new(ErrorKind::TooBig, format!("a user has at most {MAX_GROUPS} supplementary groups here")));
            }
            Some(list) => Some(list.split(',').map(id).collect::<Result<_>>()?),
        };
        Ok(Self { uid: id(uid)?, gid: id(gid)?, groups })
    }
}

/// Whose credentials a request came with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The cluster's own token: a server, or a client whose root is trusted.
    #[default]
    Cluster,
    /// A token for clients.
    Client(Limits),
}

/// What a token for clients does not let them do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Nothing is changed.
    pub read_only: bool,
    /// Who root is, where it is not trusted.
    pub squash: Option<Squash>,
}

/// Somebody without rights, instead of root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Squash {
    /// Instead of user 0.
    pub uid: u32,
    /// Instead of group 0.
    pub gid: u32,
}

impl Origin {
    /// The limits, where there are any.
    pub fn limits(self) -> Limits {
        match self {
            Self::Cluster => Limits::default(),
            Self::Client(limits) => limits,
        }
    }
}

impl Squash {
    /// Takes from `user` what is root's. Who does not say on whose behalf it asks is root.
    pub fn apply(self, user: Option<User>) -> User {
        let Some(user) = user.filter(|user| user.uid != 0) else {
            return User { uid: self.uid, gid: self.gid, groups: Some(Vec::new()) };
        };
        let other = |gid| if gid == 0 { self.gid } else { gid };
        User { gid: other(user.gid), groups: user.groups.map(|groups| groups.into_iter().map(other).collect()), ..user }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, gid: u32, groups: Option<&[u32]>) -> User {
        User { uid, gid, groups: groups.map(<[u32]>::to_vec) }
    }

    #[test]
    fn users_go_both_ways() {
        for (text, expected) in [
            ("0:0", user(0, 0, None)),
            ("1000:100:", user(1000, 100, Some(&[]))),
            ("1000:100:4", user(1000, 100, Some(&[4]))),
            ("4294967294:1:4,0,27", user(4_294_967_294, 1, Some(&[4, 0, 27]))),
        ] {
            assert_eq!(text.parse::<User>().unwrap(), expected);
            assert_eq!(expected.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_user_is_refused() {
        for bad in [
            "",
            ":",
            "1",
            "1:",
            ":1",
            "1:2:3:4",
            "-1:0",
            "+1:0",
            "1: 2",
            "1:2:,",
            "1:2:3,",
            "1:2:,3",
            "01:2",
            "1:x",
            "4294967295:0",
            "0:4294967295",
            "1:2:4294967295",
            "4294967296:0",
            "1:2\n",
            "１:2",
            "root:root",
        ] {
            assert_eq!(bad.parse::<User>().unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
        let groups = |count: u32| format!("1:2:{}", (1..=count).map(|g| g.to_string()).collect::<Vec<_>>().join(","));
        assert_eq!(groups(MAX_GROUPS as u32).parse::<User>().unwrap().groups.unwrap().len(), MAX_GROUPS);
        assert_eq!(groups(MAX_GROUPS as u32 + 1).parse::<User>().unwrap_err().kind(), ErrorKind::TooBig);
    }

    #[test]
    fn a_squashed_root_is_somebody_else_and_so_is_its_group() {
        let squash = Squash { uid: 7, gid: 8 };
        for root in [None, Some(user(0, 0, None)), Some(user(0, 5, Some(&[0, 4])))] {
            assert_eq!(squash.apply(root), user(7, 8, Some(&[])));
        }
        assert_eq!(squash.apply(Some(user(3, 0, None))), user(3, 8, None));
        assert_eq!(squash.apply(Some(user(3, 4, Some(&[0, 5])))), user(3, 4, Some(&[8, 5])));
    }
}
