//! Which extended attributes there are: the namespaces that servers keep and mounts let through.

use crate::name::Name;
use crate::{Error, ErrorKind, Result};

/// The access control list of an inode, in the kernel's form.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The one that a directory hands down.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// True for the two access control lists.
pub fn is_list(name: &Name) -> bool {
    [ACCESS, DEFAULT].contains(&name.as_bytes())
}

/// Checks a name: `NotSupported` outside of `user.`, `trusted.`, `security.` and the two lists, `Invalid` for a namespace alone.
pub fn check(name: &Name) -> Result<()> {
    if is_list(name) {
        return Ok(());
    }
    match NAMESPACES.iter().find_map(|namespace| name.as_bytes().strip_prefix(*namespace)) {
        Some([]) => Err(Error::new(ErrorKind::Invalid, format!("'{name}' is only a namespace"))),
        Some(_) => Ok(()),
        None => {
            let message = format!("'{name}' is neither in user., trusted. or security., nor an access control list of system.");
            Err(Error::new(ErrorKind::NotSupported, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_and_lists_are_known_and_nothing_else() {
        let kind = |name: &str| check(&Name::new(name.as_bytes()).unwrap()).map_err(|e| e.kind());
        for name in ["user.a", "trusted.a.b", "security.capability", "system.posix_acl_access", "system.posix_acl_default"] {
            assert_eq!(kind(name), Ok(()), "{name}");
        }
        assert_eq!(kind("user."), Err(ErrorKind::Invalid));
        for name in ["a", "system.", "system.a", "system.posix_acl_accesses", "User.a", "os2.a"] {
            assert_eq!(kind(name), Err(ErrorKind::NotSupported), "{name}");
        }
    }
}
