//! The demo cluster's scripts, the systemd units, and dfs-mount as a helper of mount(8).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dfs_tests::mount::{is_mounted, running};
use dfs_tests::process::{binaries, binary, checkout, find, free_port, free_ports};
use dfs_tests::shell::{Output, attempt, output, run};
use dfs_tests::{Cluster, eventually, sys, within};

/// `scripts/NAME` with arguments.
fn script(name: &str, args: &[&str]) -> Output {
    output(Command::new(checkout().join("scripts").join(name)).args(args).current_dir("/"))
}

/// A demo cluster that is taken down even when the test fails.
struct Demo(PathBuf);

impl Drop for Demo {
    fn drop(&mut self) {
        script("down", &["--data", self.0.to_str().unwrap()]);
    }
}

#[test]
fn a_demo_cluster_with_two_mounts_comes_up_beside_another_and_goes_down() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let bin = binaries().to_str().unwrap().to_owned();
    // Each cluster takes a few ports above its own.
    let (first_port, second_port) = (free_ports(20).to_string(), free_ports(20).to_string());
    let up =
        |data: &str, port: &str, more: &[&str]| script("up", &[&["--data", data, "--port", port, "--no-build", "--binaries", &bin], more].concat());
    let (one, two) = (Demo(dir.path().join("one")), Demo(dir.path().join("two")));
    let out = up(&path("one"), &first_port, &["--mount", &path("m1"), "--mount", &path("m2")]);
    assert_eq!(out.code, 0, "{}", out.text);
    let out = up(&path("two"), &second_port, &["--mount", &path("m3"), "--all-in-one", "--copies", "1"]);
    assert_eq!(out.code, 0, "{}", out.text);
    run(Path::new(&path("m1")), "echo hello > f; mkdir d");
    assert_eq!(fs::read_to_string(dir.path().join("m2/f")).unwrap(), "hello\n");
    assert_eq!(fs::read_dir(path("m3")).unwrap().count(), 0, "the clusters are separate");
    let again = up(&path("one"), &first_port, &["--mount", &path("m1")]);
    assert_ne!(again.code, 0, "a cluster that is up cannot be started again: {}", again.text);
    let out = script("down", &["--data", &path("one")]);
    assert_eq!(out.code, 0, "{}", out.text);
    assert!(!is_mounted(&dir.path().join("m1")) && !is_mounted(&dir.path().join("m2")));
    run(Path::new(&path("m3")), "echo still > here");
    let out = script("down", &["--data", &path("one")]);
    assert_eq!(out.code, 0, "down twice is fine: {}", out.text);
    // The same data again: what was written is there.
    let out = up(&path("one"), &first_port, &["--mount", &path("m1")]);
    assert_eq!(out.code, 0, "{}", out.text);
    assert_eq!(fs::read_to_string(dir.path().join("m1/f")).unwrap(), "hello\n");
    drop((one, two));
    assert!(!is_mounted(&dir.path().join("m3")));
    let left = attempt(Path::new("/"), &format!("pgrep -fa {}", dir.path().display()));
    assert_ne!(left.code, 0, "processes are left: {}", left.text);
}

#[test]
fn up_says_why_it_cannot_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let bin = binaries().to_str().unwrap().to_owned();
    let demo = Demo(data.clone());
    let out = script("up", &["--data", data.to_str().unwrap(), "--port", &port, "--no-build", "--binaries", &bin]);
    assert_ne!(out.code, 0, "{}", out.text);
    assert!(out.text.contains(&port), "the port is named: {}", out.text);
    let out = script("up", &["--daat", "/x"]);
    assert_ne!(out.code, 0);
    assert!(out.text.contains("--daat"), "{}", out.text);
    drop(demo);
    let left = attempt(Path::new("/"), &format!("pgrep -fa {}", data.display()));
    assert_ne!(left.code, 0, "processes are left: {}", left.text);
}

#[test]
fn systemd_accepts_the_units() {
    let dir = tempfile::tempdir().unwrap();
    // The units name the installed programs: verify looks for them, so it looks below a root that has them.
    let units = checkout().join("scripts/systemd");
    let mut names = Vec::new();
    for entry in fs::read_dir(&units).unwrap() {
        let path = entry.unwrap().path();
        if !path.extension().is_some_and(|e| e == "service" || e == "mount" || e == "automount" || e == "target") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap().replace("/usr/local/bin/", &format!("{}/", binaries().display()));
        let name = path.file_name().unwrap().to_str().unwrap().replace("@.", "@test.");
        fs::write(dir.path().join(&name), text).unwrap();
        names.push(name);
    }
    assert!(names.len() >= 4, "{names:?}");
    for service in names.iter().filter(|n| n.ends_with(".service") && !n.contains("mount")) {
        let text = fs::read_to_string(dir.path().join(service)).unwrap();
        for wanted in ["Type=notify", "NoNewPrivileges", "ProtectSystem"] {
            assert!(text.contains(wanted), "{service} lacks {wanted}");
        }
    }
    let out =
        attempt(dir.path(), &format!("systemd-analyze verify --man=no {}", names.iter().map(|n| format!("./{n}")).collect::<Vec<_>>().join(" ")));
    let ours: Vec<&str> = out.text.lines().filter(|l| names.iter().any(|n| l.contains(n.as_str()))).collect();
    assert!(out.code == 0 && ours.is_empty(), "exit code {}: {}", out.code, out.text);
}

