//! Routers: forwarding by prefix, hop limits, address translation and packet filters.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use mesh_core::time::Instant;

use super::nat::{Filtering, Firewall, Nat, NatConfig};
use super::packet::Packet;
use super::rng::Rng;

/// Names a link of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(pub usize);

/// Addresses and routes of a node.
#[derive(Debug, Default)]
pub struct Table {
    /// The node's own addresses.
    pub addresses: Vec<(LinkIndex, IpAddr)>,
    routes: Vec<(IpNet, LinkIndex, Option<IpAddr>)>,
}

impl Table {
    /// True if the node has this address.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|(_, own)| *own == ip)
    }

    /// Adds a route; `via` is the next router, `None` if the prefix is on the link itself.
    pub fn add_route(&mut self, prefix: IpNet, link: LinkIndex, via: Option<IpAddr>) {
        self.routes.push((prefix, link, via));
    }

    /// Forgets the addresses and routes of a link.
    pub fn remove_link(&mut self, link: LinkIndex) {
        self.addresses.retain(|(on, _)| *on != link);
        self.routes.retain(|(_, on, _)| *on != link);
    }

    /// The link and the neighbour that lead to an address: the longest prefix, the newest of equal ones.
    pub fn route(&self, to: IpAddr) -> Option<(LinkIndex, IpAddr)> {
        let matching = self
            .routes
            .iter()
            .filter(|(prefix, ..)| prefix.contains(&to));
        let (_, link, via) = matching.max_by_key(|(prefix, ..)| prefix.prefix_len())?;
        Some((*link, via.unwrap_or(to)))
    }

    /// The address that packets of ours to `to` come from.
    pub fn source_for(&self, to: IpAddr) -> Option<IpAddr> {
        let (link, _) = self.route(to)?;
        let mut own = self
            .addresses
            .iter()
            .filter(|(on, ip)| *on == link && ip.is_ipv4() == to.is_ipv4());
        own.next().map(|(_, ip)| *ip)
    }
}

/// How a router behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterConfig {
    /// Translation of IPv4 towards the outside.
    pub nat: Option<NatConfig>,
    /// What is let in where nothing is translated; `None` lets in everything.
    pub firewall: Option<Filtering>,
    /// Nothing but TCP passes, which means nothing here.
    pub udp_blocked: bool,
}

impl RouterConfig {
    /// Forwards everything.
    pub const fn open() -> Self {
        Self {
            nat: None,
            firewall: None,
            udp_blocked: false,
        }
    }

    /// Translates IPv4 and lets in answers only over IPv6.
    pub const fn nat(nat: NatConfig) -> Self {
        Self {
            nat: Some(nat),
            firewall: Some(Filtering::Apdf),
            udp_blocked: false,
        }
    }

    /// Translates nothing and lets in what this filter allows.
    pub const fn firewall(filtering: Filtering) -> Self {
        Self {
            nat: None,
            firewall: Some(filtering),
            udp_blocked: false,
        }
    }

    /// Lets no UDP through.
    pub const fn udp_blocked() -> Self {
        Self {
            nat: None,
            firewall: None,
            udp_blocked: true,
        }
    }
}

/// How long a firewall remembers a flow (`nf_conntrack_udp_timeout_stream`).
const FIREWALL_LIFETIME: Duration = Duration::from_secs(120);

/// A router: a node that forwards.
#[derive(Debug)]
pub struct Router {
    /// The link to the internet's side; `None` for a router inside the internet.
    pub outside: Option<LinkIndex>,
    /// The translation table, if it translates.
    pub nat: Option<Nat>,
    firewall: Option<Firewall>,
    udp_blocked: bool,
    /// How many routers it stands for.
    hops: u8,
    /// Pairs of prefixes between which nothing passes, source first.
    blocked: Vec<(IpNet, IpNet, usize)>,
}

/// Where a packet goes next, as it leaves the router.
type Forwarded = (LinkIndex, IpAddr, Packet);

impl Router {
    /// A router at the edge: what is on `outside` is the internet's side, and `external` our address there.
    pub fn edge(config: RouterConfig, outside: LinkIndex, external: IpAddr, mut rng: Rng) -> Self {
        Self {
            outside: Some(outside),
            nat: config.nat.map(|nat| Nat::new(nat, external, rng.fork())),
            firewall: config
                .firewall
                .map(|filtering| Firewall::new(filtering, FIREWALL_LIFETIME)),
            udp_blocked: config.udp_blocked,
            hops: 1,
            blocked: Vec::new(),
        }
    }

    /// A part of the internet that stands for this many routers in a row.
    pub fn core(hops: u8) -> Self {
        Self {
            outside: None,
            nat: None,
            firewall: None,
            udp_blocked: false,
            hops,
            blocked: Vec::new(),
        }
    }

