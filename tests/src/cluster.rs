//! A cluster of real processes on free ports of 127.0.0.1, with its data in a
//! temporary directory, ended and removed on drop.
//!
//! Ready means: every daemon answers its status with credentials, and the directory
//! counts every file server as alive.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dfs_common::Result;
use dfs_common::api::Operation;
use dfs_common::api::directory::{self, Liveness, OpenSession, ServerRow};
use dfs_common::api::{file, lock};

use crate::http;
use crate::mount::Mount;
use crate::process::{Daemon, binary, free_port, tail};
use crate::proxy::Proxy;

/// A daemon needs no longer than this to become ready, or to see another one return.
const READY: Duration = Duration::from_secs(90);

/// One daemon of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The directory service.
    Directory,
    /// The lock service.
    Lock,
    /// A file server, counted from 0.
    File(usize),
    /// Everything in one process.
    All,
}

/// What a cluster shall be.
#[derive(Clone, Debug)]
pub struct Builder {
    file_servers: usize,
    copies: u32,
    all_in_one: bool,
    lease_seconds: u64,
    directory_args: Vec<String>,
    file_args: Vec<String>,
    file_data: Vec<Option<PathBuf>>,
    directory_data: Option<PathBuf>,
    proxied: bool,
    environment: Vec<(String, String)>,
    descriptors: Option<u32>,
    client_tokens: Vec<String>,
}

impl Builder {
    /// So many file servers; 1 unless said.
    #[must_use]
    pub fn file_servers(mut self, n: usize) -> Self {
        self.file_servers = n;
        self
    }

    /// So many copies of each file; 1 unless said.
    #[must_use]
    pub fn copies(mut self, n: u32) -> Self {
        self.copies = n;
        self
    }

    /// One process for everything (`dfs-server all`).
    #[must_use]
    pub fn all_in_one(mut self) -> Self {
        self.all_in_one = true;
        self
    }

    /// Sessions end this long after their last request; 30 s unless said.
    #[must_use]
    pub fn lease_seconds(mut self, n: u64) -> Self {
        self.lease_seconds = n;
        self
    }

    /// More arguments for the directory service.
    #[must_use]
    pub fn directory_args(mut self, args: &[&str]) -> Self {
        self.directory_args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// More arguments for every file server.
    #[must_use]
    pub fn file_args(mut self, args: &[&str]) -> Self {
        self.file_args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// File server `index` keeps its data in `dir` instead of the cluster's own directory.
    #[must_use]
    pub fn file_data(mut self, index: usize, dir: &Path) -> Self {
        self.file_data.resize(self.file_data.len().max(index + 1), None);
        self.file_data[index] = Some(dir.to_owned());
        self
    }

    /// The directory service keeps its data in `dir`. Not for one process.
    #[must_use]
    pub fn directory_data(mut self, dir: &Path) -> Self {
        self.directory_data = Some(dir.to_owned());
        self
    }

    /// Mounts reach every service through a [`Proxy`]. Not for one process.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// The directory service (or the one process) runs with this variable.
    #[must_use]
    pub fn directory_environment(mut self, variables: &[(String, String)]) -> Self {
        self.environment.extend_from_slice(variables);
        self
    }

    /// Every daemon has so many descriptors at the most.
    #[must_use]
    pub fn descriptors(mut self, n: u32) -> Self {
        self.descriptors = Some(n);
        self
    }

    /// Every role accepts another token for clients, with these options (as in `root_squash,ro`); see [`Cluster::client_token`].
    #[must_use]
    pub fn client_token(mut self, options: &str) -> Self {
        self.client_tokens.push(options.to_owned());
        self
    }

    /// Starts it and waits until it is ready; panics with the logs where it does not become so.
    pub fn start(self) -> Cluster {
        let dir = tempfile::Builder::new().prefix("dfs-test-").tempdir().expect("temporary directory");
        let token = format!("test-{:016x}{:016x}", std::process::id(), dir.path().as_os_str().len() + 7919);
        let write_token = |name: &str, token: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, token).expect("token file");
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("token file");
            file
        };
        let token_file = write_token("token", &token);
        for number in 0..self.client_tokens.len() {
            write_token(&format!("client-token-{number}"), &format!("client-{number}-{token}"));
        }
        let mut cluster = Cluster { daemons: Vec::new(), token, token_file, mounts: AtomicU32::new(0), copies: self.copies, dir };
        if self.all_in_one {
            cluster.add_all(&self);
        } else {
            cluster.add_roles(&self);
        }
        for member in &mut cluster.daemons {
            member.daemon.set_descriptors(self.descriptors);
            member.daemon.start();
        }
        cluster.wait_ready();
        cluster
    }
}

