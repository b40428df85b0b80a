//! mesh-core: every decision of meshd, and no I/O.

pub mod batch;
pub mod engine;
pub mod identity;
pub mod limits;
pub mod time;
pub mod wire;
