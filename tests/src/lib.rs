//! Harnesses for testing the whole product: the network lab that runs the real programs in namespaces,
//! and (feature `sim`) the simulator that runs the core in virtual time.

pub mod lab;
#[cfg(feature = "sim")]
pub mod sim;
