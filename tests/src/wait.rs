//! Waiting for a condition with a deadline, instead of sleeping.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// True as soon as `condition` is, false when `limit` has passed first.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Panics with `what` unless `condition` becomes true within `seconds`.
#[track_caller]
pub fn eventually(seconds: u64, what: &str, condition: impl FnMut() -> bool) {
    assert!(within(Duration::from_secs(seconds), condition), "not within {seconds} s: {what}");
}

/// Sets a flag when it goes, so that threads which work until then end also where what they wait for has failed.
#[derive(Debug)]
pub struct Ending<'a>(pub &'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
