//! The simulator: real engines and a real relay server on a modelled internet, in virtual time.
//!
//! Everything that happens is an event in one queue, ordered by time and then by the order in which it was caused; all
//! chance comes from one seed. So the same seed gives the same run, and a failing test prints it. Hosts run the engine
//! by its contract of use; NATs, firewalls, links and the QUIC connection to the relay are models.
//!
//! ```ignore
//! let mut sim = Sim::new(7);
//! let pair = sim.pair(Site::nat(NatConfig::home()), Site::public());
//! let flow = sim.echo(pair.a, pair.b);
//! sim.run_until("a direct path", Duration::from_secs(10), |sim| sim.is_direct(pair.a, pair.b));
//! ```

mod build;
mod connections;
mod drive;
mod host;
mod link;
mod log;
mod multicast;
mod nat;
mod observe;
mod packet;
mod quic;
mod relay;
mod rng;
mod roam;
mod router;
mod seeds;
mod traffic;
mod world;

pub use build::{Pair, Site};
pub use host::{Counters, Host, Membership, NETWORK, PORT, PeerEntry};
pub use link::{Link, LinkConfig};
pub use log::{Entry, Flight, Log};
pub use mesh_core::engine::PathKind;
pub use multicast::Multicast;
pub use nat::{Allocation, Filtering, Firewall, Input, Mapping, Nat, NatConfig, Pool};
pub use packet::Kind;
pub use relay::Relay;
pub use rng::Rng;
pub use roam::Families;
pub use router::{Router, RouterConfig};
pub use seeds::for_seeds;
pub use traffic::{Fate, Flow, FlowConfig, FlowId, udp_packet};
pub use world::{HostId, NodeIndex, RelayId, RouterId, Sim};
