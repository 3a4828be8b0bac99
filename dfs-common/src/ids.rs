//! Identifiers. Each is its own type, so that no inode number is taken for a
//! version, a token or a session. All are assigned by one service and never reused.

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id!(
    /// An inode number, assigned by the directory service. The root is 1; 0 names nothing.
    InodeId, u64
);
id!(
    /// The number of one immutable version of a file, rising by one with each publish. 0: no content was ever published.
    Version, u64
);
id!(
    /// A file server's number, assigned at its first registration and kept in its data directory.
    ServerId, u32
);
id!(
    /// A client session, opened at mount (or by one run of the command line) at the directory service.
    SessionId, u64
);
id!(
    /// A fencing token: rises with every grant of the lock service, across restarts. 0: none.
    Token, u64
);

impl Token {
    /// The lock that a new file's maker gets with it, before the lock service has heard of the file: below every token that
    /// the service grants.
    pub const FRESH: Self = Self(1);
}

/// The inode of the root directory.
pub const ROOT: InodeId = InodeId(1);
/// The directory of content that could not be published: an ordinary directory, but without a name.
pub const RECOVERED: InodeId = InodeId(2);
