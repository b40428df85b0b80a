//! Mappings that the router has granted: what they are good for, and who hears of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Engine, Output, PeerIndex};
use crate::nat::portmap::{Gateway, PortMapEvent};
use crate::time::Instant;

impl Engine {
    /// Tells the default gateways, at most one for each address family; after [`Self::set_local_addresses`], and also
    /// after every network change.
    pub fn set_gateways(&mut self, now: Instant, gateways: &[Gateway]) {
        let v4 = gateways.iter().map(|gateway| gateway.address);
        self.lifetimes.gateway = v4.clone().find(IpAddr::is_ipv4);
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
        if !self.port_mapper.take_changed() || self.port_mapper.mapped().next().is_none() {
            return;
        }
        let for_all = self.offered_mappings().next().is_some();
        let waiting: Vec<PeerIndex> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                peer.is_active(now)
                    && peer.hello.instance.is_some()
                    && !peer.paths.has_usable_direct(now)
                    && (for_all || self.shares_nat(peer.index))
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
        let mapped = self.port_mapper.mapped();
        mapped.filter(|mapped| self.leads_here(mapped.ip()))
    }

    /// Mapped addresses on the network between our router and a second NAT: they lead here from behind the same one.
    pub(super) fn middle_mappings(&self) -> impl Iterator<Item = SocketAddr> {
        let mapped = self.port_mapper.mapped();
        mapped.filter(|mapped| mapped.is_ipv4() && !self.leads_here(mapped.ip()))
    }

    fn leads_here(&self, ip: IpAddr) -> bool {
        let observed = self.relays.values().filter_map(|relay| relay.observed);
        let reflexive = self.prober.reflexive().chain(observed);
        let mut reflexive = reflexive.map(|address| address.ip());
        match ip {
            IpAddr::V4(v4) => {
                let mut seen = reflexive.filter(IpAddr::is_ipv4).peekable();
                match seen.peek() {
                    None => is_public(v4),
                    Some(_) => seen.any(|seen| seen == ip),
                }
            }
            IpAddr::V6(_) => {
                reflexive.any(|seen| seen == ip) || self.host.iter().any(|own| own.ip == ip)
            }
        }
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
