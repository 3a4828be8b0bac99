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
/// How long an interrupted caller is kept for taking back what it asked for.
const CANCEL_LIMIT: Duration = Duration::from_millis(500);
/// SIGCONT to SIGTTOU stop or continue; they do not end a wait.
const STOP_SIGNALS: u64 = 0b1111 << 18;

/// SIGHUP, SIGINT, SIGQUIT, SIGKILL and SIGTERM.
const ENDING_SIGNALS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 8 | 1 << 14;
/// SIGKILL; the kernel makes it of every signal that ends the process.
const FATAL_SIGNALS: u64 = 1 << 8;

/// Which pending signals end a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signals {
    /// None: it may have been carried out already, and its result counts.
    None,
    /// The caller is about to end. For reads: a page that cannot be read is fatal to who has it mapped.
    Fatal,
    /// Somebody wants the caller to end. Others, such as SIGCHLD or a runtime's own, come at any time to
    /// programs that do not expect an interrupted stat(2).
    Ending,
    /// Any that it would take: open(2) of a file that is locked may take for ever.
    Any,
}

impl Signals {
    fn mask(self) -> u64 {
        match self {
            Signals::None => 0,
            Signals::Fatal => FATAL_SIGNALS,
            Signals::Ending => ENDING_SIGNALS,
            Signals::Any => !STOP_SIGNALS,
        }
    }
}

/// Waits for `future`, or answers `Interrupted` once the caller has a signal to take. The future is dropped then.
pub(crate) async fn interruptible<T>(caller: Caller, future: impl Future<Output = T>) -> Result<T> {
    given_up_on(Signals::Any, caller.pid, future).await
}

/// The same for the thread `pid` and certain signals.
pub(crate) async fn given_up_on<T>(signals: Signals, pid: u32, future: impl Future<Output = T>) -> Result<T> {
    tokio::pin!(future);
    if pid == 0 || signals == Signals::None {
        return Ok(future.await);
    }
    loop {
        tokio::select! {
            biased;
            result = &mut future => return Ok(result),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| has_pending_signal(&status, signals)) {
            return Err(Error::from(ErrorKind::Interrupted));
        }
    }
}

/// Asks a service for what it may grant only after a long wait. Where the caller gives up, `cancel` takes it back. Where
/// nobody knows whether that was heard, or the request itself, and where this future is dropped, `later` is to see to it.
pub(crate) async fn ask_in_line<T>(
    caller: Caller,
    ask: impl Future<Output = Result<T>>,
    cancel: impl Future<Output = Result<()>>,
    later: impl FnOnce(),
) -> Result<T> {
    let mut unsettled = OnDrop(Some(later));
    let result = match interruptible(caller, ask).await {
        Ok(result) => result,
        Err(interrupted) => {
            // The grant may be on its way: giving up the place gives it back too. A service that does not answer is told later.
            if matches!(tokio::time::timeout(CANCEL_LIMIT, cancel).await, Ok(Ok(()))) {
                unsettled.0 = None;
            }
            return Err(interrupted);
        }
    };
    // A request without an answer may yet be carried out.
    if !result.as_ref().is_err_and(|e| e.kind().is_transient()) {
        unsettled.0 = None;
    }
    result
}

/// Something to do at the end, unless it is taken out before.
struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(last) = self.0.take() {
            last();
        }
    }
}

/// Whether a thread with this /proc status would act on a signal if it could.
fn has_pending_signal(status: &str, signals: Signals) -> bool {
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).ok()
    };
    let pending = mask("SigPnd").unwrap_or(0) | mask("ShdPnd").unwrap_or(0);
    let passed_over = mask("SigBlk").unwrap_or(0) | mask("SigIgn").unwrap_or(0);
    pending & !passed_over & signals.mask() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, blocked: u64, ignored: u64) -> String {
        format!("Name:\tcat\nSigPnd:\t{:016x}\nShdPnd:\t{pending:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n", 0)
    }

    #[test]
    fn only_signals_that_would_be_taken_count() {
        let taken = |status: &str| has_pending_signal(status, Signals::Any);
        let bit = |signal: u32| 1u64 << (signal - 1);
        assert!(taken(&status(bit(2), 0, 0)));
        assert!(taken(&status(bit(9), 0, 0)));
        assert!(!taken(&status(0, 0, 0)));
        assert!(!taken(&status(bit(2), bit(2), 0)));
        assert!(!taken(&status(bit(17), 0, bit(17))));
        for stop in 19..=22 {
            assert!(!taken(&status(bit(stop), 0, 0)), "{stop}");
        }
        assert!(!taken("garbage"));
    }

    #[tokio::test]
    async fn what_nobody_knows_the_end_of_is_seen_to_later() {
        let asked = async |ask: Result<()>| {
            let mut left = false;
            let result = ask_in_line(Caller::default(), async { ask }, async { Ok(()) }, || left = true).await;
            (result.map_err(|e| e.kind()), left)
        };
        assert_eq!(asked(Ok(())).await, (Ok(()), false));
        assert_eq!(asked(Err(ErrorKind::Busy.into())).await, (Err(ErrorKind::Busy), false));
        assert_eq!(asked(Err(ErrorKind::TimedOut.into())).await, (Err(ErrorKind::TimedOut), true));
        let mut left = false;
        let mut dropped = Box::pin(ask_in_line(Caller::default(), std::future::pending::<Result<()>>(), async { Ok(()) }, || left = true));
        assert!(futures_util::poll!(dropped.as_mut()).is_pending());
        drop(dropped);
        assert!(left);
    }

    #[test]
    fn what_need_not_be_expected_ends_only_waits_for_locks() {
        let bit = |signal: u32| 1u64 << (signal - 1);
        let taken = |signal, signals| has_pending_signal(&status(bit(signal), 0, 0), signals);
        for (signal, fatal, ending) in [(9, true, true), (2, false, true), (15, false, true), (17, false, false), (23, false, false)] {
            assert_eq!((taken(signal, Signals::Fatal), taken(signal, Signals::Ending)), (fatal, ending), "{signal}");
            assert!(taken(signal, Signals::Any) && !taken(signal, Signals::None), "{signal}");
        }
    }
}
