//! The local cache: one sparse file on disk for each version that is or was open.
//!
//! Decisions about blocks are pure ([`map`], [`dirty`], [`copy`]); [`content`] applies them to a file on
//! disk, [`arriving`] knows what is being fetched; [`shelf`] keeps closed files for the next open and throws out the least
//! recently used. Knows nothing of FUSE and never talks to a server.
//!
//! Files that may hold what no server has live in `writing/`, and the [`journal`] says what
//! of each is new ([`record`]); after a crash [`restore`] puts that together again. What could not be
//! published is [`aside`], in `recovered/`, until the cluster has it.

pub mod arriving;
pub mod aside;
pub mod content;
pub mod copy;
mod dirty;
mod file;
pub mod journal;
pub mod map;
pub mod record;
pub mod restore;
pub mod shelf;
mod trees;

pub use content::Content;
pub use map::BlockMap;
pub use shelf::Shelf;
