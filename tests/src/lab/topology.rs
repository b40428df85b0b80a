//! An internet of namespaces: a router in the middle, sites around it.
//!
//! Site number n has 44.128.n.2, and 2a00:a000:n::2 when IPv6 is on, at the far end of a cable to the middle; if it is a [`Router`],
//! its LAN is 192.168.n.0/24 and 2a00:a000:n:1::/64, or 100.64.n.0/24 if it is a carrier's. A router number m in a
//! carrier's LAN has 100.64.n.m there, and its own LAN is 10.n.m.0/24, without IPv6. The middle is routed, not bridged, so that hop counts are real: a packet with a
//! low TTL leaves the sender's NAT and dies before it reaches the other.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Result;

use super::delay::Delay;
use super::nat::{Nat, WanInput};
use super::netns::Namespace;
use super::wait::within;

/// The middle.
#[derive(Debug)]
pub struct Internet {
    ns: Namespace,
    ipv6: bool,
    sites: u8,
    delay: Option<Delay>,
}

/// A home router with its LAN.
#[derive(Debug)]
pub struct Router {
    /// The router's own namespace.
    pub ns: Namespace,
    /// Its outer address.
    pub wan: Ipv4Addr,
    /// The first three bytes of every address in its LAN.
    lan: [u8; 3],
    site: u8,
    ipv6: bool,
    hosts: u8,
}

impl Internet {
    /// An internet with IPv4 alone, or with both.
    ///
    /// # Errors
    ///
    /// When namespaces cannot be made.
    pub fn new(ipv6: bool) -> Result<Self> {
        let ns = Namespace::new("internet")?;
        forwarding(&ns)?;
        Ok(Self {
            ns,
            ipv6,
            sites: 0,
            delay: None,
        })
    }

    /// The namespace of the middle, for rules that block or impair.
    pub fn ns(&self) -> &Namespace {
        &self.ns
    }

    /// Makes every packet take `one_way` from site to site, from now on.
    ///
    /// # Errors
    ///
    /// When it is called twice, or no TUN device can be made.
    pub fn delay(&mut self, one_way: Duration) -> Result<()> {
        self.delay = Some(Delay::start(&self.ns, one_way, None)?);
        Ok(())
    }

    /// As [`Self::delay`], with packets from and to the site with address `far` taking `more` on top.
    ///
    /// # Errors
    ///
    /// As [`Self::delay`].
    pub fn delay_far(&mut self, one_way: Duration, far: Ipv4Addr, more: Duration) -> Result<()> {
        self.delay = Some(Delay::start(&self.ns, one_way, Some((far, more)))?);
        Ok(())
    }

