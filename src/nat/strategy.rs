//! What two hosts can do where the plain punch does not work, from what their NATs do.
//!
//! Both sides compute the same list from the two profiles, each from its own point of view. The rules follow from two
//! facts. Where each side can be told the port that the other one's packets will come from, both send to exactly that
//! port from the socket that has it ([`Plan::Meet`]). Where one port is unknown, one side opens many, and the other one
//! tries ports at random until it hits one ([`Plan::Open`], [`Plan::Search`]); that takes a mapping and a filter that let
//! the answer through.

use super::{Allocation, Filtering, Mapping, NatProfile, Pooling};

/// How a side comes by a socket whose external port can be told in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kit {
    /// The mapping is the same for every destination: a fresh socket asks a relay for it.
    Measured,
    /// The NAT preserves ports: a socket that has sent nothing yet.
    Virgin,
    /// The NAT counts: many sockets, of which one gets the port that was foretold.
    Row {
        /// From one port to the next.
        delta: i8,
    },
    /// It cannot be told, and need not be: the other side takes packets from any port.
    Any,
}

/// What one side does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Send to the port that the other side foretold, from the socket of this kind.
    Meet(Kit),
    /// Open many ports towards the other side.
    Open,
    /// Send to ports at random, of which the other side has opened many; what is known of them comes first.
    Search {
        /// Lowest and highest port that the other side's NAT was seen to give out.
        block: Option<(u16, u16)>,
        /// The other side lets in no other port than the one that this side tells it.
        announced: bool,
    },
}

/// A plan for both sides.
type Joint = (Plan, Plan);

/// What can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prospects {
    /// The plain punch may work.
    pub(crate) plain: bool,
    /// What to try when it has failed, our side of it, in this order.
    pub(crate) plans: Vec<Plan>,
}

/// Behaviour with nothing left unknown.
#[derive(Debug, Clone, Copy)]
struct Side {
    mapping: Mapping,
    /// The mapping is one of two that one relay cannot tell apart.
    guessed: bool,
    filtering: Filtering,
    allocation: Allocation,
    /// A new mapping gets any of several external addresses, which nobody can foretell.
    pooled: bool,
}

impl Side {
    /// As which NATs a profile may be read. A mapping that does not depend on the port depends on the address or on
    /// nothing; the latter is far more common. Where ports are random it is the other way round: the plain punch has
    /// failed before this matters, and does not fail for an endpoint-independent mapping.
    fn readings(profile: &NatProfile) -> Vec<Self> {
        let is_random = matches!(profile.allocation, Allocation::Random { .. });
        let mappings: &[Mapping] = match profile.mapping {
            Mapping::Unknown if is_random => {
                &[Mapping::AddressDependent, Mapping::EndpointIndependent]
            }
            Mapping::Unknown => &[Mapping::EndpointIndependent, Mapping::AddressDependent],
            Mapping::EndpointIndependent => &[Mapping::EndpointIndependent],
            Mapping::AddressDependent => &[Mapping::AddressDependent],
            Mapping::AddressAndPortDependent => &[Mapping::AddressAndPortDependent],
        };
        let reading = |mapping: &Mapping| Self {
            mapping: *mapping,
            guessed: profile.mapping == Mapping::Unknown,
            filtering: profile.filtering,
            allocation: profile.allocation,
            pooled: profile.pooling == Pooling::Arbitrary,
        };
        mappings.iter().map(reading).collect()
    }

    fn is_easy(self) -> bool {
        self.mapping == Mapping::EndpointIndependent
    }

    /// Lets in nothing but what was sent to exactly; so does whoever was not measured, for all we know.
    fn filters_ports(self) -> bool {
        matches!(
            self.filtering,
            Filtering::Unknown | Filtering::AddressAndPortDependent
        )
    }

    /// A rule of allocation that holds for every new mapping serves whichever the mapping is, so a guess is not needed.
    /// It is of no use where the address cannot be told; that of a fresh socket is measured with its port.
    fn kit(self) -> Option<Kit> {
        match (self.mapping, self.allocation) {
            (Mapping::EndpointIndependent, _) if !self.guessed => Some(Kit::Measured),
            (_, Allocation::Preserving) if !self.pooled => Some(Kit::Virgin),
            (_, Allocation::Sequential { delta }) if !self.pooled => Some(Kit::Row { delta }),
            (Mapping::EndpointIndependent, _) => Some(Kit::Measured),
            _ => None,
        }
    }

    fn block(self) -> Option<(u16, u16)> {
        match self.allocation {
            Allocation::Random { low, high } => Some((low, high)),
            _ => None,
        }
    }
}

/// What the plain punch does: it knows the ports that relays see, and learns where a packet that arrives came from.
fn plain(a: Side, b: Side) -> bool {
    let open = |side: Side| side.is_easy() && !side.filters_ports();
    let anyone = |side: Side| {
        matches!(
            side.filtering,
            Filtering::EndpointIndependent | Filtering::NotPortDependent
        )
    };
    let loose = !a.filters_ports() && !b.filters_ports() && (anyone(a) || anyone(b));
    open(a) || open(b) || a.is_easy() && b.is_easy() || loose
}

