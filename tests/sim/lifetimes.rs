//! How long NATs remember, and what hosts do about it.

use std::time::Duration;

use mesh_core::engine::Event;
use mesh_tests::sim::{FlowConfig, HostId, LinkConfig, NatConfig, Sim, Site, for_seeds};

use crate::common::{ms, secs, until_direct};

/// As `netcheck` tells it.
fn lifetime(sim: &mut Sim, host: HostId, token: u64) -> Option<Duration> {
    sim.netcheck(host, token);
    sim.run_for(secs(2));
    let reports = sim.host(host).events.iter();
    let mut reports = reports.filter_map(|(_, event)| match event {
        Event::Netcheck { token: of, report } if *of == token => Some(report.mapping_lifetime),
        _ => None,
    });
    reports.next().expect("netcheck is answered")
}

#[test]
fn it_is_learned_in_three_minutes_how_long_the_nat_remembers() {
    for_seeds(0..4, |seed| {
        for (forgets, found) in [(8, 0), (10, 9), (30, 28), (60, 58), (120, 116), (300, 116)] {
            let mut sim = Sim::new(seed);
            let relay = sim.add_relay(LinkConfig::access());
            let nat = NatConfig::home().lifetime(secs(forgets));
            let host = sim.host_at("a", Site::nat(nat)).0;
            sim.network(&[host], &[relay]);
            sim.run_for(secs(5));
            assert_eq!(lifetime(&mut sim, host, 1), None);
            sim.run_for(secs(185));
            let known = Some(secs(found));
            assert_eq!(lifetime(&mut sim, host, 2), known, "after {forgets} s");
            assert_eq!(sim.host(host).spares(), 0);
            // And another network's NAT is another one, until we are back.
            let router = sim.host_at("elsewhere", Site::nat(NatConfig::home())).1;
            let router = router.expect("there is a NAT");
            sim.unplug(host, false);
            sim.plug(host, router, mesh_tests::sim::Families::V4, false);
            sim.run_for(secs(3));
            assert_eq!(lifetime(&mut sim, host, 3), None);
        }
    });
}

#[test]
fn a_path_through_a_nat_that_forgets_soon_is_held_and_one_through_another_costs_less() {
    let probes = |forgets: u64| {
        let mut sim = Sim::new(5);
        let nat = Site::nat(NatConfig::home().lifetime(secs(forgets)));
        let pair = sim.pair(nat, nat);
        sim.run_for(secs(1));
        let flow = until_direct(&mut sim, pair);
        sim.stop_flow(flow);
        let (from, to) = (pair.a, pair.b);
        let rare = sim.flow(FlowConfig {
            from,
            to,
            interval: secs(100),
            size: 100,
            echo: true,
        });
        sim.run_for(secs(350));
        let changes = sim.host(pair.a).counters.path_changes;
        let (start, before) = (sim.now(), sim.host(pair.a).counters.datagrams);
        sim.run_for(secs(900));
        let end = sim.now();
        assert!(sim.is_direct(pair.a, pair.b));
        assert_eq!(
            sim.host(pair.a).counters.path_changes,
            changes,
            "{forgets} s"
        );
        sim.stop_flow(rare);
        sim.run_for(secs(1));
        assert_eq!(sim.stream(rare).missing(start..end), 0);
        sim.host(pair.a).counters.datagrams - before
    };
    let (often, seldom) = (probes(10), probes(300));
    assert!(seldom * 2 < often, "{seldom} and {often} datagrams");
}

#[test]
fn a_relay_reaches_a_silent_host_behind_a_nat_that_forgets_in_ten_seconds() {
    for_seeds(0..4, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(
            Site::nat(NatConfig::home().lifetime(secs(10))),
            crate::common::hard(),
        );
        // What it takes to learn that.
        sim.run_for(secs(100));
        for pause in [3, 9, 14, 25, 37] {
            sim.run_for(secs(pause));
            sim.ping(pair.b, pair.a, pause, ms(900));
            sim.run_for(secs(1));
            let answered = sim.pong(pair.b, pause).flatten().is_some();
            assert!(answered, "after {pause} s");
        }
    });
}