    /// A host with a public address.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn host(&mut self, name: &str) -> Result<(Namespace, Ipv4Addr)> {
        let (ns, address, _) = self.site(name)?;
        Ok((ns, address))
    }

    /// A router with an empty LAN.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or the kernel refuses its ruleset.
    pub fn router(&mut self, name: &str, nat: Nat, input: WanInput) -> Result<Router> {
        let (ns, wan, site) = self.site(name)?;
        let router = Router {
            ns,
            wan,
            lan: [192, 168, site],
            site,
            ipv6: self.ipv6,
            hosts: 0,
        };
        router.set_up(nat, input)?;
        Ok(router)
    }

    /// A carrier's router, with an empty network for its customers' routers; IPv4 alone.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or the kernel refuses its ruleset.
    pub fn carrier(&mut self, name: &str, nat: Nat) -> Result<Router> {
        self.carrier_on(name, nat, [100, 64])
    }

    /// A carrier's router whose inside begins with these bytes: some use addresses that belong to others.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or the kernel refuses its ruleset.
    pub fn carrier_on(&mut self, name: &str, nat: Nat, inside: [u8; 2]) -> Result<Router> {
        let (ns, wan, site) = self.site(name)?;
        let router = Router {
            ns,
            wan,
            lan: [inside[0], inside[1], site],
            site,
            ipv6: false,
            hosts: 0,
        };
        router.set_up(nat, WanInput::Drop)?;
        Ok(router)
    }

    /// Drops every UDP packet that goes straight between two sites, until [`Self::unblock`].
    ///
    /// # Errors
    ///
    /// When nft refuses.
    pub fn block_udp(&self, one: Ipv4Addr, other: Ipv4Addr) -> Result<()> {
        self.ns.nft(&format!(
            "table ip block {{
               chain forward {{ type filter hook forward priority 0;
                 ip saddr {one} ip daddr {other} meta l4proto udp counter drop
                 ip saddr {other} ip daddr {one} meta l4proto udp counter drop
               }}
             }}"
        ))
    }

    /// Undoes [`Self::block_udp`].
    ///
    /// # Errors
    ///
    /// When nothing is blocked.
    pub fn unblock(&self) -> Result<()> {
        self.ns.nft("delete table ip block")
    }

    fn site(&mut self, name: &str) -> Result<(Namespace, Ipv4Addr, u8)> {
        self.sites += 1;
        let site = self.sites;
        let ns = Namespace::new(name)?;
        self.ns.ip(&format!(
            "link add site{site} type veth peer name wan netns {}
             addr add 44.128.{site}.1/24 dev site{site}
             link set site{site} up",
            ns.path()
        ))?;
        ns.ip(&format!(
            "addr add 44.128.{site}.2/24 dev wan
             link set wan up
             route add default via 44.128.{site}.1"
        ))?;
        carrier(&self.ns, &format!("site{site}"))?;
        carrier(&ns, "wan")?;
        if self.ipv6 {
            self.ns.ip(&format!(
                "addr add 2a00:a000:{site:x}::1/64 dev site{site} nodad
                 route add 2a00:a000:{site:x}::/48 via 2a00:a000:{site:x}::2"
            ))?;
            ns.ip(&format!(
                "addr add 2a00:a000:{site:x}::2/64 dev wan nodad
                 route add default via 2a00:a000:{site:x}::1"
            ))?;
        }
        Ok((ns, Ipv4Addr::new(44, 128, site, 2), site))
    }
}

impl Router {
    /// Forwards, translates and filters from now on.
    fn set_up(&self, nat: Nat, input: WanInput) -> Result<()> {
        forwarding(&self.ns)?;
        self.ns.ip("link add lan type bridge\nlink set lan up")?;
        self.ns.ip(&format!("addr add {}/24 dev lan", self.at(1)))?;
        if self.ipv6 {
            let site = self.site;
            self.ns.ip(&format!(
                "addr add 2a00:a000:{site:x}:1::1/64 dev lan nodad"
            ))?;
        }
        if let Some(second) = nat.second_address(self.wan) {
            self.ns.ip(&format!("addr add {second}/24 dev wan"))?;
        }
        let lan = format!("{}/24", self.at(0));
        self.ns.nft(&nat.rules(self.wan, &lan, input))
    }

    /// An address in the LAN.
    pub fn at(&self, number: u8) -> Ipv4Addr {
        let [a, b, c] = self.lan;
        Ipv4Addr::new(a, b, c, number)
    }

