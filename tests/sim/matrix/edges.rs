//! What may lie between a host and the internet.

use std::fmt;
use std::time::Duration;

use mesh_tests::sim::{
    Allocation, Filtering, Input, LinkConfig, Mapping, NatConfig, Pool, RouterConfig, Site,
};

pub(super) const MAPPINGS: [Mapping; 3] = [Mapping::Eim, Mapping::Adm, Mapping::Apdm];
pub(super) const FILTERINGS: [Filtering; 3] = [Filtering::Eif, Filtering::Adf, Filtering::Apdf];
pub(super) const ALLOCATIONS: [Allocation; 5] = [
    Allocation::Preserving,
    Allocation::Offset(1_000),
    Allocation::Multiple(3),
    Allocation::Sequential(1),
    Allocation::Random,
];
/// A lifetime that is shorter than any keep-alive.
const SHORT: Duration = Duration::from_secs(10);
/// What a peer is early by on a line like this one, at most.
const LATE: Duration = Duration::from_millis(40);

/// What lies between a host and the internet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Edge {
    /// Nothing.
    Public,
    /// A firewall without translation.
    Firewall(Filtering),
    /// A NAT.
    Nat(NatConfig),
    /// A NAT at home, and another one at the carrier.
    Double { home: NatConfig, carrier: NatConfig },
    /// A NAT behind a slow and unsteady line, so that what a peer sends arrives before we have sent anything.
    Late(NatConfig),
    /// Nothing but TCP passes.
    Blocked,
}

pub(super) const fn nat(
    mapping: Mapping,
    filtering: Filtering,
    allocation: Allocation,
) -> NatConfig {
    NatConfig::new(mapping, filtering).allocation(allocation)
}

/// The NAT that is hardest to reach, with this allocation.
const fn symmetric(allocation: Allocation) -> NatConfig {
    nat(Mapping::Apdm, Filtering::Apdf, allocation)
}

const HARD: [NatConfig; 3] = [
    symmetric(Allocation::Preserving),
    symmetric(Allocation::Sequential(1)),
    symmetric(Allocation::Random),
];

impl Edge {
    pub(super) fn site(self) -> Site {
        match self {
            Self::Public => Site::public(),
            Self::Firewall(filtering) => Site::behind(RouterConfig::firewall(filtering)),
            Self::Nat(nat) => Site::nat(nat),
            Self::Double { home, carrier } => Site::nat(home).outer(RouterConfig::nat(carrier)),
            Self::Late(nat) => Site::nat(nat).access(LinkConfig {
                jitter: LATE,
                ..LinkConfig::access()
            }),
            Self::Blocked => Site::behind(RouterConfig::udp_blocked()),
        }
    }

    /// True if it has a mapping that is gone after a short silence.
    pub(super) fn forgets(self) -> bool {
        matches!(self, Self::Nat(nat) if nat.lifetime <= SHORT)
    }
}

/// Every NAT of the product, grouped by mapping and filtering.
pub(super) fn product() -> Vec<Edge> {
    let mut edges = Vec::new();
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            for allocation in ALLOCATIONS {
                edges.push(Edge::Nat(nat(mapping, filtering, allocation)));
            }
        }
    }
    edges
}

/// The product without what is the same: an endpoint-independent mapping has one port, which everybody is told; how
/// the NAT came by it decides nothing. That this is so is a test of its own.
pub(super) fn distinct() -> Vec<Edge> {
    let counts = |edge: &Edge| match edge {
        Edge::Nat(nat) => nat.mapping != Mapping::Eim || nat.allocation == Allocation::Preserving,
        _ => true,
    };
    product().into_iter().filter(counts).collect()
}

/// What has no NAT.
pub(super) fn open() -> Vec<Edge> {
    let firewalls = FILTERINGS.map(Edge::Firewall);
    [Edge::Public].into_iter().chain(firewalls).collect()
}

