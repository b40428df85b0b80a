//! Networks of many peers.

use std::fmt::Write as _;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{NOW, numbered};
use crate::engine::{Engine, NetworkIndex, NetworkSetup, PeerKey, PeerSetup, SetupError};
use crate::identity::{Identity, NetworkId};
use crate::session::Kernel;

/// Who is in a network.
pub struct Roster(Vec<PeerSetup>);

/// A node's key, the same for the same number.
pub(super) fn identity(number: u32) -> Identity {
    let mut seed = Zeroizing::new([0x6d; 32]);
    seed[..4].copy_from_slice(&number.to_le_bytes());
    Identity::from_seed(seed)
}

/// A network with these peers, and node 0 for this host.
pub(super) fn setup(own: u32, peers: Vec<PeerSetup>) -> NetworkSetup {
    NetworkSetup {
        name: "home".to_owned(),
        id: NetworkId::from_name("home"),
        identity: identity(own),
        addresses: Vec::new(),
        peers,
        relays: Vec::new(),
    }
}

impl Roster {
    /// `peers` peers that have an IPv4 address each beside the derived one.
    pub fn new(peers: u32) -> Self {
        let peer = |number: u32| PeerSetup {
            key: PeerKey::Mesh(identity(number).id()),
            name: format!("host-{number}"),
            addresses: vec![numbered(number).into()],
            routes: Vec::new(),
            psk: None,
            endpoints: Vec::new(),
        };
        Self((1..=peers).map(peer).collect())
    }

    /// The network, to be added to an engine.
    pub fn setup(&self) -> NetworkSetup {
        setup(0, self.0.clone())
    }

    /// The configuration file that lists the peers.
    pub fn config(&self) -> String {
        let mut text = "[network.home]\naddress = [\"10.77.0.1/32\"]\n".to_owned();
        for peer in &self.0 {
            let PeerKey::Mesh(id) = peer.key else {
                continue;
            };
            let (name, address) = (&peer.name, peer.addresses[0]);
            let lines = format_args!(
                "[[network.home.peer]]\nid = \"{id}\"\nname = \"{name}\"\naddress = [\"{address}\"]\n"
            );
            text.write_fmt(lines).expect("a string takes any text");
        }
        text
    }
}

/// An engine with one network.
///
/// # Errors
/// As [`Engine::add_network`].
pub fn engine_with(setup: NetworkSetup) -> Result<Engine, SetupError> {
    let unix = Duration::from_secs(1_800_000_000);
    let mut engine = Engine::new([7; 32], Kernel::Ring, NOW, unix);
    engine.add_network(NOW, NetworkIndex(0), setup)?;
    Ok(engine)
}
