//! Mount options: what a person, fstab or mount(8) writes behind `-o`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::fuse::Access;
use crate::system;
use crate::vfs::accessed::AccessTimes;

/// Shown below `--help`, and in the man page.
pub(super) const HELP: &str = "\
Mount options (-o):
  token_file=FILE       the cluster token, or one for clients [default: /etc/dfs/token]
  cache_dir=DIR         cache of this mount, used by no other one
                        [default: below /var/cache/dfs-mount, or ~/.cache/dfs-mount]
  cache_size=SIZE       closed files kept in the cache, as in 500M or 20G [default: 10G]
  lock_wait=SECONDS     how long an open for writing waits for its turn before it
                        fails with EBUSY [default: until it comes]
  timeout=SECONDS       limit of each request to the servers [default: 60]
  entry_timeout=SECONDS how long the kernel keeps a name at the most
                        [default: as long as it is leased]
  attr_timeout=SECONDS  the same for attributes
  log_file=FILE         [default: dfs-mount.log in the cache directory]
  log_level=LEVEL       error, warn, info, debug or trace [default: info]
  allow_other           everybody may use the mount, not only who made it
  allow_root            who made it and root may
  ro, rw, dev, nodev, suid, nosuid, exec, noexec, sync, async, dirsync, noatime
                        as for every file system
  nodiratime            do not note when directories were read; files, and without
                        this directories, as with relatime
  nopassthrough         reads always pass through dfs-mount; otherwise the kernel
                        serves large files from the cache's disk where it can
  remount               change ro, rw, dev, suid, exec of an existing mount

Sizes take K, M, G or T; times take fractions (0.5).

From fstab:
  http://HOST:7400  /mnt/dfs  fuse.dfs-mount  _netdev,allow_other,token_file=/etc/dfs/token  0 0

Exit codes: 0 the mount works, 32 it does not, 2 wrong usage.
Files that could not be uploaded are kept below DIR/recovered.";

/// Options with values.
const KEYS: &[&str] = &["token_file", "cache_dir", "cache_size", "lock_wait", "timeout", "entry_timeout", "attr_timeout", "log_file", "log_level"];
/// Options that become flags of the mount.
const FLAGS: &[&str] = &["ro", "rw", "dev", "nodev", "suid", "nosuid", "exec", "noexec", "sync", "async", "dirsync", "noatime", "atime"];
/// Options for others, or that are always so here.
const IGNORED: &[&str] = &[
    "defaults",
    "_netdev",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "default_permissions",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "diratime",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
];
/// Options without values that are handled here.
const WORDS: &[&str] = &["allow_other", "allow_root", "remount", "nodiratime", "nopassthrough"];
/// Pairs of flags that exclude one another: the last one said holds.
const OPPOSITES: &[(&str, &str)] = &[("ro", "rw"), ("dev", "nodev"), ("suid", "nosuid"), ("exec", "noexec"), ("sync", "async"), ("noatime", "atime")];

const DEFAULT_PORT: u16 = 7400;

/// Everything that can be said about a mount.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) source: String,
    pub(super) mountpoint: PathBuf,
    pub(super) token_file: PathBuf,
    pub(super) cache_dir: PathBuf,
    pub(super) cache_size: u64,
    pub(super) lock_wait: Option<Duration>,
    pub(super) timeout: Duration,
    pub(super) entry_timeout: Duration,
    pub(super) attr_timeout: Duration,
    pub(super) log_file: Option<PathBuf>,
    pub(super) log_level: log::LevelFilter,
    pub(super) access: Access,
    pub(super) kernel: Vec<String>,
    pub(super) remount: bool,
    pub(super) nodiratime: bool,
    pub(super) nopassthrough: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            source: String::new(),
            mountpoint: PathBuf::new(),
            token_file: "/etc/dfs/token".into(),
            cache_dir: PathBuf::new(),
            cache_size: 10 << 30,
            lock_wait: None,
            timeout: Duration::from_secs(60),
            entry_timeout: Duration::MAX,
            attr_timeout: Duration::MAX,
            log_file: None,
            log_level: log::LevelFilter::Info,
            access: Access::Owner,
            kernel: Vec::new(),
            remount: false,
            nodiratime: false,
            nopassthrough: false,
        }
    }
}

