//! Waiting for a condition with a deadline, instead of sleeping.

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
