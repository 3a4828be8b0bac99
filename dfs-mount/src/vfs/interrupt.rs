//! Noticing that a waiting caller has been interrupted.
//!
//! The FUSE library cannot deliver interrupts, and a process that waits inside open(2)
//! takes no signal before it is answered. So whoever waits long looks at the caller's
//! pending signals in /proc now and then.

use std::future::Future;
use std::time::Duration;

use dfs_common::{Error, ErrorKind, Result};

use super::Caller;

/// A look costs about 20 us of CPU, so short waits do without one.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// SIGCONT to SIGTTOU stop or continue; they do not end a wait.
const STOP_SIGNALS: u64 = 0b1111 << 18;

/// Waits for `future`, or answers `Interrupted` once the caller has a signal to take. The future is dropped then.
pub(crate) async fn interruptible<T>(caller: Caller, future: impl Future<Output = T>) -> Result<T> {
    tokio::pin!(future);
    if caller.pid == 0 {
        return Ok(future.await);
    }
    loop {
        tokio::select! {
            biased;
            result = &mut future => return Ok(result),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).is_ok_and(|status| has_pending_signal(&status)) {
            return Err(Error::from(ErrorKind::Interrupted));
        }
    }
}

/// Whether a thread with this /proc status would act on a signal if it could.
fn has_pending_signal(status: &str) -> bool {
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).ok()
    };
    let pending = mask("SigPnd").unwrap_or(0) | mask("ShdPnd").unwrap_or(0);
    let passed_over = mask("SigBlk").unwrap_or(0) | mask("SigIgn").unwrap_or(0) | STOP_SIGNALS;
    pending & !passed_over != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, blocked: u64, ignored: u64) -> String {
        format!("Name:\tcat\nSigPnd:\t{:016x}\nShdPnd:\t{pending:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n", 0)
    }

    #[test]
    fn only_signals_that_would_be_taken_count() {
        let bit = |signal: u32| 1u64 << (signal - 1);
        assert!(has_pending_signal(&status(bit(2), 0, 0)));
        assert!(has_pending_signal(&status(bit(9), 0, 0)));
        assert!(!has_pending_signal(&status(0, 0, 0)));
        assert!(!has_pending_signal(&status(bit(2), bit(2), 0)));
        assert!(!has_pending_signal(&status(bit(17), 0, bit(17))));
        for stop in 19..=22 {
            assert!(!has_pending_signal(&status(bit(stop), 0, 0)), "{stop}");
        }
        assert!(!has_pending_signal("garbage"));
    }
}