#[derive(Debug)]
struct Member {
    role: Role,
    url: String,
    daemon: Daemon,
    proxy: Option<Proxy>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    // Before the directory: daemons end before their data goes.
    daemons: Vec<Member>,
    token: String,
    token_file: PathBuf,
    mounts: AtomicU32,
    copies: u32,
    dir: tempfile::TempDir,
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

impl Cluster {
    /// One file server, one copy, each role a process.
    pub fn builder() -> Builder {
        Builder {
            file_servers: 1,
            copies: 1,
            all_in_one: false,
            lease_seconds: 30,
            directory_args: Vec::new(),
            file_args: Vec::new(),
            file_data: Vec::new(),
            directory_data: None,
            proxied: false,
            environment: Vec::new(),
            descriptors: None,
            client_tokens: Vec::new(),
        }
    }

    /// The small cluster that most tests want: everything in one process.
    pub fn small() -> Self {
        Self::builder().all_in_one().start()
    }

    /// Three file servers and two copies, each role a process.
    pub fn replicated() -> Self {
        Self::builder().file_servers(3).copies(2).start()
    }

    fn add(&mut self, role: Role, name: &str, (port, proxy): (u16, Option<Proxy>), data: Option<&Path>, command: &str, mut more: Vec<String>) {
        let data = data.map_or_else(|| self.dir.path().join(name), Path::to_owned);
        std::fs::create_dir_all(&data).expect("data directory");
        let mut args: Vec<OsString> = [command, "--port", &port.to_string(), "--data"].iter().map(OsString::from).collect();
        args.push(data.into());
        args.push("--token-file".into());
        args.push(self.token_file.clone().into());
        args.extend(more.drain(..).map(OsString::from));
        let daemon = Daemon::new(name, binary("dfs-server"), args, self.dir.path());
        self.daemons.push(Member { role, url: url(port), daemon, proxy });
    }

    fn add_all(&mut self, builder: &Builder) {
        assert!(!builder.proxied, "a proxy stands before each service, and here they are one");
        let mut args = vec!["--file-servers".into(), builder.file_servers.to_string()];
        args.extend(self.client_options(builder));
        args.extend(Self::directory_options(builder));
        args.extend(builder.file_args.clone());
        self.add(Role::All, "all", (free_port(), None), None, "all", args);
        self.daemon(Role::All).set_environment(&builder.environment);
    }

    fn client_options(&self, builder: &Builder) -> Vec<String> {
        let option = |(number, options): (usize, &String)| {
            let comma = if options.is_empty() { "" } else { "," };
            ["--client-token".to_owned(), format!("{}{comma}{options}", self.client_token_file(number).display())]
        };
        builder.client_tokens.iter().enumerate().flat_map(option).collect()
    }

    fn directory_options(builder: &Builder) -> Vec<String> {
        let mut args = vec![
            "--copies".into(),
            builder.copies.to_string(),
            "--lease-seconds".into(),
            builder.lease_seconds.to_string(),
            "--heartbeat-ms".into(),
            "200".into(),
        ];
        args.extend(builder.directory_args.clone());
        args
    }

    fn add_roles(&mut self, builder: &Builder) {
        let proxy = |port| builder.proxied.then(|| Proxy::start(&url(port)));
        let (directory, lock) = (free_port(), free_port());
        let before_lock = proxy(lock);
        let lock_url = before_lock.as_ref().map_or_else(|| url(lock), |p| p.url().to_owned());
        let mut args = vec!["--lock-url".into(), lock_url];
        args.extend(self.client_options(builder));
        args.extend(Self::directory_options(builder));
        self.add(Role::Directory, "directory", (directory, proxy(directory)), builder.directory_data.as_deref(), "directory", args);
        self.daemon(Role::Directory).set_environment(&builder.environment);
        let mut args = vec!["--lease-seconds".into(), builder.lease_seconds.to_string(), "--directory".into(), url(directory)];
        args.extend(self.client_options(builder));
        self.add(Role::Lock, "lock", (lock, before_lock), None, "lock", args);
        for index in 0..builder.file_servers {
            let (name, port) = (format!("file-{index}"), free_port());
            let mut args = vec!["--directory".into(), url(directory), "--name".into(), name.clone()];
            let before = proxy(port);
            args.extend(before.iter().flat_map(|p| ["--advertise".into(), p.url().to_owned()]));
            args.extend(builder.file_args.clone());
            args.extend(self.client_options(builder));
            let data = builder.file_data.get(index).and_then(Option::as_deref);
            self.add(Role::File(index), &name, (port, before), data, "file", args);
        }
    }

