//! meshd: the daemon around mesh-core.
//!
//! It does I/O and decides nothing about peers and paths: packets move on a thread of their own ([`dataplane`]), and all
//! that waits (the control interface, netlink, files, relay connections) runs on one Tokio thread under the
//! [`supervisor`].

pub mod api;
pub mod args;
pub mod control;
pub mod dataplane;
pub mod lan;
pub mod logging;
pub mod logind;
pub mod netlink;
pub mod portmap;
pub mod randomness;
pub mod relays;
#[cfg(test)]
mod sandbox;
pub mod sockets;
pub mod state;
pub mod supervisor;
#[cfg(test)]
mod testing;
pub mod tuning;
