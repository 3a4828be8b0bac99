//! Flags and configuration files of `dfs-server`: what an operator may say, and what a
//! role makes of it. Flags win over the file, whose keys are the flags' names with `_`.
//!
//! It knows no socket and opens no data directory.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use dfs_common::api::directory::LockWait;
use dfs_common::block::{DEFAULT_BLOCK_BITS, MAX_BLOCK_BITS, MIN_BLOCK_BITS};
use dfs_common::credentials::ClusterToken;
use dfs_common::user::{Limits, NOBODY, Squash};
use dfs_common::{Error, ErrorKind, Result, config, name};
use serde::{Deserialize, de::DeserializeOwned};

use crate::directory;
use crate::shell::{ClientToken, Credentials};
use crate::units::{ByteSize, Span};

/// Directory service, lock service and file servers of the distributed file system.
#[derive(Debug, Parser)]
#[command(name = "dfs-server", version, arg_required_else_help = true)]
pub struct Cli {
    /// The role.
    #[command(subcommand)]
    pub command: Command,
}

/// What to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Holds the names and says where each file lives; one in a cluster
    Directory(Box<DirectoryArgs>),
    /// Hands out write locks, first come first served; one in a cluster
    Lock(LockArgs),
    /// Holds the content of files on a local disk; as many as you like
    File(Box<FileArgs>),
    /// Every role in one process, for one machine
    All(Box<AllArgs>),
    /// Writes the man pages into a directory
    Man {
        /// The directory
        directory: PathBuf,
    },
}

