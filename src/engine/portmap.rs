//! Mappings that the router has granted: what they are good for, and who hears of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Engine, Output, PeerIndex};
use crate::nat::portmap::{Gateway, PortMapEvent};
use crate::time::Instant;

impl Engine {
    /// Tells the default gateways, at most one for each address family; after [`Self::set_local_addresses`], and also
    /// after every network change.
    pub fn set_gateways(&mut self, now: Instant, gateways: &[Gateway]) {
        self.port_mapper
            .set_gateways(now, gateways, self.ports, &mut self.rng);
        self.settle_port_mapper(now);
    }

    /// Takes the answer to an [`Output::PortMap`], or an announcement of a router.
    pub fn handle_port_map(&mut self, now: Instant, event: &PortMapEvent) {
        self.port_mapper.handle(now, event);
        self.settle_port_mapper(now);
    }

    pub(super) fn service_port_mapper(&mut self, now: Instant) {
        if self.port_mapper.deadline().is_some_and(|due| due <= now) {
            self.port_mapper.handle_timeout(now);
            self.settle_port_mapper(now);
        }
    }

    pub(super) fn refresh_port_mapper(&mut self, now: Instant) {
        self.port_mapper.refresh(now);
        self.settle_port_mapper(now);
    }

    /// Passes on what the mapper wants done; peers that are not reached directly hear of a new mapping at once.
    fn settle_port_mapper(&mut self, now: Instant) {
        while let Some(action) = self.port_mapper.poll_action() {
            self.outputs.push_back(Output::PortMap(action));
        }
        if !self.port_mapper.take_changed() || self.offered_mappings().next().is_none() {
            return;
        }
        let waiting: Vec<PeerIndex> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                peer.is_active(now)
                    && peer.hello.instance.is_some()
                    && !peer.paths.has_usable_direct(now)
            })
            .map(|(_, peer)| peer.index)
            .collect();
        for index in waiting {
            if let Some(peer) = self.peer_mut(index) {
                // A round that runs without the mapping gives way to one with it.
                peer.punching.running = None;
            }
            self.schedule_punch(now, index);
            self.arm(now, index, Some(now));
        }
    }

    /// The mapped addresses that peers may be told: those that lead here as far as we know.
    ///
    /// Behind a second NAT, which others see us through, the first one's mapping leads nowhere. What a router says of
    /// its own address counts only if a relay has seen us come from there.
    pub(super) fn offered_mappings(&self) -> impl Iterator<Item = SocketAddr> {
        let observed = self.relays.values().filter_map(|relay| relay.observed);
        let reflexive: Vec<IpAddr> = self
            .prober
            .reflexive()
            .chain(observed)
            .map(|address| address.ip())
            .collect();
        self.port_mapper.mapped().filter(move |mapped| {
            let ip = mapped.ip();
            match ip {
                IpAddr::V4(v4) if !reflexive.iter().any(IpAddr::is_ipv4) => is_public(v4),
                IpAddr::V4(_) => reflexive.contains(&ip),
                IpAddr::V6(_) => {
                    reflexive.contains(&ip) || self.host.iter().any(|own| own.ip == ip)
                }
            }
        })
    }
}

/// True for an address that can be a router's on the internet (RFC 6890).
fn is_public(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    !(ip.is_private()
        || shared
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || a == 0
        || a >= 224)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_behind_another_nat_are_not_public() {
        for private in [
            "10.0.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.0.1",
            "0.0.0.0",
            "240.0.0.1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["44.128.1.2", "100.128.0.1", "8.8.8.8"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