    /// Waits until every daemon that was started answers, and every file server that runs is alive for the directory.
    pub fn wait_ready(&mut self) {
        let deadline = Instant::now() + READY;
        for index in 0..self.daemons.len() {
            loop {
                let member = &mut self.daemons[index];
                let ended = !member.daemon.alive();
                let (role, address) = (member.role, member.url.clone());
                match self.probe(role, &address) {
                    Ok(()) => break,
                    Err(e) => {
                        let late = Instant::now() > deadline;
                        assert!(!late && !ended, "{role:?} at {address} is not ready: {e}\n{}", self.logs());
                    }
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.wait_servers();
    }

    fn probe(&self, role: Role, url: &str) -> Result<()> {
        match role {
            Role::Directory => http::call(url, &self.token, &directory::Status {}).map(|_| ()),
            Role::Lock => http::call(url, &self.token, &lock::Status {}).map(|_| ()),
            Role::File(_) => http::call(url, &self.token, &file::Status {}).map(|_| ()),
            Role::All => {
                http::call(url, &self.token, &directory::Status {})?;
                http::call(url, &self.token, &lock::Status {}).map(|_| ())
            }
        }
    }

    /// Waits until the directory counts every file server as alive.
    pub fn wait_servers(&self) {
        let all = self.daemons.iter().filter(|d| matches!(d.role, Role::File(_))).count().max(1);
        let ready = crate::within(READY, || self.servers().is_ok_and(|rows| rows.iter().filter(|r| r.state == Liveness::Alive).count() >= all));
        assert!(ready, "not every file server is alive: {:?}\n{}", self.servers(), self.logs());
    }

    /// The file servers as the directory sees them.
    pub fn servers(&self) -> Result<Vec<ServerRow>> {
        self.directory(&directory::Servers {})
    }

    /// Waits until no file lacks a copy.
    pub fn wait_replicated(&self) {
        let status = || self.directory(&directory::Status {});
        let done = crate::within(READY, || status().is_ok_and(|s| s.under_replicated == 0));
        assert!(done, "copies are still missing: {:?}\n{}", status(), self.logs());
    }

    fn member(&self, role: Role) -> &Member {
        self.daemons.iter().find(|m| m.role == role).unwrap_or_else(|| panic!("this cluster has no {role:?}"))
    }

    /// The daemon of `role`.
    pub fn daemon(&mut self, role: Role) -> &mut Daemon {
        &mut self.daemons.iter_mut().find(|m| m.role == role).unwrap_or_else(|| panic!("this cluster has no {role:?}")).daemon
    }

    /// Every role of this cluster.
    pub fn roles(&self) -> Vec<Role> {
        self.daemons.iter().map(|m| m.role).collect()
    }

    fn has_all(&self) -> bool {
        self.daemons.iter().any(|m| m.role == Role::All)
    }

    /// Where a role is reached; in one process all are at one place.
    pub fn url(&self, role: Role) -> &str {
        let role = if self.has_all() { Role::All } else { role };
        &self.member(role).url
    }

    /// What a mount's source is.
    pub fn source(&self) -> &str {
        let role = if self.has_all() { Role::All } else { Role::Directory };
        let member = self.member(role);
        member.proxy.as_ref().map_or(&member.url, Proxy::url)
    }

    /// What stands between mounts and a service of a cluster that is [`Builder::proxied`].
    pub fn proxy(&self, role: Role) -> &Proxy {
        self.member(role).proxy.as_ref().unwrap_or_else(|| panic!("there is no proxy before {role:?}"))
    }

    /// All of them.
    pub fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.daemons.iter().filter_map(|m| m.proxy.as_ref())
    }

    /// The cluster's secret.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The file that holds it.
    pub fn token_file(&self) -> &Path {
        &self.token_file
    }

    /// The secret of [`Builder::client_token`] number `number`, from 0.
    pub fn client_token(&self, number: usize) -> String {
        format!("client-{number}-{}", self.token)
    }

    /// The file that holds it.
    pub fn client_token_file(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("client-token-{number}"))
    }

    /// The directory with logs and data.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Copies of each file.
    pub fn copies(&self) -> u32 {
        self.copies
    }

    /// kill -9.
    pub fn kill(&mut self, role: Role) {
        self.daemon(role).kill();
    }

    /// SIGTERM; waits for the end.
    pub fn terminate(&mut self, role: Role) -> ExitStatus {
        self.daemon(role).terminate()
    }

    /// Starts a role again, with the same port and data, and waits until the cluster is ready.
    pub fn restart(&mut self, role: Role) {
        self.daemon(role).start();
        self.wait_ready();
    }

    /// Starts a role again beside others that are away, and waits for nothing.
    pub fn start_alone(&mut self, role: Role) {
        self.daemon(role).start();
    }

    /// Kills every daemon (-9) and starts all again.
    pub fn crash(&mut self) {
        for member in &mut self.daemons {
            member.daemon.kill();
        }
        for member in &mut self.daemons {
            member.daemon.start();
        }
        self.wait_ready();
    }

    /// Carries out an operation of the directory service.
    pub fn directory<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        http::call(self.url(Role::Directory), &self.token, operation)
    }

