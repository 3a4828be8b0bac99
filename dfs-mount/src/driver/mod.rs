//! `dfs-mount`: from a command line, as mount(8) or a person types it, to a mount that
//! serves until it is unmounted.
//!
//! The process forks before it has threads; the parent returns when the mount works, or
//! says why it does not and exits with 32, as mount helpers do.

mod options;

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser};
use dfs_common::api::directory::OpenSession;
use dfs_common::clients::{Cluster, cluster};
use dfs_common::credentials::ClusterToken;

use crate::cache::Shelf;
use crate::cache::record::Run;
use crate::control;
use crate::failpoint;
use crate::fuse::{self, Mounted, Unmounter};
use crate::mountinfo::{self, Row};
use crate::system::{self, Forked};
use crate::vfs::{Settings, Vfs};
use options::Options;

/// What mount(8) calls a failed mount.
const MOUNT_FAILURE: u8 = 32;
/// How long the end of a mount may take to publish what is dirty.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How long a mount waits for the recovery of what a crash left.
const RECOVERY_LIMIT: Duration = Duration::from_secs(10);
/// How long ending the session may take; servers that are away notice by themselves.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// How long a mount that is still in use may go on after SIGTERM, detached.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// What the child tells its parent when the mount works.
const READY: &str = "ready";

/// Mounts a cluster of the distributed file system.
#[derive(Debug, Parser)]
#[command(name = "dfs-mount", version, after_long_help = options::HELP, after_help = options::HELP)]
struct Arguments {
    /// The directory service: http://HOST:PORT, HOST:PORT, or HOST (port 7400)
    source: String,
    /// An existing directory
    mountpoint: PathBuf,
    /// Mount options, separated by commas; may be repeated
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Log more (as log_level=debug)
    #[arg(short, long)]
    verbose: bool,
    /// Accepted from mount(8); there is no mtab to leave alone
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    /// Ignore unknown mount options instead of failing
    #[arg(short = 's')]
    sloppy: bool,
}

/// The command line, for man pages and completions.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the driver with this process's arguments.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (source, mountpoint) = (arguments.source.clone(), arguments.mountpoint.clone());
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("dfs-mount: {source} on {}: {e:#}", mountpoint.display());
            ExitCode::from(MOUNT_FAILURE)
        }
    }
}

fn start(arguments: Arguments) -> Result<()> {
    failpoint::arm().map_err(anyhow::Error::msg)?;
    let mut options = Options::parse(&arguments.options, arguments.sloppy)?;
    options.source = options::source_url(&arguments.source)?;
    // The daemon's directory is the root, so paths must not depend on this one's.
    options.mountpoint = std::fs::canonicalize(&arguments.mountpoint).context("mountpoint")?;
    if arguments.verbose {
        options.log_level = log::LevelFilter::Debug;
    }
    if !std::fs::metadata(&options.mountpoint).context("mountpoint")?.is_dir() {
        bail!("the mountpoint is not a directory");
    }
    let mounted = topmost_mount(&options.mountpoint)?.map(|mount| mount.source);
    if options.remount {
        return remount(&options, mounted.as_deref());
    }
    if mounted.as_deref() == Some(options.source.as_str()) {
        bail!("it is already mounted there");
    }
    options.make_absolute()?;
    if arguments.foreground {
        return run(&options, &mut None);
    }
    let (reader, writer) = std::io::pipe().context("pipe")?;
    match system::fork_daemon().context("fork")? {
        Forked::Parent => {
            drop(writer);
            wait_for_child(reader)
        }
        Forked::Child => {
            drop(reader);
            let mut parent = Some(writer);
            let result = run(&options, &mut parent);
            if let Err(e) = &result {
                log::error!("{e:#}");
                // Where the mount worked before, the parent is gone.
                if let Some(mut parent) = parent {
                    let _ = write!(parent, "{e:#}");
                }
            }
            std::process::exit(if result.is_ok() { 0 } else { i32::from(MOUNT_FAILURE) });
        }
    }
}

