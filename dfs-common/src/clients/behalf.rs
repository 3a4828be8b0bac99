//! On whose behalf the clients ask, for as long as an operation lasts: [`Caller`](super::Caller) and
//! [`Peers`](super::Peers) say it in each request. It surrounds the operation's future, as [`super::steps`] do.
//!
//! Supplementary groups cost a look into /proc, and hardly a request needs them: a request
//! is made without, and once more with them where it was refused.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use tokio::task::futures::TaskLocalFuture;

use crate::user::{MAX_GROUPS, User};

tokio::task_local! {
    static BEHALF: Behalf;
}

/// A user who asks, of whom the groups may not be known yet.
#[derive(Clone, Debug)]
pub struct Behalf(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    uid: u32,
    gid: u32,
    /// Whose groups are the user's: the thread that waits for the answer; 0 where none does.
    thread: u32,
    groups: OnceLock<Vec<u32>>,
}

impl Behalf {
    /// The user of a thread that waits until all is done; 0 where there is none, so that its groups stay unknown.
    pub fn of_thread(uid: u32, gid: u32, thread: u32) -> Self {
        Self(Arc::new(Inner { uid, gid, thread, groups: OnceLock::new() }))
    }

    /// A user whose groups are known.
    pub fn of(uid: u32, gid: u32, groups: Vec<u32>) -> Self {
        Self(Arc::new(Inner { uid, gid, thread: 0, groups: OnceLock::from(groups) }))
    }

    /// Who runs this process; `None` where /proc does not say.
    pub fn of_this_process() -> Option<Self> {
        let (uid, gid, groups) = credentials(&std::fs::read_to_string("/proc/self/status").ok()?)?;
        Some(Self::of(uid, gid, groups))
    }

    /// The same user for when the thread waits no longer: with its groups where they are known, or where `needed` is true.
    #[must_use]
    pub fn to_keep(&self, needed: bool) -> Self {
        let groups = if needed { self.groups() } else { self.0.groups.get().map(Vec::as_slice) };
        match groups {
            Some(groups) => Self::of(self.0.uid, self.0.gid, groups.to_vec()),
            None => Self::of_thread(self.0.uid, self.0.gid, 0),
        }
    }

    /// The user's number.
    pub fn uid(&self) -> u32 {
        self.0.uid
    }

    /// The user, with groups where they are known by now.
    pub fn user(&self) -> User {
        User { uid: self.0.uid, gid: self.0.gid, groups: self.0.groups.get().cloned() }
    }

    /// The groups, looked up where need be.
    fn groups(&self) -> Option<&[u32]> {
        let Inner { uid, thread, groups, .. } = &*self.0;
        if groups.get().is_none() && *thread != 0 {
            let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
            // Should the number be another thread's by now, it has no say.
            let (_, _, found) = credentials(&status).filter(|found| found.0 == *uid)?;
            return Some(groups.get_or_init(|| found));
        }
        groups.get().map(Vec::as_slice)
    }

    /// Carries out `operation` on behalf of this user.
    pub fn scope<F: Future>(&self, operation: F) -> TaskLocalFuture<Self, F> {
        BEHALF.scope(self.clone(), operation)
    }
}

/// On whose behalf the operation around is carried out; `None` where it is nobody in particular.
pub fn current() -> Option<Behalf> {
    BEHALF.try_with(Clone::clone).ok()
}

/// That user.
pub(super) fn user() -> Option<User> {
    BEHALF.try_with(Behalf::user).ok()
}

/// The same as `refused`, with groups that were not told; `None` where it has none besides, or nothing is known of them.
pub(super) fn with_groups(refused: Option<&User>) -> Option<User> {
    let told = refused?;
    if told.groups.is_some() || told.is_root() {
        return None;
    }
    let behalf = current()?;
    let groups = behalf.groups()?;
    groups.iter().any(|group| *group != told.gid).then(|| behalf.user())
}

/// User, group and supplementary groups by which files are judged, from a `status` in /proc.
fn credentials(status: &str) -> Option<(u32, u32, Vec<u32>)> {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    // Real, effective, saved, of the file system.
    let last = |name| line(name)?.split_ascii_whitespace().nth(3)?.parse().ok();
    let mut groups: Vec<u32> = line("Groups")?.split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect();
    groups.sort_unstable();
    groups.dedup();
    groups.truncate(MAX_GROUPS);
    Some((last("Uid")?, last("Gid")?, groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_is_known_within_its_operation_and_nowhere_else() {
        assert!(current().is_none() && user().is_none());
        let told = Behalf::of_thread(7, 8, 0).scope(async { user() }).await.unwrap();
        assert_eq!(told, User { uid: 7, gid: 8, groups: None });
        assert!(user().is_none());
    }

    #[tokio::test]
    async fn groups_are_looked_up_once_they_are_needed() {
        let own = Behalf::of_this_process().unwrap().user();
        let behalf = Behalf::of_thread(own.uid, own.gid, std::process::id());
        assert_eq!(behalf.to_keep(false).user().groups, None);
        let told = behalf.user();
        assert_eq!((&told.groups, behalf.to_keep(true).user().groups), (&None, own.groups.clone()));
        let again = behalf.scope(async { with_groups(Some(&told)) }).await;
        let has_more = !own.is_root() && own.groups.as_ref().unwrap().iter().any(|group| *group != own.gid);
        assert_eq!(again.is_some(), has_more);
    }

    #[tokio::test]
    async fn a_thread_of_somebody_else_or_that_is_gone_has_no_groups_to_give() {
        let own = Behalf::of_this_process().unwrap().user();
        for behalf in [Behalf::of_thread(own.uid + 1, 5, std::process::id()), Behalf::of_thread(1, 5, u32::MAX)] {
            assert!(behalf.scope(async { with_groups(Some(&behalf.user())) }).await.is_none());
            assert_eq!(behalf.to_keep(true).user().groups, None);
        }
    }

    #[test]
    fn the_ids_of_the_file_system_count() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t30 4 30 \n";
        assert_eq!(credentials(status), Some((4, 8, vec![4, 30])));
        assert_eq!(credentials("Uid:\t1\n"), None);
    }
}
