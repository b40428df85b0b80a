//! Rulesets that make a router behave like the NATs of the world.
//!
//! A router's outer interface is called `wan`, its inner one `lan`. Two of the kinds are what Linux itself does
//! (`masquerade`); [`Nat::Modelled`] builds each combination of RFC 4787 mapping and filtering and of port allocation
//! from dynamic maps: the packet mark carries the external port, `out` remembers mappings, `in` finds the way back, `adf` and
//! `apdf` remember who was written to.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

/// External ports of a modelled NAT unless it is [`Behaviour::whole`]: nftables takes half a second to load a table of
/// all.
const FEW: RangeInclusive<u16> = 40_000..=44_095;
/// Those that real ones give out.
const ALL: RangeInclusive<u16> = 1_024..=65_535;

/// What a mapping, or a filter, depends on (RFC 4787 sections 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependence {
    /// On the inner endpoint alone.
    EndpointIndependent,
    /// On the outer address too.
    Address,
    /// On the outer address and port too.
    AddressAndPort,
}

/// How external ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// The inner port, if it lies in the range of the model (40000–44095 if that is narrow); another one if it is in use.
    Preserving,
    /// One after the other.
    Sequential,
    /// Any.
    Random,
}

/// A modelled NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// When two flows of one inner endpoint share an external port.
    pub mapping: Dependence,
    /// Who may send back in.
    pub filtering: Dependence,
    /// Which external port a new mapping gets.
    pub allocation: Allocation,
    /// It gives out all ports from 1024 on, as real ones do, and not just the 4,096 that load fast.
    pub whole: bool,
    /// Hosts behind it reach each other by external addresses.
    pub hairpin: bool,
}

/// What a router does with the packets of its LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// Linux `masquerade`: endpoint-independent mapping that keeps the port, address-and-port-dependent filtering.
    Masquerade,
    /// The same with a random port for each mapping, from 20000 to 29999, which no socket has by itself.
    RandomPorts,
    /// Linux `masquerade fully-random`: a symmetric NAT with random ports, address-and-port-dependent filtering.
    Symmetric,
    /// Port-preserving, with two external addresses: `wan` and the one after it.
    Pooled(Pool),
    /// [`Self::Masquerade`], and the same for IPv6.
    Masquerade66,
    /// Any other.
    Modelled(Behaviour),
}

/// Which of two external addresses a connection gets (RFC 4787, REQ-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// All of a host the same (`snat … persistent`).
    Paired,
    /// All of one port of a host the same.
    BySocket,
    /// By the destination's address as well, as Linux does of itself.
    ByDestination,
    /// Any.
    Any,
}

/// What a router answers to packets from outside that belong to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WanInput {
    /// Nothing.
    #[default]
    Drop,
    /// An ICMP error.
    Reject,
    /// It takes them as its own. A packet from a peer that comes before ours then occupies our mapping's place.
    Accept,
}

impl Nat {
    /// The ruleset for a router with the outer address `wan` and the inner network `lan` (address and prefix length).
    pub fn rules(self, wan: Ipv4Addr, lan: &str, input: WanInput) -> String {
        let translation = match self {
            Self::Masquerade => masquerade("masquerade"),
            Self::RandomPorts => masquerade(
                "meta l4proto { tcp, udp } masquerade to :20000-29999
                 oifname wan masquerade",
            ),
            Self::Symmetric => masquerade("masquerade fully-random"),
            Self::Pooled(pool) => masquerade(&pool.rule(wan)),
            Self::Masquerade66 => format!(
                "{}
                 table ip6 nat {{
                   chain post {{ type nat hook postrouting priority srcnat;
                     oifname wan masquerade
                   }}
                 }}",
                masquerade("masquerade")
            ),
            Self::Modelled(behaviour) => behaviour.rules(wan, lan),
        };
        format!("{translation}\n{}", firewall(input))
    }
}

impl Nat {
    /// The second outer address of a router whose first is `wan`, if it has one.
    pub fn second_address(self, wan: Ipv4Addr) -> Option<Ipv4Addr> {
        matches!(self, Self::Pooled(_)).then(|| following(wan))
    }
}

fn following(wan: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(wan.to_bits() + 1)
}

impl Pool {
    fn rule(self, wan: Ipv4Addr) -> String {
        let second = following(wan);
        let either = format!("mod 2 map {{ 0 : {wan}, 1 : {second} }}");
        match self {
            Self::Paired => format!("snat to {wan}-{second} persistent"),
            Self::BySocket => format!("snat to jhash ip saddr . udp sport {either}"),
            Self::ByDestination => format!("snat to {wan}-{second}"),
            Self::Any => format!("snat to numgen random {either}"),
        }
    }
}

fn masquerade(rule: &str) -> String {
    format!(
        "table ip nat {{
           chain post {{ type nat hook postrouting priority srcnat;
             oifname wan {rule}
           }}
         }}"
    )
}

/// The stateful filter that every home router has, for both address families.
fn firewall(input: WanInput) -> String {
    let (policy, last) = match input {
        WanInput::Drop => ("drop", ""),
        WanInput::Reject => ("drop", "reject"),
        WanInput::Accept => ("accept", ""),
    };
    format!(
        "table inet filter {{
           chain input {{ type filter hook input priority 0; policy {policy};
             ct state established,related accept
             iifname {{ lo, lan }} accept
             meta l4proto icmpv6 accept
             {last}
           }}
           chain forward {{ type filter hook forward priority 0; policy drop;
             ct state established,related accept
             iifname lan accept
             ct status dnat accept
           }}
         }}"
    )
}