/// What every role has.
#[derive(Clone, Debug, Default, Args, Deserialize)]
pub struct Common {
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<String>,
    /// Port to listen on [default: 7400 directory and all, 7401 lock, 7410 file]
    #[arg(long)]
    pub port: Option<u16>,
    /// Data directory
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// File with the cluster token, which only its owner may read
    #[arg(long, value_name = "FILE", env = "DFS_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// File with a token for clients, and what it does not let them do: root_squash (root is anonuid and anongid, 65534 unless said),
    /// anonuid=N, anongid=N, ro; repeatable
    #[arg(long, value_name = "FILE[,OPTION]")]
    pub client_token: Option<Vec<String>>,
    /// Configuration file (TOML); its keys are these flags with _ for -
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// off, error, warn, info, debug (with every request) or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// What concerns names, versions and copies.
#[derive(Clone, Debug, Default, Args, Deserialize)]
pub struct Policy {
    /// Copies of each new file, 1 to 16 [default: 2; 1 for all]
    #[arg(long, value_name = "N")]
    copies: Option<u32>,
    /// Versions of each file that are kept, the current one included [default: 100]
    #[arg(long, value_name = "N")]
    keep_versions: Option<u32>,
    /// Of these, drops the ones that ceased to be current longer ago; 0: none [default: 30d]
    #[arg(long, value_name = "DURATION")]
    keep_versions_for: Option<Span>,
    /// How long removed files can be undeleted; 0: not at all [default: 7d]
    #[arg(long, value_name = "DURATION")]
    keep_removed: Option<Span>,
    /// How long recovered files are kept; 0: until somebody discards them [default: 30d]
    #[arg(long, value_name = "DURATION")]
    keep_recovered: Option<Span>,
    /// Share of each file server's disk that removed files and old versions leave free; 0: none [default: 10]
    #[arg(long, value_name = "PERCENT")]
    history_free: Option<u32>,
    /// A client that is silent for so long loses its session [default: 30]
    #[arg(long, value_name = "SECONDS")]
    lease_seconds: Option<u64>,
    /// Time between heartbeats of file servers [default: 1000]
    #[arg(long, value_name = "MS")]
    heartbeat_ms: Option<u64>,
    /// Keeps new files below PATH on these file servers; repeatable
    #[arg(long, value_name = "PATH=NAME,NAME")]
    pin: Option<Vec<String>>,
    /// How long opens for writing below PATH wait for their turn: SECONDS, 0 for not at all, or forever; repeatable [default: forever]
    #[arg(long, value_name = "PATH=SECONDS")]
    lock_wait: Option<Vec<String>>,
    /// Block size of new files, 64K to 1M [default: 256K]
    #[arg(long, value_name = "SIZE")]
    block_size: Option<ByteSize>,
    /// Lets clients keep what they believe when it changes; for tests
    #[arg(long, hide = true, num_args = 0, default_missing_value = "true")]
    without_invalidation: Option<bool>,
}

/// What concerns content.
#[derive(Clone, Debug, Default, Args, Deserialize)]
pub struct Keeping {
    /// Bytes that content may take, as 100G [default: what the disk has]
    #[arg(long, value_name = "SIZE")]
    capacity: Option<ByteSize>,
    /// Copies without which a close fails [default: 1]
    #[arg(long, value_name = "N")]
    min_copies: Option<u32>,
    /// When content goes to the disk before the answer: at fsync only (close), or always [default: close]
    #[arg(long, value_name = "WHEN")]
    sync: Option<Sync>,
}

/// `dfs-server directory`.
#[derive(Clone, Debug, Default, Args, Deserialize)]
pub struct DirectoryArgs {
    /// What every role has.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    policy: Policy,
    /// Where clients find the lock service [default: http://HOST:7401]
    #[arg(long, value_name = "URL")]
    lock_url: Option<String>,
}

/// `dfs-server lock`.
#[derive(Clone, Debug, Default, Args, Deserialize)]
pub struct LockArgs {
    /// What every role has.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// A client that is silent for so long loses its locks [default: 30]
    #[arg(long, value_name = "SECONDS")]
    lease_seconds: Option<u64>,
    /// The directory service, which must know of a lost holder before its lock passes on
    #[arg(long, value_name = "URL")]
    directory: Option<String>,
}

/// `dfs-server file`.
#[derive(Clone, Debug, Default, Args, Deserialize)]
pub struct FileArgs {
    /// What every role has.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    keeping: Keeping,
    /// The directory service
    #[arg(long, value_name = "URL")]
    directory: Option<String>,
    /// A name for people and pins, unique in the cluster [default: host name and port]
    #[arg(long)]
    name: Option<String>,
    /// Where clients and other file servers reach this one [default: http://HOST:PORT]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
}

/// `dfs-server all`.
#[derive(Clone, Debug, Default, Args, Deserialize)]
pub struct AllArgs {
    /// What every role has.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    policy: Policy,
    #[command(flatten)]
    #[serde(flatten)]
    keeping: Keeping,
    /// File servers; more than one get ports of their own, from PORT + 10 [default: 1]
    #[arg(long, value_name = "N")]
    file_servers: Option<u16>,
    /// Where clients reach this process [default: http://HOST:PORT]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
}

/// When content goes to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sync {
    Close,
    Always,
}

/// Where to listen, with which token, and where the data is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The address.
    pub host: String,
    /// The port; 0 for any.
    pub port: u16,
    /// The data directory.
    pub data: PathBuf,
    /// The cluster token, and those for clients.
    pub credentials: Credentials,
}

