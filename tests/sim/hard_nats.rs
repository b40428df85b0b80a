//! NATs that the plain punch does not open: ports are foretold, or found by many tries within a budget.

use std::time::Duration;

use mesh_core::engine::{AttemptReport, Strategy};
use mesh_core::limits;
use mesh_tests::sim::{
    Allocation, Filtering, HostId, LinkConfig, Mapping, NatConfig, Pair, Pool, Sim, Site, for_seeds,
};

use crate::common::{home, ms, secs, until_works};

const PRESERVING: Allocation = Allocation::Preserving;
const COUNTING: Allocation = Allocation::Sequential(1);
const RANDOM: Allocation = Allocation::Random;

const fn nat(mapping: Mapping, filtering: Filtering, allocation: Allocation) -> Site {
    Site::nat(NatConfig::new(mapping, filtering).allocation(allocation))
}

const fn hard(allocation: Allocation) -> Site {
    nat(Mapping::Apdm, Filtering::Apdf, allocation)
}

/// Two hosts with two relays, so that every kind of mapping can be told, that have measured their NATs.
fn pair(seed: u64, a: Site, b: Site) -> (Sim, Pair) {
    let mut sim = Sim::new(seed);
    let relays = [
        sim.add_relay(LinkConfig::access()),
        sim.add_relay(LinkConfig::access()),
    ];
    let (a, router_a) = sim.host_at("a", a);
    let (b, router_b) = sim.host_at("b", b);
    sim.network(&[a, b], &relays);
    let relay = relays[0];
    let pair = Pair {
        a,
        b,
        relay,
        router_a,
        router_b,
    };
    sim.run_for(secs(3));
    (sim, pair)
}

/// As [`pair`] with one relay of one address, which cannot tell whether a mapping depends on the address.
fn with_one_relay(seed: u64, a: Site, b: Site) -> (Sim, Pair) {
    let mut sim = Sim::new(seed);
    let pair = sim.pair(a, b);
    sim.run_for(secs(3));
    (sim, pair)
}

/// What a host has tried to reach another one.
fn attempts(sim: &Sim, from: HostId, to: HostId) -> Vec<AttemptReport> {
    sim.explain(from, to)
        .map(|explanation| explanation.attempts)
        .unwrap_or_default()
}

/// Runs until there is a direct path that carries data.
fn opens(seed: u64, a: Site, b: Site, limit: Duration) -> (Sim, Pair) {
    let (mut sim, pair) = pair(seed, a, b);
    let flow = if seed.is_multiple_of(2) {
        sim.echo(pair.a, pair.b)
    } else {
        sim.echo(pair.b, pair.a)
    };
    sim.run_until("a direct path", limit, |sim| sim.is_direct(pair.a, pair.b));
    until_works(&mut sim, "data", flow, secs(1));
    (sim, pair)
}

#[test]
fn a_preserving_nat_is_met_at_the_port_of_a_socket_that_has_sent_nothing() {
    for_seeds(0..20, |seed| {
        let (sim, pair) = opens(seed, home(), hard(PRESERVING), secs(4));
        assert!(sim.host(pair.a).spares() <= 1);
        let last = attempts(&sim, pair.a, pair.b).pop().unwrap();
        assert_eq!((last.strategy, last.answered), (Strategy::Meet, true));
    });
}

#[test]
fn a_counting_nat_is_met_at_the_port_that_comes_next() {
    for_seeds(0..20, |seed| {
        for delta in [-5, -1, 1, 2] {
            let counting = hard(Allocation::Sequential(delta));
            opens(seed, home(), counting, secs(4));
        }
    });
}

#[test]
fn two_counting_nats_meet() {
    for_seeds(0..20, |seed| {
        opens(
            seed,
            hard(COUNTING),
            hard(Allocation::Sequential(-2)),
            secs(4),
        );
        opens(seed, hard(COUNTING), hard(PRESERVING), secs(4));
        opens(seed, hard(PRESERVING), hard(PRESERVING), secs(4));
    });
}

