//! Builds networks: an internet, sites behind routers, hosts, relays, and who belongs to whom.
//!
//! ```text
//! host ── LAN ── router (NAT) ── access line ── core (several hops) ── access line ── …
//!                   └── inner LAN ── router (NAT) ── LAN ── host
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::host::{Host, PeerEntry};
use super::link::{Link, LinkConfig};
use super::nat::NatConfig;
use super::relay::Relay;
use super::router::{LinkIndex, Router, RouterConfig, Table};
use super::world::{HostId, Node, NodeIndex, RelayId, Role, RouterId, Sim};

/// The core of the internet.
const CORE: NodeIndex = NodeIndex(0);
/// Routers between any two edges, as on a short way through the real internet.
const CORE_HOPS: u8 = 6;
/// The core's address on every access line.
const CORE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const CORE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// How one host is connected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Site {
    /// The router between host and internet; `None` for a host with a public address.
    pub router: Option<RouterConfig>,
    /// A second router, between the first one and the internet.
    pub outer: Option<RouterConfig>,
    /// The access line.
    pub access: LinkConfig,
}

impl Site {
    /// A host with a public address.
    pub const fn public() -> Self {
        Self {
            router: None,
            outer: None,
            access: LinkConfig::access(),
        }
    }

    /// A host behind a router.
    pub const fn behind(router: RouterConfig) -> Self {
        Self {
            router: Some(router),
            outer: None,
            access: LinkConfig::access(),
        }
    }

    /// A host behind a NAT.
    pub const fn nat(nat: NatConfig) -> Self {
        Self::behind(RouterConfig::nat(nat))
    }

    /// With another access line.
    pub const fn access(mut self, access: LinkConfig) -> Self {
        self.access = access;
        self
    }

    /// With another router between the first and the internet.
    pub const fn outer(mut self, outer: RouterConfig) -> Self {
        self.outer = Some(outer);
        self
    }
}

/// Two hosts and a relay.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// One host.
    pub a: HostId,
    /// The other.
    pub b: HostId,
    /// Their relay.
    pub relay: RelayId,
    /// The router next to the first host, if it has one.
    pub router_a: Option<RouterId>,
    /// The router next to the second host, if it has one.
    pub router_b: Option<RouterId>,
}

impl Sim {
    pub(super) fn add_core(&mut self) {
        self.add_node("core", Role::Router(Box::new(Router::core(CORE_HOPS))));
    }

    fn add_node(&mut self, name: &str, role: Role) -> NodeIndex {
        let (name, table) = (name.to_owned(), Table::default());
        self.nodes.push(Node { name, table, role });
        NodeIndex(self.nodes.len() - 1)
    }

    fn add_link(&mut self, config: LinkConfig) -> LinkIndex {
        let rng = self.rng.fork();
        self.links.push(Link::new(config, rng));
        self.neighbours.push(BTreeMap::new());
        LinkIndex(self.links.len() - 1)
    }

    fn attach(&mut self, node: NodeIndex, link: LinkIndex, address: IpAddr) {
        self.nodes[node.0].table.addresses.push((link, address));
        self.neighbours[link.0].insert(address, node);
    }

    fn route(&mut self, node: NodeIndex, prefix: IpNet, link: LinkIndex, via: Option<IpAddr>) {
        self.nodes[node.0].table.add_route(prefix, link, via);
    }

    fn default_routes(
        &mut self,
        node: NodeIndex,
        link: LinkIndex,
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
    ) {
        if let Some(via) = v4 {
            self.route(
                node,
                IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
                link,
                Some(via.into()),
            );
        }
        if let Some(via) = v6 {
            self.route(
                node,
                IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
                link,
                Some(via.into()),
            );
        }
    }

    /// A new access line from a node to the core, with public addresses: IPv4 for the node itself, an IPv6 /48 to use.
    fn connect(&mut self, node: NodeIndex, access: LinkConfig) -> (LinkIndex, u8) {
        self.sites += 1;
        let site = self.sites;
        let link = self.add_link(access);
        self.attach(CORE, link, CORE_V4.into());
        self.attach(CORE, link, CORE_V6.into());
        let (v4, v6) = (public_v4(site), public_v6(site, 0, 1));
        self.attach(node, link, v4.into());
        self.attach(node, link, v6.into());
        self.route(CORE, IpNet::from(IpAddr::from(v4)), link, None);
        self.route(CORE, site_prefix(site), link, Some(v6.into()));
        self.default_routes(node, link, Some(CORE_V4), Some(CORE_V6));
        (link, site)
    }

    /// A router on an access line of its own, with a LAN behind it.
    pub fn router(&mut self, config: RouterConfig, access: LinkConfig) -> RouterId {
        let name = format!("router{}", self.sites + 1);
        let node = self.add_node(&name, Role::Router(Box::new(Router::core(1))));
        let (link, site) = self.connect(node, access);
        let rng = self.rng.fork();
        self.nodes[node.0].role = Role::Router(Box::new(Router::edge(
            config,
            link,
            public_v4(site).into(),
            rng,
        )));
        self.add_pool(node, link, site);
        let lan = self.add_lan(node, site, 1, config.nat.is_none());
        if lan.is_public {
            self.route(CORE, lan.v4(), link, Some(public_v4(site).into()));
        }
        RouterId(node)
    }

