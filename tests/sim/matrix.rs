//! Every pair of NATs: direct soon where the plain punch can do it, later where something else can, and over the relay
//! and working until then.

use std::time::Duration;

use mesh_tests::sim::{Allocation, Filtering, FlowConfig, Mapping, NatConfig, Sim, for_seeds};

use crate::expectation::{Edge, punches};

const MAPPINGS: [Mapping; 3] = [Mapping::Eim, Mapping::Adm, Mapping::Apdm];
const FILTERINGS: [Filtering; 3] = [Filtering::Eif, Filtering::Adf, Filtering::Apdf];
const ALLOCATIONS: [Allocation; 5] = [
    Allocation::Preserving,
    Allocation::Offset(1_000),
    Allocation::Multiple(3),
    Allocation::Sequential(1),
    Allocation::Random,
];

fn nats() -> Vec<Edge> {
    let mut nats = Vec::new();
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            for allocation in ALLOCATIONS {
                nats.push(Edge::Nat(
                    NatConfig::new(mapping, filtering).allocation(allocation),
                ));
            }
        }
    }
    nats
}

fn others() -> Vec<Edge> {
    vec![
        Edge::Public,
        Edge::Firewall(Filtering::Eif),
        Edge::Firewall(Filtering::Adf),
        Edge::Firewall(Filtering::Apdf),
    ]
}

/// How long a pair may take to find a direct path, as NAT.md's plain punch takes at worst with one failed round.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs two hosts that talk to each other; says what is wrong, if anything is.
fn run(seed: u64, a: Edge, b: Edge) -> Result<(), String> {
    let mut sim = Sim::new(seed);
    let pair = sim.pair(a.site(), b.site());
    sim.run_for(Duration::from_secs(1));
    let interval = Duration::from_millis(200);
    let flow = sim.flow(FlowConfig {
        from: pair.a,
        to: pair.b,
        interval,
        size: 100,
        echo: true,
    });
    let direct = sim.try_until(LIMIT, |sim| sim.is_direct(pair.a, pair.b));
    // Whatever the path: it stays, and it carries data.
    sim.run_for(Duration::from_secs(1));
    let since = sim.now();
    sim.run_for(Duration::from_secs(1));
    let expected = punches(a, b);
    let ends = (sim.remote(pair.a, pair.b), sim.remote(pair.b, pair.a));
    // One more may be direct: by something else than the plain punch, or by luck. Whoever is, stays.
    let stays = direct.is_none() || sim.is_direct(pair.a, pair.b);
    if expected && direct.is_none() || !stays {
        return Err(format!(
            "seed {seed}: {a:?} × {b:?}: direct after {direct:?}, ends {ends:?}, expected {expected}"
        ));
    }
    if !sim.stream(flow).works_since(since) {
        return Err(format!("seed {seed}: {a:?} × {b:?}: no data on {ends:?}"));
    }
    Ok(())
}

/// Runs every pair of an edge of the one list with one of the other, once for each seed.
fn check(left: &[Edge], right: &[Edge], seeds: std::ops::Range<u64>) {
    let mut wrong = Vec::new();
    for_seeds(seeds, |seed| {
        for a in left {
            for b in right {
                wrong.extend(run(seed, *a, *b).err());
            }
        }
    });
    assert!(
        wrong.is_empty(),
        "{} cells are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn with_mapping(mapping: Mapping) -> Vec<Edge> {
    let of_mapping = |edge: &Edge| matches!(edge, Edge::Nat(nat) if nat.mapping == mapping);
    nats().into_iter().filter(of_mapping).collect()
}

#[test]
fn hosts_without_nat_end_direct_with_anybody() {
    check(&others(), &others(), 0..3);
    check(&others(), &nats(), 0..3);
    check(&nats(), &others(), 3..6);
}

#[test]
fn endpoint_independent_mappings_end_direct_unless_the_other_side_is_hard_to_predict() {
    check(&with_mapping(Mapping::Eim), &nats(), 0..3);
}

#[test]
fn address_dependent_mappings_end_as_their_filters_allow() {
    check(&with_mapping(Mapping::Adm), &nats(), 0..3);
}

#[test]
fn port_dependent_mappings_end_as_their_filters_allow() {
    check(&with_mapping(Mapping::Apdm), &nats(), 0..3);
}
