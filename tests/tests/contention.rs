//! Eight clients contend for four files while services and clients are killed, stopped and
//! cut off. `DFS_TEST_SECONDS` makes it longer.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dfs_tests::contention::{Attempt, Contention, Verdict, check, name};
use dfs_tests::proxy::Mode;
use dfs_tests::{Cluster, Mount, Proxy, Rng, Role, eventually, sys};

const CLIENTS: usize = 8;
const FILES: usize = 4;
/// Short, so that stops outlast it.
const LEASE: u64 = 3;
/// Who asks this much later has certainly asked later: a request that a restart cut off is sent again within it.
const MARGIN: Duration = Duration::from_millis(1500);
/// What a disturbance leaves behind is over after this.
const GRACE: Duration = Duration::from_secs(2 * LEASE);

fn last(time: Duration) {
    std::thread::sleep(time);
}

/// Checks every file; returns the sum.
fn judge(cluster: &Cluster, run: Contention, seed: u64) -> Verdict {
    let fresh = cluster.mount();
    let (attempts, disturbances) = run.into_parts();
    let mut sum = Verdict::default();
    for file in 0..FILES {
        let content = std::fs::read_to_string(fresh.at(name(file))).unwrap();
        let mine: Vec<Attempt> = attempts.iter().filter(|a| a.file == file).cloned().collect();
        let verdict =
            check(&mine, &disturbances, &content, MARGIN, GRACE).unwrap_or_else(|e| panic!("seed {seed}, file {file}: {e}\n{}", cluster.logs()));
        sum.acknowledged += verdict.acknowledged;
        sum.others += verdict.others;
        sum.compared += verdict.compared;
    }
    println!("seed {seed}, {} attempts: {sum:?}", attempts.len());
    sum
}

/// One fault, and its end.
fn fault(run: &Contention, cluster: &mut Cluster, mounts: &mut [Mount], proxy: &Proxy, rng: &mut Rng) {
    let short = Duration::from_millis(100 + rng.below(900));
    let beyond = Duration::from_millis(LEASE * 1000 + rng.below(2000));
    let client = 1 + rng.below(CLIENTS as u64 - 1) as usize;
    match rng.below(7) {
        kind @ 0..=1 => run.disturbing(None, || {
            let role = if kind == 0 { Role::Lock } else { Role::Directory };
            cluster.kill(role);
            last(short);
            cluster.restart(role);
        }),
        2 => run.disturbing(None, || {
            let _stopped = cluster.daemon(Role::Lock).stop();
            last(short);
        }),
        3 => run.disturbing(Some(client), || {
            mounts[client].kill();
            mounts[client].start().unwrap();
        }),
        kind @ 4..=5 => run.disturbing(Some(client), || {
            let _stopped = mounts[client].stop();
            last(if kind == 4 { short } else { beyond });
        }),
        // Client 0 reaches the directory service through a proxy.
        _ => run.disturbing(Some(0), || {
            proxy.set_both(Mode::Swallow);
            last(beyond);
            proxy.set_both(Mode::Pass);
            proxy.cut();
        }),
    }
}

#[test]
fn contending_writers_lose_nothing_and_keep_their_order() {
    let seconds = std::env::var("DFS_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let mut rng = Rng::announced("contention");
    let seed = rng.next_u64() >> 32;
    let mut cluster = Cluster::builder().lease_seconds(LEASE).start();
    let proxy = Proxy::start(cluster.source());
    let mut mounts: Vec<Mount> = vec![cluster.mount_through(&proxy, "timeout=45")];
    mounts.extend((1..CLIENTS).map(|_| cluster.mount_with("timeout=45")));
    let paths: Vec<PathBuf> = mounts.iter().map(|m| m.path().to_owned()).collect();
    let run = Contention::new(&paths[0], FILES);
    run.run(&paths, FILES, seed, |run| {
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            last(Duration::from_millis(500 + rng.below(2000)));
            fault(run, &mut cluster, &mut mounts, &proxy, &mut rng);
        }
        last(Duration::from_secs(LEASE));
    });
    let verdict = judge(&cluster, run, seed);
    assert!(verdict.acknowledged > seconds as usize * 5, "hardly anything was written: {verdict:?}");
}

#[test]
fn sixteen_waiters_are_served_in_order() {
    let cluster = Cluster::builder().start();
    let mounts: Vec<Mount> = (0..17).map(|_| cluster.mount()).collect();
    std::fs::write(mounts[16].at("f"), "").unwrap();
    let open = |mount: &Mount| std::fs::OpenOptions::new().append(true).open(mount.at("f")).unwrap();
    let order = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let holder = open(&mounts[16]);
        for (n, mount) in mounts[..16].iter().enumerate() {
            let order = &order;
            scope.spawn(move || {
                let mut file = open(mount);
                order.lock().unwrap().push(n);
                writeln!(file, "{n}").unwrap();
                sys::close(file).unwrap();
            });
            eventually(10, "it stands in line", || cluster.waiters("f") == n + 1);
        }
        sys::close(holder).unwrap();
    });
    let wanted: Vec<usize> = (0..16).collect();
    assert_eq!(*order.lock().unwrap(), wanted);
    let lines: Vec<usize> = std::fs::read_to_string(mounts[0].at("f")).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(lines, wanted);
}
