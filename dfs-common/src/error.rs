//! Errors: few kinds, a new one only where a caller would act differently, and ONE
//! table from kind to wire code, HTTP status, errno and "may the client retry".
//!
//! The errno comes from the code in the body, never from the HTTP status.

use serde::{Deserialize, Serialize};

/// The result of anything that crosses a service or a client.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $code:literal, $status:literal, $errno:ident, $retry:literal;)*) => {
        /// What went wrong, as far as a caller needs to know it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorKind { $($(#[$doc])* $kind,)* }

        impl ErrorKind {
            /// Every kind, for tests and documents.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$kind,)*];

            /// The word in the reply's body.
            pub fn code(self) -> &'static str { match self { $(ErrorKind::$kind => $code,)* } }

            /// The HTTP status it travels with.
            pub fn status(self) -> u16 { match self { $(ErrorKind::$kind => $status,)* } }

            /// What a system call on the mount returns.
            pub fn errno(self) -> i32 { match self { $(ErrorKind::$kind => libc::$errno,)* } }

            /// True where the same request may succeed a little later, without anybody changing it.
            pub fn is_transient(self) -> bool { match self { $(ErrorKind::$kind => $retry,)* } }

            /// The kind behind a wire code; unknown codes (a newer peer) are `None`.
            pub fn from_code(code: &str) -> Option<Self> { match code { $($code => Some(ErrorKind::$kind),)* _ => None } }
        }
    };
}

kinds! {
    /// No such entry, inode, version, block or resource.
    NotFound => "not_found", 404, ENOENT, false;
    /// The name is taken.
    Exists => "exists", 409, EEXIST, false;
    /// A path component, or the target, is no directory.
    NotDirectory => "not_directory", 409, ENOTDIR, false;
    /// The operation wants something that is not a directory.
    IsDirectory => "is_directory", 409, EISDIR, false;
    /// The directory still has entries.
    NotEmpty => "not_empty", 409, ENOTEMPTY, false;
    /// The request makes no sense as it stands.
    Invalid => "invalid", 400, EINVAL, false;
    /// A name over 255 bytes, or a symlink target over 4095.
    NameTooLong => "name_too_long", 400, ENAMETOOLONG, false;
    /// A buffer or a value is larger than the limit of its field.
    TooBig => "too_big", 413, E2BIG, false;
    /// A result does not fit where the caller wants it.
    Range => "range", 400, ERANGE, false;
    /// The file would be larger than a file may be.
    FileTooLarge => "file_too_large", 413, EFBIG, false;
    /// A count (links, xattrs, sessions, queue places) is at its limit.
    TooMany => "too_many", 429, EMLINK, false;
    /// No such extended attribute.
    NoAttribute => "no_attribute", 404, ENODATA, false;
    /// Credentials are missing or wrong.
    Unauthenticated => "unauthenticated", 401, EACCES, false;
    /// These credentials, or this user's permissions, do not allow that.
    Forbidden => "forbidden", 403, EACCES, false;
    /// Only its owner, root, or nobody may do that to this object.
    NotPermitted => "not_permitted", 403, EPERM, false;
    /// The version or inode that was named is no longer current or known; look it up again.
    Stale => "stale", 410, ESTALE, false;
    /// A commit was built on a version that is no longer current.
    Conflict => "conflict", 409, ESTALE, false;
    /// A newer token exists: the lock behind this request was lost.
    Fenced => "fenced", 412, ESTALE, false;
    /// The session is unknown or has expired.
    SessionExpired => "session_expired", 440, ESTALE, false;
    /// The service knows nothing of this session's leases: claim them.
    Unclaimed => "unclaimed", 428, ESTALE, false;
    /// The wait was bounded and the bound is reached.
    Busy => "busy", 423, EBUSY, false;
    /// It would have had to wait, and the caller did not want to.
    WouldBlock => "would_block", 423, EWOULDBLOCK, false;
    /// The wait would never end: the holder waits for the caller.
    Deadlock => "deadlock", 409, EDEADLK, false;
    /// The waiting caller was interrupted.
    Interrupted => "interrupted", 499, EINTR, false;
    /// The process that would have to open something has as many descriptors as it may.
    TooManyOpen => "too_many_open", 503, ENFILE, true;
    /// No server has room.
    NoSpace => "no_space", 507, ENOSPC, false;
    /// The target is read-only.
    ReadOnly => "read_only", 403, EROFS, false;
    /// Not implemented for this object.
    NotSupported => "not_supported", 501, EOPNOTSUPP, false;
    /// A role or a peer cannot be reached or is not ready.
    Unavailable => "unavailable", 503, EIO, true;
    /// No answer within the limit.
    TimedOut => "timed_out", 504, ETIMEDOUT, true;
    /// Stored or received bytes do not match their hash or format.
    Corrupt => "corrupt", 502, EIO, false;
    /// A defect or a broken disk on the other side.
    Internal => "internal", 500, EIO, false;
}

/// An error with its kind and a sentence for a person.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error of `kind`; `message` names the object and the reason.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same kind with `context` before the message.
    #[must_use]
    pub fn context(self, context: impl std::fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{context}: {}", self.message) }
    }

    /// An operating system's error of a local disk: full disks are `NoSpace`, no more descriptors `TooManyOpen`, most of the rest `Internal`.
    pub fn from_io(error: &std::io::Error, context: impl std::fmt::Display) -> Self {
        let kind = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            Some(libc::EROFS) => ErrorKind::ReadOnly,
            Some(libc::EFBIG) => ErrorKind::FileTooLarge,
            Some(libc::EMFILE | libc::ENFILE) => ErrorKind::TooManyOpen,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, format!("{context}: {error}"))
    }

    /// The body of the reply.
    pub fn to_body(&self) -> ErrorBody {
        ErrorBody { code: self.kind.code().to_owned(), message: self.message.clone() }
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind, kind.code().replace('_', " "))
    }
}

/// The JSON body of every reply that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The kind's code.
    pub code: String,
    /// For a person.
    pub message: String,
}

impl From<ErrorBody> for Error {
    /// Unknown codes become `Internal`: a caller acts on kinds that it knows.
    fn from(body: ErrorBody) -> Self {
        Self::new(ErrorKind::from_code(&body.code).unwrap_or(ErrorKind::Internal), body.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_goes_both_ways() {
        let mut codes = std::collections::HashSet::new();
        for &kind in ErrorKind::ALL {
            assert!(codes.insert(kind.code()), "{} stands twice", kind.code());
            assert_eq!(ErrorKind::from_code(kind.code()), Some(kind));
            assert!((400..600).contains(&kind.status()));
            assert!(kind.errno() > 0);
            let body = serde_json::to_string(&Error::new(kind, "why").to_body()).unwrap();
            let back: Error = serde_json::from_str::<ErrorBody>(&body).unwrap().into();
            assert_eq!((back.kind(), back.message()), (kind, "why"));
        }
    }

    #[test]
    fn a_full_disk_is_no_space() {
        let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(Error::from_io(&full, "block").kind(), ErrorKind::NoSpace);
    }
}
