//! Relays that restart, stay away, or are one of two.

use mesh_tests::sim::{LinkConfig, Sim, Site, for_seeds};

use crate::common::{hard, home, ms, secs, until_direct, until_relayed, until_works};

#[test]
fn a_relay_that_restarts_costs_a_relayed_pair_two_seconds_at_most() {
    for_seeds(0..20, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(hard(), hard());
        sim.run_for(secs(1));
        let flow = until_relayed(&mut sim, pair);
        sim.run_for(secs(10));
        sim.stop_relay(pair.relay);
        sim.start_relay(pair.relay);
        until_works(&mut sim, "an answer", flow, secs(2));
    });
}

#[test]
fn a_relay_that_was_away_is_used_again_soon_after_it_is_back() {
    for_seeds(0..5, |seed| {
        for away in [1, 10, 40, 300] {
            let mut sim = Sim::new(seed);
            let pair = sim.pair(hard(), hard());
            sim.run_for(secs(1));
            let flow = until_relayed(&mut sim, pair);
            sim.stop_relay(pair.relay);
            sim.run_for(secs(away));
            sim.start_relay(pair.relay);
            // The longest pause between dials is 30 s and a quarter; a dial takes up to 10 s.
            until_works(&mut sim, "an answer", flow, secs(50));
            sim.run_for(secs(1));
            assert!(sim.health(pair.a).is_empty(), "{:?}", sim.health(pair.a));
        }
    });
}

#[test]
fn a_direct_pair_does_not_notice_that_the_relay_restarts_or_dies() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let flow = until_direct(&mut sim, pair);
        let start = sim.now();
        sim.run_for(secs(5));
        sim.stop_relay(pair.relay);
        sim.start_relay(pair.relay);
        sim.run_for(secs(60));
        sim.stop_relay(pair.relay);
        sim.run_for(secs(300));
        assert!(sim.is_direct(pair.a, pair.b));
        sim.stop_flow(flow);
        let end = sim.now();
        sim.run_for(secs(1));
        assert_eq!(sim.stream(flow).missing(start..end), 0);
        assert!(
            !sim.health(pair.a).is_empty(),
            "a relay that is away is worth a line"
        );
    });
}

#[test]
fn a_relay_that_starts_after_the_hosts_brings_them_together() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.stop_relay(pair.relay);
        sim.run_for(secs(5));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_for(secs(20));
        sim.start_relay(pair.relay);
        until_works(&mut sim, "an answer", flow, secs(50));
        sim.run_until("a direct path", secs(15), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
    });
}

#[test]
fn a_second_relay_takes_over_when_the_first_dies() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let near = sim.add_relay(LinkConfig::delay(ms(5)));
        let far = sim.add_relay(LinkConfig::delay(ms(40)));
        let (a, b) = (sim.host_at("a", hard()).0, sim.host_at("b", hard()).0);
        sim.network(&[a, b], &[near, far]);
        sim.run_for(secs(2));
        let flow = sim.echo(a, b);
        sim.run_until("an answer", secs(5), |sim| sim.stream(flow).works());
        sim.run_for(secs(10));
        sim.stop_relay(near);
        until_works(&mut sim, "an answer over the other relay", flow, secs(3));
    });
}

#[test]
fn hosts_that_share_only_one_of_their_relays_meet_there() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let relays = [5, 10, 20].map(|delay| sim.add_relay(LinkConfig::delay(ms(delay))));
        let (a, b) = (sim.host_at("a", hard()).0, sim.host_at("b", hard()).0);
        // The shared relay is the home of neither.
        sim.configure(&[a, b], &[relays[0], relays[2]]);
        let urls = sim.host(a).membership.relays.clone();
        sim.configure(&[a, b], &[relays[1], relays[2]]);
        sim.host_mut(a).membership.relays = urls;
        sim.start(a);
        sim.start(b);
        sim.run_for(secs(2));
        let flow = if seed % 2 == 0 {
            sim.echo(a, b)
        } else {
            sim.echo(b, a)
        };
        until_works(&mut sim, "an answer", flow, secs(3));
    });
}

#[test]
fn many_hosts_behind_one_relay_all_reach_each_other_after_it_restarts() {
    let mut sim = Sim::new(5);
    let relay = sim.add_relay(LinkConfig::access());
    let hosts: Vec<_> = (0..8)
        .map(|n| sim.host_at(&format!("h{n}"), hard()).0)
        .collect();
    sim.network(&hosts, &[relay]);
    sim.run_for(secs(2));
    let flows: Vec<_> = hosts
        .windows(2)
        .map(|pair| sim.echo(pair[0], pair[1]))
        .collect();
    sim.run_for(secs(10));
    sim.stop_relay(relay);
    sim.run_for(secs(3));
    sim.start_relay(relay);
    for flow in flows {
        until_works(&mut sim, "an answer", flow, secs(30));
    }
}

#[test]
fn a_public_host_without_traffic_only_keeps_its_relay_connection() {
    let mut sim = Sim::new(1);
    let pair = sim.pair(Site::public(), Site::public());
    sim.run_for(secs(30));
    let before = sim.host(pair.a).counters.datagrams;
    sim.run_for(secs(1_000));
    let sent = sim.host(pair.a).counters.datagrams - before;
    assert!(
        sent <= 60,
        "{sent} datagrams, where STUN every five minutes needs a few"
    );
    assert_eq!(sim.host(pair.a).counters.dials, 1);
}
