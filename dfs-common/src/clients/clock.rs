//! The directory service's clock as a client knows it, so that times of all clients
//! compare, whatever their own clocks say.
//!
//! It is the client's monotonic clock with an offset, which answers that say the service's
//! time narrow down. So it does not matter when somebody sets the client's clock. Of what is
//! possible the earliest time is shown: it is behind the service's by an answer's way at the most, never ahead of it, and never
//! behind what an answer has said. Here it never runs backwards: where the service's clock was set back, it goes at
//! half its speed until it is right.

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

    /// An answer that has just come shows that the service's clock stood at `service` or later.
    pub fn reached(&self, service: Timestamp) {
        self.estimate.lock().reached(service.0, nanos(self.start.elapsed()));
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
    /// What has to be added to the client's, as of `heard`: at least, at most. `None`: nothing was heard yet.
    offset: Option<(i64, i64)>,
    heard: i64,
    /// The time that was shown at `slow_from`, from where on it goes at half its speed as long as it is ahead.
    shown: i64,
    slow_from: i64,
}

impl Estimate {
    /// The offset as it is known at `elapsed`.
    fn offset_at(&self, elapsed: i64) -> Option<(i64, i64)> {
        let drift = (elapsed - self.heard) / DRIFT;
        self.offset.map(|(least, most)| (least - drift, most + drift))
    }

    fn hear(&mut self, service: i64, sent: i64, received: i64) {
        let (mut least, mut most) = (service - received, service - sent);
        if let Some(known) = self.offset_at(received) {
            // Where both cannot be true, somebody has set a clock, or the machine slept: the latest counts.
            if known.0 <= most && least <= known.1 {
                (least, most) = (least.max(known.0), most.min(known.1));
            }
        }
        self.set((least, most), received);
    }

    fn reached(&mut self, service: i64, received: i64) {
        if let Some((least, most)) = self.offset_at(received)
            && least < service - received
        {
            self.set((service - received, most.max(service - received)), received);
        }
    }

    fn set(&mut self, offset: (i64, i64), at: i64) {
        (self.shown, self.slow_from) = if self.offset.is_some() { (self.at(at), at) } else { (i64::MIN / 2, at) };
        (self.offset, self.heard) = (Some(offset), at);
    }

    fn at(&self, elapsed: i64) -> i64 {
        let least = self.offset_at(elapsed).map_or(0, |offset| offset.0);
        (elapsed + least).max(self.shown.saturating_add((elapsed - self.slow_from) / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;
    const HOUR: i64 = 3_600_000 * MS;

    #[test]
    fn it_is_behind_by_an_answers_way_at_the_most_and_never_ahead() {
        let mut clock = Estimate::default();
        // The service's clock stands at an hour when this one starts.
        clock.hear(HOUR + 9 * MS, 0, 10 * MS);
        assert_eq!(clock.at(10 * MS), HOUR + 9 * MS);
        clock.hear(HOUR + 101 * MS, 100 * MS, 102 * MS);
        assert_eq!(clock.at(102 * MS), HOUR + 101 * MS);
        clock.hear(HOUR + 210 * MS, 200 * MS, 250 * MS);
        let behind = HOUR + 250 * MS - clock.at(250 * MS);
        assert!((0..=2 * MS).contains(&behind), "a slow answer that may be true says nothing");
        clock.reached(HOUR + 260 * MS, 260 * MS);
        assert_eq!(clock.at(260 * MS), HOUR + 260 * MS);
        clock.reached(HOUR + 200 * MS, 300 * MS);
        assert!(clock.at(300 * MS) > HOUR + 299 * MS, "what is long known says nothing");
    }

    #[test]
    fn what_was_heard_long_ago_is_worth_less() {
        let mut clock = Estimate::default();
        clock.hear(0, 0, 2 * MS);
        clock.hear(HOUR + 30 * MS, HOUR, HOUR + 40 * MS);
        assert_eq!(clock.at(HOUR + 40 * MS), HOUR + 30 * MS);
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
        let right = HOUR + 2499 * MS;
        assert!((right - MS..=right).contains(&clock.at(3000 * MS)), "{}", clock.at(3000 * MS) - right);
        clock.hear(9 * HOUR, 3000 * MS, 3000 * MS);
        assert_eq!(clock.at(3000 * MS), 9 * HOUR, "what is behind is right at once");
    }
}