fn wait_for_child(mut reader: PipeReader) -> Result<()> {
    let mut said = String::new();
    reader.read_to_string(&mut said).context("reading from the daemon")?;
    match said.as_str() {
        READY => Ok(()),
        "" => bail!("the daemon ended without a word"),
        problem => bail!("{problem}"),
    }
}

/// Mounts and serves; `parent` is told when it works, and taken then.
fn run(options: &Options, parent: &mut Option<PipeWriter>) -> Result<()> {
    start_log(options, parent.is_none())?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("dfs-mount").build().context("runtime")?;
    let vfs = Arc::new(runtime.block_on(connect(options))?);
    runtime.block_on(vfs.appear_to_lock_service());
    runtime.spawn(vfs.clone().keep_session());
    runtime.spawn(vfs.clone().keep_leases());
    runtime.spawn(vfs.clone().keep_nursery());
    runtime.spawn(vfs.clone().keep_recalls());
    runtime.spawn(vfs.clone().keep_locks());
    runtime.spawn(vfs.clone().keep_sending_ahead());
    runtime.block_on(recover(&vfs));
    runtime.spawn(vfs.clone().keep_recovered());
    let mut mounted =
        fuse::mount(vfs.clone(), runtime.handle().clone(), &options.mountpoint, &options.source, options.access, &options.kernel).context("mount")?;
    runtime.spawn(vfs.clone().keep_nodes_few());
    if let Some(row) = topmost_mount(&options.mountpoint)? {
        vfs.set_mount_id(row.id);
        match control::listen(&row.device) {
            Ok(listener) => {
                runtime.spawn(control::serve(listener, vfs.clone(), options.source.clone(), options.mountpoint.display().to_string()));
            }
            Err(e) => log::warn!("no control socket, so that `dfs why` does not see this mount: {e}"),
        }
    }
    runtime.spawn(end_on_signal(vfs.clone(), mounted.unmounter(), options.mountpoint.clone()));
    log::info!("{} is mounted on {}", options.source, options.mountpoint.display());
    announce(parent)?;
    let served = serve(mounted);
    tell(&runtime.block_on(vfs.end(END_LIMIT, CLOSE_LIMIT)));
    log::info!("{} is unmounted", options.mountpoint.display());
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// What a crash left is where it belongs before anybody can open it, unless that takes long.
async fn recover(vfs: &Arc<Vfs>) {
    let recovery = tokio::spawn(vfs.clone().recover());
    if tokio::time::timeout(RECOVERY_LIMIT, recovery).await.is_err() {
        log::warn!("recovery of what the last mount of this cache left takes long, and goes on beside the mount");
    }
}

/// What could not be uploaded, for whoever watches; the log has it already.
fn tell(kept: &[String]) {
    for sentence in kept {
        eprintln!("dfs-mount: {sentence}");
    }
}

fn serve(mounted: Mounted) -> Result<()> {
    mounted.serve().context("serving the mount")
}

async fn connect(options: &Options) -> Result<Vfs> {
    let token = ClusterToken::read(&options.token_file)?;
    let client = OpenSession {
        host: system::host_name(),
        pid: std::process::id(),
        program: concat!("dfs-mount ", env!("CARGO_PKG_VERSION")).to_owned(),
        mountpoint: options.mountpoint.display().to_string(),
    };
    let cluster = Cluster::open(&options.source, cluster::connect_http1(&token), client, options.timeout).await?;
    let run = Run { cluster: cluster.session().cluster, boot: boot_id()?, session: cluster.id() };
    let shelf = Shelf::open(&options.cache_dir, run, options.cache_size)?;
    let root = cluster.entry(dfs_common::ids::ROOT).await?;
    let settings = Settings {
        lock_wait: options.lock_wait,
        entry_ttl: options.entry_timeout,
        attr_ttl: options.attr_timeout,
        access_times: options.access_times(),
        passthrough: !options.nopassthrough,
    };
    Ok(Vfs::new(Arc::new(cluster), root, shelf, settings))
}

/// The kernel's random name of this boot. A test cannot restart the machine, and says that it did.
fn boot_id() -> Result<String> {
    let known = std::env::var("DFS_TEST_BOOT_ID").or_else(|_| std::fs::read_to_string("/proc/sys/kernel/random/boot_id"));
    known.map(|id| id.trim().to_owned()).context("the name of this boot")
}

/// Tells whoever waits that the mount works: the parent, or systemd.
fn announce(parent: &mut Option<PipeWriter>) -> Result<()> {
    match parent.take() {
        Some(mut parent) => {
            let null = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
            std::env::set_current_dir("/").context("/")?;
            system::redirect_standard_streams(&null, false).context("standard streams")?;
            parent.write_all(READY.as_bytes()).context("telling the parent")
        }
        None => sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("telling systemd"),
    }
}

/// Each file that is open on the mount is a descriptor here; the usual soft limit of 1,024 is for programs that use select(2).
fn raise_descriptor_limit() {
    match system::raise_descriptor_limit() {
        Ok(limit) => log::info!("{limit} descriptors: about as many files can be open at once"),
        Err(e) => log::warn!("limit of open files: {e}"),
    }
}

fn start_log(options: &Options, foreground: bool) -> Result<()> {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(log::LevelFilter::Warn);
    // It warns of every mount that is already unmounted when the session ends, which is the rule.
    builder.filter_module("fuser", log::LevelFilter::Error);
    // And of every reply whose caller was killed meanwhile.
    builder.filter_module("fuser::reply", log::LevelFilter::Off);
    for module in ["dfs_mount", "dfs_common"] {
        builder.filter_module(module, options.log_level);
    }
    if let Ok(filters) = std::env::var("DFS_LOG") {
        builder.parse_filters(&filters);
    }
    if !foreground || options.log_file.is_some() {
        let path = options.log_file.clone().unwrap_or_else(|| options.cache_dir.join("dfs-mount.log"));
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("log file {}", path.display()))?;
        }
        let file = File::options().create(true).append(true).open(&path).with_context(|| format!("log file {}", path.display()))?;
        builder.target(env_logger::Target::Pipe(Box::new(file)));
    }
    builder.init();
    // A daemon has no standard error that anybody reads.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::error!("{}\n{panic}", std::backtrace::Backtrace::force_capture());
        print(panic);
    }));
    Ok(())
}