#[test]
fn daemons_tell_systemd_when_they_are_ready() {
    use std::os::unix::net::UnixDatagram;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "0123456789abcdef0123").unwrap();
    run(dir.path(), "chmod 600 token");
    let mut child = Command::new(binary("dfs-server"))
        .args(["all", "--port", &free_port().to_string(), "--data"])
        .arg(dir.path().join("data"))
        .arg("--token-file")
        .arg(&token)
        .env("NOTIFY_SOCKET", &socket)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let heard = |word: &str| {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| listener.recv(&mut buffer).ok().map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned())).any(|m| m.contains(word))
    };
    let ready = heard("READY=1");
    sys::signal(child.id() as i32, libc::SIGTERM);
    let stopping = ready && heard("STOPPING=1");
    let status = child.wait().unwrap();
    assert!(ready && stopping && status.success(), "ready: {ready}, stopping: {stopping}, {status}");
}

/// dfs-mount in /usr/local/bin while this lives, so that mount(8) finds its helper.
struct Helper(Option<PathBuf>);

impl Helper {
    fn install() -> Self {
        let path = PathBuf::from("/usr/local/bin/dfs-mount");
        if path.exists() {
            return Self(None);
        }
        std::os::unix::fs::symlink(binary("dfs-mount"), &path).expect("tests run as root");
        Self(Some(path))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            fs::remove_file(path).ok();
        }
    }
}

#[test]
fn mount_8_runs_it_in_every_form() {
    let _helper = Helper::install();
    let cluster = Cluster::small();
    let point = cluster.dir().join("point");
    fs::create_dir(&point).unwrap();
    let p = point.display();
    let options = format!("token_file={},cache_dir={}/cache", cluster.token_file().display(), cluster.dir().display());
    let source = cluster.source();
    let fstab = cluster.dir().join("fstab");
    fs::write(&fstab, format!("{source} {p} fuse.dfs-mount _netdev,noauto,{options} 0 0\n")).unwrap();
    let forms = [
        format!("mount -t fuse 'dfs-mount#{source}' {p} -o {options}"),
        format!("mount -t fuse.dfs-mount {source} {p} -o {options}"),
        format!("mount -T {} {p}", fstab.display()),
        format!("{} {source} {p} -o {options}", binary("dfs-mount").display()),
    ];
    for (n, form) in forms.iter().enumerate() {
        run(Path::new("/"), form);
        assert!(is_mounted(&point), "{form}");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|l| l.contains(&point.display().to_string())).unwrap();
        assert!(line.contains("fuse.dfs-mount") && line.contains(source), "{line}");
        fs::write(point.join(format!("f{n}")), form).unwrap();
        let again = attempt(Path::new("/"), form);
        assert!(again.code == 32, "a second mount at the same place: {} {}", again.code, again.text);
        let pid = find("dfs-mount", &point).expect("a driver runs");
        run(Path::new("/"), &format!("umount {p}"));
        eventually(10, "the driver ends with its mount", || !running(pid));
    }
    run(Path::new("/"), &forms[0]);
    assert_eq!(fs::read_dir(&point).unwrap().count(), forms.len());
    run(Path::new("/"), &format!("mount -o remount,ro {p}"));
    assert_eq!(fs::write(point.join("x"), "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    run(Path::new("/"), &format!("mount -o remount,rw {p}"));
    fs::write(point.join("x"), "x").unwrap();
    run(Path::new("/"), &format!("umount {p}"));
    assert!(!is_mounted(&point), "remounting stacked a second mount");
}

#[test]
fn sigterm_publishes_and_unmounts() {
    let cluster = Cluster::small();
    let mut mount = cluster.mount();
    mount.run("echo content > f");
    sys::signal(mount.pid(), libc::SIGTERM);
    assert!(within(Duration::from_secs(20), || !running(mount.pid())), "SIGTERM is ignored\n{}", mount.log());
    assert!(!is_mounted(mount.path()), "the mount point is left dead");
    mount.start().unwrap();
    assert_eq!(mount.run("cat f"), "content\n");
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let cluster = Cluster::small();
    cluster.mount().run("echo content > f");
    let mount = cluster.mount_with("ro");
    assert_eq!(mount.run("cat f"), "content\n");
    for change in [fs::write(mount.at("f"), "x"), fs::remove_file(mount.at("f")), fs::create_dir(mount.at("d"))] {
        assert_eq!(change.unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
}

#[test]
fn the_foreground_mount_ends_with_ctrl_c() {
    let cluster = Cluster::small();
    let point = cluster.dir().join("point");
    fs::create_dir(&point).unwrap();
    let options = format!("token_file={},cache_dir={}/cache", cluster.token_file().display(), cluster.dir().display());
    let mut child = Command::new(binary("dfs-mount"))
        .args(["-f", cluster.source(), point.to_str().unwrap(), "-o", &options])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually(20, "it is mounted", || is_mounted(&point));
    fs::write(point.join("f"), "x").unwrap();
    sys::signal(child.id() as i32, libc::SIGINT);
    let status = child.wait().unwrap();
    assert!(status.success() && !is_mounted(&point), "{status}");
}
