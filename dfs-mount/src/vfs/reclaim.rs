//! Keeping few nodes: the kernel refers to every name that it was ever told of, until it
//! needs the memory itself. Beyond a number it is asked to let go of those that it was
//! told of longest ago; it does so with all that nobody uses.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;

use super::Vfs;

/// With more nodes than this the kernel is asked to let go. Below what a session may hold leases on.
pub(super) const NODES_MAX: usize = 60_000;
/// So many are left then.
const FEW: usize = NODES_MAX - NODES_MAX / 8;
/// Nodes of one notification.
const AT_ONCE: usize = 4096;
/// What the kernel has let go of it says in requests of its own, which take a moment.
const LOOK: Duration = Duration::from_millis(1);
/// So often they are looked for; then what was named is taken to be in use.
const LOOKS: u32 = 20;

impl Vfs {
    /// Has the number of nodes looked after, until the mount ends.
    pub async fn keep_nodes_few(self: Arc<Self>) {
        let Some(kernel) = self.kernel.get().cloned() else { return };
        while !self.ending.load(Ordering::Relaxed) {
            self.nodes.many.notified().await;
            // One round through them: what is in use stays, however many that are.
            let mut left = self.nodes.count();
            while left > 0 && self.nodes.count() > FEW {
                let oldest = self.nodes.oldest(AT_ONCE.min(left));
                if oldest.is_empty() {
                    break;
                }
                left -= oldest.len();
                let (kernel, ids, count) = (kernel.clone(), oldest, self.nodes.count());
                // It walks through its own tables, which takes a while for many.
                match tokio::task::spawn_blocking(move || kernel.prune(&ids)).await {
                    Ok(Ok(())) => self.let_go(count).await,
                    Ok(Err(e)) => {
                        return log::info!(
                            "this kernel (before Linux 6.18) cannot be asked to let go of nodes, so memory grows with their number: {e}"
                        );
                    }
                    Err(e) => return log::error!("asking the kernel to let go of nodes: {e}"),
                }
            }
        }
    }

    /// Waits until the kernel has said what it let go, of `count` nodes.
    async fn let_go(&self, count: usize) {
        let mut last = count;
        for _ in 0..LOOKS {
            sleep(LOOK).await;
            let now = self.nodes.count();
            if now < count && now >= last {
                return;
            }
            last = now;
        }
    }
}
