//! The daemons of the file system, one folder a role.
//!
//! [`directory`], [`lock`] and [`file`] are the roles; [`shell`] serves any of them over
//! HTTP; [`store`] is the key-value seam below their state; [`all`] puts roles together,
//! [`cli`] reads what the operator says ([`units`]: how values are written), [`daemon`] is the process around it.

pub mod all;
pub mod cli;
pub mod daemon;
pub mod directory;
pub mod file;
pub mod lock;
pub mod shell;
pub mod store;
mod system;
mod units;
