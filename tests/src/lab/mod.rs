//! The lab: the real programs in network namespaces behind real nftables NATs.
//!
//! A test is a [`scenario`]. It builds an [`Internet`] of namespaces, starts [`Relay`]s and [`Node`]s in them and asks the
//! nodes, through `meshctl`, what they see. Nothing outlives it: namespaces are anonymous and held by descriptors,
//! processes die with the value that started them (and with the thread that did, should the test be killed), files
//! lie in one temporary directory. Whatever a scenario is about, its end also checks that no program crashed
//! and that no log holds a secret or a piece of payload.

mod arrivals;
mod delay;
mod freezer;
mod hygiene;
mod kernel;
mod miniupnpd;
mod nat;
mod netns;
mod node;
mod process;
mod pulse;
mod relay;
mod scenario;
mod topology;
mod transfer;
mod uplinks;
mod wait;
mod wireguard;

pub use arrivals::{Arrival, Arrivals};
pub use freezer::Freezer;
pub use kernel::KernelWireGuard;
pub use miniupnpd::{MiniUpnpd, Speaks};
pub use nat::{Allocation, Behaviour, Dependence, Nat, Pool, WanInput};
pub use netns::Namespace;
pub use node::{Node, Output, PeerConfig, Settings, pong_path};
pub use process::Program;
pub use pulse::Pulse;
pub use relay::Relay;
pub use scenario::{Lab, scenario};
pub use topology::{Internet, Router, TwoNats};
pub use transfer::{Pattern, Received, receive, send};
pub use uplinks::{DIRECT, RELAYED, Setup, Uplink, Uplinks, block};
pub use wait::{until, within};
pub use wireguard::WireGuardGo;
