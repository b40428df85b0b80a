//! The one state machine.
pub mod api;
pub use api::*;