/// Settings of `dfs-server file`, and of each file server of `all`.
#[derive(Clone, Debug)]
pub struct FileSettings {
    /// A name for people; `None`: host name and port.
    pub name: Option<String>,
    /// Where others reach it; `None`: where it listens.
    pub advertise: Option<String>,
    /// Bytes that content may take.
    pub capacity: Option<u64>,
    /// Copies without which a commit fails.
    pub min_copies: u32,
    /// Makes every commit durable.
    pub always_sync: bool,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

/// Fills what the flags leave open from the file.
macro_rules! fill {
    ($flags:expr, $file:expr; $($($field:ident).+),* $(,)?) => {
        $(if $flags.$($field).+.is_none() { $flags.$($field).+ = $file.$($field).+; })*
    };
}

impl Common {
    /// The keys of `role` in the file that the flags name, or nothing.
    fn file<T: DeserializeOwned + Default>(&self, role: &str) -> Result<T> {
        let Some(path) = &self.config else { return Ok(T::default()) };
        let cli = Cli::command();
        let command = cli.find_subcommand(role).expect("every role is a subcommand");
        let known: Vec<String> =
            command.get_arguments().filter_map(|a| a.get_long()).filter(|l| *l != "config").map(|l| l.replace('-', "_")).collect();
        config::read(path, &known.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn fill(&mut self, file: Common) {
        fill!(self, file; host, port, data, token_file, client_token, log_level);
    }

    /// The level of the log.
    pub fn level(&self) -> Result<log::LevelFilter> {
        let Some(word) = &self.log_level else { return Ok(log::LevelFilter::Info) };
        word.parse().map_err(|_| invalid(config::unknown("log level", word, &["off", "error", "warn", "info", "debug", "trace"])))
    }

    fn place(&self, default_port: u16) -> Result<Place> {
        Ok(Place {
            host: self.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned()),
            port: self.port.unwrap_or(default_port),
            credentials: Credentials::new(self.token()?, self.client_tokens()?)?,
            data: self.data.clone().ok_or_else(|| invalid("no data directory: name one with --data DIR"))?,
        })
    }

    fn token(&self) -> Result<ClusterToken> {
        let how = |file: &str| format!("make one with: (umask 077; head -c 32 /dev/urandom | base64 > {file})");
        let Some(path) = &self.token_file else {
            return Err(invalid(format!("no cluster token: name its file with --token-file or DFS_TOKEN_FILE; {}", how("token"))));
        };
        match path.exists() {
            true => ClusterToken::read(path),
            false => Err(invalid(format!("token file {} does not exist; {}", path.display(), how(&path.display().to_string())))),
        }
    }

    fn client_tokens(&self) -> Result<Vec<ClientToken>> {
        self.client_token.iter().flatten().map(|text| parse_client_token(text)).collect()
    }
}

impl Policy {
    fn fill(&mut self, file: Policy) {
        fill!(self, file; copies, keep_versions, keep_versions_for, keep_removed, keep_recovered, history_free);
        fill!(self, file; lease_seconds, heartbeat_ms, pin, lock_wait, block_size, without_invalidation);
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_seconds.unwrap_or(30))
    }

    fn keep(&self) -> directory::Keep {
        let default = directory::Keep::default();
        let span = |given: Option<Span>, default| given.map_or(default, |span| span.0);
        directory::Keep {
            versions: self.keep_versions.unwrap_or(default.versions),
            versions_for: span(self.keep_versions_for, default.versions_for),
            removed: span(self.keep_removed, default.removed),
            recovered: span(self.keep_recovered, default.recovered),
            free_percent: self.history_free.unwrap_or(default.free_percent),
        }
    }

    fn directory(&self, lock_url: String, default_copies: u32) -> Result<directory::Config> {
        let pins: Result<Vec<_>> = self.pin.iter().flatten().map(|text| parse_pin(text)).collect();
        let block_bits = match self.block_size {
            None => DEFAULT_BLOCK_BITS,
            Some(ByteSize(size)) => (MIN_BLOCK_BITS..=MAX_BLOCK_BITS)
                .find(|bits| 1 << bits == size)
                .ok_or_else(|| invalid(format!("block size {size}: 64K, 128K, 256K, 512K or 1M")))?,
        };
        Ok(directory::Config {
            copies: self.copies.unwrap_or(default_copies),
            keep: self.keep(),
            lease: self.lease(),
            heartbeat: Duration::from_millis(self.heartbeat_ms.unwrap_or(1000)),
            lock_url,
            pins: pins?,
            lock_waits: self.lock_wait.iter().flatten().map(|text| parse_lock_wait(text)).collect::<Result<_>>()?,
            block_bits,
            invalidate: self.without_invalidation != Some(true),
        })
    }
}

impl Keeping {
    fn fill(&mut self, file: Keeping) {
        fill!(self, file; capacity, min_copies, sync);
    }