    /// A host in the LAN, with the router as its gateway.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn host(&mut self, name: &str) -> Result<(Namespace, Ipv4Addr)> {
        let ns = Namespace::new(name)?;
        let address = self.attach(&ns, "eth0", 0)?;
        Ok((ns, address))
    }

    /// Gives a host an interface in this LAN, with a default route of this metric.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn attach(&mut self, ns: &Namespace, interface: &str, metric: u32) -> Result<Ipv4Addr> {
        self.hosts += 1;
        let host = self.hosts + 1;
        let (gateway, own) = (self.at(1), self.at(host));
        self.ns.ip(&format!(
            "link add host{host} type veth peer name {interface} netns {}
             link set host{host} master lan
             link set host{host} up",
            ns.path()
        ))?;
        ns.ip(&format!(
            "addr add {own}/24 dev {interface}
             link set {interface} up
             route add default via {gateway} dev {interface} metric {metric}"
        ))?;
        carrier(&self.ns, "lan")?;
        carrier(ns, interface)?;
        if self.ipv6 {
            let site = self.site;
            ns.ip(&format!(
                "addr add 2a00:a000:{site:x}:1::{host}/64 dev {interface} nodad
                 route add default via 2a00:a000:{site:x}:1::1 dev {interface} metric {}",
                metric.max(1)
            ))?;
        }
        Ok(own)
    }

    /// The far end of the cable of the host that was attached as number `host`, from 0.
    pub fn port(&self, host: u8) -> String {
        format!("host{}", host + 2)
    }

    /// A second router, in the LAN of this one: two NATs in a row, over IPv4 alone.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or the kernel refuses its ruleset.
    pub fn router(&mut self, name: &str, nat: Nat, input: WanInput) -> Result<Self> {
        let ns = Namespace::new(name)?;
        let wan = self.attach(&ns, "wan", 0)?;
        let router = Self {
            ns,
            wan,
            lan: [10, self.site, wan.octets()[3]],
            site: self.site,
            ipv6: false,
            hosts: 0,
        };
        router.set_up(nat, input)?;
        Ok(router)
    }

    /// The router's outer IPv6 address, if the internet has any.
    pub fn wan_v6(&self) -> Option<Ipv6Addr> {
        self.ipv6
            .then(|| Ipv6Addr::new(0x2a00, 0xa000, self.site.into(), 0, 0, 0, 0, 2))
    }
}

/// Host A – NAT A – internet – NAT B – host B, and a public host for the relay.
#[derive(Debug)]
pub struct TwoNats {
    /// The middle.
    pub internet: Internet,
    /// A's router.
    pub nat_a: Router,
    /// B's router.
    pub nat_b: Router,
    /// Host A.
    pub a: Namespace,
    /// Host B.
    pub b: Namespace,
    /// The public host.
    pub relay: Namespace,
    /// Its address.
    pub relay_address: Ipv4Addr,
}

impl TwoNats {
    /// Builds it, with IPv4 alone.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn new(nat_a: Nat, nat_b: Nat) -> Result<Self> {
        Self::with_input(nat_a, nat_b, WanInput::Drop)
    }

    /// As [`Self::new`], with a choice of what both routers do to unexpected packets.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn with_input(nat_a: Nat, nat_b: Nat, input: WanInput) -> Result<Self> {
        Self::with_inputs((nat_a, input), (nat_b, input))
    }

    /// As [`Self::new`], with a choice of what each router does to unexpected packets.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn with_inputs(a: (Nat, WanInput), b: (Nat, WanInput)) -> Result<Self> {
        let mut internet = Internet::new(false)?;
        let (relay, relay_address) = internet.host("relay")?;
        let mut nat_a = internet.router("nat-a", a.0, a.1)?;
        let mut nat_b = internet.router("nat-b", b.0, b.1)?;
        let (a, _) = nat_a.host("a")?;
        let (b, _) = nat_b.host("b")?;
        Ok(Self {
            internet,
            nat_a,
            nat_b,
            a,
            b,
            relay,
            relay_address,
        })
    }
}

fn forwarding(ns: &Namespace) -> Result<()> {
    ns.sysctl("net.ipv4.ip_forward", "1")?;
    ns.sysctl("net.ipv6.conf.all.forwarding", "1")
}

/// Waits until an interface carries packets: before, the kernel loses them, and neighbour discovery tries again only after a second.
pub(super) fn carrier(ns: &Namespace, interface: &str) -> Result<()> {
    let what = format!("{interface} of {} to be up", ns.name());
    within(&what, Duration::from_secs(5), || {
        Ok(ns
            .run("ip", &["-o", "link", "show", interface])?
            .contains("state UP"))
    })
    .map(drop)
}
