//! Four mounts are one file system while services die, connections break, processes stand
//! still and clocks are wrong: the checker of histories finds nothing, and afterwards all
//! goes on without a remount.

use std::path::Path;
use std::time::Duration;

use dfs_tests::clock::wrong_clock;
use dfs_tests::history::{Names, Run};
use dfs_tests::proxy::{Direction, Mode};
use dfs_tests::{Cluster, Mount, Proxy, Rng, Role};

/// Short, so that stops and silences outlast it.
const LEASE: u64 = 3;
/// Long enough for every fault here; a call that takes longer hangs.
const OPTIONS: &str = "timeout=45";
/// Errors that a fault may cause; their outcome is unclear. All others are defects.
const ERRORS: &[i32] = &[libc::EIO, libc::ETIMEDOUT];

/// Lets a fault last; the time is what is being tested.
fn last(time: Duration) {
    std::thread::sleep(time);
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Clients on `mounts`, with one seed for them and the faults.
struct Trial {
    run: Run,
    rng: Rng,
    seed: u64,
}

impl Trial {
    fn new(what: &str, mounts: &[Mount]) -> Self {
        let seed = Rng::announced(what).next_u64() >> 32;
        let paths: Vec<&Path> = mounts.iter().map(Mount::path).collect();
        let run = Run::new(&Run::shared(&paths, "shared").unwrap(), Names::of_files(6), seed);
        Self { run, rng: Rng::new(seed), seed }
    }

    #[track_caller]
    fn stretch(&mut self, time: Duration, fault: impl FnOnce(&mut Rng)) {
        let Self { run, rng, seed } = self;
        run.stretch(time, || fault(rng)).unwrap_or_else(|v| panic!("seed {seed}: {v}\n{}", run.stats));
    }

    /// `rounds` with `fault`, where errors in `errors` may be; then one in peace, where none may be.
    #[track_caller]
    fn faults(mut self, rounds: u32, errors: &[i32], mut fault: impl FnMut(&mut Rng)) {
        self.stretch(ms(1000), |_| {});
        (0..rounds).for_each(|_| self.stretch(ms(1500), &mut fault));
        let unclear = self.run.stats.unclear.clone();
        assert!(unclear.keys().all(|(_, errno)| errors.contains(errno)), "errors that this fault must not cause: {}", self.run.stats);
        // What the last fault broke may take a lease to be found.
        self.stretch(Duration::from_secs(LEASE), |_| {});
        let before = self.run.stats.unclear.clone();
        let done = self.run.stats.total();
        self.stretch(ms(3000), |_| {});
        println!("seed {}, ambiguity {:?}: {}", self.seed, self.run.ambiguity(), self.run.stats);
        assert_eq!(self.run.stats.unclear, before, "errors although all is well again: {}", self.run.stats);
        assert!(self.run.stats.total() > done + 100, "nothing goes on: {}", self.run.stats);
    }
}

fn four(cluster: &Cluster) -> Vec<Mount> {
    (0..4).map(|_| cluster.mount_with(OPTIONS)).collect()
}

fn between(rng: &mut Rng, least: u64, most: u64) -> Duration {
    ms(least + rng.below(most - least))
}

#[test]
fn the_directory_service_is_killed_and_restarted() {
    let mut cluster = Cluster::builder().lease_seconds(LEASE).start();
    let mounts = four(&cluster);
    Trial::new("directory killed", &mounts).faults(5, &[], |rng| {
        last(between(rng, 100, 1000));
        cluster.kill(Role::Directory);
        last(between(rng, 0, 1500));
        cluster.restart(Role::Directory);
    });
    cluster.assert_no_panics();
}

#[test]
fn the_directory_service_is_away_for_longer_than_a_lease() {
    let mut cluster = Cluster::builder().lease_seconds(LEASE).start();
    let mounts = four(&cluster);
    Trial::new("directory away", &mounts).faults(2, ERRORS, |rng| {
        cluster.kill(Role::Directory);
        last(Duration::from_secs(LEASE) * 2 + between(rng, 0, 1000));
        cluster.restart(Role::Directory);
    });
    cluster.assert_no_panics();
}

#[test]
fn the_lock_service_is_killed_and_restarted() {
    let mut cluster = Cluster::builder().lease_seconds(LEASE).start();
    let mounts = four(&cluster);
    Trial::new("lock service killed", &mounts).faults(4, &[], |rng| {
        last(between(rng, 100, 1000));
        cluster.kill(Role::Lock);
        last(between(rng, 0, 1000));
        cluster.restart(Role::Lock);
    });
    cluster.assert_no_panics();
}

#[test]
fn file_servers_are_killed_and_restarted() {
    let mut cluster = Cluster::builder().lease_seconds(LEASE).file_servers(3).copies(2).start();
    let mounts = four(&cluster);
    Trial::new("file server killed", &mounts).faults(4, &[], |rng| {
        // One at a time: what has one copy only, as its other holder was dead, gets the second one first.
        cluster.wait_replicated();
        let role = Role::File(rng.below(3) as usize);
        cluster.kill(role);
        last(between(rng, 500, 2000));
        cluster.restart(role);
    });
    cluster.assert_no_panics();
}

#[test]
fn everything_is_killed_and_restarted() {
    let mut cluster = Cluster::builder().lease_seconds(LEASE).file_servers(2).copies(2).start();
    let mounts = four(&cluster);
    Trial::new("all killed", &mounts).faults(3, &[], |rng| {
        last(between(rng, 100, 1500));
        cluster.crash();
    });
    cluster.assert_no_panics();
}

#[test]
fn connections_are_cut_and_reset() {
    let cluster = Cluster::builder().lease_seconds(LEASE).file_servers(2).proxied().start();
    let mounts = four(&cluster);
    Trial::new("connections cut", &mounts).faults(4, &[], |rng| {
        for _ in 0..15 {
            last(between(rng, 20, 150));
            cluster.proxies().for_each(|p| if rng.one_in(2) { p.cut() } else { p.reset() });
        }
        // A moment without service, too.
        cluster.proxies().for_each(|p| p.refuse(true));
        cluster.proxies().for_each(Proxy::cut);
        last(between(rng, 100, 600));
        cluster.proxies().for_each(|p| p.refuse(false));
    });
    cluster.assert_no_panics();
}

#[test]
fn everything_is_delayed() {
    let cluster = Cluster::builder().lease_seconds(LEASE).file_servers(2).proxied().start();
    let mounts = four(&cluster);
    Trial::new("delays", &mounts).faults(4, &[], |rng| {
        let most = [60, 150, 300][rng.below(3) as usize];
        // One direction, or both: answers and events that overtake each other on different connections.
        let modes = [Mode::Pass, Mode::Delay(ms(50), ms(most))];
        cluster.proxies().for_each(|p| {
            p.set(Direction::ToServer, *rng.pick(&modes));
            p.set(Direction::ToClient, *rng.pick(&modes));
        });
        last(ms(4000));
        cluster.proxies().for_each(|p| p.set_both(Mode::Pass));
    });
    cluster.assert_no_panics();
}

/// Mounts that reach the directory service through a proxy each, so that one is cut off while the others go on.
fn cut_off(what: &str, silence: Duration, errors: &[i32]) {
    let cluster = Cluster::builder().lease_seconds(LEASE).file_servers(2).start();
    let proxies: Vec<Proxy> = (0..4).map(|_| Proxy::start(cluster.source())).collect();
    // A request that hears nothing is sent again after a quarter of its time.
    let mounts: Vec<Mount> = proxies.iter().map(|p| cluster.mount_through(p, "timeout=12")).collect();
    Trial::new(what, &mounts).faults(3, errors, |rng| {
        let one = rng.pick(&proxies);
        // What the client says gets lost, or only what it is answered: then the change has happened.
        match rng.below(3) {
            0 => one.set(Direction::ToServer, Mode::Swallow),
            1 => one.set(Direction::ToClient, Mode::Swallow),
            _ => one.set_both(Mode::Swallow),
        }
        last(silence);
        one.set_both(Mode::Pass);
    });
    cluster.assert_no_panics();
}

#[test]
fn connections_are_half_open_for_less_than_a_lease() {
    cut_off("half-open, short", ms(LEASE * 1000 / 3), ERRORS);
}

#[test]
fn connections_are_half_open_for_longer_than_a_lease() {
    // The session ends meanwhile, and its write locks with it: what is closed afterwards may be refused.
    cut_off("half-open, long", ms(LEASE * 1000 * 5 / 2), &[libc::EIO, libc::ETIMEDOUT, libc::ESTALE]);
}

#[test]
fn mounts_stand_still_for_longer_than_their_lease() {
    let cluster = Cluster::builder().lease_seconds(LEASE).start();
    let mounts = four(&cluster);
    // As above: what is open for writing loses its lock.
    Trial::new("mount stopped", &mounts).faults(4, &[libc::EIO, libc::ETIMEDOUT, libc::ESTALE], |rng| {
        let one = rng.pick(&mounts);
        last(between(rng, 100, 700));
        let _stopped = one.stop();
        last(ms(LEASE * 1000 * 2) + between(rng, 0, 1000));
    });
    cluster.assert_no_panics();
}

#[test]
fn services_stand_still() {
    let mut cluster = Cluster::builder().lease_seconds(LEASE).start();
    let mounts = four(&cluster);
    Trial::new("services stopped", &mounts).faults(3, ERRORS, |rng| {
        let role = *rng.pick(&[Role::Directory, Role::Lock, Role::File(0)]);
        last(between(rng, 100, 500));
        let _stopped = cluster.daemon(role).stop();
        last(between(rng, 500, LEASE * 2000));
    });
    cluster.assert_no_panics();
}

/// How wrong a clock is, in seconds: by a little, a day, a year.
const OFFSETS: &[&str] = &["-86400", "+86400", "-10", "+10", "+0", "+5", "-31536000"];

#[test]
fn clocks_are_wrong_and_jump() {
    let dir = tempfile::tempdir().unwrap();
    let set = |name: &str, offset: &str| std::fs::write(dir.path().join(name), offset).unwrap();
    set("directory", "-86400");
    set("mount", "+86400");
    let clock = |name: &str| wrong_clock(&dir.path().join(name));
    let mut cluster = Cluster::builder().lease_seconds(LEASE).directory_environment(&clock("directory")).start();
    let mounts: Vec<Mount> = (0..4).map(|n| if n < 2 { cluster.mount_in(OPTIONS, &clock("mount")) } else { cluster.mount_with(OPTIONS) }).collect();
    // The clocks are what they should be: wrong. All times are by the directory service's.
    std::fs::write(mounts[0].at("touched"), "x").unwrap();
    let age = std::fs::metadata(mounts[3].at("touched")).unwrap().modified().unwrap().elapsed();
    assert!(age.as_ref().is_ok_and(|age| *age > Duration::from_secs(80_000)), "the directory service's clock is not a day behind: {age:?}");
    let days = mounts[3].run("date -u -d +23hours +%F; date -u -d +24hours +%F");
    assert!(days.lines().any(|day| mounts[0].log().contains(&format!("[{day}T"))), "the mount's clock is not a day ahead: {}", mounts[0].log());
    Trial::new("clocks", &mounts).faults(4, &[], |rng| {
        for _ in 0..3 {
            set("directory", rng.pick::<&str>(OFFSETS));
            set("mount", rng.pick::<&str>(OFFSETS));
            last(between(rng, 200, 600));
        }
        // A restart with another clock than before.
        if rng.one_in(2) {
            cluster.kill(Role::Directory);
            set("directory", rng.pick::<&str>(OFFSETS));
            cluster.restart(Role::Directory);
        }
    });
    cluster.assert_no_panics();
}