impl Options {
    /// From what stood behind each `-o`. With `sloppy`, unknown options are passed over.
    pub(super) fn parse(given: &[String], sloppy: bool) -> Result<Self> {
        let mut options = Self::default();
        for option in given.iter().flat_map(|g| g.split(',')).filter(|o| !o.is_empty()) {
            match option.split_once('=') {
                Some((key, value)) if KEYS.contains(&key) => options.set(key, value).with_context(|| format!("option {key}"))?,
                Some((key, _)) if key == "comment" || key == "setuid" || key.starts_with("x-") || key.starts_with("X-") => {}
                // mount(8) hands the kernel's own options back for a remount.
                Some(("fsname" | "subtype" | "user_id" | "group_id" | "rootmode" | "fd" | "max_read" | "blksize", _)) => {}
                None if FLAGS.contains(&option) => options.set_flag(option),
                None if IGNORED.contains(&option) || option.starts_with("x-") || option.starts_with("X-") => {}
                None if option == "allow_other" => options.access = Access::All,
                None if option == "allow_root" => options.access = Access::Root,
                None if option == "nodiratime" => options.nodiratime = true,
                None if option == "nopassthrough" => options.nopassthrough = true,
                None if option == "remount" => options.remount = true,
                _ if sloppy => log::warn!("option {option} is unknown and ignored"),
                _ => bail!("{}", unknown(option)),
            }
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "token_file" => self.token_file = path(value)?,
            "cache_dir" => self.cache_dir = path(value)?,
            "cache_size" => self.cache_size = size(value)?,
            "lock_wait" => self.lock_wait = Some(seconds(value)?),
            "timeout" => self.timeout = seconds(value).and_then(positive)?,
            "entry_timeout" => self.entry_timeout = seconds(value)?,
            "attr_timeout" => self.attr_timeout = seconds(value)?,
            "log_file" => self.log_file = Some(path(value)?),
            "log_level" => {
                let levels = ["error", "warn", "info", "debug", "trace", "off"];
                self.log_level = value.parse().ok().with_context(|| dfs_common::config::unknown("level", value, &levels))?;
            }
            _ => unreachable!("KEYS and this match list the same keys"),
        }
        Ok(())
    }

    /// mount(8) appends flags, so that one may stand there twice or against an earlier one.
    fn set_flag(&mut self, flag: &str) {
        let opposite = OPPOSITES.iter().find_map(|&(a, b)| if a == flag { Some(b) } else { (b == flag).then_some(a) });
        self.kernel.retain(|f| f != flag && Some(f.as_str()) != opposite);
        self.kernel.push(flag.to_owned());
    }

    /// Makes paths independent of the current directory, and chooses a cache directory where none was given.
    pub(super) fn make_absolute(&mut self) -> Result<()> {
        if self.cache_dir.as_os_str().is_empty() {
            self.cache_dir = default_cache(&self.mountpoint)?;
        }
        for path in [&mut self.token_file, &mut self.cache_dir].into_iter().chain(&mut self.log_file) {
            *path = std::path::absolute(&*path).with_context(|| format!("path {}", path.display()))?;
        }
        if self.cache_dir.starts_with(&self.mountpoint) {
            bail!("the cache directory {} must not be inside the mount", self.cache_dir.display());
        }
        Ok(())
    }

    /// Of what the times of access are kept.
    pub(super) fn access_times(&self) -> AccessTimes {
        let files = !self.kernel.iter().any(|flag| flag == "noatime" || flag == "ro");
        AccessTimes { files, directories: files && !self.nodiratime }
    }

    /// The flags of mount(2) for a remount.
    pub(super) fn remount_flags(&self) -> libc::c_ulong {
        let flag = |name: &str| match name {
            "ro" => libc::MS_RDONLY,
            "nodev" => libc::MS_NODEV,
            "nosuid" => libc::MS_NOSUID,
            "noexec" => libc::MS_NOEXEC,
            "sync" => libc::MS_SYNCHRONOUS,
            "dirsync" => libc::MS_DIRSYNC,
            "noatime" => libc::MS_NOATIME,
            _ => 0,
        };
        self.kernel.iter().map(|f| flag(f)).fold(0, |a, b| a | b)
    }
}

fn unknown(option: &str) -> String {
    let name = option.split('=').next().unwrap_or(option);
    let known: Vec<&str> = KEYS.iter().chain(FLAGS).chain(WORDS).copied().collect();
    match (KEYS.contains(&name), known.contains(&name)) {
        (true, _) => format!("option {name} needs a value: {name}=…"),
        (_, true) => format!("option {name} takes no value"),
        _ => dfs_common::config::unknown("mount option", name, &known),
    }
}

