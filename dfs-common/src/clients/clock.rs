//! The directory service's clock as a client knows it, so that times of all clients
//! compare, whatever their own clocks say.
//!
//! It is the client's monotonic clock with an offset, which answers correct that say the
//! service's time. So it does not matter when somebody sets the client's clock. Here it
//! never runs backwards: where it turns out to be ahead, it goes at half its speed until
//! it is right.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::attributes::Timestamp;

/// Two clocks of computers drift apart by this part of the time that passes, at the most.
const DRIFT: i64 = 5_000;

/// A clock for a client.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    estimate: Mutex<Estimate>,
}

impl Clock {
    /// From an answer that said `service`, to a request that was sent at `sent` and answered just now.
    pub fn new(service: Timestamp, sent: Instant) -> Self {
        let clock = Self { start: sent, estimate: Mutex::new(Estimate::default()) };
        clock.hear(service, sent);
        clock
    }

    /// Another such answer.
    pub fn hear(&self, service: Timestamp, sent: Instant) {
        // A service that says nothing of the time.
        if service == Timestamp::default() {
            return;
        }
        let (sent, received) = (sent.duration_since(self.start), self.start.elapsed());
        self.estimate.lock().hear(service.0, nanos(sent), nanos(received));
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.estimate.lock().at(nanos(self.start.elapsed())))
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// What is known of the service's clock; all in nanoseconds, by the client's clock since it started.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    /// What has to be added to the client's.
    offset: i64,
    /// How far it may be from the truth, as of `heard`; `None`: nothing was heard yet.
    error: Option<i64>,
    heard: i64,
    /// The time that was shown at `slow_from`, from where on it goes at half its speed as long as it is ahead.
    shown: i64,
    slow_from: i64,
}

impl Estimate {
    fn hear(&mut self, service: i64, sent: i64, received: i64) {
        let (offset, error) = (service - (sent + received) / 2, (received - sent) / 2);
        if let Some(known) = self.error {
            let known = known + (received - self.heard) / DRIFT;
            let is_possible = (offset - self.offset).abs() <= known + error;
            // The quicker answer says more; but where both cannot be true, somebody has set a clock, or the machine slept.
            if is_possible && error > known {
                return;
            }
        }
        (self.shown, self.slow_from) = if self.error.is_some() { (self.at(received), received) } else { (i64::MIN / 2, received) };
        (self.offset, self.error, self.heard) = (offset, Some(error), received);
    }

    fn at(&self, elapsed: i64) -> i64 {
        (elapsed + self.offset).max(self.shown.saturating_add((elapsed - self.slow_from) / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;
    const HOUR: i64 = 3_600_000 * MS;

    #[test]
    fn half_a_round_trip_is_taken_off_and_the_quickest_answer_wins() {
        let mut clock = Estimate::default();
        clock.hear(HOUR, 0, 10 * MS);
        assert_eq!(clock.at(10 * MS), HOUR + 5 * MS);
        clock.hear(HOUR + 101 * MS, 100 * MS, 102 * MS);
        assert_eq!(clock.at(102 * MS), HOUR + 102 * MS);
        clock.hear(HOUR + 210 * MS, 200 * MS, 250 * MS);
        assert_eq!(clock.at(250 * MS), HOUR + 250 * MS, "a slow answer that may be true says nothing");
    }

    #[test]
    fn what_was_heard_long_ago_is_worth_less() {
        let mut clock = Estimate::default();
        clock.hear(0, 0, 2 * MS);
        clock.hear(HOUR + 30 * MS, HOUR, HOUR + 40 * MS);
        assert_eq!(clock.at(HOUR + 40 * MS), HOUR + 50 * MS);
    }

    #[test]
    fn time_never_runs_backwards_and_is_right_in_the_end() {
        let mut clock = Estimate::default();
        clock.hear(HOUR, 0, 2 * MS);
        let before = clock.at(1000 * MS);
        clock.hear(HOUR + 500 * MS, 999 * MS, 1001 * MS);
        let mut last = before;
        for ms in 1001..3000 {
            let now = clock.at(ms * MS);
            assert!(now >= last, "at {ms} ms");
            last = now;
        }
        assert_eq!(clock.at(3000 * MS), HOUR + 2500 * MS);
        clock.hear(9 * HOUR, 3000 * MS, 3000 * MS);
        assert_eq!(clock.at(3000 * MS), 9 * HOUR, "what is behind is right at once");
    }
}
