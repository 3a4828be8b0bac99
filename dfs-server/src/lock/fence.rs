//! Tells the directory service which commits it must refuse from now on, for as long as
//! it takes: nobody gets the lock of a lost holder before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_common::api::directory::Fence;
use dfs_common::ids::{InodeId, Token};
use dfs_common::{Error, ErrorKind};
use tokio::task::JoinSet;

use super::LockService;

/// Files of which the directory service is told at the same time.
const PARALLEL: usize = 16;
/// One attempt.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The pause after a failure; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Between two warnings of the same.
const WARN_INTERVAL: Duration = Duration::from_secs(30);

/// Fences whatever the state asks for; never returns.
pub(super) async fn run(service: Arc<LockService>) {
    let mut running = JoinSet::new();
    let (mut failures, mut warned) = (0, None);
    loop {
        while running.len() < PARALLEL
            && let Some((ino, token)) = service.next_fence()
        {
            let pause = (FIRST_PAUSE * (1 << failures)).min(MAX_PAUSE);
            running.spawn(tell(service.clone(), ino, token, pause));
        }
        let told = tokio::select! {
            Some(told) = running.join_next(), if !running.is_empty() => told,
            () = service.fence_asked.notified() => continue,
        };
        match told {
            Ok(Ok((ino, token))) => {
                if warned.take().is_some() {
                    log::info!("{} answers again; fencing goes on", service.directory.peer());
                }
                failures = 0;
                service.fenced(ino, token);
            }
            Ok(Err(((ino, token), problem))) => {
                failures = (failures + 1).min(10);
                if warned.is_none_or(|at: Instant| at.elapsed() > WARN_INTERVAL) {
                    warned = Some(Instant::now());
                    log::warn!("fencing inode {ino}, whose lock nobody gets before: {problem}");
                }
                // Behind the others: what is wrong with this one need not be wrong with them.
                service.ask_fence(ino, token);
            }
            // A defect of a directory service in this process: which file it was is not known any more.
            Err(e) => {
                log::error!("fencing: {e}");
                tokio::time::sleep(MAX_PAUSE).await;
                service.ask_all_fences();
            }
        }
    }
}

type Told = Result<(InodeId, Token), ((InodeId, Token), Error)>;

async fn tell(service: Arc<LockService>, ino: InodeId, token: Token, pause: Duration) -> Told {
    match service.directory.call_once_within(&Fence { ino, token }, ATTEMPT).await {
        Err(e) if !nothing_to_refuse(e.kind()) => {
            tokio::time::sleep(pause).await;
            Err(((ino, token), e))
        }
        _ => Ok((ino, token)),
    }
}

/// Errors by which the directory service says that no commit of this inode can ever count.
fn nothing_to_refuse(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::Stale | ErrorKind::IsDirectory | ErrorKind::Invalid)
}
