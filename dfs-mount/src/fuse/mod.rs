//! The only folder that names the FUSE library: [`operations`] are its callbacks, [`begun`] how they are carried out,
//! [`convert`] its types, [`opened`] what opens are answered with, [`notify`] what is sent to the kernel unasked, `past` the
//! callbacks about old versions and removed files.
//!
//! No callback waits: what can be answered at once is answered by the calling thread, all
//! else goes on as a task on the mount's runtime and replies from there.

mod begun;
mod convert;
mod notify;
mod opened;
mod operations;
mod past;

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use dfs_common::Error;
use dfs_common::attributes::{Attributes, FileKind};
use dfs_common::ids::InodeId;
use fuser::{Errno, Generation, INodeNo, MountOption, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, Request, SessionACL};
use tokio::runtime::Handle;

use crate::vfs::coherence::Told;
use crate::vfs::interrupt::Signals;
use crate::vfs::names::NewEntry;
use crate::vfs::waits::{About, Wait};
use crate::vfs::{Caller, Vfs};
use convert::{errno, file_attr, user};
use notify::Notifications;

/// Whom the mount serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Who mounted it.
    Owner,
    /// Also root.
    Root,
    /// Everybody.
    All,
}

/// A kernel mount in front of a [`Vfs`].
pub struct Mounted {
    session: fuser::Session<Adapter>,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted").finish_non_exhaustive()
    }
}

/// Takes the mount out of the tree, from any thread.
#[derive(Debug)]
pub struct Unmounter(fuser::SessionUnmounter);

impl Unmounter {
    /// As umount(8): an error where it is busy.
    pub fn unmount(&mut self) -> io::Result<()> {
        self.0.unmount()
    }
}

/// Mounts `vfs` at `mountpoint`. When this returns the kernel has finished its handshake and the mount works
/// as soon as [`Mounted::serve`] runs. `options` are those of mount(8) that the kernel understands.
pub fn mount(vfs: Arc<Vfs>, runtime: Handle, mountpoint: &Path, source: &str, access: Access, options: &[String]) -> io::Result<Mounted> {
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::FSName(source.to_owned()), MountOption::DefaultPermissions];
    // As an option of its own: the library's Subtype is lost where root mounts without fusermount.
    config.mount_options.push(MountOption::CUSTOM("subtype=dfs-mount".to_owned()));
    config.mount_options.extend(options.iter().map(|o| kernel_option(o)));
    config.acl = match access {
        Access::Owner => SessionACL::Owner,
        Access::Root => SessionACL::RootAndOwner,
        Access::All => SessionACL::All,
    };
    config.n_threads = Some(2);
    config.clone_fd = true;
    let session = fuser::Session::new(Adapter { vfs: vfs.clone(), runtime }, mountpoint, &config)?;
    vfs.set_kernel(Arc::new(Notifications::new(&session)?));
    Ok(Mounted { session })
}

fn kernel_option(option: &str) -> MountOption {
    match option {
        "ro" => MountOption::RO,
        "rw" => MountOption::RW,
        "dev" => MountOption::Dev,
        "nodev" => MountOption::NoDev,
        "suid" => MountOption::Suid,
        "nosuid" => MountOption::NoSuid,
        "exec" => MountOption::Exec,
        "noexec" => MountOption::NoExec,
        "atime" => MountOption::Atime,
        "noatime" => MountOption::NoAtime,
        "sync" => MountOption::Sync,
        "async" => MountOption::Async,
        "dirsync" => MountOption::DirSync,
        other => MountOption::CUSTOM(other.to_owned()),
    }
}

impl Mounted {
    /// For whoever ends the mount.
    pub fn unmounter(&mut self) -> Unmounter {
        Unmounter(self.session.unmount_callable())
    }

