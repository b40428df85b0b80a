//! What two hosts can reach by the plain simultaneous punch alone, from what their NATs do (RFC 4787's terms).

use mesh_tests::sim::{Filtering, Mapping, NatConfig, RouterConfig, Site};

/// What lies between a host and the internet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Edge {
    /// Nothing.
    Public,
    /// A firewall without translation.
    Firewall(Filtering),
    /// A NAT.
    Nat(NatConfig),
}

impl Edge {
    pub(crate) fn site(self) -> Site {
        match self {
            Self::Public => Site::public(),
            Self::Firewall(filtering) => Site::behind(RouterConfig::firewall(filtering)),
            Self::Nat(nat) => Site::nat(nat),
        }
    }

    /// Mapping and filtering. A firewall keeps address and port: that is an endpoint-independent mapping.
    fn behaviour(self) -> (Mapping, Filtering) {
        match self {
            Self::Public => (Mapping::Eim, Filtering::Eif),
            Self::Firewall(filtering) => (Mapping::Eim, filtering),
            Self::Nat(nat) => (nat.mapping, nat.filtering),
        }
    }
}

/// True if the plain punch opens a direct path between the two.
///
/// Each side knows the port that the other one's NAT shows to the relay, and learns where a packet that arrives really
/// came from. What the port allocation is does not matter: a NAT whose mapping depends on the destination has a new,
/// unknown port for the peer, and the port that is known belongs to the relay's mapping; preserving the port does not
/// help, because the relay's mapping has it. That a random port is hit by chance does not happen with so few packets.
pub(crate) fn punches(a: Edge, b: Edge) -> bool {
    let (a, b) = (a.behaviour(), b.behaviour());
    is_open(a) || is_open(b) || both_are_known(a, b) || meets_in_the_middle(a, b)
}

/// Its port is known, and it lets in whoever has an address that it sent to, from whatever port that one comes: the
/// other side gets in, is answered at the source that it shows, and has sent to where the answer comes from.
fn is_open((mapping, filtering): (Mapping, Filtering)) -> bool {
    mapping == Mapping::Eim && filtering != Filtering::Apdf
}

/// Both ports are known and stay: each sends to exactly where the other one comes from, which opens both filters.
fn both_are_known((a, _): (Mapping, Filtering), (b, _): (Mapping, Filtering)) -> bool {
    a == Mapping::Eim && b == Mapping::Eim
}

/// Neither port is known, but one side lets in anybody at the port that it shows the relay. The other side's packet
/// arrives there and shows its source. What is sent back comes from yet another port, and is let in because the other
/// side filters by address at most.
///
/// If both mappings depend on the port, the two directions keep different ports at each end: a packet's answer never
/// comes from where the packet was sent to, and still both directions work.
fn meets_in_the_middle(a: (Mapping, Filtering), b: (Mapping, Filtering)) -> bool {
    let hard = |side: (Mapping, Filtering)| side.0 != Mapping::Eim;
    let by_address = |side: (Mapping, Filtering)| side.1 != Filtering::Apdf;
    let by_nothing = |side: (Mapping, Filtering)| side.1 == Filtering::Eif;
    hard(a) && hard(b) && by_address(a) && by_address(b) && (by_nothing(a) || by_nothing(b))
}
