//! Where hosts may be: on one LAN, behind two NATs, behind one carrier's NAT, with IPv6.

use mesh_core::engine::Strategy;
use mesh_tests::sim::{
    Filtering, HostId, LinkConfig, Mapping, NatConfig, PathKind, RelayId, RouterConfig, Sim, Site,
    for_seeds,
};

use crate::common::{hard, home, secs, until_direct, until_works};

/// Two hosts behind one router, and a relay.
fn neighbours(sim: &mut Sim, nat: NatConfig) -> (HostId, HostId, RelayId) {
    let relay = sim.add_relay(LinkConfig::access());
    let router = sim.router(RouterConfig::nat(nat), LinkConfig::access());
    let (a, b) = (sim.host_behind(router, "a"), sim.host_behind(router, "b"));
    (a, b, relay)
}

#[test]
fn hosts_on_one_lan_talk_by_their_addresses_there() {
    for_seeds(0..10, |seed| {
        for nat in [
            NatConfig::home(),
            NatConfig::home().hairpin(),
            NatConfig::new(Mapping::Apdm, Filtering::Apdf),
        ] {
            let mut sim = Sim::new(seed);
            let (a, b, relay) = neighbours(&mut sim, nat);
            sim.network(&[a, b], &[relay]);
            sim.run_for(secs(1));
            sim.echo(a, b);
            let (to_a, to_b) = (sim.socket_of(a), sim.socket_of(b));
            sim.run_until("the path on the LAN", secs(10), |sim| {
                sim.remote(a, b) == Some(to_b) && sim.remote(b, a) == Some(to_a)
            });
            sim.run_for(secs(30));
            assert_eq!(
                (sim.remote(a, b), sim.remote(b, a)),
                (Some(to_b), Some(to_a)),
                "and stay there"
            );
        }
    });
}

#[test]
fn hosts_with_equal_private_addresses_in_different_homes_do_not_talk_to_themselves() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        assert_eq!(sim.socket_of(pair.a), sim.socket_of(pair.b));
        sim.run_for(secs(1));
        until_direct(&mut sim, pair);
        assert_ne!(sim.remote(pair.a, pair.b), Some(sim.socket_of(pair.b)));
    });
}

#[test]
fn two_nats_in_a_row_on_both_sides_end_direct() {
    let double = home().outer(RouterConfig::nat(NatConfig::home()));
    for_seeds(0..10, |seed| {
        for (a, b) in [
            (double, double),
            (double, home()),
            (home(), double),
            (double, Site::public()),
        ] {
            let mut sim = Sim::new(seed);
            let pair = sim.pair(a, b);
            sim.run_for(secs(1));
            let flow = until_direct(&mut sim, pair);
            until_works(&mut sim, "data", flow, secs(1));
        }
    });
}

#[test]
fn two_accepting_routers_in_a_row_end_direct() {
    let accepting = NatConfig::home().accepting_input();
    let double = Site::nat(accepting).outer(RouterConfig::nat(accepting));
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(double, double);
        sim.run_for(secs(1));
        sim.echo(pair.a, pair.b);
        // The opener of the first round dies between the two routers; the second round may be needed.
        sim.run_until("a direct path", secs(25), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
    });
}

#[test]
fn a_hard_nat_behind_an_easy_one_is_a_hard_one_and_searched_through_both() {
    let buried = hard().outer(RouterConfig::nat(NatConfig::home()));
    for_seeds(0..3, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(buried, home());
        sim.run_for(secs(1));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_until("a direct path", secs(60), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        let last = sim.explain(pair.b, pair.a).map(|found| found.attempts);
        let last = last.unwrap_or_default().pop();
        assert!(last.is_some_and(|last| last.strategy == Strategy::Search));
        until_works(&mut sim, "data", flow, secs(1));
    });
}

#[test]
fn two_customers_of_a_carrier_that_hairpins_end_direct_and_others_stay_on_the_relay() {
    for_seeds(0..5, |seed| {
        for hairpins in [true, false] {
            let carrier = NatConfig::new(Mapping::Eim, Filtering::Eif);
            let carrier = if hairpins { carrier.hairpin() } else { carrier };
            let mut sim = Sim::new(seed);
            let relay = sim.add_relay(LinkConfig::access());
            let outer = sim.router(RouterConfig::nat(carrier), LinkConfig::access());
            let mut customer = |name| {
                let router = sim.router_behind(outer, RouterConfig::nat(NatConfig::home()));
                sim.host_behind(router, name)
            };
            let (a, b) = (customer("a"), customer("b"));
            sim.network(&[a, b], &[relay]);
            sim.run_for(secs(1));
            let flow = sim.echo(a, b);
            sim.run_for(secs(10));
            assert_eq!(sim.is_direct(a, b), hairpins);
            until_works(&mut sim, "data", flow, secs(1));
        }
    });
}

