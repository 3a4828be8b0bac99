//! Sending what a program has written while it goes on writing, so that its close has to
//! wait for the rest only. Nobody waits for this: what fails is sent with the commit.

use std::collections::VecDeque;
use std::sync::Arc;

use dfs_common::{Error, ErrorKind};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::Vfs;
use super::handles::FileHandle;

/// Blocks of all files that are under way at once.
const PARALLEL: usize = 4;

/// Files with something to send.
#[derive(Debug)]
pub(crate) struct Ahead {
    queue: Mutex<VecDeque<Arc<FileHandle>>>,
    more: Notify,
    under_way: Arc<Semaphore>,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { queue: Mutex::default(), more: Notify::new(), under_way: Arc::new(Semaphore::new(PARALLEL)) }
    }
}

impl Ahead {
    fn add(&self, handle: Arc<FileHandle>) {
        self.queue.lock().push_back(handle);
        self.more.notify_one();
    }

    async fn next(&self) -> Arc<FileHandle> {
        loop {
            let next = self.queue.lock().pop_front();
            match next {
                Some(handle) => return handle,
                None => self.more.notified().await,
            }
        }
    }
}

impl Vfs {
    /// After a write: what it has left behind is sent, soon.
    pub(super) fn send_ahead(&self, handle: &Arc<FileHandle>) {
        if handle.content.has_ahead() {
            self.ahead.add(handle.clone());
        }
    }

    /// Sends one block after the other, of each file in turn; never returns.
    pub async fn keep_sending_ahead(self: Arc<Self>) {
        loop {
            let handle = self.ahead.next().await;
            let permit = self.ahead.under_way.clone().acquire_owned().await.expect("never closed");
            let placement = {
                let state = handle.node.state.lock();
                // What has no name ends with those who have it open.
                if state.removed { Vec::new() } else { state.entry.layout.placement.clone() }
            };
            let Some((primary, replicas)) = placement.split_first().map(|(primary, replicas)| (*primary, replicas.to_vec())) else {
                handle.content.sent_ahead(None, &Err(Error::new(ErrorKind::NotFound, "the file has no server")));
                continue;
            };
            // One thread hashes, however many files are written.
            let content = handle.content.clone();
            let Ok(Some(taken)) = tokio::task::spawn_blocking(move || content.take_ahead()).await else { continue };
            self.ahead.add(handle.clone());
            let vfs = self.clone();
            tokio::spawn(async move {
                let sent = handle.on_behalf(vfs.cluster.put_block(taken.hash, taken.bytes.clone(), None, primary, &replicas)).await;
                handle.content.sent_ahead(Some(&taken), &sent);
                drop(permit);
            });
        }
    }
}
