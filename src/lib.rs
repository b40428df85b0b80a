//! mesh-core: every decision of meshd, and no I/O.
//!
//! The [`engine::Engine`] is one state machine: time, datagrams, packets and commands go in, datagrams, packets and
//! events come out. It has no socket, file, clock, task or randomness of its own, so the same code runs in the daemon,
//! in a simulator with thousands of NATs, and under a fuzzer.

pub mod batch;
pub mod config;
pub mod engine;
pub mod identity;
mod lan;
pub mod limits;
#[doc(hidden)]
pub mod microbench;
pub mod nat;
pub mod offload;
mod path;
mod peer;
mod rate;
pub mod relay;
mod rng;
mod routing;
pub mod session;
pub mod time;
pub mod wire;
