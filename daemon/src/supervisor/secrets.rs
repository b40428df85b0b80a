//! The keys of one network, loaded only for as long as it takes to hand them over.

use mesh_core::config;
use mesh_core::engine::{NetworkSetup, PeerSetup};
use mesh_core::identity::Identity;
use zeroize::Zeroizing;

use crate::state::{StateDir, load_identity_file, load_psk};

/// Our key in a network, and the preshared keys of its peers in their order.
pub(super) struct Secrets {
    pub(super) identity: Identity,
    psks: Vec<Option<Zeroizing<[u8; 32]>>>,
}

impl Secrets {
    /// Reads them from where the configuration says, or from the state directory.
    ///
    /// # Errors
    ///
    /// With what is wrong and what to do, for people.
    pub(super) fn load(state: &StateDir, network: &config::Network) -> Result<Self, String> {
        let identity = load_identity(state, network)?;
        network
            .check_identity(&identity.id())
            .map_err(|error| error.to_string())?;
        let psks = network
            .peers
            .iter()
            .map(|peer| peer.psk_file.as_deref().map(load_psk).transpose())
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        Ok(Self { identity, psks })
    }

    /// What the data plane is to run.
    pub(super) fn into_setup(self, network: &config::Network) -> NetworkSetup {
        let peers = network.peers.iter().zip(self.psks);
        NetworkSetup {
            name: network.name.clone(),
            id: network.id,
            identity: self.identity,
            addresses: network.addresses.iter().map(|net| net.addr()).collect(),
            mtu: network.mtu,
            peers: peers.map(|(peer, psk)| peer_setup(peer, psk)).collect(),
            relays: network.relays.clone(),
        }
    }
}

/// Our key in a network; made if it is to be in the state directory and is not.
pub(super) fn load_identity(
    state: &StateDir,
    network: &config::Network,
) -> Result<Identity, String> {
    match &network.identity_file {
        Some(path) => load_identity_file(path),
        None => state.identity(&network.name),
    }
    .map_err(|error| error.to_string())
}

fn peer_setup(peer: &config::Peer, psk: Option<Zeroizing<[u8; 32]>>) -> PeerSetup {
    PeerSetup {
        key: peer.key,
        name: peer.name.clone(),
        addresses: peer.addresses.clone(),
        routes: peer.routes.clone(),
        psk,
        endpoints: peer.endpoints.clone(),
    }
}