    fn settings(&self, name: Option<String>, advertise: Option<String>) -> Result<FileSettings> {
        if self.min_copies == Some(0) {
            return Err(invalid("min-copies: at least 1"));
        }
        Ok(FileSettings {
            name,
            advertise,
            capacity: self.capacity.map(|size| size.0),
            min_copies: self.min_copies.unwrap_or(1),
            always_sync: self.sync == Some(Sync::Always),
        })
    }
}

fn parse_pin(text: &str) -> Result<directory::Pin> {
    let wrong = || invalid(format!("pin '{text}': expected PATH=NAME,NAME"));
    let (path, names) = text.rsplit_once('=').ok_or_else(wrong)?;
    let servers: Vec<String> = names.split(',').map(str::to_owned).collect();
    if !path.starts_with('/') || servers.iter().any(String::is_empty) {
        return Err(wrong());
    }
    Ok(directory::Pin { path: path.to_owned(), servers })
}

fn parse_client_token(text: &str) -> Result<ClientToken> {
    let mut parts = text.split(',');
    let file = parts.next().unwrap_or_default();
    let wrong = |why: String| invalid(format!("client-token '{text}': {why}"));
    let (mut limits, mut squash, mut is_squashed, mut is_named) = (Limits::default(), Squash { uid: NOBODY, gid: NOBODY }, false, false);
    for option in parts {
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        // Somebody who is squashed must not be root again.
        let id = || value.and_then(|value| value.parse().ok()).filter(|id| (1..u32::MAX).contains(id));
        let number = || id().ok_or_else(|| wrong(format!("{name}=N, where N is the number of somebody who is not root")));
        match (name, value) {
            ("ro", None) => limits.read_only = true,
            ("root_squash", None) => is_squashed = true,
            ("anonuid", _) => (squash.uid, is_named) = (number()?, true),
            ("anongid", _) => (squash.gid, is_named) = (number()?, true),
            _ => return Err(wrong(config::unknown("option", option, &["root_squash", "anonuid=N", "anongid=N", "ro"]))),
        }
    }
    if is_named && !is_squashed {
        return Err(wrong("anonuid and anongid are for root_squash".to_owned()));
    }
    limits.squash = is_squashed.then_some(squash);
    Ok(ClientToken { token: ClusterToken::read(file.as_ref())?, limits })
}

fn parse_lock_wait(text: &str) -> Result<LockWait> {
    let wrong = || invalid(format!("lock-wait '{text}': expected PATH=SECONDS or PATH=forever"));
    let (path, wait) = text.rsplit_once('=').filter(|(path, _)| path.starts_with('/')).ok_or_else(wrong)?;
    let wait_ms = match wait {
        "forever" => None,
        seconds => {
            let seconds = seconds.parse().ok().filter(|seconds: &f64| (0.0..=86_400.0).contains(seconds)).ok_or_else(wrong)?;
            Some((seconds * 1000.0) as u64)
        }
    };
    // Clients compare it with names as they are written in JSON.
    Ok(LockWait { path: name::encode(path.as_bytes()), wait_ms })
}

/// The URL of the directory service, which some roles cannot do without.
fn named(directory: Option<&String>) -> Result<String> {
    directory.cloned().ok_or_else(|| invalid("no directory service: name it with --directory http://HOST:7400"))
}

/// `http://HOST:PORT`, with brackets around an IPv6 address.
pub fn url(host: &str, port: u16) -> String {
    if host.contains(':') { format!("http://[{host}]:{port}") } else { format!("http://{host}:{port}") }
}

/// The address that others get where none was said; an error where `host` stands for all addresses.
pub fn reachable(host: &str, port: u16, flag: &str) -> Result<String> {
    match host {
        "0.0.0.0" | "::" => Err(invalid(format!("with --host {host} say with {flag} where clients reach it"))),
        _ => Ok(url(host, port)),
    }
}

impl DirectoryArgs {
    /// With the configuration file's keys where no flag was given.
    pub fn with_file(mut self) -> Result<Self> {
        let file: Self = self.common.file("directory")?;
        self.common.fill(file.common);
        self.policy.fill(file.policy);
        fill!(self, file; lock_url);
        Ok(self)
    }

