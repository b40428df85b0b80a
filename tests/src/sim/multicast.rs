//! Multicast on the networks behind routers: what a host says there, every other host hears that has joined the group.
//! Nothing of it gets lost.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mesh_core::engine::{LanAction, LanAddress, LanGroup, LanPacket};
use mesh_core::wire::mdns;

use super::host::Input;
use super::router::LinkIndex;
use super::world::{Event, HostId, NodeIndex, Role, RouterId, Sim};

/// What a host has to do with multicast.
#[derive(Debug, Default)]
pub struct Multicast {
    /// It takes part.
    pub(super) wanted: bool,
    groups: BTreeSet<LanGroup>,
    /// What it said, oldest first.
    pub said: Vec<LanPacket>,
}

impl Sim {
    /// Whether hosts look for each other on their links when they start; they do not unless a test says so.
    pub fn lan_discovery(&mut self, hosts: &[HostId], wanted: bool) {
        for host in hosts {
            self.host_mut(*host).multicast.wanted = wanted;
        }
    }

    /// The links of a host with its addresses there.
    pub(super) fn lan_links(&self, id: HostId) -> Vec<LanAddress> {
        let addresses = self.nodes[id.0.0].table.addresses.iter();
        let link = |(link, ip): &(LinkIndex, IpAddr)| {
            let lan = self.lans.values().find(|lan| lan.link == *link)?;
            let prefix = if ip.is_ipv4() { lan.v4() } else { lan.v6() };
            let net = IpNet::new(*ip, prefix.prefix_len()).ok()?;
            let interface = u32::try_from(link.0).ok()?;
            Some(LanAddress { interface, net })
        };
        addresses.filter_map(link).collect()
    }

    pub(super) fn lan_action(&mut self, id: HostId, action: LanAction) {
        match action {
            LanAction::Listen(groups) => {
                self.host_mut(id).multicast.groups = groups.into_iter().collect();
            }
            LanAction::Send {
                interface,
                from,
                payload,
            } => {
                let packet = LanPacket {
                    interface,
                    from: SocketAddr::new(from, mdns::PORT),
                    hop_limit: mdns::HOP_LIMIT,
                    payload,
                };
                self.host_mut(id).multicast.said.push(packet.clone());
                self.spread(Some(id.0), packet);
            }
        }
    }

    /// Somebody else on the network behind a router says something, from an address of its own.
    pub fn say_behind(&mut self, router: RouterId, from: SocketAddr, payload: &[u8]) {
        let Some(interface) = self.lans.get(&router).map(|lan| lan.link.0 as u32) else {
            return;
        };
        let packet = LanPacket {
            interface,
            from,
            hop_limit: mdns::HOP_LIMIT,
            payload: payload.to_vec(),
        };
        self.spread(None, packet);
    }

    fn spread(&mut self, sender: Option<NodeIndex>, packet: LanPacket) {
        let link = packet.interface as usize;
        let group = LanGroup {
            interface: packet.interface,
            ipv6: packet.from.is_ipv6(),
        };
        let nodes: BTreeSet<NodeIndex> = self.neighbours[link].values().copied().collect();
        let at = self.now + self.links[link].config.delay;
        for node in nodes {
            let hears = match &self.nodes[node.0].role {
                Role::Host(host) => host.multicast.groups.contains(&group),
                _ => false,
            };
            if hears && Some(node) != sender {
                let input = Input::Lan(packet.clone());
                self.schedule(at, Event::Tell(HostId(node), input));
            }
        }
    }
}
