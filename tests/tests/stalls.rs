//! Two clients that create, rename, list and delete in one directory: invalidation must
//! not make one wait for the other, which waits for the first (see ARCHITECTURE.md).
//!
//! Own file, so that nothing else runs beside it. `DFS_TEST_SECONDS` sets its time.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_tests::{Cluster, Mount, sys};

/// No call may take longer.
const STALL: Duration = Duration::from_millis(100);
/// The canary wakes up this often.
const TICK: Duration = Duration::from_millis(2);

/// A call, from the start of the test.
#[derive(Clone, Copy, Debug)]
struct Call {
    what: &'static str,
    at: Duration,
    took: Duration,
}

/// Calls timed on one mount.
struct Timed {
    clock: Instant,
    calls: Vec<Call>,
}

impl Timed {
    fn run<T>(&mut self, what: &'static str, call: impl FnOnce() -> T) -> T {
        let at = self.clock.elapsed();
        let result = call();
        self.calls.push(Call { what, at, took: self.clock.elapsed() - at });
        result
    }
}

/// Creates, renames, lists and deletes until `stop`; with `shared`, also one name that the other client makes and removes, too.
fn churn(mount: &Mount, who: &str, clock: Instant, stop: &AtomicBool) -> Vec<Call> {
    let mut timed = Timed { clock, calls: Vec::new() };
    let mut n = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let (one, two, both) = (mount.at(format!("d/{who}{}", n % 50)), mount.at(format!("d/{who}{}.new", n % 50)), mount.at("d/both"));
        let mut file = timed.run("create", || fs::File::create(&one)).unwrap();
        file.write_all(who.as_bytes()).unwrap();
        timed.run("close", || sys::close(file)).unwrap();
        timed.run("rename", || fs::rename(&one, &two)).unwrap();
        timed.run("stat", || fs::symlink_metadata(&two)).unwrap();
        timed.run("list", || fs::read_dir(mount.at("d")).and_then(Iterator::collect::<Result<Vec<_>, _>>)).unwrap();
        // Both clients remove the other's file under one name now and then.
        if n.is_multiple_of(4) {
            timed.run("rename", || fs::rename(&two, &both)).unwrap();
            timed.run("stat", || fs::symlink_metadata(&both)).ok();
            timed.run("remove", || fs::remove_file(&both)).ok();
        } else {
            timed.run("remove", || fs::remove_file(&two)).unwrap();
        }
    }
    timed.calls
}

/// When the machine itself did not run what was due: from when, and for how long.
fn canary(clock: Instant, stop: &AtomicBool) -> Vec<(Duration, Duration)> {
    let mut stalls = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let before = clock.elapsed();
        std::thread::sleep(TICK);
        let late = (clock.elapsed() - before).saturating_sub(TICK);
        if late > Duration::from_millis(10) {
            stalls.push((before, late));
        }
    }
    stalls
}

/// What a call took, without the time in which the machine stood still.
fn own_time(call: Call, stalls: &[(Duration, Duration)]) -> Duration {
    let within = stalls.iter().filter(|(at, late)| *at < call.at + call.took && *at + *late + TICK > call.at);
    call.took.saturating_sub(within.map(|s| s.1).sum())
}

fn percentile(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

#[test]
fn two_clients_in_one_directory_never_stall() {
    let seconds = std::env::var("DFS_TEST_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(25);
    let cluster = Cluster::builder().start();
    let (a, b) = (cluster.mount(), cluster.mount());
    fs::create_dir(a.at("d")).unwrap();
    let (clock, stop) = (Instant::now(), AtomicBool::new(false));
    let (mut calls, stalls) = std::thread::scope(|scope| {
        let first = scope.spawn(|| churn(&a, "a", clock, &stop));
        let second = scope.spawn(|| churn(&b, "b", clock, &stop));
        let canary = scope.spawn(|| canary(clock, &stop));
        dfs_tests::within(Duration::from_secs(seconds), || first.is_finished() || second.is_finished());
        stop.store(true, Ordering::Relaxed);
        let mut calls = first.join().unwrap();
        calls.extend(second.join().unwrap());
        (calls, canary.join().unwrap())
    });
    assert!(calls.len() > 100 * seconds as usize, "only {} calls in {seconds} s", calls.len());
    for what in ["create", "close", "rename", "stat", "list", "remove"] {
        let mut times: Vec<Duration> = calls.iter().filter(|c| c.what == what).map(|c| c.took).collect();
        times.sort_unstable();
        let at = |part| percentile(&times, part);
        println!("{what}: {} calls, median {:?}, 99 % {:?}, 99.9 % {:?}, longest {:?}", times.len(), at(0.5), at(0.99), at(0.999), at(1.0));
    }
    println!("the machine stood still {} times, longest {:?}", stalls.len(), stalls.iter().map(|s| s.1).max());
    calls.retain(|c| own_time(*c, &stalls) > STALL);
    assert!(calls.is_empty(), "calls above {STALL:?}: {calls:?}");
    cluster.assert_no_panics();
}
