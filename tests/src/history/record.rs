//! The operation log: what a client asked, when the call began and returned, and what
//! it was answered. Times are nanoseconds of one monotonic clock for all clients.
//!
//! Names are numbers: a [`Names`] table says what they are called and what they are for.

use std::sync::Arc;

/// A name in the shared directory, as its place in [`Names`].
pub type Name = u8;

/// The names that clients use. Three kinds, which never mix:
///
/// - files: created, renamed among each other, removed, linked from;
/// - links: created, or made as hard links to files, and removed, but never renamed. So no two names of one rename are ever one
///   inode, for which rename(2) does nothing at all, and whether they are is a race that the model need not know;
/// - directories: made and removed, always empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// How many names of files.
    pub files: u8,
    /// How many names of links.
    pub links: u8,
    /// How many names of directories.
    pub directories: u8,
}

impl Names {
    /// The most names: a listing is a set of bits.
    pub const MAX: u8 = 32;

    /// A table with `n` names of files, half as many links, and two directories.
    pub fn of_files(n: u8) -> Self {
        let names = Self { files: n.max(2), links: n.div_ceil(2), directories: 2 };
        assert!(names.count() <= Self::MAX, "at most {} names", Self::MAX);
        names
    }

    /// All of them.
    pub fn count(&self) -> u8 {
        self.files + self.links + self.directories
    }

    /// What a name is called in the directory.
    pub fn text(&self, name: Name) -> String {
        match name {
            n if n < self.files => format!("n{n}"),
            n if n < self.files + self.links => format!("h{}", n - self.files),
            n => format!("d{}", n - self.files - self.links),
        }
    }

    /// The reverse.
    pub fn find(&self, text: &str) -> Option<Name> {
        (0..self.count()).find(|&n| self.text(n) == text)
    }
}

/// Identifies what one close wrote: the client and its count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Piece {
    /// Who.
    pub client: u8,
    /// Its how-manieth.
    pub sequence: u32,
}

/// The content of a file: what was written by the last truncating open, then what was appended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Content {
    /// In this order.
    pub pieces: Arc<[Piece]>,
    /// Bytes in all.
    pub bytes: u64,
}

impl Content {
    /// One piece.
    pub fn of(piece: Piece, bytes: u64) -> Self {
        Self { pieces: Arc::new([piece]), bytes }
    }

    /// This and then `piece`.
    #[must_use]
    pub fn with(&self, piece: Piece, bytes: u64) -> Self {
        Self { pieces: self.pieces.iter().copied().chain([piece]).collect(), bytes: self.bytes + bytes }
    }
}

/// One operation, as a program would do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// stat(2).
    Stat {
        /// Of this.
        name: Name,
    },
    /// Open, read everything, close. Its end is the end of open(2), which fixes the version.
    Read {
        /// Of this.
        name: Name,
    },
    /// opendir(3) to the end of the directory.
    List,
    /// open(2) for writing: `O_TRUNC | O_CREAT`, or `O_APPEND`. The write follows, then [`Call::Close`].
    Open {
        /// Of this.
        name: Name,
        /// Whether what is there stays.
        append: bool,
    },
    /// close(2) of what the same client opened for writing; publishes.
    Close {
        /// What was written.
        piece: Piece,
        /// How long it is.
        bytes: u64,
        /// As it was opened.
        append: bool,
    },
    /// unlink(2).
    Unlink {
        /// Of this.
        name: Name,
    },
    /// rename(2).
    Rename {
        /// From.
        from: Name,
        /// To.
        to: Name,
    },
    /// chmod(2).
    Chmod {
        /// Of this.
        name: Name,
        /// Permission bits.
        mode: u32,
    },
    /// link(2).
    Link {
        /// An existing file.
        from: Name,
        /// Its new name.
        to: Name,
    },
    /// setxattr(2).
    SetXattr {
        /// Of this.
        name: Name,
        /// The value, as a number; never 0.
        value: u32,
    },
    /// getxattr(2).
    GetXattr {
        /// Of this.
        name: Name,
    },
    /// mkdir(2).
    MakeDir {
        /// Of this.
        name: Name,
    },
    /// rmdir(2).
    RemoveDir {
        /// Of this.
        name: Name,
    },
}

/// What a successful operation showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing.
    Nothing,
    /// A stat. Of a directory only the number counts.
    Attributes {
        /// st_ino.
        number: u64,
        /// Whether it is a directory.
        directory: bool,
        /// Permission bits.
        mode: u32,
        /// st_nlink.
        links: u64,
        /// st_size.
        bytes: u64,
    },
    /// What was read.
    Content(Content),
    /// A listing: bit n for name n.
    Listing(u32),
    /// An attribute's value; 0 for none (ENODATA).
    Xattr(u32),
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It worked.
    Fine(Shown),
    /// ENOENT.
    Absent,
    /// EEXIST.
    Exists,
    /// ESTALE of a path call: nothing happened (but an open may have created its file); the program would try again.
    Stale,
    /// Another error, by number: it has happened, or will at any time, or never.
    Unknown(i32),
    /// It showed what nobody ever wrote: a torn file, a name that nobody made.
    Impossible(String),
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who.
    pub client: u8,
    /// Before the call.
    pub start: u64,
    /// After it.
    pub end: u64,
    /// What.
    pub call: Call,
    /// With what result.
    pub outcome: Outcome,
}

impl Call {
    /// A word for counts and reports.
    pub fn word(&self) -> &'static str {
        match self {
            Call::Stat { .. } => "stat",
            Call::Read { .. } => "read",
            Call::List => "list",
            Call::Open { append: false, .. } => "open",
            Call::Open { append: true, .. } => "open-append",
            Call::Close { .. } => "close",
            Call::Unlink { .. } => "unlink",
            Call::Rename { .. } => "rename",
            Call::Chmod { .. } => "chmod",
            Call::Link { .. } => "link",
            Call::SetXattr { .. } => "setxattr",
            Call::GetXattr { .. } => "getxattr",
            Call::MakeDir { .. } => "mkdir",
            Call::RemoveDir { .. } => "rmdir",
        }
    }

    /// The names in it, as bits.
    pub fn names(&self) -> u32 {
        match *self {
            Call::Stat { name }
            | Call::Read { name }
            | Call::Open { name, .. }
            | Call::Unlink { name }
            | Call::Chmod { name, .. }
            | Call::SetXattr { name, .. }
            | Call::GetXattr { name }
            | Call::MakeDir { name }
            | Call::RemoveDir { name } => 1 << name,
            Call::Rename { from, to } | Call::Link { from, to } => 1 << from | 1 << to,
            Call::List => u32::MAX,
            Call::Close { .. } => 0,
        }
    }

    /// True where it changes nothing, whatever its result.
    pub fn only_reads(&self) -> bool {
        matches!(self, Call::Stat { .. } | Call::Read { .. } | Call::List | Call::GetXattr { .. })
    }
}
