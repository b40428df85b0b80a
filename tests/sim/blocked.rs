//! Hosts whose UDP goes nowhere.

use mesh_tests::sim::{LinkConfig, RouterConfig, Sim, Site, for_seeds};

use crate::common::{home, secs, until_works};

#[test]
fn a_host_without_udp_says_so_and_sends_little() {
    for_seeds(0..3, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(Site::behind(RouterConfig::udp_blocked()), home());
        sim.run_for(secs(1));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_for(secs(300));
        assert!(!sim.stream(flow).works());
        assert!(
            sim.health(pair.a)
                .iter()
                .any(|line| line.contains("no answer")),
            "{:?}",
            sim.health(pair.a)
        );
        assert!(sim.health(pair.b).is_empty(), "{:?}", sim.health(pair.b));
        let counters = &sim.host(pair.a).counters;
        assert!(counters.dials < 20, "{counters:?}");
        assert!(counters.datagrams < 500, "{counters:?}");
    });
}

#[test]
fn a_host_whose_udp_is_let_through_later_is_reached_within_a_minute() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(Site::behind(RouterConfig::udp_blocked()), home());
        sim.run_for(secs(100));
        let flow = sim.echo(pair.b, pair.a);
        sim.run_for(secs(10));
        if let Some(router) = pair.router_a {
            sim.router_mut(router).set_udp_blocked(false);
        }
        until_works(&mut sim, "an answer", flow, secs(60));
        sim.run_until("nothing to complain about", secs(10), |sim| {
            sim.health(pair.a).is_empty()
        });
    });
}

#[test]
fn udp_that_is_blocked_under_way_shows_and_heals() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), Site::public());
        sim.run_for(secs(1));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_until("a direct path", secs(10), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        let Some(router) = pair.router_a else {
            panic!("the first host is behind a router");
        };
        sim.router_mut(router).set_udp_blocked(true);
        sim.run_for(secs(60));
        assert!(!sim.health(pair.a).is_empty());
        sim.router_mut(router).set_udp_blocked(false);
        until_works(&mut sim, "an answer", flow, secs(60));
    });
}

#[test]
fn a_relay_that_is_another_one_than_configured_is_not_used() {
    let mut sim = Sim::new(1);
    let (right, wrong) = (
        sim.add_relay(LinkConfig::access()),
        sim.add_relay(LinkConfig::access()),
    );
    let a = sim.public_host("a", LinkConfig::access());
    let b = sim.public_host("b", LinkConfig::access());
    sim.configure(&[a, b], &[wrong]);
    let id = sim.relay(right).id();
    for host in [a, b] {
        sim.host_mut(host).membership.relays[0].id = id;
        sim.start(host);
    }
    let flow = sim.echo(a, b);
    sim.run_for(secs(60));
    assert!(!sim.stream(flow).works());
    assert!(
        sim.health(a)
            .iter()
            .any(|line| line.contains("another key")),
        "{:?}",
        sim.health(a)
    );
    assert_eq!(
        sim.relay(wrong)
            .server()
            .map(mesh_core::relay::server::Server::clients),
        Some(0)
    );
}