    /// The other external addresses of a router's NAT.
    fn add_pool(&mut self, node: NodeIndex, link: LinkIndex, site: u8) {
        let nat = self.router_mut(RouterId(node)).nat.as_ref();
        let pool: Vec<IpAddr> = nat.map_or_else(Vec::new, |nat| nat.externals().to_vec());
        for ip in pool {
            if ip != IpAddr::from(public_v4(site)) {
                self.attach(node, link, ip);
                self.route(CORE, IpNet::from(ip), link, None);
            }
        }
    }

    /// A router on the LAN of another one: two NATs in a row.
    pub fn router_behind(&mut self, outer: RouterId, config: RouterConfig) -> RouterId {
        let lan = self.lan_of(outer);
        let own = self.free_address(lan.link);
        let name = format!("inner{}", self.nodes.len());
        let rng = self.rng.fork();
        let node = self.add_node(
            &name,
            Role::Router(Box::new(Router::edge(config, lan.link, own.into(), rng))),
        );
        self.attach(node, lan.link, own.into());
        let v6 = public_v6(lan.site, lan.subnet, 0x100 + u16::from(own.octets()[3]));
        self.attach(node, lan.link, v6.into());
        self.default_routes(
            node,
            lan.link,
            Some(lan.gateway()),
            Some(public_v6(lan.site, lan.subnet, 1)),
        );
        let inner = self.add_lan(node, lan.site, lan.depth + 1, false);
        self.route(outer.0, inner.v6(), lan.link, Some(v6.into()));
        RouterId(node)
    }

    fn add_lan(&mut self, router: NodeIndex, site: u8, depth: u8, is_public: bool) -> Lan {
        let link = self.add_link(LinkConfig::lan());
        let subnet = 1 + self.lans.values().filter(|lan| lan.site == site).count() as u8;
        let lan = Lan {
            link,
            site,
            depth,
            subnet,
            is_public,
        };
        self.attach(router, link, lan.gateway().into());
        self.attach(router, link, public_v6(site, subnet, 1).into());
        self.route(router, lan.v4(), link, None);
        self.route(router, lan.v6(), link, None);
        self.lans.insert(RouterId(router), lan);
        lan
    }

    fn lan_of(&self, router: RouterId) -> Lan {
        match self.lans.get(&router) {
            Some(lan) => *lan,
            None => unreachable!("every edge router has a LAN"),
        }
    }