#[test]
fn a_port_is_foretold_beside_a_round_that_may_be_in_vain() {
    for_seeds(0..20, |seed| {
        for allocation in [PRESERVING, COUNTING] {
            let by_address = nat(Mapping::Adm, Filtering::Apdf, allocation);
            let (mut sim, pair) = with_one_relay(seed, home(), by_address);
            let flow = if seed.is_multiple_of(2) {
                sim.echo(pair.a, pair.b)
            } else {
                sim.echo(pair.b, pair.a)
            };
            until_works(&mut sim, "data over the relay", flow, secs(2));
            sim.run_until("a direct path", ms(1_800), |sim| {
                sim.is_direct(pair.a, pair.b)
            });
            let tried = attempts(&sim, pair.a, pair.b);
            let last = tried.last().unwrap();
            assert_eq!((last.strategy, last.answered), (Strategy::Meet, true));
            // It stays, and the plain round that runs on beside it ends.
            sim.run_for(secs(20));
            assert!(sim.is_direct(pair.a, pair.b));
            assert!(sim.host(pair.a).spares() <= limits::ROW_SOCKETS + 1);
        }
    });
}

#[test]
fn no_port_is_foretold_where_the_plain_round_works() {
    for_seeds(0..20, |seed| {
        let (mut sim, pair) = with_one_relay(seed, home(), home());
        sim.echo(pair.a, pair.b);
        sim.run_until("a direct path", secs(2), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        sim.run_for(secs(10));
        for host in [pair.a, pair.b] {
            let done = sim.host(host).engine().unwrap().traversal();
            assert_eq!(done, mesh_core::engine::Traversal::default());
            assert_eq!(sim.host(host).spares(), 0);
        }
    });
}

#[test]
fn a_block_of_ports_that_was_seen_is_searched_first() {
    for_seeds(0..20, |seed| {
        let block = hard(Allocation::Block(2_048));
        let (sim, pair) = opens(seed, home(), block, secs(30));
        let tried = attempts(&sim, pair.a, pair.b);
        let search = tried.iter().find(|one| one.strategy == Strategy::Search);
        let search = search.expect("a search was made");
        // One port in eight is open there; in all ports one in 250.
        assert!(search.answered && search.probes <= 128, "{search:?}");
    });
}

#[test]
fn a_nat_with_several_addresses_is_searched_at_those_that_relays_see() {
    for_seeds(0..10, |seed| {
        let pooled = NatConfig::new(Mapping::Apdm, Filtering::Apdf)
            .allocation(RANDOM)
            .pool(Pool::Arbitrary(2));
        let (sim, pair) = opens(seed, home(), Site::nat(pooled), secs(100));
        let tried = attempts(&sim, pair.a, pair.b);
        assert!(tried.iter().all(|one| one.strategy != Strategy::Meet));
        let external = sim.external(pair.router_b.unwrap());
        let target = tried.last().unwrap().target.ip();
        let beside = |ip: std::net::IpAddr| match (ip, external) {
            (std::net::IpAddr::V4(ip), std::net::IpAddr::V4(first)) => {
                (first.to_bits()..first.to_bits() + 2).contains(&ip.to_bits())
            }
            _ => false,
        };
        assert!(beside(target), "{target}");
    });
}

#[test]
fn a_host_whose_sockets_get_several_addresses_searches_from_the_one_that_the_peer_knows() {
    for_seeds(0..10, |seed| {
        let pooled = NatConfig::home().pool(Pool::Arbitrary(2));
        let (sim, pair) = opens(seed, Site::nat(pooled), hard(RANDOM), secs(60));
        let tried = attempts(&sim, pair.a, pair.b);
        let search = tried.iter().find(|one| one.strategy == Strategy::Search);
        assert!(search.is_some_and(|search| search.answered), "{tried:?}");
    });
}

#[test]
fn hosts_that_talk_before_they_have_measured_their_nats_are_direct_as_soon_as_they_have() {
    for_seeds(0..20, |seed| {
        for (a, b) in [(home(), hard(COUNTING)), (hard(PRESERVING), home())] {
            let mut sim = Sim::new(seed);
            let relay = sim.add_relay(LinkConfig::access());
            let (a, b) = (sim.host_at("a", a).0, sim.host_at("b", b).0);
            sim.network(&[a, b], &[relay]);
            let flow = if seed.is_multiple_of(2) {
                sim.echo(a, b)
            } else {
                sim.echo(b, a)
            };
            until_works(&mut sim, "data over the relay", flow, secs(2));
            sim.run_until("a direct path", ms(2_000), |sim| sim.is_direct(a, b));
        }
    });
}

#[test]
fn random_ports_are_hit_within_the_budget_in_98_of_100_cases() {
    let missed = std::sync::Mutex::new(Vec::new());
    for_seeds(0..100, |seed| {
        let (mut sim, pair) = pair(seed, home(), hard(RANDOM));
        sim.echo(pair.a, pair.b);
        sim.try_until(secs(30), |sim| sim.is_direct(pair.a, pair.b));
        let first = attempts(&sim, pair.a, pair.b);
        let first = first
            .iter()
            .find(|tried| tried.strategy == Strategy::Search);
        let first = first.expect("a search was made");
        assert!(first.probes as usize <= limits::SPRAY_PROBES);
        if !first.answered {
            missed.lock().unwrap().push(seed);
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.len() <= 2, "{missed:?}");
}

#[test]
fn the_winners_socket_carries_the_data_and_all_others_are_closed() {
    for_seeds(0..10, |seed| {
        let (mut sim, pair) = opens(seed, home(), hard(RANDOM), secs(60));
        sim.run_for(secs(1));
        assert!(
            sim.host(pair.a).spares() <= 1,
            "{}",
            sim.host(pair.a).spares()
        );
        assert_eq!(sim.host(pair.b).spares(), 1);
        // It costs too much to be given up for a pause.
        let changes = sim.host(pair.a).counters.path_changes;
        sim.run_for(secs(20));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_for(secs(600));
        sim.stop_flow(flow);
        sim.run_for(secs(280));
        assert!(sim.is_direct(pair.a, pair.b));
        assert_eq!(sim.host(pair.a).counters.path_changes, changes);
    });
}

#[test]
fn random_ports_behind_filters_by_address_are_found_in_every_combination_of_mappings() {
    for_seeds(0..6, |seed| {
        for a in [Mapping::Adm, Mapping::Apdm] {
            for b in [Mapping::Adm, Mapping::Apdm] {
                let (a, b) = (
                    nat(a, Filtering::Adf, RANDOM),
                    nat(b, Filtering::Adf, RANDOM),
                );
                opens(seed, a, b, secs(100));
            }
        }
        let opener = nat(Mapping::Adm, Filtering::Adf, RANDOM);
        opens(seed, opener, hard(RANDOM), secs(100));
        opens(seed, opener, hard(PRESERVING), secs(100));
    });
}

#[test]
fn a_port_that_was_poisoned_is_left_for_a_fresh_one() {
    let accepting = Site::nat(NatConfig::home().accepting_input());
    for_seeds(0..20, |seed| {
        let (mut sim, pair) = pair(seed, accepting, home());
        let port = sim.host(pair.a).port;
        let router = pair.router_a.unwrap();
        let poisoned = std::net::SocketAddr::new(sim.external(router), port);
        sim.send_raw(pair.b, poisoned, None, vec![0; 50]);
        sim.run_for(ms(500));
        let flow = sim.echo(pair.b, pair.a);
        sim.run_until("a direct path", secs(60), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        until_works(&mut sim, "data", flow, secs(1));
        let tried = attempts(&sim, pair.a, pair.b);
        let plain = tried
            .iter()
            .filter(|tried| tried.strategy == Strategy::Plain);
        assert!(plain.clone().count() >= 2 && plain.clone().all(|tried| !tried.answered));
        let last = tried.last().unwrap();
        assert_eq!((last.strategy, last.answered), (Strategy::Meet, true));
    });
}

#[test]
fn no_budget_is_exceeded_where_nothing_helps() {
    for_seeds(0..3, |seed| {
        let (mut sim, pair) = pair(seed, home(), hard(RANDOM));
        let externals = [pair.router_a, pair.router_b].map(|router| sim.external(router.unwrap()));
        let [a, b] = externals.map(ipnet::IpNet::from);
        sim.core().block(a, b);
        sim.core().block(b, a);
        let (from, to) = (pair.a, pair.b);
        let flow = sim.flow(mesh_tests::sim::FlowConfig {
            from,
            to,
            interval: secs(5),
            size: 100,
            echo: true,
        });
        let mut most = 0;
        for _ in 0..7_200 {
            sim.run_for(secs(1));
            most = most
                .max(sim.host(pair.a).spares())
                .max(sim.host(pair.b).spares());
        }
        assert!(sim.stream(flow).works());
        for (host, other) in [(pair.a, pair.b), (pair.b, pair.a)] {
            let done = sim.host(host).engine().unwrap().traversal();
            assert_eq!(done.attempts as usize, limits::SPRAYS_PER_PAIR);
            assert_eq!(done.opened, 0);
            // What monitoring is told adds up, and so does what `explain` says of the one peer.
            let [plain, hard @ ..] = Strategy::ALL.map(|strategy| done.outcomes(strategy));
            assert!(plain.opened == 0 && plain.failed >= 2, "{plain:?}");
            let failed: u64 = hard.iter().map(|outcomes| outcomes.failed).sum();
            assert_eq!(failed, done.attempts);
            assert!(hard.iter().all(|outcomes| outcomes.opened == 0));
            let explained = sim.explain(host, other).unwrap().mappings;
            assert!(
                done.mappings > 0 && explained == done.mappings,
                "{explained}"
            );
            assert!(done.probes as usize <= limits::SPRAYS_PER_PAIR * limits::SPRAY_PROBES);
            for tried in attempts(&sim, host, other) {
                assert!(tried.probes as usize <= limits::SPRAY_PROBES);
                assert!(tried.duration <= limits::SPRAY_TIME);
                assert!(!tried.answered);
            }
            assert_eq!(sim.host(host).spares(), 0);
        }
        assert!(
            (limits::SPRAY_SOCKETS..=limits::SPRAY_SOCKETS + 8).contains(&most),
            "{most}"
        );
    });
}

#[test]
fn a_peer_that_names_a_strangers_address_cannot_aim_a_spray_at_it() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let relay = sim.add_relay(LinkConfig::access());
        let (a, _) = sim.host_at("a", home());
        let (b, router) = sim.host_at("b", hard(RANDOM));
        let victim = sim.public_host("victim", LinkConfig::access());
        let victims = sim.socket_of(victim).ip();
        sim.host_mut(b).claims.push(victims);
        sim.network(&[a, b], &[relay]);
        sim.run_for(secs(3));
        sim.echo(a, b);
        sim.record_ports(victim);
        sim.try_until(secs(40), |sim| sim.is_direct(a, b));
        let searched = attempts(&sim, a, b);
        let mut searched = searched
            .iter()
            .filter(|tried| tried.strategy == Strategy::Search);
        let at_peer = searched.all(|tried| tried.target.ip() == sim.external(router.unwrap()));
        assert!(at_peer);
        // Its one address is tried like any other, and no other port.
        assert!(
            sim.ports_tried(victim).len() <= 1,
            "{:?}",
            sim.ports_tried(victim)
        );
    });
}
