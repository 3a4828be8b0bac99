//! Whether a client whose root is not trusted may have a file's content: the directory
//! service decides, by user, and its answer is kept for a moment.
//!
//! Other clients are not asked about: their root is trusted, and lets through whom it may.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use dfs_common::api::Operation;
use dfs_common::api::directory::Access;
use dfs_common::ids::InodeId;
use dfs_common::user::User;
use dfs_common::wire::{Method, Request};
use dfs_common::{Error, ErrorKind, Result};

use super::{DIRECTORY_TIMEOUT, FileServer};

/// So long a user who was let through may read without another question.
const KEPT: Duration = Duration::from_secs(5);
/// Users and files of which that is known at a time.
const MAX_KNOWN: usize = 10_000;

/// Who was let through, to which file, and when.
#[derive(Debug, Default)]
pub(super) struct Readers {
    known: HashMap<(User, InodeId), Instant>,
}

impl Readers {
    fn knows(&self, reader: &(User, InodeId), now: Instant) -> bool {
        self.known.get(reader).is_some_and(|at| now.duration_since(*at) < KEPT)
    }

    fn add(&mut self, reader: (User, InodeId), now: Instant) {
        if self.known.len() >= MAX_KNOWN {
            self.known.retain(|_, at| now.duration_since(*at) < KEPT);
        }
        if self.known.len() < MAX_KNOWN {
            self.known.insert(reader, now);
        }
    }
}

impl FileServer {
    /// `Forbidden` where `request` comes from a client with an untrusted root, on behalf of somebody who may not have the
    /// content of `ino`.
    pub(super) async fn admit_reader(&self, request: &Request, ino: InodeId) -> Result<()> {
        if request.origin.limits().squash.is_none() {
            return Ok(());
        }
        let user = request.user.clone().ok_or_else(|| Error::from(ErrorKind::Forbidden))?;
        let reader = (user, ino);
        if self.readers.lock().knows(&reader, Instant::now()) {
            return Ok(());
        }
        let question = Request::new(Method::Post, Access::PATH).json(&Access::content(ino)).user(Some(reader.0.clone()));
        let answer = self.directory.send_until(&question, tokio::time::Instant::now() + DIRECTORY_TIMEOUT).await?;
        answer.into_bytes()?;
        self.readers.lock().add(reader, Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_let_through_is_known_for_a_moment_and_not_without_bound() {
        let (mut readers, start) = (Readers::default(), Instant::now());
        let reader = |ino| (User { uid: 1, gid: 1, groups: None }, InodeId(ino));
        for ino in 0..=MAX_KNOWN as u64 {
            readers.add(reader(ino), start);
        }
        assert_eq!(readers.known.len(), MAX_KNOWN);
        assert!(readers.knows(&reader(5), start) && !readers.knows(&reader(MAX_KNOWN as u64), start));
        let other = (User { groups: Some(vec![1]), ..reader(5).0 }, InodeId(5));
        assert!(!readers.knows(&other, start) && !readers.knows(&reader(5), start + KEPT));
        readers.add(reader(1 << 40), start + KEPT);
        assert_eq!(readers.known.len(), 1);
    }
}