    fn free_address(&self, link: LinkIndex) -> Ipv4Addr {
        let used = self.neighbours[link.0]
            .keys()
            .filter(|ip| ip.is_ipv4())
            .count() as u8;
        let gateway = self.neighbours[link.0].keys().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        });
        let [a, b, c, _] = gateway.unwrap_or_default();
        Ipv4Addr::new(a, b, c, 9 + used)
    }

    /// A host on the LAN of a router, with IPv4 only.
    pub fn host_behind(&mut self, router: RouterId, name: &str) -> HostId {
        let id = self.add_host(name);
        self.attach_v4(id, router);
        id
    }

    /// Gives a host an IPv4 address behind a router.
    pub(super) fn attach_v4(&mut self, id: HostId, router: RouterId) {
        let lan = self.lan_of(router);
        let own = self.free_address(lan.link);
        self.attach(id.0, lan.link, own.into());
        self.route(id.0, lan.v4(), lan.link, None);
        self.default_routes(id.0, lan.link, Some(lan.gateway()), None);
    }

    /// Gives a host behind a router an IPv6 address as well.
    pub fn add_ipv6(&mut self, id: HostId, router: RouterId) {
        let lan = self.lan_of(router);
        let last = self.neighbours[lan.link.0].len() as u16 + 0x10;
        self.attach(id.0, lan.link, public_v6(lan.site, lan.subnet, last).into());
        self.route(id.0, lan.v6(), lan.link, None);
        self.default_routes(
            id.0,
            lan.link,
            None,
            Some(public_v6(lan.site, lan.subnet, 1)),
        );
    }

    /// A host with a public IPv4 address.
    pub fn public_host(&mut self, name: &str, access: LinkConfig) -> HostId {
        let id = self.add_host(name);
        let (link, _) = self.connect(id.0, access);
        self.nodes[id.0.0]
            .table
            .addresses
            .retain(|(on, ip)| *on != link || ip.is_ipv4());
        id
    }

    /// A host with a second access line: a public IPv4 address of its own, by which it leaves from now on.
    pub fn move_to_public(&mut self, id: HostId, access: LinkConfig) {
        let links: Vec<LinkIndex> = self.nodes[id.0.0]
            .table
            .addresses
            .iter()
            .map(|(link, _)| *link)
            .collect();
        for link in links {
            self.nodes[id.0.0].table.remove_link(link);
            self.neighbours[link.0].retain(|_, node| *node != id.0);
        }
        let (link, _) = self.connect(id.0, access);
        self.nodes[id.0.0]
            .table
            .addresses
            .retain(|(on, ip)| *on != link || ip.is_ipv4());
        self.tell(id, super::host::Input::Addresses);
    }

    fn add_host(&mut self, name: &str) -> HostId {
        let key = self.rng.seed();
        HostId(self.add_node(name, Role::Host(Box::new(Host::new(key)))))
    }

    /// A host connected as described; with the router next to it, if there is one.
    pub fn host_at(&mut self, name: &str, site: Site) -> (HostId, Option<RouterId>) {
        let Some(config) = site.router else {
            return (self.public_host(name, site.access), None);
        };
        let router = match site.outer {
            None => self.router(config, site.access),
            Some(outer) => {
                let outer = self.router(outer, site.access);
                self.router_behind(outer, config)
            }
        };
        (self.host_behind(router, name), Some(router))
    }

    /// A relay with public addresses.
    pub fn add_relay(&mut self, access: LinkConfig) -> RelayId {
        let rng = self.rng.fork();
        let relay = Relay::new(rng);
        let node = self.add_node("relay", Role::Relay(Box::new(relay)));
        self.connect(node, access);
        RelayId(node)
    }

    /// Makes the hosts members of one network that uses the relays, and starts them within the next 100 ms.
    pub fn network(&mut self, hosts: &[HostId], relays: &[RelayId]) {
        self.configure(hosts, relays);
        for host in hosts {
            let delay = self.rng.duration(Duration::from_millis(100));
            let host = *host;
            self.after(delay, move |sim| sim.start(host));
        }
    }

    /// Makes the hosts members of one network that uses the relays, without starting them.
    pub fn configure(&mut self, hosts: &[HostId], relays: &[RelayId]) {
        let urls: Vec<_> = relays
            .iter()
            .map(|relay| self.relay(*relay).url(self.address(relay.0)))
            .collect();
        let members: Vec<PeerEntry> = hosts
            .iter()
            .map(|host| PeerEntry {
                id: self.host(*host).id(),
                name: self.nodes[host.0.0].name.clone(),
                endpoints: Vec::new(),
            })
            .collect();
        for host in hosts {
            let own = self.host(*host).id();
            let membership = &mut self.host_mut(*host).membership;
            membership.peers = members
                .iter()
                .filter(|peer| peer.id != own)
                .cloned()
                .collect();
            membership.relays.clone_from(&urls);
        }
    }

    /// Two hosts at these sites, with a relay, as members of one network; started.
    pub fn pair(&mut self, a: Site, b: Site) -> Pair {
        let relay = self.add_relay(LinkConfig::access());
        let (a, router_a) = self.host_at("a", a);
        let (b, router_b) = self.host_at("b", b);
        self.network(&[a, b], &[relay]);
        Pair {
            a,
            b,
            relay,
            router_a,
            router_b,
        }
    }

    /// The first address of a node; IPv4 comes first.
    pub(super) fn address(&self, node: NodeIndex) -> IpAddr {
        let first = self.nodes[node.0].table.addresses.first();
        first.map_or(Ipv4Addr::UNSPECIFIED.into(), |(_, ip)| *ip)
    }

    /// The address of a host's mesh socket on its own link.
    pub fn socket_of(&self, host: HostId) -> SocketAddr {
        SocketAddr::new(self.address(host.0), self.host(host).port)
    }

    /// The public address of the router that a site's packets leave by.
    pub fn external(&self, router: RouterId) -> IpAddr {
        self.address(router.0)
    }

    /// The core of the internet, where anything can be blocked.
    pub fn core(&mut self) -> &mut Router {
        self.router_mut(RouterId(CORE))
    }
}

fn public_v4(site: u8) -> Ipv4Addr {
    Ipv4Addr::new(44, 128, site, 10)
}

fn public_v6(site: u8, subnet: u8, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(
        0x2001,
        0xdb8,
        u16::from(site),
        u16::from(subnet),
        0,
        0,
        0,
        last,
    )
}

fn site_prefix(site: u8) -> IpNet {
    IpNet::new_assert(public_v6(site, 0, 0).into(), 48)
}

/// The network behind a router.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lan {
    pub(super) link: LinkIndex,
    site: u8,
    /// How many routers lie between it and the internet.
    depth: u8,
    /// Tells it from the other networks of the site.
    subnet: u8,
    /// Nothing translates its addresses.
    is_public: bool,
}

impl Lan {
    /// Every home has the same private prefix, as in the real world; a second NAT has another one inside.
    fn gateway(self) -> Ipv4Addr {
        match self.is_public {
            true => Ipv4Addr::new(44, 129, self.site, 1),
            false => Ipv4Addr::new(192, 168, self.depth, 1),
        }
    }

    pub(super) fn v4(self) -> IpNet {
        IpNet::new_assert(self.gateway().into(), 24).trunc()
    }

    pub(super) fn v6(self) -> IpNet {
        IpNet::new_assert(public_v6(self.site, self.subnet, 0).into(), 64)
    }
}
