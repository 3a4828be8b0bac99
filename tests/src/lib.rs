//! The harness of the end-to-end suites: real clusters of real processes, real
//! mounts, models to compare them with.
//!
//! It knows the binaries and the wire contract, nothing of what is inside. A suite
//! that cannot run (no binaries, no FUSE) fails and says what is missing: nothing is
//! skipped. Everything a test starts ends with the test.

#![warn(missing_docs)]

pub mod alternate;
pub mod bulk;
pub mod clock;
pub mod cluster;
pub mod contention;
pub mod costs;
pub mod crash;
pub mod disk;
pub mod growth;
pub mod history;
pub mod http;
pub mod model;
pub mod mount;
pub mod process;
pub mod proxy;
pub mod recovered;
pub mod rng;
pub mod rules;
pub mod shell;
pub mod sys;
pub mod trace;
pub mod tree;
pub mod wait;

pub use cluster::{Cluster, Role};
pub use mount::Mount;
pub use proxy::Proxy;
pub use rng::Rng;
pub use wait::{Ending, eventually, within};
