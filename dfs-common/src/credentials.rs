//! The cluster token: a secret in a file that only its owner (and group) can read.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use subtle::ConstantTimeEq;

use crate::{Error, ErrorKind, Result};

/// The shortest token that is accepted, in characters.
pub const MIN_LENGTH: usize = 16;

/// The secret that every request carries as `Authorization: Bearer TOKEN`.
#[derive(Clone)]
pub struct ClusterToken(String);

impl std::fmt::Debug for ClusterToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterToken(…)")
    }
}

impl ClusterToken {
    /// Checks a token's form: printable ASCII without spaces, at least [`MIN_LENGTH`] characters.
    pub fn new(text: &str) -> Result<Self> {
        if text.len() < MIN_LENGTH || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("a cluster token has at least {MIN_LENGTH} printable ASCII characters and no spaces"),
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads the first line of `path`, refusing a file that others may read.
    pub fn read(path: &Path) -> Result<Self> {
        let context = |e: &std::io::Error| Error::new(ErrorKind::Invalid, format!("token file {}: {e}", path.display()));
        let mode = std::fs::metadata(path).map_err(|e| context(&e))?.mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("token file {} has mode {mode:04o}: others may read it; run: chmod 600 {}", path.display(), path.display()),
            ));
        }
        let text = std::fs::read_to_string(path).map_err(|e| context(&e))?;
        Self::new(text.lines().next().unwrap_or("").trim()).map_err(|e| e.context(format!("token file {}", path.display())))
    }

    /// Whether an `Authorization` header proves the token, in time that does not depend on where it differs.
    pub fn accepts(&self, authorization: Option<&str>) -> bool {
        let Some(given) = authorization.and_then(|a| a.strip_prefix("Bearer ")) else { return false };
        given.as_bytes().ct_eq(self.0.as_bytes()).into()
    }

    /// The header's value.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_must_be_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        for (mode, fine) in [(0o600, true), (0o640, true), (0o644, false), (0o604, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(ClusterToken::read(&path).is_ok(), fine, "{mode:o}");
        }
    }

    #[test]
    fn only_the_exact_token_is_accepted() {
        let token = ClusterToken::new("0123456789abcdef").unwrap();
        assert!(token.accepts(Some("Bearer 0123456789abcdef")));
        for bad in [None, Some(""), Some("Bearer "), Some("Bearer 0123456789abcdeX"), Some("0123456789abcdef"), Some("bearer 0123456789abcdef")] {
            assert!(!token.accepts(bad));
        }
        assert!(ClusterToken::new("short").is_err() && ClusterToken::new("0123456789 abcdef").is_err());
    }
}