/// Both send to each other's ports. A side whose port cannot be told in advance is found by the other one, if that lets
/// in every port of its address and keeps its own port when it answers there.
fn meeting(a: Side, b: Side) -> Option<Joint> {
    let found = |known: Side, unknown: Side| {
        let answers = known.mapping != Mapping::AddressAndPortDependent || !unknown.filters_ports();
        !known.filters_ports() && answers && !unknown.pooled
    };
    match (a.kit(), b.kit()) {
        (Some(own), Some(other)) => Some((Plan::Meet(own), Plan::Meet(other))),
        (Some(own), None) if found(a, b) => Some((Plan::Meet(own), Plan::Meet(Kit::Any))),
        (None, Some(other)) if found(b, a) => Some((Plan::Meet(Kit::Any), Plan::Meet(other))),
        _ => None,
    }
}

/// One side opens many ports and the other one searches.
fn birthday(a: Side, b: Side) -> Option<Joint> {
    // The searcher's port is known, or does not matter because the other side filters by address at most. In the second
    // case the answer has to get back in: the port that was hit has to stay, or the searcher must not look at ports.
    let possible = |opener: Side, searcher: Side| {
        let stays = opener.mapping == Mapping::AddressDependent || !searcher.filters_ports();
        let told = searcher.is_easy() || !opener.filters_ports() && stays && !searcher.pooled;
        !opener.is_easy() && told
    };
    let search = |opener: Side, searcher: Side| Plan::Search {
        block: opener.block(),
        announced: searcher.is_easy(),
    };
    // A searcher whose mapping depends on the port makes a mapping for each probe, so it is the better opener.
    let costly = |side: Side| side.mapping == Mapping::AddressAndPortDependent;
    match (possible(a, b), possible(b, a)) {
        (true, other) if !(other && costly(b) && !costly(a)) => Some((Plan::Open, search(a, b))),
        (_, true) => Some((search(b, a), Plan::Open)),
        _ => None,
    }
}