/// What goes beyond one NAT that behaves: it forgets early, it takes packets for its own, it is two.
pub(super) fn awkward() -> Vec<Edge> {
    let home = NatConfig::home();
    let all = || [home].into_iter().chain(HARD);
    let mut edges: Vec<Edge> = all().map(|nat| Edge::Nat(nat.lifetime(SHORT))).collect();
    edges.extend(all().map(|nat| Edge::Late(nat.accepting_input())));
    edges.extend(all().map(|carrier| Edge::Double { home, carrier }));
    let [_, sequential, random] = HARD;
    edges.extend([sequential, random].map(|hard| Edge::Double {
        home: hard,
        carrier: home,
    }));
    edges
}

/// NATs with several external addresses.
pub(super) fn pools() -> Vec<Edge> {
    let home = NatConfig::home();
    let any = Pool::Arbitrary(2);
    let [_, sequential, random] = HARD;
    let mut pools = vec![home.pool(Pool::Paired(2)), home.pool(any)];
    pools.push(random.pool(Pool::Paired(2)));
    pools.extend(HARD.map(|hard| hard.pool(any)));
    pools.push(nat(Mapping::Adm, Filtering::Adf, Allocation::Random).pool(any));
    pools.push(sequential.pool(Pool::ByDestination(2)));
    pools.into_iter().map(Edge::Nat).collect()
}

/// One of each kind that the awkward ones are paired with.
pub(super) fn faces() -> Vec<Edge> {
    let home = Edge::Nat(NatConfig::home());
    let restricted = Edge::Nat(nat(Mapping::Adm, Filtering::Adf, Allocation::Random));
    let mut edges = vec![Edge::Public, home, restricted];
    edges.extend(HARD.map(Edge::Nat));
    edges
}

pub(super) fn name_of(mapping: Mapping) -> &'static str {
    match mapping {
        Mapping::Eim => "EIM",
        Mapping::Adm => "ADM",
        Mapping::Apdm => "APDM",
    }
}

pub(super) fn name_of_filter(filtering: Filtering) -> &'static str {
    match filtering {
        Filtering::Eif => "EIF",
        Filtering::Adf => "ADF",
        Filtering::Apdf => "APDF",
    }
}

pub(super) fn name_of_allocation(allocation: Allocation) -> &'static str {
    match allocation {
        Allocation::Preserving => "preserving",
        Allocation::Offset(_) => "offset",
        Allocation::Multiple(_) => "multiple",
        Allocation::Sequential(_) => "sequential",
        Allocation::Random => "random",
        Allocation::Block(_) => "block",
    }
}

/// `EIM/APDF`, `APDM/APDF random`.
struct Name(NatConfig);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nat = self.0;
        write!(
            f,
            "{}/{}",
            name_of(nat.mapping),
            name_of_filter(nat.filtering)
        )?;
        if nat.mapping != Mapping::Eim || nat.allocation != Allocation::Preserving {
            write!(f, " {}", name_of_allocation(nat.allocation))?;
        }
        if nat.lifetime <= SHORT {
            write!(f, ", {} s", nat.lifetime.as_secs())?;
        }
        let size = nat.pool.size();
        match nat.pool {
            Pool::One => {}
            Pool::Paired(_) => write!(f, ", {size} addresses, paired")?,
            Pool::Arbitrary(_) => write!(f, ", {size} addresses, arbitrary")?,
            Pool::ByDestination(_) => write!(f, ", {size} addresses, by destination")?,
        }
        match nat.input {
            Input::Accept => f.write_str(", accepting"),
            Input::Drop => Ok(()),
        }
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
            Self::Firewall(filtering) => write!(f, "firewall {}", name_of_filter(*filtering)),
            Self::Nat(nat) => Name(*nat).fmt(f),
            Self::Double { home, carrier } => {
                write!(f, "{} behind {}", Name(*home), Name(*carrier))
            }
            Self::Late(nat) => write!(f, "{}, late", Name(*nat)),
            Self::Blocked => f.write_str("UDP blocked"),
        }
    }
}
