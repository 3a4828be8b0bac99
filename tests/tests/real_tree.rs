//! The main job on real input: a library's source package is unpacked on one mount,
//! built there, and its own tests run there; a second mount sees exactly the same tree.

use std::fs;
use std::path::PathBuf;

use dfs_tests::process::binaries;
use dfs_tests::tree::{assert_same, listing};
use dfs_tests::{Cluster, shell};

/// Fetches the package's upstream archive with apt, once a build directory.
const FETCH: &str = r#"
ls mbedtls_*.orig.tar.* > /dev/null 2>&1 && exit 0
mkdir -p lists/partial parts
for f in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/ubuntu.sources; do
  if [ -f "$f" ]; then sed 's/^Types:.*/Types: deb-src/' "$f" > "parts/${f##*/}"; fi
done
if [ -s /etc/apt/sources.list ]; then sed -n 's/^deb /deb-src /p' /etc/apt/sources.list > parts/archive.list; fi
options="-o Dir::State::Lists=$PWD/lists -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=$PWD/parts -o APT::Sandbox::User=root -o Dir::Cache::srcpkgcache= -o Dir::Cache::pkgcache="
apt-get $options update
apt-get $options source --download-only mbedtls
ls mbedtls_*.orig.tar.*
"#;

fn package() -> PathBuf {
    let dir = binaries().join("test-sources");
    fs::create_dir_all(&dir).unwrap();
    shell::run(&dir, FETCH);
    let found = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
    found.into_iter().find(|p| p.display().to_string().contains(".orig.tar") && !p.ends_with(".asc")).expect("apt fetched the archive")
}

#[test]
fn a_library_is_unpacked_built_and_tested_on_a_mount() {
    let archive = package();
    let cluster = Cluster::builder().file_servers(3).copies(2).start();
    let (one, two) = (cluster.mount(), cluster.mount());
    let native = cluster.dir().join("native");
    fs::create_dir(&native).unwrap();
    let unpack = format!(
        "mkdir tree; tar xpf {} -C tree --strip-components=1; ln -s tree link; ln tree/README.md hard; chmod 640 hard; chown -R 1000:1000 tree/include; touch -hd '2024-01-02 03:04:05.678' link; touch -d '2024-02-03 04:05:06.789' tree",
        archive.display()
    );
    shell::run(&native, &unpack);
    let start = std::time::Instant::now();
    one.run(&unpack);
    let expected = listing(&native);
    let files = expected.values().filter(|l| l.contains(" size=")).count();
    println!("{files} files unpacked in {:?}", start.elapsed());
    assert!(files >= 1000, "{files} files are no real tree");
    assert_same(&expected, &listing(one.path()));
    assert_same(&expected, &listing(two.path()));

    let start = std::time::Instant::now();
    one.run("cd tree && make -j2 CFLAGS=-O0 lib && make -j2 CFLAGS=-O0 programs");
    println!("built in {:?}", start.elapsed());
    let selftest = two.run("cd tree && programs/test/selftest");
    assert!(selftest.contains("[ All tests PASS ]"), "{selftest}");
    let start = std::time::Instant::now();
    // Two suites look at certificates that have expired since the release.
    let tests = one.run("cd tree/tests && make -j2 CFLAGS=-O0 && perl scripts/run-test-suites.pl --skip=ssl,x509parse");
    println!("its tests were built and run in {:?}", start.elapsed());
    assert!(tests.contains("PASSED (") && !tests.contains("FAIL"), "{tests}");
    let (left, right) = (listing(one.path()), listing(two.path()));
    println!("{} paths after the build", left.len());
    assert!(left.len() > expected.len() + 300);
    assert_same(&left, &right);
    let fresh = cluster.mount();
    assert_same(&left, &listing(fresh.path()));
    one.run("cd tree && make clean");
    one.run("rm -r tree link hard");
    assert_eq!(fs::read_dir(fresh.path()).unwrap().count(), 0);
    cluster.assert_no_panics();
}
