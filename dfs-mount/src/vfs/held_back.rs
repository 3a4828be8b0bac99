//! Attributes that a program sets in a file that it is writing for the first time, as
//! tar(1) and cp -p do: they go to the directory service together with the content, in
//! one step, and cost no request of their own.
//!
//! Nobody has seen anything of such a file but that it is there and empty, so nobody misses them until then. Whatever
//! might be refused, or depends on more than the inode, is asked for at once; and what no commit has taken along is
//! asked for when the file is closed.

use dfs_common::Result;
use dfs_common::api::directory::SetAttributes;
use dfs_common::attributes::{Attributes, Timestamp};
use dfs_common::clients::behalf::{self, Behalf};
use dfs_common::ids::Version;

use super::node::Node;
use super::rights::scope;
use super::{Caller, Vfs};

const SUID_SGID: u32 = 0o6000;

/// What was set and not sent yet.
#[derive(Clone, Debug)]
pub(crate) struct HeldBack {
    pub(super) set: SetAttributes,
    at: Timestamp,
    /// Who set it.
    behalf: Option<Behalf>,
}

impl HeldBack {
    /// As `stat` shows it here.
    pub(super) fn show(&self, attributes: &mut Attributes) {
        attributes.mode = self.set.mode.unwrap_or(attributes.mode);
        attributes.uid = self.set.uid.unwrap_or(attributes.uid);
        attributes.gid = self.set.gid.unwrap_or(attributes.gid);
        attributes.atime = self.set.atime.unwrap_or(attributes.atime);
        attributes.ctime = attributes.ctime.max(self.at);
    }

    fn user(&self) -> Option<u32> {
        self.behalf.as_ref().map(Behalf::uid)
    }
}

impl Vfs {
    /// Keeps `set` for the next commit of `node`, if it can wait. The time of modification is the content's matter.
    pub(super) fn hold_back(&self, node: &Node, set: &SetAttributes, caller: Caller) -> bool {
        let mut state = node.state.lock();
        let is_first = state.entry.attributes.version == Version(0) && state.writers > 0 && !state.removed && !state.superseded;
        let is_written = state.content.as_ref().is_some_and(|content| content.needs_commit(false));
        let attributes = state.attributes(node.id);
        let is_plain = !attributes.has_xattrs && (attributes.mode | set.mode.unwrap_or(0)) & SUID_SGID == 0;
        let may = caller.uid == 0 || (caller.uid == attributes.uid && set.uid.is_none() && set.gid.is_none());
        if !(is_first && is_written && is_plain && may) || self.is_squashed(caller) {
            return false;
        }
        let behalf = behalf::current().map(|behalf| behalf.to_keep(false));
        let before = state.held_back.take();
        if before.as_ref().is_some_and(|before| before.user() != behalf.as_ref().map(Behalf::uid)) {
            state.held_back = before;
            return false;
        }
        let before = before.map_or_else(|| SetAttributes::none(node.ino), |before| before.set);
        let set = SetAttributes {
            mode: set.mode.or(before.mode),
            uid: set.uid.or(before.uid),
            gid: set.gid.or(before.gid),
            atime: set.atime.or(before.atime),
            ..before
        };
        state.held_back = Some(HeldBack { set, at: self.now(), behalf });
        true
    }

    /// What the commit under way may take along: not what somebody else has set, which goes by itself.
    pub(super) async fn take_along(&self, node: &Node) -> Result<Option<SetAttributes>> {
        let Some(held) = node.state.lock().held_back.clone() else { return Ok(None) };
        let committer = behalf::current().as_ref().map(Behalf::uid);
        if committer.is_none() || committer == held.user() {
            return Ok(Some(held.set));
        }
        self.send_held_back(node).await.map(|()| None)
    }

    /// `sent` is at the directory service.
    pub(super) fn taken_along(node: &Node, sent: Option<&SetAttributes>) {
        let mut state = node.state.lock();
        if state.held_back.as_ref().map(|held| &held.set) == sent && sent.is_some() {
            state.held_back = None;
        }
    }

    /// Sends what no commit has taken along. What is refused for good is forgotten.
    pub(super) async fn send_held_back(&self, node: &Node) -> Result<()> {
        let held = {
            let state = node.state.lock();
            state.held_back.clone().filter(|_| !state.removed)
        };
        let Some(held) = held else { return Ok(()) };
        let result = scope(held.behalf.as_ref(), self.change_inode(node, &held.set)).await;
        if !result.as_ref().is_err_and(|e| e.kind().is_transient()) {
            Self::taken_along(node, Some(&held.set));
        }
        result
    }
}