    /// The same of the lock service.
    pub fn lock<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        http::call(self.url(Role::Lock), &self.token, operation)
    }

    /// The inode number behind a path of the cluster.
    pub fn inode(&self, path: &str) -> dfs_common::ids::InodeId {
        let resolve = directory::Resolve { path: dfs_common::name::Text(path.as_bytes().to_vec()), follow: false };
        let resolved = self.directory(&resolve).unwrap_or_else(|e| panic!("{path}: {e}"));
        resolved.entry.unwrap_or_else(|| panic!("{path} does not exist")).attributes.ino
    }

    /// How many wait for the write lock of `path`.
    pub fn waiters(&self, path: &str) -> usize {
        let ino = self.inode(path);
        self.lock(&lock::Locks { ino: Some(ino) }).expect("lock service answers").first().map_or(0, |row| row.queue.len())
    }

    /// A mount with nothing but what it must have.
    pub fn mount(&self) -> Mount {
        self.mount_with("")
    }

    /// A mount with `options` (comma separated) besides.
    pub fn mount_with(&self, options: &str) -> Mount {
        self.mount_in(options, &[])
    }

    /// The same, with these variables.
    pub fn mount_in(&self, options: &str, environment: &[(String, String)]) -> Mount {
        self.mount_of(self.source(), options, environment)
    }

    /// A mount whose process has these limits of descriptors: (soft, hard).
    pub fn mount_with_descriptors(&self, limits: (u32, u32)) -> Mount {
        let number = self.mounts.fetch_add(1, Ordering::Relaxed);
        let mount = Mount::limited(self, &format!("mnt-{number}"), limits);
        mount.unwrap_or_else(|e| panic!("mount: {e}\n{}", self.logs()))
    }

    /// A mount that reaches the directory service through `proxy`.
    pub fn mount_through(&self, proxy: &Proxy, options: &str) -> Mount {
        self.mount_of(proxy.url(), options, &[])
    }

    fn mount_of(&self, source: &str, options: &str, environment: &[(String, String)]) -> Mount {
        let number = self.mounts.fetch_add(1, Ordering::Relaxed);
        let mount = Mount::of(self, &format!("mnt-{number}"), source, options, environment);
        mount.unwrap_or_else(|e| panic!("mount: {e}\n{}", self.logs()))
    }

    /// A session of the typed clients, for use within one tokio runtime.
    pub async fn client(&self, timeout: Duration) -> Result<dfs_common::clients::Cluster> {
        let token = dfs_common::credentials::ClusterToken::new(&self.token)?;
        let who = OpenSession { host: "test".into(), pid: std::process::id(), program: "dfs-tests".into(), mountpoint: String::new() };
        dfs_common::clients::Cluster::open(self.source(), dfs_common::clients::cluster::connect_http1(&token), who, timeout).await
    }

    /// Runs `dfs` with this cluster's address and token; panics with its output where it fails.
    pub fn dfs(&self, args: &[&str]) -> String {
        let out = self.try_dfs(args);
        assert!(out.code == 0, "dfs {args:?} failed with {}: {}\n{}", out.code, out.text, self.logs());
        out.text
    }

    /// The same, for what may fail.
    pub fn try_dfs(&self, args: &[&str]) -> crate::shell::Output {
        let mut command = std::process::Command::new(binary("dfs"));
        command.arg("--server").arg(self.source()).arg("--token-file").arg(&self.token_file).args(args);
        crate::shell::output(&mut command)
    }

    /// The last lines of every log.
    pub fn logs(&self) -> String {
        let mut out: String = self.daemons.iter().map(|m| m.daemon.log_tail(25)).collect();
        for number in 0..self.mounts.load(Ordering::Relaxed) {
            let name = format!("mnt-{number}.log");
            out += &tail(&name, &std::fs::read_to_string(self.dir.path().join(&name)).unwrap_or_default(), 25);
        }
        out
    }

    /// Panics if any daemon or mount of this cluster has panicked.
    pub fn assert_no_panics(&self) {
        for member in &self.daemons {
            let log = member.daemon.log();
            assert!(!log.contains("panicked at"), "{} panicked\n{}", member.daemon.name(), member.daemon.log_tail(60));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        // What a failed test left mounted would answer nothing while the directory is removed.
        for point in crate::mount::mounted_below(self.dir.path()) {
            crate::shell::output(std::process::Command::new("umount").arg("-l").arg(point));
        }
    }
}