    /// Serves requests until the mount is gone.
    pub fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

/// Between the library's callbacks and the file system.
struct Adapter {
    vfs: Arc<Vfs>,
    runtime: Handle,
}

/// An operation that happens, however long it takes.
fn mutation(operation: &'static str, request: &Request, node: INodeNo) -> About {
    About { operation, pid: request.pid(), user: Some(user(request)), node: node.0, name: None, given_up_on: Signals::None }
}

/// An operation that changes nothing: who asked for it may give up.
fn question(operation: &'static str, request: &Request, node: INodeNo) -> About {
    About { given_up_on: Signals::Ending, ..mutation(operation, request, node) }
}

/// The same, of a name in a directory.
fn named(about: About, name: &OsStr) -> About {
    About { name: Some(name.as_bytes().to_vec()), ..about }
}

impl Adapter {
    /// Carries out `operation`; `answer` gets its result. What need not wait is done when this returns, all else is seen in the list of waits.
    fn run<T, F>(&self, about: About, operation: F, answer: impl FnOnce(Result<T, Errno>) + Send + 'static)
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let waits_only = about.given_up_on == Signals::None;
        let wait = Wait::begin(about);
        let mut operation: Pin<Box<_>> = Box::pin(wait.observe(wait.on_behalf(operation)));
        match begun::begin(&self.runtime, operation.as_mut()) {
            Ok(result) => answer(result.map_err(|e| errno(&e))),
            Err(left) => {
                let entered = self.vfs.waits().enter(wait);
                let task = async move { answer(entered.finish(operation).await.map_err(|e| errno(&e))) };
                // Who looks for signals meanwhile waits for the clock, too.
                if waits_only { left.go_on(task) } else { left.go_on_now(task) }
            }
        }
    }

    /// Answers with a name and where it leads.
    fn entry(&self, reply: ReplyEntry, about: About, operation: impl Future<Output = Result<Told, Error>> + Send + 'static) {
        let vfs = self.vfs.clone();
        self.run(about, operation, move |result| match result {
            Ok(told) => {
                let telling = vfs.telling();
                let keep = telling.keep(&told);
                match told.attributes() {
                    Some(attributes) => {
                        let generation = Generation(telling.generation(attributes.ino.0));
                        reply.entry_with_ttls(&keep.attributes, &keep.entry, &file_attr(attributes), generation);
                    }
                    None if keep.entry.is_zero() => reply.error(Errno::ENOENT),
                    // An absent name is kept as one that leads to node 0.
                    None => {
                        let nothing = Attributes::bare(InodeId(0), FileKind::File);
                        reply.entry_with_ttls(&keep.attributes, &keep.entry, &file_attr(&nothing), Generation(0));
                    }
                }
            }
            Err(e) => reply.error(e),
        });
    }

    /// A handle's node, or the directory above it.
    fn lookup_handle(&self, request: &Request, node: INodeNo, up: bool, reply: ReplyEntry) {
        let vfs = self.vfs.clone();
        self.entry(reply, question("lookup by handle", request, node), async move {
            if up { vfs.lookup_parent(node.0).await } else { vfs.lookup_node(node.0).await }
        });
    }

    fn make(&self, reply: ReplyEntry, about: About, parent: INodeNo, name: &OsStr, new: NewEntry, caller: Caller) {
        let (vfs, about, name) = (self.vfs.clone(), named(about, name), name.to_owned());
        self.entry(reply, about, async move { vfs.make(parent.0, name.as_bytes(), new, caller).await });
    }

    fn attributes(&self, reply: ReplyAttr, about: About, operation: impl Future<Output = Result<Told, Error>> + Send + 'static) {
        let vfs = self.vfs.clone();
        self.run(about, operation, move |result| match result {
            Ok(told) => {
                let telling = vfs.telling();
                let keep = telling.keep(&told);
                match told.own_attributes() {
                    Some(attributes) => reply.attr(&keep.attributes, &file_attr(&attributes)),
                    None => reply.error(Errno::ESTALE),
                }
            }
            Err(e) => reply.error(e),
        });
    }

    fn data(&self, reply: ReplyData, about: About, operation: impl Future<Output = Result<Vec<u8>, Error>> + Send + 'static) {
        self.run(about, operation, move |result| match result {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(e),
        });
    }

    /// Answers without content; `during` lives until the kernel has the answer.
    fn empty<D: Send + 'static>(
        &self,
        reply: ReplyEmpty,
        about: About,
        during: D,
        operation: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        self.run(about, operation, move |result| {
            match result {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(e),
            }
            drop(during);
        });
    }
}
