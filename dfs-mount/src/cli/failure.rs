//! What goes wrong in a command: printed once, at the edge, as a line or as JSON, and
//! turned into the exit code that `dfs --help` documents.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use dfs_common::{Error, ErrorKind, name};
use serde::Serialize;

/// No such file, directory or version.
const NOT_FOUND: u8 = 3;
/// The write lock is taken.
const LOCK_BUSY: u8 = 4;
/// Ended by a signal from the terminal.
const INTERRUPTED: u8 = 130;
/// What a shell reports of a program that SIGPIPE ended.
const BROKEN_PIPE: u8 = 141;

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// A failed command.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    path: Option<String>,
    code: &'static str,
    message: String,
    exit: u8,
}

#[derive(Serialize)]
struct Line<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error::new(kind, message).into()
    }

    /// Names the object, unless something closer to the cause did.
    #[must_use]
    pub(crate) fn at(mut self, path: impl AsRef<OsStr>) -> Self {
        self.path.get_or_insert_with(|| name::encode(path.as_ref().as_bytes()));
        self
    }

    /// The same with `more` behind the message.
    #[must_use]
    pub(crate) fn with(mut self, more: &str) -> Self {
        self.message.push_str(more);
        self
    }

    pub(crate) fn exit_code(&self) -> u8 {
        self.exit
    }

    pub(crate) fn is(&self, kind: ErrorKind) -> bool {
        self.code == kind.code()
    }

    /// One line on stderr. A reader of our output that went away needs no message.
    pub(crate) fn print(&self, json: bool) {
        if self.exit == BROKEN_PIPE {
            return;
        }
        let Self { path, code, message, .. } = self;
        if json {
            let line = Line { code, message, path: path.as_deref() };
            eprintln!("{}", serde_json::to_string(&line).expect("strings serialize"));
        } else if let Some(path) = path {
            eprintln!("dfs: {path}: {message}");
        } else {
            eprintln!("dfs: {message}");
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::NotFound => NOT_FOUND,
            ErrorKind::Busy | ErrorKind::WouldBlock => LOCK_BUSY,
            ErrorKind::Interrupted => INTERRUPTED,
            _ => 1,
        };
        Self { path: None, code: error.kind().code(), message: error.message().to_owned(), exit }
    }
}

impl From<std::io::Error> for Failure {
    /// A local file's: never "not found" in the cluster.
    fn from(error: std::io::Error) -> Self {
        let exit = if error.kind() == std::io::ErrorKind::BrokenPipe { BROKEN_PIPE } else { 1 };
        Self { path: None, code: "local_io", message: error.to_string(), exit }
    }
}

/// Names the path in a failure.
pub(crate) trait At<T> {
    fn at(self, path: impl AsRef<OsStr>) -> Outcome<T>;
}

impl<T, E: Into<Failure>> At<T> for Result<T, E> {
    fn at(self, path: impl AsRef<OsStr>) -> Outcome<T> {
        self.map_err(|e| e.into().at(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_help() {
        for (kind, exit) in [
            (ErrorKind::NotFound, 3),
            (ErrorKind::Busy, 4),
            (ErrorKind::WouldBlock, 4),
            (ErrorKind::Interrupted, 130),
            (ErrorKind::Exists, 1),
            (ErrorKind::Unavailable, 1),
        ] {
            assert_eq!(Failure::new(kind, "x").exit_code(), exit);
        }
        assert_eq!(Failure::from(std::io::Error::from(std::io::ErrorKind::NotFound)).exit_code(), 1);
    }

    #[test]
    fn the_closest_path_is_named() {
        let failure = Failure::new(ErrorKind::NotFound, "gone").at("inner").at("outer");
        assert_eq!(failure.path.as_deref(), Some("inner"));
    }
}
