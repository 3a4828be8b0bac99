//! Histories: what clients of one shared directory did and saw, and whether one file
//! system could have answered them so.
//!
//! [`record`] is the log, [`model`] the small file system with its atomic steps,
//! [`check`] the search (pure, like the model), [`report`] its words, [`client`] does
//! the operations on a mount and [`run`] lets several clients work side by side.

pub mod check;
pub mod client;
pub mod content;
pub mod model;
pub mod record;
pub mod report;
pub mod run;

pub use check::{Checker, Violation};
pub use record::{Call, Names, Operation, Outcome, Shown};
pub use run::{Run, Stats};