/// SIGTERM and SIGINT: publish what is dirty, then unmount, by detaching where somebody still uses it.
async fn end_on_signal(vfs: Arc<Vfs>, mut unmounter: Unmounter, mountpoint: PathBuf) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return log::error!("no signal handlers: a signal ends the mount without publishing");
    };
    tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    log::info!("asked to end; publishing what is dirty");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    vfs.publish_all(END_LIMIT).await;
    if let Err(e) = unmounter.unmount() {
        log::warn!("{} is in use ({e}); detaching it", mountpoint.display());
    }
    if topmost_mount(&mountpoint).is_ok_and(|m| m.is_some())
        && let Err(e) = system::detach(&mountpoint)
    {
        log::error!("{} cannot be unmounted: {e}", mountpoint.display());
    }
    // The main thread goes on once the kernel has let go; whoever still has files open does not hold it up for ever.
    tokio::time::sleep(BUSY_LIMIT).await;
    tell(&vfs.end(END_LIMIT, CLOSE_LIMIT).await);
    std::process::exit(0);
}

/// What is mounted at `mountpoint` by this driver, if it is the topmost mount there.
fn topmost_mount(mountpoint: &Path) -> Result<Option<Row>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    Ok(mountinfo::topmost(&text, mountpoint))
}

fn remount(options: &Options, mounted: Option<&str>) -> Result<()> {
    if mounted.is_none() {
        bail!("nothing of ours is mounted there to remount");
    }
    system::remount(&options.mountpoint, options.remount_flags()).context("remount")
}