/// What two sides can do. The order of the two has to be the same on both sides: `own_first` says whose key is lower.
pub(crate) fn prospects(own: &NatProfile, peer: &NatProfile, own_first: bool) -> Prospects {
    let (first, second) = if own_first { (own, peer) } else { (peer, own) };
    let mut prospects = Prospects {
        plain: false,
        plans: Vec::new(),
    };
    let mut joint: Vec<Joint> = Vec::new();
    for a in Side::readings(first) {
        for b in Side::readings(second) {
            prospects.plain |= plain(a, b);
            for (of_first, of_second) in [meeting(a, b), birthday(a, b)].into_iter().flatten() {
                if !joint.contains(&(of_first, of_second)) {
                    joint.push((of_first, of_second));
                }
            }
        }
    }
    let plans = joint.into_iter();
    prospects.plans = plans
        .map(|(of_first, of_second)| if own_first { of_first } else { of_second })
        .collect();
    prospects
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOM: Allocation = Allocation::Random {
        low: 2_000,
        high: 60_000,
    };
    const ALLOCATIONS: [Allocation; 3] = [
        Allocation::Preserving,
        Allocation::Sequential { delta: 1 },
        RANDOM,
    ];
    const MAPPINGS: [Mapping; 3] = [
        Mapping::EndpointIndependent,
        Mapping::AddressDependent,
        Mapping::AddressAndPortDependent,
    ];
    const FILTERINGS: [Filtering; 3] = [
        Filtering::EndpointIndependent,
        Filtering::AddressDependent,
        Filtering::AddressAndPortDependent,
    ];

    fn nat(mapping: Mapping, filtering: Filtering, allocation: Allocation) -> NatProfile {
        NatProfile {
            mapping,
            filtering,
            allocation,
            hairpin: None,
            pooling: Pooling::Paired,
        }
    }

    fn all() -> Vec<NatProfile> {
        let mut all = Vec::new();
        for mapping in MAPPINGS {
            for filtering in FILTERINGS {
                all.extend(ALLOCATIONS.map(|allocation| nat(mapping, filtering, allocation)));
            }
        }
        all
    }

    /// The table of the whole matrix, written down by rows.
    fn reachable(a: &NatProfile, b: &NatProfile) -> bool {
        let easy = |side: &NatProfile| side.mapping == Mapping::EndpointIndependent;
        let loose = |side: &NatProfile| side.filtering != Filtering::AddressAndPortDependent;
        let random = |side: &NatProfile| matches!(side.allocation, Allocation::Random { .. });
        let by_address = |side: &NatProfile| side.mapping == Mapping::AddressDependent;
        if easy(a) || easy(b) || loose(a) && loose(b) {
            return true;
        }
        match (loose(a), loose(b)) {
            (true, false) if by_address(a) => true,
            (false, true) if by_address(b) => true,
            _ => !random(a) && !random(b),
        }
    }

    #[test]
    fn every_pair_that_can_be_reached_has_a_way_and_no_other() {
        for a in all() {
            for b in all() {
                let prospects = prospects(&a, &b, true);
                let found = prospects.plain || !prospects.plans.is_empty();
                assert_eq!(found, reachable(&a, &b), "{a:?} × {b:?}");
            }
        }
    }

    #[test]
    fn both_sides_come_to_matching_plans_in_one_order() {
        let mut profiles = all();
        profiles.push(NatProfile::default());
        profiles.push(nat(Mapping::Unknown, Filtering::NotPortDependent, RANDOM));
        for a in &profiles {
            for b in &profiles {
                let (own, other) = (prospects(a, b, true), prospects(b, a, false));
                assert_eq!(own.plain, other.plain);
                assert_eq!(own.plans.len(), other.plans.len());
                for (own, other) in own.plans.iter().zip(&other.plans) {
                    let matching = matches!(
                        (own, other),
                        (Plan::Meet(_), Plan::Meet(_))
                            | (Plan::Open, Plan::Search { .. })
                            | (Plan::Search { .. }, Plan::Open)
                    );
                    assert!(matching, "{a:?} × {b:?}: {own:?}, {other:?}");
                }
            }
        }
    }

    #[test]
    fn random_ports_are_searched_by_the_side_whose_port_is_known_or_that_makes_fewer_mappings() {
        let strict = Filtering::AddressAndPortDependent;
        let hard = nat(Mapping::AddressAndPortDependent, strict, RANDOM);
        let home = nat(Mapping::EndpointIndependent, strict, Allocation::Preserving);
        let search = Plan::Search {
            block: Some((2_000, 60_000)),
            announced: true,
        };
        for own_first in [true, false] {
            assert_eq!(prospects(&home, &hard, own_first).plans, [search]);
            assert_eq!(prospects(&hard, &home, own_first).plans, [Plan::Open]);
            let adm = nat(
                Mapping::AddressDependent,
                Filtering::AddressDependent,
                RANDOM,
            );
            let apdm = nat(
                Mapping::AddressAndPortDependent,
                Filtering::AddressDependent,
                RANDOM,
            );
            assert_eq!(prospects(&apdm, &adm, own_first).plans, [Plan::Open]);
        }
    }

    #[test]
    fn a_port_is_not_foretold_where_the_address_cannot_be() {
        let strict = Filtering::AddressAndPortDependent;
        let home = nat(Mapping::EndpointIndependent, strict, Allocation::Preserving);
        let pooled = |mapping, allocation| NatProfile {
            pooling: Pooling::Arbitrary,
            ..nat(mapping, strict, allocation)
        };
        for allocation in ALLOCATIONS {
            let hard = pooled(Mapping::AddressAndPortDependent, allocation);
            assert_eq!(prospects(&hard, &home, true).plans, [Plan::Open]);
            assert_eq!(prospects(&hard, &hard, true).plans, []);
            // What a fresh socket gets is measured with its address.
            let easy = pooled(Mapping::EndpointIndependent, allocation);
            let measured = Plan::Meet(Kit::Measured);
            assert_eq!(prospects(&easy, &home, true).plans, [measured]);
        }
    }

    #[test]
    fn ports_that_can_be_told_are_met_first() {
        let strict = Filtering::AddressAndPortDependent;
        let counting = Allocation::Sequential { delta: -2 };
        let counting = nat(Mapping::AddressAndPortDependent, strict, counting);
        let preserving = Allocation::Preserving;
        let preserving = nat(Mapping::AddressAndPortDependent, strict, preserving);
        let row = Plan::Meet(Kit::Row { delta: -2 });
        assert_eq!(prospects(&counting, &preserving, true).plans, [row]);
        let virgin = Plan::Meet(Kit::Virgin);
        assert_eq!(prospects(&preserving, &counting, true).plans, [virgin]);
    }

    #[test]
    fn a_rule_of_allocation_serves_both_readings_of_a_mapping() {
        let strict = Filtering::AddressAndPortDependent;
        let unknown = nat(Mapping::Unknown, strict, Allocation::Preserving);
        for other in [Mapping::Unknown, Mapping::AddressDependent] {
            let counting = Allocation::Sequential { delta: 1 };
            let counting = nat(other, strict, counting);
            let (own, theirs) = (
                prospects(&unknown, &counting, true),
                prospects(&counting, &unknown, false),
            );
            assert_eq!(own.plans[0], Plan::Meet(Kit::Virgin));
            assert_eq!(theirs.plans[0], Plan::Meet(Kit::Row { delta: 1 }));
            let meetings = own
                .plans
                .iter()
                .filter(|plan| matches!(plan, Plan::Meet(_)));
            assert_eq!(meetings.count(), 1, "{:?}", own.plans);
        }
    }

    #[test]
    fn a_mapping_that_one_relay_cannot_tell_is_read_both_ways() {
        let strict = Filtering::AddressAndPortDependent;
        let unknown = nat(Mapping::Unknown, strict, RANDOM);
        let home = nat(Mapping::EndpointIndependent, strict, Allocation::Preserving);
        let prospects = prospects(&unknown, &home, true);
        assert!(prospects.plain);
        assert_eq!(prospects.plans, [Plan::Open, Plan::Meet(Kit::Measured)]);
    }
}
