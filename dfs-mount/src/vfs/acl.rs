//! Access control lists, as far as they concern a mount: the directory service keeps list
//! and mode in step, and the kernel checks both. What is left to do here is what only the
//! client knows: who the caller is, and that the mode it was told has changed.

use dfs_common::Result;
use dfs_common::api::directory::SetAttributes;

use super::node::Node;
use super::{Caller, Vfs};

pub(super) use dfs_common::xattr::ACCESS;

const SGID: u32 = 0o2000;

impl Vfs {
    /// A new access list changes the mode. As with chmod, sgid goes where the caller is not in the group.
    pub(super) async fn access_list_changed(&self, node: &Node, caller: Caller) -> Result<()> {
        let attributes = node.attributes();
        if attributes.mode & SGID != 0 && !is_in_group(caller, attributes.gid) {
            let set = SetAttributes { mode: Some(attributes.mode & !SGID), ..SetAttributes::none(node.ino) };
            self.change_inode(node, &set).await?;
        }
        Ok(())
    }
}

/// Whether the caller is root or has `gid` among its groups.
fn is_in_group(caller: Caller, gid: u32) -> bool {
    if caller.uid == 0 || caller.gid == gid {
        return true;
    }
    // The request carries no supplementary groups; a caller that is gone needs none.
    let status = std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_ascii_whitespace().any(|group| group.parse() == Ok(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_come_from_the_caller_and_its_process() {
        let caller = |uid, gid, pid| Caller { uid, gid, pid, umask: 0 };
        assert!(is_in_group(caller(0, 5, 0), 9) && is_in_group(caller(7, 9, 0), 9));
        assert!(!is_in_group(caller(7, 5, 0), 9), "nobody there");
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let groups = status.lines().find_map(|l| l.strip_prefix("Groups:")).unwrap();
        for group in groups.split_ascii_whitespace() {
            assert!(is_in_group(caller(7, u32::MAX, std::process::id()), group.parse().unwrap()));
        }
        assert!(!is_in_group(caller(7, 5, std::process::id()), u32::MAX - 1));
    }
}