    /// What the role needs.
    pub fn settings(&self) -> Result<(Place, directory::Config)> {
        let place = self.common.place(7400)?;
        let lock_url = match &self.lock_url {
            Some(url) => url.clone(),
            None => reachable(&place.host, 7401, "--lock-url")?,
        };
        Ok((place, self.policy.directory(lock_url, 2)?))
    }
}

impl LockArgs {
    /// With the configuration file's keys where no flag was given.
    pub fn with_file(mut self) -> Result<Self> {
        let file: Self = self.common.file("lock")?;
        self.common.fill(file.common);
        fill!(self, file; lease_seconds, directory);
        Ok(self)
    }

    /// What the role needs, and the directory's URL.
    pub fn settings(&self) -> Result<(Place, crate::lock::Config, String)> {
        let lease = Duration::from_secs(self.lease_seconds.unwrap_or(30));
        check_lease(lease)?;
        Ok((self.common.place(7401)?, crate::lock::Config { lease }, named(self.directory.as_ref())?))
    }
}

impl FileArgs {
    /// With the configuration file's keys where no flag was given.
    pub fn with_file(mut self) -> Result<Self> {
        let file: Self = self.common.file("file")?;
        self.common.fill(file.common);
        self.keeping.fill(file.keeping);
        fill!(self, file; directory, name, advertise);
        Ok(self)
    }

    /// What the role needs, and the directory's URL.
    pub fn settings(&self) -> Result<(Place, FileSettings, String)> {
        let place = self.common.place(7410)?;
        if self.advertise.is_none() {
            reachable(&place.host, place.port, "--advertise")?;
        }
        let directory = named(self.directory.as_ref())?;
        Ok((place, self.keeping.settings(self.name.clone(), self.advertise.clone())?, directory))
    }
}

/// Settings of `dfs-server all`.
#[derive(Clone, Debug)]
pub struct AllSettings {
    /// Where it listens.
    pub place: Place,
    /// The directory service; its lock URL is filled in once the port is known.
    pub directory: directory::Config,
    /// The lock service.
    pub lock: crate::lock::Config,
    /// Each file server.
    pub file: FileSettings,
    /// How many of them.
    pub file_servers: u16,
}

impl AllArgs {
    /// With the configuration file's keys where no flag was given.
    pub fn with_file(mut self) -> Result<Self> {
        let file: Self = self.common.file("all")?;
        self.common.fill(file.common);
        self.policy.fill(file.policy);
        self.keeping.fill(file.keeping);
        fill!(self, file; file_servers, advertise);
        Ok(self)
    }

    /// What the roles need.
    pub fn settings(&self) -> Result<AllSettings> {
        let place = self.common.place(7400)?;
        if self.advertise.is_none() {
            reachable(&place.host, place.port, "--advertise")?;
        }
        let file_servers = self.file_servers.unwrap_or(1);
        if !(1..=64).contains(&file_servers) {
            return Err(invalid(format!("file-servers: 1 to 64, not {file_servers}")));
        }
        check_lease(self.policy.lease())?;
        Ok(AllSettings {
            place,
            directory: self.policy.directory(String::new(), 1)?,
            lock: crate::lock::Config { lease: self.policy.lease() },
            file: self.keeping.settings(None, self.advertise.clone())?,
            file_servers,
        })
    }
}

fn check_lease(lease: Duration) -> Result<()> {
    match lease.is_zero() {
        true => Err(invalid("lease-seconds: at least 1")),
        false => Ok(()),
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
