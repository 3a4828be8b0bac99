//! When files and directories were last accessed: as with `relatime` on a local disk,
//! without a request on the way of who reads.
//!
//! A time is shown here at once and sent in batches with the renewals. It takes no lock
//! and breaks no lease: others see it when they ask next. What a mount that dies has not
//! sent is lost.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dfs_common::api::directory::Accessed;
use dfs_common::attributes::{Attributes, FileKind, Timestamp};
use dfs_common::ids::InodeId;
use dfs_common::{ErrorKind, Result};
use parking_lot::Mutex;

use super::Vfs;
use super::node::Node;

/// An access moves the time where the last one was longer ago than this, whatever has changed since.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);
/// The service's clock as it is known here is behind by less than this: by the way of an answer.
const BEHIND: Duration = Duration::from_secs(1);
/// Times that wait to be sent; beyond, further ones are passed over until some have been.
const PENDING_MAX: usize = 2 * Accessed::MAX;
/// A batch may take this long.
const MIN_LIMIT: Duration = Duration::from_millis(200);
const MAX_LIMIT: Duration = Duration::from_secs(5);

/// Of what a mount keeps the times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessTimes {
    /// Of files.
    pub files: bool,
    /// Of directories.
    pub directories: bool,
}

/// Times that the directory service has not been told of.
#[derive(Debug, Default)]
pub(crate) struct Accesses {
    pending: Mutex<HashMap<InodeId, Timestamp>>,
    /// Held while some are sent.
    sending: tokio::sync::Mutex<()>,
}

impl Accesses {
    /// `attributes` with the time that waits to be sent.
    pub(crate) fn show(&self, ino: InodeId, attributes: &mut Attributes) {
        if let Some(time) = self.pending.lock().get(&ino) {
            attributes.atime = attributes.atime.max(*time);
        }
    }
}

/// Whether an access at `now` moves the time.
fn is_due(attributes: &Attributes, now: Timestamp) -> bool {
    let Attributes { atime, mtime, ctime, .. } = attributes;
    atime <= mtime || atime <= ctime || now.0.saturating_sub(atime.0) >= OLD.as_nanos() as i64
}

/// The time of an access where the clock stands at `now`: after the change that it follows, which the service may have
/// put a little later than the clock says here. Otherwise the access would count again the next time.
fn after_change(ctime: Timestamp, now: Timestamp) -> Timestamp {
    let ahead = ctime.0.saturating_sub(now.0);
    if (0..BEHIND.as_nanos() as i64).contains(&ahead) { Timestamp(ctime.0 + 1) } else { now }
}

impl Vfs {
    /// What is behind `id` is opened for reading.
    pub fn accessed(&self, id: u64) {
        let times = self.settings.access_times;
        let Some(node) = self.nodes.get(id) else { return };
        if !(if node.kind() == FileKind::Directory { times.directories } else { times.files }) {
            return;
        }
        let (mut attributes, now) = (node.attributes(), self.now());
        self.accesses.show(node.ino, &mut attributes);
        if attributes.nlink == 0 || !is_due(&attributes, now) {
            return;
        }
        let time = after_change(attributes.ctime, now);
        let count = {
            let mut pending = self.accesses.pending.lock();
            if pending.len() >= PENDING_MAX && !pending.contains_key(&node.ino) {
                return;
            }
            pending.insert(node.ino, time);
            pending.len()
        };
        // Otherwise it asks anyway, and an order would only cost answers that are on their way.
        if node.state.lock().kernel.keeps() {
            self.forget_attributes(id);
        }
        if count == Accessed::MAX {
            self.release_soon.notify_one();
        }
    }

    /// The last access of `node` is set by hand: what waits to be sent must not come after that.
    pub(crate) async fn access_is_set(&self, node: &Node) {
        let _nothing_under_way = self.accesses.sending.lock().await;
        self.accesses.pending.lock().remove(&node.ino);
    }

    /// Tells the directory service of what waits.
    pub(crate) async fn send_accesses(&self) -> Result<()> {
        let _one_at_a_time = self.accesses.sending.lock().await;
        // The next renewal must not be late for it.
        let limit = Duration::from_millis(self.cluster.session().lease_ms / 8).clamp(MIN_LIMIT, MAX_LIMIT);
        let all: Vec<(InodeId, Timestamp)> = self.accesses.pending.lock().iter().map(|(ino, time)| (*ino, *time)).collect();
        for times in all.chunks(Accessed::MAX) {
            match self.cluster.directory.call_once_within(&Accessed { times: times.to_vec() }, limit).await {
                Ok(_) => {}
                // An older service knows no such thing, and some tokens are for reading only.
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ReadOnly) => log::debug!("{e}"),
                Err(e) => return Err(e),
            }
            for (ino, time) in times {
                for node in self.nodes.all_of(*ino) {
                    let mut state = node.state.lock();
                    let known = &mut state.entry.attributes.atime;
                    *known = (*known).max(*time);
                }
                let mut pending = self.accesses.pending.lock();
                // Another access may have come meanwhile.
                if pending.get(ino) == Some(time) {
                    pending.remove(ino);
                }
            }
        }
        Ok(())
    }

    /// With the renewals, and at the end.
    pub(crate) async fn send_accesses_or_later(&self) {
        if let Err(e) = self.send_accesses().await
            && !self.ending.load(Ordering::Relaxed)
        {
            log::debug!("times of access are sent later: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_counts_as_relatime_says() {
        let day = OLD.as_nanos() as i64;
        let due = |atime: i64, mtime: i64, ctime: i64, now: i64| {
            let times = (Timestamp(atime), Timestamp(mtime), Timestamp(ctime));
            is_due(&Attributes { atime: times.0, mtime: times.1, ctime: times.2, ..Attributes::bare(InodeId(2), FileKind::File) }, Timestamp(now))
        };
        assert!(due(5, 5, 4, 6) && due(5, 4, 5, 6) && due(3, 5, 5, 6));
        assert!(!due(6, 5, 5, 7) && !due(6, 5, 5, day + 5) && due(6, 5, 5, day + 6));
        assert!(!due(i64::MAX, 5, 5, 7), "set to a time to come");
    }

    #[test]
    fn an_access_is_after_the_change_that_it_follows() {
        let at = |ctime: i64, now: i64| after_change(Timestamp(ctime), Timestamp(now)).0;
        let second = BEHIND.as_nanos() as i64;
        assert_eq!((at(5, 9), at(9, 9), at(12, 9)), (9, 10, 13));
        assert_eq!(at(9 + second, 9), 9, "the service's clock was wrong once: the file is not read in times to come");
        assert_eq!((at(i64::MAX, 9), at(i64::MIN, 9)), (9, 9));
    }
}
