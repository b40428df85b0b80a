//! Two hosts with one key.

use mesh_tests::sim::{LinkConfig, Sim, for_seeds};

use crate::common::{home, secs};

#[test]
fn a_cloned_key_ends_in_a_health_line_and_not_in_a_fight() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        let clone = sim.host_at("clone", home()).0;
        sim.run_for(secs(5));
        let membership = sim.host(clone).membership.clone();
        let mut membership = membership.with_key_of(&sim.host(pair.a).membership);
        membership
            .peers
            .clone_from(&sim.host(pair.a).membership.peers);
        membership
            .relays
            .clone_from(&sim.host(pair.a).membership.relays);
        sim.host_mut(clone).membership = membership;
        sim.start(clone);
        sim.run_for(secs(30));
        let lines = sim.health(pair.a);
        assert!(
            lines
                .iter()
                .any(|line| line.contains("another host uses this node's key")),
            "{lines:?}"
        );
        // The newer one has the place, and keeps it.
        let flow = sim.echo(clone, pair.b);
        sim.run_until("an answer for the newer one", secs(5), |sim| {
            sim.stream(flow).works()
        });
        sim.run_for(secs(1_800));
        let dials = sim.host(pair.a).counters.dials + sim.host(clone).counters.dials;
        assert!(dials <= 10, "{dials} dials in half an hour");
    });
}

#[test]
fn the_older_of_two_hosts_with_one_key_returns_when_the_newer_one_is_gone() {
    let mut sim = Sim::new(2);
    let pair = sim.pair(home(), home());
    let clone = sim.host_at("clone", home()).0;
    sim.run_for(secs(5));
    let membership = sim
        .host(clone)
        .membership
        .with_key_of(&sim.host(pair.a).membership);
    let original = sim.host(pair.a).membership.clone();
    sim.host_mut(clone).membership = membership;
    sim.host_mut(clone).membership.peers = original.peers;
    sim.host_mut(clone).membership.relays = original.relays;
    sim.start(clone);
    sim.run_for(secs(10));
    sim.stop(clone);
    let flow = sim.echo(pair.b, pair.a);
    sim.run_until("an answer from the older one", secs(700), |sim| {
        sim.stream(flow).works()
    });
    sim.run_for(secs(5));
    assert!(sim.health(pair.a).is_empty());
}

#[test]
fn a_host_that_restarts_often_is_not_taken_for_a_clone() {
    let mut sim = Sim::new(3);
    let relay = sim.add_relay(LinkConfig::access());
    let (a, b) = (sim.host_at("a", home()).0, sim.host_at("b", home()).0);
    sim.network(&[a, b], &[relay]);
    sim.run_for(secs(2));
    for _ in 0..10 {
        sim.start(a);
        sim.run_for(secs(3));
        assert!(sim.health(a).is_empty(), "{:?}", sim.health(a));
    }
}