#[test]
fn a_way_round_by_the_outside_that_has_worked_is_tried_at_once_the_next_time() {
    for_seeds(0..5, |seed| {
        let forgets = secs(30);
        let carrier = NatConfig::new(Mapping::Eim, Filtering::Eif).hairpin();
        let home = RouterConfig::nat(NatConfig::home().lifetime(forgets));
        let mut sim = Sim::new(seed);
        let relay = sim.add_relay(LinkConfig::access());
        let outer = sim.router(
            RouterConfig::nat(carrier.lifetime(forgets)),
            LinkConfig::access(),
        );
        let mut customer = |name| {
            let router = sim.router_behind(outer, home);
            sim.host_behind(router, name)
        };
        let (a, b) = (customer("a"), customer("b"));
        sim.network(&[a, b], &[relay]);
        sim.run_for(secs(3));
        let took = |sim: &mut Sim| {
            let flow = sim.echo(a, b);
            let since = sim.now();
            sim.run_until("a direct path", secs(10), |sim| sim.is_direct(a, b));
            let took = sim.now().since(since);
            sim.stop_flow(flow);
            took
        };
        assert!(took(&mut sim) > secs(1));
        // Long enough that nothing of the first time is left but what was learnt.
        sim.run_for(secs(400));
        assert!(!sim.is_direct(a, b));
        let again = took(&mut sim);
        assert!(again < secs(1), "{again:?}");
    });
}

#[test]
fn ipv6_behind_firewalls_ends_direct_where_ipv4_cannot() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(hard(), hard());
        for (host, router) in [(pair.a, pair.router_a), (pair.b, pair.router_b)] {
            if let Some(router) = router {
                sim.add_ipv6(host, router);
            }
        }
        sim.run_for(secs(1));
        let flow = until_direct(&mut sim, pair);
        assert!(
            sim.remote(pair.a, pair.b)
                .is_some_and(|remote| remote.is_ipv6())
        );
        until_works(&mut sim, "data", flow, secs(1));
    });
}

#[test]
fn ipv6_on_one_side_only_does_no_harm() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        if let Some(router) = pair.router_a {
            sim.add_ipv6(pair.a, router);
        }
        sim.run_for(secs(1));
        until_direct(&mut sim, pair);
    });
}

#[test]
fn a_network_of_ten_hosts_ends_direct_with_everybody() {
    for_seeds(0..2, |seed| {
        let mut sim = Sim::new(seed);
        let relay = sim.add_relay(LinkConfig::access());
        let hosts: Vec<HostId> = (0..10)
            .map(|n| sim.host_at(&format!("h{n}"), home()).0)
            .collect();
        sim.network(&hosts, &[relay]);
        sim.run_for(secs(1));
        let mut flows = Vec::new();
        for (at, a) in hosts.iter().enumerate() {
            for b in &hosts[at + 1..] {
                flows.push((*a, *b, sim.echo(*a, *b)));
            }
        }
        sim.run_for(secs(10));
        let since = sim.now();
        sim.run_for(secs(1));
        for (a, b, flow) in flows {
            assert!(sim.is_direct(a, b));
            assert!(sim.stream(flow).works_since(since));
        }
    });
}

#[test]
fn an_endpoint_in_the_configuration_needs_no_relay() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let (a, b) = (
            sim.host_at("a", home()).0,
            sim.public_host("b", LinkConfig::access()),
        );
        sim.configure(&[a, b], &[]);
        let endpoint = sim.socket_of(b);
        sim.host_mut(a).membership.peers[0].endpoints = vec![endpoint];
        sim.start(a);
        sim.start(b);
        let flow = sim.echo(a, b);
        until_works(&mut sim, "an answer", flow, secs(1));
        // Without a relay the last path is kept open, or nobody could ever call the host behind the NAT.
        sim.stop_flow(flow);
        sim.run_for(secs(900));
        let back = sim.echo(b, a);
        until_works(&mut sim, "an answer to the other side", back, secs(1));
        assert_eq!(sim.path(b, a), Some(PathKind::Direct));
    });
}
