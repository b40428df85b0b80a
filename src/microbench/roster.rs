//! Networks of many peers.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use zeroize::Zeroizing;

use super::{NOW, numbered};
use crate::engine::{Engine, NetworkIndex, NetworkSetup, PeerKey, PeerSetup, SetupError};
use crate::identity::{Identity, NetworkId, format_wireguard_key};
use crate::rng::Random;
use crate::session::Kernel;

/// Networks behind one peer, where there are any.
const ROUTES: usize = 200;

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
        mtu: crate::limits::MAX_INNER_MTU,
        peers,
        relays: Vec::new(),
    }
}

impl Roster {
    /// `peers` peers that have an IPv4 address each beside the derived one.
    pub fn new(peers: u32) -> Self {
        Self::of(peers, |number| PeerKey::Mesh(identity(number).id()))
    }

    /// `peers` stock WireGuard devices with an IPv4 address each: no derived address, and no ID to make a key of.
    pub fn stock(peers: u32) -> Self {
        let mut rng = Random::from_seed([5; 32]);
        Self::of(peers, |_| PeerKey::WireGuard(rng.bytes()))
    }

    /// `peers` peers with 200 networks behind each.
    pub fn routed(peers: u32) -> Self {
        let mut roster = Self::new(peers);
        let first = u32::from(Ipv4Addr::new(172, 16, 0, 0));
        let mut networks = (0..).filter_map(|number| {
            let address = Ipv4Addr::from(first + (number << 8));
            Ipv4Net::new(address, 24).ok()
        });
        for peer in &mut roster.0 {
            peer.routes
                .extend(networks.by_ref().take(ROUTES).map(IpNet::V4));
        }
        roster
    }

    fn of(peers: u32, mut key: impl FnMut(u32) -> PeerKey) -> Self {
        let peer = |number: u32| PeerSetup {
            key: key(number),
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
            text += &stanza(peer).expect("a string takes any text");
        }
        text
    }
}

/// A peer as the configuration file has it.
fn stanza(peer: &PeerSetup) -> Result<String, std::fmt::Error> {
    let (id, stock) = match peer.key {
        PeerKey::Mesh(id) => (id.to_string(), false),
        PeerKey::WireGuard(key) => (format_wireguard_key(&key), true),
    };
    let mut text = "[[network.home.peer]]\n".to_owned();
    writeln!(text, "id = \"{id}\"\nwireguard = {stock}")?;
    writeln!(text, "name = \"{}\"", peer.name)?;
    for address in &peer.addresses {
        writeln!(text, "address = [\"{address}\"]")?;
    }
    let routes: Vec<String> = peer.routes.iter().map(|net| format!("\"{net}\"")).collect();
    writeln!(text, "routes = [{}]", routes.join(", "))?;
    Ok(text)
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
