//! Descriptors are few: a mount and the servers with the limits that systems come with.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

use dfs_tests::cluster::Role;
use dfs_tests::process::descriptors;
use dfs_tests::sys::errno;
use dfs_tests::{Cluster, Mount, eventually, sys};

/// A program that opens files 0..COUNT, says how that went, waits for a word, and says whether it could read what it has open.
const OPENER: &str = r#"
import errno, os, resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held, refused = {}, {}
for n in range(COUNT):
    try: held[n] = os.open(f"tree/{n // 100}/{n}", os.O_RDONLY)
    except OSError as e:
        name = errno.errorcode[e.errno]
        refused[name] = refused.get(name, 0) + 1
print(len(held), refused, flush=True)
sys.stdin.readline()
print(all(os.pread(fd, 99, 0) == b"content of %d\n" % n for n, fd in held.items()), flush=True)
"#;

/// That program, which is over when it was asked for its second sentence.
struct Opener(std::process::Child, std::io::BufReader<std::process::ChildStdout>);

impl Opener {
    /// Starts it; how many files it has open, and what it said of the rest.
    fn start(mount: &Mount, count: usize) -> (Self, usize, String) {
        use std::process::{Command, Stdio};
        let mut command = Command::new("python3");
        command.arg("-c").arg(OPENER.replace("COUNT", &count.to_string())).current_dir(mount.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut opener = Self(child, said);
        let line = opener.line();
        let (held, refused) = line.trim().split_once(' ').unwrap_or_else(|| panic!("it said: {line}"));
        (opener, held.parse().unwrap(), refused.to_owned())
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.1, &mut line).unwrap();
        line
    }

    /// Whether it could read all that it has open; it ends then.
    fn read_all(mut self) -> bool {
        self.0.stdin.take().unwrap().write_all(b"read\n").unwrap();
        let all = self.line().trim() == "True";
        assert!(self.0.wait().unwrap().success());
        all
    }
}

/// So many hundred files, all of them in the cache of the mount.
fn tree(mount: &Mount, hundreds: usize) {
    mount.run(&format!(
        "mkdir tree; for d in $(seq 0 {}); do mkdir tree/$d; for n in $(seq $((d * 100)) $((d * 100 + 99))); do echo content of $n > tree/$d/$n; done; done
         test $(cat tree/*/* | wc -l) = {hundreds}00",
        hundreds - 1
    ));
}

#[test]
fn a_mount_allows_itself_what_it_may_and_keeps_few_descriptors_of_closed_files() {
    let cluster = Cluster::small();
    let mount = cluster.mount_with_descriptors((1024, 8192));
    assert!(mount.log().contains("8192 descriptors"), "it says how many files can be open\n{}", mount.log());
    tree(&mount, 50);
    eventually(10, "what is closed takes no descriptors", || descriptors(mount.pid()) < 100);
    let (opener, held, refused) = Opener::start(&mount, 3000);
    assert_eq!((held, refused.as_str()), (3000, "{}"));
    assert!(opener.read_all());
    eventually(10, "what is closed takes no descriptors", || descriptors(mount.pid()) < 100);
    cluster.assert_no_panics();
}

#[test]
fn a_mount_that_is_out_of_descriptors_refuses_opens_and_nothing_else() {
    let cluster = Cluster::small();
    let mount = cluster.mount_with_descriptors((1024, 1024));
    tree(&mount, 15);
    let (opener, held, refused) = Opener::start(&mount, 600);
    assert_eq!((held, refused.as_str()), (600, "{}"));
    assert!(opener.read_all());

    let writing = OpenOptions::new().read(true).write(true).create_new(true).open(mount.at("written")).unwrap();
    let (opener, held, refused) = Opener::start(&mount, 1500);
    println!("{held} of 1500 were opened, then {refused}");
    assert!((800..1000).contains(&held), "{held}");
    assert_eq!(refused, format!("{{'ENFILE': {}}}", 1500 - held));
    // What is open can be written, and published; names and attributes need no descriptor.
    writing.write_all_at(b"with hardly a descriptor left", 0).unwrap();
    writing.sync_all().unwrap();
    fs::create_dir(mount.at("directory")).unwrap();
    fs::rename(mount.at("tree/14/1499"), mount.at("directory/renamed")).unwrap();
    assert_eq!(fs::metadata(mount.at("directory/renamed")).unwrap().len(), 16);
    assert_eq!(fs::read_dir(mount.at("tree/3")).unwrap().count(), 100);
    assert_eq!(errno(File::open(mount.at("tree/13/1300"))), libc::ENFILE);
    assert_eq!(errno(OpenOptions::new().append(true).open(mount.at("tree/13/1301"))), libc::ENFILE);
    sys::close(writing).unwrap();
    let other = cluster.mount();
    assert_eq!(fs::read(other.at("written")).unwrap(), b"with hardly a descriptor left");
    assert!(opener.read_all(), "what was open is read");

    // With the others closed everything is as before, the files that were refused too.
    eventually(10, "what is closed takes no descriptors", || descriptors(mount.pid()) < 100);
    mount.run("test $(cat tree/*/* directory/renamed | wc -l) = 1500; echo more >> tree/13/1301; echo new > new");
    assert_eq!(fs::read_to_string(other.at("tree/13/1301")).unwrap(), "content of 1301\nmore\n");
    cluster.assert_no_panics();
}

#[test]
fn servers_with_more_connections_than_descriptors_keep_half_of_them() {
    let mut cluster = Cluster::builder().descriptors(256).start();
    let mount = cluster.mount();
    let work = |round: usize| {
        for n in 0..20 {
            let content = format!("{round} {n}").repeat(100);
            fs::write(mount.at(n.to_string()), &content).unwrap_or_else(|e| panic!("round {round}: {e}"));
            assert_eq!(fs::read_to_string(mount.at(n.to_string())).unwrap(), content);
        }
    };
    work(0);
    for role in [Role::Directory, Role::Lock, Role::File(0)] {
        let address = cluster.url(role).strip_prefix("http://").unwrap().to_owned();
        let idle: Vec<TcpStream> =
            (0..250).map(|n| TcpStream::connect(&address).unwrap_or_else(|e| panic!("connection {n} to {role:?}: {e}"))).collect();
        let pid = cluster.daemon(role).pid();
        eventually(10, "it has as many connections as it takes", || descriptors(pid) >= 128);
        // The rest wait in the kernel, and what it has left is for its files.
        assert!(descriptors(pid) <= 192, "{role:?} has {} descriptors", descriptors(pid));
        drop(idle);
        work(1);
        assert!(!cluster.daemon(role).log().contains("Too many open files"), "{}", cluster.daemon(role).log());
    }
    let fresh = cluster.mount();
    assert_eq!(fs::read_to_string(fresh.at("7")).unwrap(), "1 7".repeat(100));
    cluster.assert_no_panics();
}