impl Behaviour {
    /// With few ports, and without hairpinning.
    pub const fn new(mapping: Dependence, filtering: Dependence, allocation: Allocation) -> Self {
        Self {
            mapping,
            filtering,
            allocation,
            whole: false,
            hairpin: false,
        }
    }

    /// With every port that a real one has.
    #[must_use]
    pub const fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// With hairpinning.
    #[must_use]
    pub const fn hairpin(mut self) -> Self {
        self.hairpin = true;
        self
    }

    fn rules(self, wan: Ipv4Addr, lan: &str) -> String {
        let ports = if self.whole { ALL } else { FEW };
        let (base, count) = (*ports.start(), ports.end() - ports.start() + 1);
        let identity = list(ports.map(|port| (port, port)));
        let (key_type, key) = match self.mapping {
            Dependence::EndpointIndependent => (
                "inet_proto . ipv4_addr . inet_service",
                "meta l4proto . ip saddr . th sport",
            ),
            Dependence::Address => (
                "inet_proto . ipv4_addr . inet_service . ipv4_addr",
                "meta l4proto . ip saddr . th sport . ip daddr",
            ),
            // Unused: a key of five fields with data aborts nft 1.0.6, so conntrack's own mark remembers these.
            Dependence::AddressAndPort => ("inet_proto . ipv4_addr . inet_service", ""),
        };
        let remember = if self.mapping == Dependence::AddressAndPort {
            "meta mark set ct mark
             ct direction reply return
             meta mark 0 jump newport
             ct mark set meta mark"
                .to_owned()
        } else {
            format!(
                "meta mark set 0
                 meta mark set {key} map @out
                 meta mark 0 jump newport
                 update @out {{ {key} : meta mark }}"
            )
        };
        let allocate = match self.allocation {
            Allocation::Preserving => "meta mark set th sport map @p2m".to_owned(),
            Allocation::Sequential => format!(
                "meta mark set numgen inc mod {count} map {{ {} }}",
                list((0..count).map(|i| (i, base + i)))
            ),
            Allocation::Random => format!("meta mark set numgen random mod {count} offset {base}"),
        };
        let filter = match self.filtering {
            Dependence::EndpointIndependent => "",
            Dependence::Address => "meta mark . meta l4proto . ip saddr @adf",
            Dependence::AddressAndPort => "meta mark . meta l4proto . ip saddr . th sport @apdf",
        };
        let (learn, pre, post) = if self.hairpin {
            hairpin(wan, filter)
        } else {
            Default::default()
        };
        let dynamic = "flags dynamic,timeout; timeout 120s; size 65536;";
        format!(
            "table ip nat {{
               map out {{ type {key_type} : mark; {dynamic} }}
               map in {{ type inet_proto . mark : ipv4_addr . inet_service; {dynamic} }}
               set adf {{ type mark . inet_proto . ipv4_addr; {dynamic} }}
               set apdf {{ type mark . inet_proto . ipv4_addr . inet_service; {dynamic} }}
               set used {{ type mark . inet_proto; {dynamic} }}
               map p2m {{ type inet_service : mark; elements = {{ {identity} }}; }}
               map m2p {{ type mark : inet_service; elements = {{ {identity} }}; }}
               chain newport {{
                 {allocate}
                 meta mark 0 meta mark set numgen random mod {count} offset {base}
                 meta mark . meta l4proto @used meta mark set numgen random mod {count} offset {base}
               }}
               chain alloc {{
                 {remember}
                 update @used {{ meta mark . meta l4proto }}
                 update @in {{ meta l4proto . meta mark : ip saddr . th sport }}
                 update @adf {{ meta mark . meta l4proto . ip daddr }}
                 update @apdf {{ meta mark . meta l4proto . ip daddr . th dport }}
               }}
               chain learn {{ type filter hook postrouting priority 90;
                 oifname wan meta l4proto {{ tcp, udp }} ip saddr {lan} jump alloc
                 {learn}
               }}
               chain pre {{ type nat hook prerouting priority dstnat;
                 iifname wan meta l4proto {{ tcp, udp }} meta mark set th dport map @p2m
                 iifname wan meta l4proto {{ tcp, udp }} {filter} dnat ip to meta l4proto . meta mark map @in
                 {pre}
               }}
               chain post {{ type nat hook postrouting priority srcnat;
                 oifname wan meta l4proto {{ tcp, udp }} ip saddr {lan} meta mark != 0 snat ip to {wan} : meta mark map @m2p
                 {post}
                 oifname wan masquerade
               }}
             }}"
        )
    }
}

/// What a NAT needs beside to hairpin (RFC 4787, section 6): a packet from the LAN to an external port turns round, and
/// comes from the sender's external address and port. For the chains `learn`, `pre` and `post`.
fn hairpin(wan: Ipv4Addr, filter: &str) -> (String, String, String) {
    let ours = "meta l4proto { tcp, udp }";
    let learn = format!("iifname lan oifname lan ct status dnat {ours} jump alloc");
    let pre = format!(
        "iifname lan ip daddr {wan} {ours} meta mark set th dport map @p2m
         iifname lan ip daddr {wan} {ours} meta mark != 0 {filter} dnat ip to meta l4proto . meta mark map @in"
    );
    let post = format!(
        "iifname lan oifname lan ct status dnat {ours} meta mark != 0 snat ip to {wan} : meta mark map @m2p"
    );
    (learn, pre, post)
}

fn list(pairs: impl Iterator<Item = (u16, u16)>) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        // nft 1.0.6 wants the spaces.
        let _ = write!(text, "{key} : {value}, ");
    }
    text
}