fn path(value: &str) -> Result<PathBuf> {
    if value.is_empty() { bail!("the path is empty") } else { Ok(value.into()) }
}

fn seconds(value: &str) -> Result<Duration> {
    let seconds: f64 =
        value.parse().ok().filter(|s: &f64| s.is_finite() && *s >= 0.0).with_context(|| format!("'{value}' is no number of seconds"))?;
    Ok(Duration::from_secs_f64(seconds.min(1e9)))
}

fn positive(duration: Duration) -> Result<Duration> {
    if duration.is_zero() { bail!("must be more than 0") } else { Ok(duration) }
}

/// Bytes, with an optional K, M, G or T.
fn size(value: &str) -> Result<u64> {
    let wrong = || format!("'{value}' is no size; write it as in 500M or 20G");
    let (digits, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len()));
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => bail!(wrong()),
    };
    let number: u64 = digits.parse().ok().with_context(wrong)?;
    number.checked_mul(1 << shift).with_context(wrong)
}

/// The directory service's URL from what stands as the source of a mount.
pub(super) fn source_url(source: &str) -> Result<String> {
    let rest = source.strip_prefix("http://").unwrap_or(source).trim_end_matches('/');
    if rest.is_empty() || rest.contains(['/', '?', '@', ' ']) {
        bail!("'{source}' is no source; write it as in http://HOST:{DEFAULT_PORT}");
    }
    // A colon inside brackets belongs to an IPv6 address.
    let has_port = rest.rfind(':').is_some_and(|colon| !rest[colon..].contains(']'));
    Ok(if has_port { format!("http://{rest}") } else { format!("http://{rest}:{DEFAULT_PORT}") })
}

/// A cache directory of its own for each mountpoint.
fn default_cache(mountpoint: &Path) -> Result<PathBuf> {
    let name = mountpoint.to_string_lossy().trim_matches('/').replace('-', "--").replace('/', "-");
    let name = if name.is_empty() { "root".to_owned() } else { name };
    if system::user().0 == 0 {
        return Ok(Path::new("/var/cache/dfs-mount").join(name));
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    Ok(base.context("neither HOME nor XDG_CACHE_HOME is set: choose a cache with -o cache_dir=")?.join("dfs-mount").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options> {
        Options::parse(&[text.to_owned()], false)
    }

    #[test]
    fn what_mount_passes() {
        let options = parse("rw,nosuid,_netdev,x-systemd.automount,user_id=0,group_id=0,token_file=/t,lock_wait=1.5,allow_other,dev,suid").unwrap();
        assert_eq!(options.kernel, ["rw", "dev", "suid"]);
        assert_eq!((options.access, options.lock_wait), (Access::All, Some(Duration::from_millis(1500))));
        assert_eq!(options.token_file, Path::new("/t"));
    }

    #[test]
    fn wrong_options_say_what_is_right() {
        let message = |text| format!("{:#}", parse(text).unwrap_err());
        assert_eq!(message("lockwait=1"), "unknown mount option 'lockwait'; did you mean 'lock_wait'?");
        assert_eq!(message("cache_dir"), "option cache_dir needs a value: cache_dir=…");
        assert_eq!(message("ro=1"), "option ro takes no value");
        assert_eq!(message("timeout=0"), "option timeout: must be more than 0");
        assert_eq!(message("lock_wait=-1"), "option lock_wait: '-1' is no number of seconds");
        assert!(message("cache_size=5X").contains("500M or 20G"));
        assert!(Options::parse(&["zzz".to_owned()], true).is_ok());
    }

    #[test]
    fn sizes() {
        assert_eq!(size("10").unwrap(), 10);
        assert_eq!(size("2k").unwrap(), 2048);
        assert_eq!(size("3GiB").unwrap(), 3 << 30);
        for bad in ["", "G", "-1", "1.5G", "99999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sources() {
        for (given, url) in [
            ("http://h:1", "http://h:1"),
            ("h:1", "http://h:1"),
            ("h", "http://h:7400"),
            ("http://h/", "http://h:7400"),
            ("[::1]", "http://[::1]:7400"),
            ("[::1]:9", "http://[::1]:9"),
        ] {
            assert_eq!(source_url(given).unwrap(), url);
        }
        assert!(source_url("http://").is_err() && source_url("h/x").is_err());
    }
}
