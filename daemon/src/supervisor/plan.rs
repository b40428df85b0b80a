//! What a network needs of the host: addresses on its interface, and destinations that lead there.

use std::collections::BTreeSet;

use ipnet::IpNet;
use mesh_core::config;
use mesh_core::engine::PeerKey;
use mesh_core::identity::{NodeId, overlay_address, overlay_prefix};

use crate::netlink::guard;
use crate::netlink::interface::host_has_ipv6;
use crate::netlink::routes::{OwnRoute, Target};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Our addresses, the derived one first.
    pub(super) addresses: Vec<IpNet>,
    /// What is routed into the interface.
    pub(super) destinations: BTreeSet<IpNet>,
    /// The part of the destinations that is nobody's but ours: host addresses in them are overlay addresses.
    pub(super) overlay: Vec<IpNet>,
}

impl Plan {
    pub(super) fn new(network: &config::Network, own: &NodeId) -> Self {
        let prefix = IpNet::from(overlay_prefix(&network.id));
        let derived = IpNet::from(std::net::IpAddr::from(overlay_address(&network.id, own)));
        let addresses: Vec<IpNet> = std::iter::once(derived)
            .chain(network.addresses.iter().copied())
            .collect();
        // An address of 10.77.0.1/24 says that all of 10.77.0.0/24 is the overlay, as on any other interface.
        let on_link: Vec<IpNet> = std::iter::once(prefix)
            .chain(addresses.iter().map(IpNet::trunc))
            .filter(|net| net.prefix_len() < net.max_prefix_len())
            .collect();
        let mut destinations: BTreeSet<IpNet> = on_link.iter().copied().collect();
        for peer in &network.peers {
            destinations.extend(destinations_of(network, peer));
        }
        let overlay = addresses
            .iter()
            .map(|address| IpNet::from(address.addr()))
            .chain(on_link)
            .collect();
        Self {
            addresses,
            destinations,
            overlay,
        }
    }

    /// What is left of it on an interface that may have no IPv6.
    pub(super) fn limited(mut self, ipv6: bool) -> Self {
        let fits = |net: &IpNet| ipv6 || net.addr().is_ipv4();
        self.addresses.retain(fits);
        self.destinations.retain(fits);
        self.overlay.retain(fits);
        self
    }

    /// Everything that must not belong to anybody else on this host.
    pub(super) fn claims(&self) -> Vec<IpNet> {
        let own = self
            .addresses
            .iter()
            .map(|address| IpNet::from(address.addr()));
        own.chain(self.destinations.iter().copied()).collect()
    }

    /// The routes into interface `index`.
    pub(super) fn routes(&self, index: u32) -> BTreeSet<OwnRoute> {
        into(index, self.destinations.iter().copied())
    }

    /// Those of them that lead to one peer.
    pub(super) fn routes_to(
        &self,
        index: u32,
        network: &config::Network,
        peer: &config::Peer,
    ) -> BTreeSet<OwnRoute> {
        let here = |net: &IpNet| self.destinations.contains(net);
        into(index, destinations_of(network, peer).filter(here))
    }

    /// What keeps packets for the overlay from going elsewhere while there is no interface.
    pub(super) fn guards(&self) -> BTreeSet<OwnRoute> {
        guard::guards(&self.clone().limited(host_has_ipv6()).claims())
    }
}

/// What is routed to a peer: its addresses, and what is behind it.
fn destinations_of<'a>(
    network: &config::Network,
    peer: &'a config::Peer,
) -> impl Iterator<Item = IpNet> + 'a {
    let derived = match peer.key {
        PeerKey::Mesh(id) => Some(std::net::IpAddr::from(overlay_address(&network.id, &id))),
        PeerKey::WireGuard(_) => None,
    };
    let hosts = derived.into_iter().chain(peer.addresses.iter().copied());
    hosts
        .map(IpNet::from)
        .chain(peer.routes.iter().map(IpNet::trunc))
}

fn into(index: u32, destinations: impl Iterator<Item = IpNet>) -> BTreeSet<OwnRoute> {
    let target = Target::Tun(index);
    destinations
        .map(|destination| OwnRoute {
            destination,
            target,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mesh_core::config::Config;
    use mesh_core::identity::Identity;
    use zeroize::Zeroizing;

    use super::*;

    fn id(seed: u8) -> NodeId {
        Identity::from_seed(Zeroizing::new([seed; 32])).id()
    }

    fn plan(address: &str) -> (config::Network, Plan) {
        let text = format!(
            "[network.home]\naddress = [\"{address}\"]\n\
             [[network.home.peer]]\nid = \"{}\"\nname = \"bob\"\naddress = [\"10.77.0.2\"]\nroutes = [\"192.168.50.0/24\"]\n",
            id(2)
        );
        let config = Config::parse(&text, Path::new("test")).unwrap();
        let network = config.networks[0].clone();
        let plan = Plan::new(&network, &id(1));
        (network, plan)
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn each_peer_and_the_derived_prefix_are_routed_and_nothing_else() {
        let (network, plan) = plan("10.77.0.1/32");
        let bob = std::net::IpAddr::from(overlay_address(&network.id, &id(2)));
        let expected = BTreeSet::from([
            net("10.77.0.2/32"),
            net("192.168.50.0/24"),
            IpNet::from(bob),
            overlay_prefix(&network.id).into(),
        ]);
        assert_eq!(plan.destinations, expected);
        assert_eq!(plan.addresses[0].prefix_len(), 128);
        assert_eq!(plan.addresses[1], net("10.77.0.1/32"));
    }

    #[test]
    fn an_address_with_a_prefix_brings_its_subnet() {
        let (_, plan) = plan("10.77.0.1/24");
        assert!(plan.destinations.contains(&net("10.77.0.0/24")));
        assert!(plan.overlay.contains(&net("10.77.0.0/24")));
    }

    #[test]
    fn subnets_behind_peers_are_no_overlay_addresses() {
        let (_, plan) = plan("10.77.0.1/32");
        assert!(!plan.overlay.contains(&net("192.168.50.0/24")));
        assert!(plan.overlay.contains(&net("10.77.0.1/32")));
    }

    #[test]
    fn without_ipv6_the_ipv4_part_is_left() {
        let (_, plan) = plan("10.77.0.1/32");
        assert_eq!(plan.clone().limited(true), plan);
        let limited = plan.limited(false);
        assert_eq!(limited.addresses, [net("10.77.0.1/32")]);
        let expected = BTreeSet::from([net("10.77.0.2/32"), net("192.168.50.0/24")]);
        assert_eq!(limited.destinations, expected);
    }

    #[test]
    fn guards_cover_every_destination_and_our_own_addresses() {
        let (_, plan) = plan("10.77.0.1/32");
        let guards: Vec<IpNet> = plan
            .guards()
            .iter()
            .map(|guard| guard.destination)
            .collect();
        for claim in plan.claims() {
            assert!(guards.iter().any(|guard| guard.contains(&claim)), "{claim}");
        }
    }
}