    /// Drops everything from one prefix to another, silently.
    pub fn block(&mut self, from: IpNet, to: IpNet) {
        self.blocked.push((from, to, 0));
    }

    /// Drops packets of at least so many bytes from one prefix to another, silently.
    pub fn block_large(&mut self, from: IpNet, to: IpNet, bytes: usize) {
        self.blocked.push((from, to, bytes));
    }

    /// Ends every [`Self::block`] and [`Self::block_large`].
    pub fn unblock(&mut self) {
        self.blocked.clear();
    }

    /// Lets UDP through, or not.
    pub fn set_udp_blocked(&mut self, blocked: bool) {
        self.udp_blocked = blocked;
    }

    /// Forgets every mapping and flow, as after a reboot.
    pub fn flush(&mut self) {
        if let Some(nat) = &mut self.nat {
            nat.flush();
        }
        if let Some(firewall) = &mut self.firewall {
            firewall.flush();
        }
    }

    /// What becomes of a packet that arrives on a link.
    ///
    /// # Errors
    /// Why it goes nowhere.
    pub fn forward(
        &mut self,
        now: Instant,
        from: LinkIndex,
        table: &Table,
        mut packet: Packet,
    ) -> Result<Forwarded, &'static str> {
        let is_inbound = Some(from) == self.outside;
        let is_translated = table.owns(packet.destination.ip());
        if is_translated {
            // Before the hop limit counts: a router's own input does not depend on it.
            packet = self.translate_in(now, is_inbound, packet)?;
        }
        if packet.ttl <= self.hops {
            return Err("hop limit");
        }
        packet.ttl -= self.hops;
        let (source, destination) = (packet.source.ip(), packet.destination.ip());
        let size = packet.size();
        if self.blocked.iter().any(|(from, to, least)| {
            from.contains(&source) && to.contains(&destination) && size >= *least
        }) {
            return Err("blocked");
        }
        let (link, next) = table.route(destination).ok_or("no route")?;
        let is_outbound = Some(link) == self.outside && !is_inbound;
        if self.udp_blocked && (is_inbound || is_outbound) {
            return Err("UDP is blocked");
        }
        if is_outbound {
            self.translate_out(now, &mut packet)?;
        } else if is_inbound && !is_translated && !self.lets_in(now, &packet) {
            return Err("not let in");
        }
        Ok((link, next, packet))
    }

    fn translate_in(
        &mut self,
        now: Instant,
        is_inbound: bool,
        mut packet: Packet,
    ) -> Result<Packet, &'static str> {
        let destination = packet.destination;
        let nat = self
            .nat
            .as_mut()
            .filter(|nat| nat.externals().contains(&destination.ip()));
        let nat = nat.ok_or("for the router itself")?;
        if is_inbound {
            packet.destination = nat
                .inbound(now, packet.source, destination)
                .ok_or("unsolicited")?;
        } else {
            if packet.ttl <= self.hops {
                return Err("hop limit");
            }
            (packet.source, packet.destination) = nat
                .hairpin(now, packet.source, destination)
                .ok_or("no hairpinning")?;
        }
        Ok(packet)
    }

    fn translate_out(&mut self, now: Instant, packet: &mut Packet) -> Result<(), &'static str> {
        match &mut self.nat {
            Some(nat) if packet.source.is_ipv4() => {
                packet.source = nat
                    .outbound(now, packet.source, packet.destination)
                    .ok_or("no port left")?;
            }
            _ => {
                if let Some(firewall) = &mut self.firewall {
                    firewall.outbound(now, packet.source, packet.destination);
                }
            }
        }
        Ok(())
    }

    fn lets_in(&self, now: Instant, packet: &Packet) -> bool {
        if self.nat.is_some() && packet.destination.is_ipv4() {
            // A private address behind the NAT: nobody outside has a route to it, unless on the same outer network.
            return false;
        }
        let firewall = self.firewall.as_ref();
        firewall.is_none_or(|firewall| firewall.inbound(now, packet.source, packet.destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::nat::Mapping;
    use crate::sim::packet::Body;

    const LAN: LinkIndex = LinkIndex(0);
    const WAN: LinkIndex = LinkIndex(1);

    fn packet(source: &str, destination: &str, ttl: u8) -> Packet {
        Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ttl,
            body: Body::Bytes(vec![0; 10]),
        }
    }

    fn table() -> Table {
        let mut table = Table::default();
        let external = "203.0.113.1".parse().unwrap();
        table.addresses = vec![(LAN, "192.168.1.1".parse().unwrap()), (WAN, external)];
        table.add_route("192.168.1.0/24".parse().unwrap(), LAN, None);
        table.add_route("2001:db8:1::/64".parse().unwrap(), LAN, None);
        table.add_route(
            "0.0.0.0/0".parse().unwrap(),
            WAN,
            Some("203.0.113.254".parse().unwrap()),
        );
        table.add_route(
            "::/0".parse().unwrap(),
            WAN,
            Some("2001:db8::fe".parse().unwrap()),
        );
        table
    }

    fn router(config: RouterConfig) -> Router {
        Router::edge(config, WAN, "203.0.113.1".parse().unwrap(), Rng::new(1))
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn a_datagram_dies_at_the_router_of_its_hop_limit_after_opening_the_mappings_before_it() {
        let table = table();
        let mut nat = router(RouterConfig::nat(NatConfig::new(
            Mapping::Eim,
            Filtering::Apdf,
        )));
        let dead = nat.forward(at(0), LAN, &table, packet("192.168.1.2:5", "9.9.9.9:7", 1));
        assert_eq!(dead.unwrap_err(), "hop limit");
        assert_eq!(nat.nat.as_ref().unwrap().mappings(at(0)), 0);
        let (link, next, out) = nat
            .forward(
                at(0),
                LAN,
                &table,
                packet("192.168.1.2:5000", "9.9.9.9:7", 2),
            )
            .unwrap();
        assert_eq!(
            (link, next.to_string(), out.ttl),
            (WAN, "203.0.113.254".to_owned(), 1)
        );
        assert_eq!(out.source, "203.0.113.1:5000".parse().unwrap());
        let mut core = Router::core(1);
        assert_eq!(
            core.forward(at(0), LAN, &table, out).unwrap_err(),
            "hop limit"
        );
        let (link, _, answer) = nat
            .forward(
                at(0),
                WAN,
                &table,
                packet("9.9.9.9:7", "203.0.113.1:5000", 9),
            )
            .unwrap();
        assert_eq!(
            (link, answer.destination),
            (LAN, "192.168.1.2:5000".parse().unwrap())
        );
    }

    #[test]
    fn the_routers_own_input_does_not_depend_on_the_hop_limit() {
        let table = table();
        let mut nat = router(RouterConfig::nat(NatConfig::home().accepting_input()));
        let early = nat.forward(
            at(0),
            WAN,
            &table,
            packet("9.9.9.9:7", "203.0.113.1:5000", 1),
        );
        assert_eq!(early.unwrap_err(), "unsolicited");
        let (.., out) = nat
            .forward(
                at(0),
                LAN,
                &table,
                packet("192.168.1.2:5000", "9.9.9.9:7", 64),
            )
            .unwrap();
        assert_ne!(out.source.port(), 5_000);
    }

    #[test]
    fn ipv6_is_filtered_and_not_translated() {
        let table = table();
        let mut nat = router(RouterConfig::nat(NatConfig::home()));
        let (inside, outside) = ("[2001:db8:1::2]:5", "[2001:db8:2::2]:5");
        let early = nat.forward(at(0), WAN, &table, packet(outside, inside, 64));
        assert_eq!(early.unwrap_err(), "not let in");
        let (.., out) = nat
            .forward(at(0), LAN, &table, packet(inside, outside, 64))
            .unwrap();
        assert_eq!(out.source, inside.parse().unwrap());
        assert!(
            nat.forward(at(0), WAN, &table, packet(outside, inside, 64))
                .is_ok()
        );
    }

    #[test]
    fn blocked_prefixes_and_blocked_udp_let_nothing_through() {
        let table = table();
        let mut open = router(RouterConfig::open());
        let out = || packet("192.168.1.2:5", "9.9.9.9:7", 64);
        assert!(open.forward(at(0), LAN, &table, out()).is_ok());
        open.block(
            "192.168.1.0/24".parse().unwrap(),
            "9.9.9.9/32".parse().unwrap(),
        );
        assert_eq!(
            open.forward(at(0), LAN, &table, out()).unwrap_err(),
            "blocked"
        );
        open.unblock();
        open.set_udp_blocked(true);
        assert_eq!(
            open.forward(at(0), LAN, &table, out()).unwrap_err(),
            "UDP is blocked"
        );
    }

    #[test]
    fn the_longest_prefix_and_then_the_newest_route_wins() {
        let mut table = table();
        assert_eq!(
            table.route("192.168.1.9".parse().unwrap()),
            Some((LAN, "192.168.1.9".parse().unwrap()))
        );
        table.add_route(
            "0.0.0.0/0".parse().unwrap(),
            LAN,
            Some("192.168.1.7".parse().unwrap()),
        );
        assert_eq!(
            table.route("8.8.8.8".parse().unwrap()),
            Some((LAN, "192.168.1.7".parse().unwrap()))
        );
        table.remove_link(LAN);
        assert_eq!(
            table.source_for("8.8.8.8".parse().unwrap()),
            Some("203.0.113.1".parse().unwrap())
        );
    }
}
