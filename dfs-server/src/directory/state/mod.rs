//! The directory's state, pure: what each operation reads, checks and changes.
//!
//! A read is a function of a view; a mutation is a function of a [`Change`] (a view with
//! pending changes, the tables in memory, and the time), which collects rows to write
//! and [`Effects`] on the tables. Nothing here knows HTTP, engines, clocks or
//! randomness. Invariant: the tables hold nothing that cannot be read from the store
//! again, except when something was last heard of, and who was told of what: where that is not known, everybody was told.

mod acl;
mod affected;
mod attributes;
mod aware;
mod change;
mod copies;
mod expiry;
mod guarded;
mod history;
pub(crate) mod keys;
mod leased;
mod leases;
mod make;
mod open;
mod past;
mod placement;
mod read;
pub(crate) mod records;
mod remove;
mod rename;
mod reserve;
mod resolve;
mod rights;
mod servers;
mod sessions;
mod tables;
mod versions;
mod xattr;

use dfs_common::ids::{InodeId, RECOVERED, ROOT};

pub(super) use affected::{Affected, Changes, Told, affected, inodes, is_untold};
pub(super) use attributes::{accessed, set_attributes};
pub(super) use change::{Change, Effects};
pub(super) use copies::{orders, report_copy, settle, sweep};
pub(super) use expiry::{Limits, Relief, Short, expire, expire_recovered, is_due, old_recovered, relieve, short_of_space};
pub(super) use guarded::{Guarded, check, read as read_as};
pub(super) use leased::{Leased, Tells};
pub(super) use leases::Leases;
pub(super) use make::{make, make_top};
pub(super) use past::{name_history, removals, removals_from, undelete};
pub(super) use placement::place;
pub(super) use read::{get_attributes, list, lookup, read_link};
pub(super) use remove::{link, remove};
pub(super) use rename::rename;
pub(super) use resolve::resolve;
pub(super) use rights::access;
pub(super) use servers::{confirm_dropped, heard, register, rows, statfs};
pub(super) use sessions::{End, close_session, forget_expired, open_session, release, release_all};
pub use tables::{Keep, Pin};
pub(super) use tables::{Moment, Policy, Tables};
pub(super) use versions::{fence, held_versions, publish, versions};
pub(super) use xattr::{get_xattr, list_xattrs, remove_xattr, set_xattr};

/// Whether a directory has no name and lies in none: the root, and that of what could not be published.
fn is_top(ino: InodeId) -> bool {
    ino == ROOT || ino == RECOVERED
}

/// The most names of one inode (LINK_MAX).
pub(super) const LINK_MAX: u32 = 65_000;
