//! Typed clients of the roles, the same for the mount, the command line and the
//! servers among themselves.
//!
//! They own retries, deadlines and the choice of a server; they know nothing of caches.

pub mod behalf;
mod caller;
mod clock;
pub mod cluster;
pub mod commit;
pub mod past;
mod peers;
pub mod read;
pub mod steps;

pub use caller::Caller;
pub use clock::Clock;
pub use cluster::{Cluster, WriteLock};
pub use peers::{Connect, Peers};
