//! What NATs do over time: mappings that expire, that are lost, and that an accepting INPUT chain takes away.

use mesh_tests::sim::{
    Allocation, Filtering, FlowConfig, LinkConfig, Mapping, NatConfig, Sim, Site, for_seeds,
};

use crate::common::{hard, home, ms, secs, until_direct, until_relayed, until_works};

const SHORT: NatConfig = NatConfig::home().lifetime(secs(30));

#[test]
fn traffic_after_an_idle_time_works_at_once_over_the_relay_and_then_directly() {
    for_seeds(0..10, |seed| {
        let forgets = [SHORT, NatConfig::home()];
        for (idle, nat) in [121, 180, 240, 600, 3_600]
            .map(|idle| forgets.map(|nat| (idle, nat)))
            .concat()
        {
            let mut sim = Sim::new(seed);
            let pair = sim.pair(Site::nat(nat), Site::nat(nat));
            sim.run_for(secs(1));
            let flow = until_direct(&mut sim, pair);
            // In every other case until it is known how long the NAT remembers.
            sim.run_for(secs(1 + seed / 2 % 2 * 200));
            sim.stop_flow(flow);
            sim.run_for(secs(idle));
            let back = if seed % 2 == 0 {
                sim.echo(pair.a, pair.b)
            } else {
                sim.echo(pair.b, pair.a)
            };
            // At most a handshake and a packet there and back over the relay, 80 ms each.
            let took = until_works(&mut sim, "an answer", back, secs(1));
            assert!(took <= ms(250), "after {idle} s idle: {took:?}");
            sim.run_until("a direct path again", secs(10), |sim| {
                sim.is_direct(pair.a, pair.b)
            });
        }
    });
}

#[test]
fn no_packet_is_lost_after_any_pause() {
    // Packets at pauses of 0 to 200 s: sometimes the direct path is trusted, sometimes it is not any more.
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(Site::nat(SHORT), Site::nat(SHORT));
        sim.run_for(secs(1));
        until_direct(&mut sim, pair);
        for pause in [3, 14, 16, 29, 31, 33, 45, 61, 90, 119, 121, 135, 151, 200] {
            let flow = sim.echo(pair.a, pair.b);
            let start = sim.now();
            sim.run_for(ms(500));
            sim.stop_flow(flow);
            let end = sim.now();
            sim.run_for(secs(1));
            assert_eq!(
                sim.stream(flow).missing(start..end),
                0,
                "before a pause of {pause} s"
            );
            sim.run_for(secs(pause));
        }
    });
}

#[test]
fn keepalives_hold_a_direct_path_with_little_traffic_through_short_lifetimes() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(Site::nat(SHORT), Site::nat(SHORT));
        sim.run_for(secs(1));
        let flow = until_direct(&mut sim, pair);
        sim.stop_flow(flow);
        let (from, to) = (pair.a, pair.b);
        let rare = sim.flow(FlowConfig {
            from,
            to,
            interval: secs(50),
            size: 100,
            echo: true,
        });
        let (start, before) = (sim.now(), sim.host(pair.a).counters.path_changes);
        sim.run_for(secs(900));
        assert!(sim.is_direct(pair.a, pair.b));
        assert_eq!(sim.host(pair.a).counters.path_changes, before);
        let end = sim.now();
        sim.stop_flow(rare);
        sim.run_for(secs(1));
        assert_eq!(sim.stream(rare).missing(start..end), 0);
    });
}

#[test]
fn an_idle_pair_sends_nothing_to_each_other() {
    let mut sim = Sim::new(3);
    let pair = sim.pair(home(), home());
    sim.run_for(secs(1));
    let flow = until_direct(&mut sim, pair);
    sim.stop_flow(flow);
    // Two minutes until it counts as idle, and half a minute for what was under way.
    sim.run_for(secs(150));
    let sent =
        |sim: &Sim| sim.host(pair.a).counters.datagrams + sim.host(pair.b).counters.datagrams;
    let before = sent(&sim);
    sim.run_for(secs(200));
    // What may be left is the measurement of the NAT every five minutes: some 25 STUN requests for each host.
    let after = sent(&sim) - before;
    assert!(after <= 60, "{after} datagrams");
}

#[test]
fn a_router_that_forgets_its_mappings_costs_two_seconds_at_most() {
    let random = Site::nat(NatConfig::home().allocation(Allocation::Random));
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(random, home());
        sim.run_for(secs(1));
        let flow = until_direct(&mut sim, pair);
        sim.run_for(secs(5));
        if let Some(router) = pair.router_a {
            sim.router_mut(router).flush();
        }
        until_works(&mut sim, "an answer", flow, secs(2));
        sim.run_until("a direct path again", secs(30), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
    });
}

#[test]
fn a_relayed_pair_survives_a_router_that_forgets_its_mappings() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(hard(), hard());
        sim.run_for(secs(1));
        let flow = until_relayed(&mut sim, pair);
        sim.run_for(secs(3));
        if let Some(router) = pair.router_a {
            sim.router_mut(router).flush();
        }
        until_works(&mut sim, "an answer", flow, secs(2));
    });
}

#[test]
fn a_relayed_host_that_only_listens_is_reached_after_its_router_forgot_its_mappings() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(hard(), hard());
        sim.run_for(secs(1));
        let flow = until_relayed(&mut sim, pair);
        sim.stop_flow(flow);
        sim.run_for(secs(200));
        if let Some(router) = pair.router_b {
            sim.router_mut(router).flush();
        }
        // The keep-alive of its relay connection opens a new mapping every 15 seconds.
        sim.run_for(secs(20));
        sim.resume_flow(flow);
        until_works(&mut sim, "an answer", flow, secs(2));
    });
}

#[test]
fn routers_that_accept_unsolicited_packets_are_opened_by_low_ttl_openers() {
    let accepting = Site::nat(NatConfig::home().accepting_input());
    for_seeds(0..20, |seed| {
        for (a, b) in [
            (accepting, accepting),
            (accepting, home()),
            (home(), accepting),
        ] {
            let mut sim = Sim::new(seed);
            let pair = sim.pair(a, b);
            sim.run_for(secs(1));
            let flow = if seed % 2 == 0 {
                sim.echo(pair.a, pair.b)
            } else {
                sim.echo(pair.b, pair.a)
            };
            sim.run_until("a direct path", secs(10), |sim| {
                sim.is_direct(pair.a, pair.b)
            });
            until_works(&mut sim, "data", flow, secs(1));
        }
    });
}

#[test]
fn accepting_routers_on_lines_of_different_length_are_opened_as_well() {
    let accepting = Site::nat(NatConfig::home().accepting_input());
    for_seeds(0..20, |seed| {
        for delay in [1, 30, 150] {
            let mut sim = Sim::new(seed);
            let far = LinkConfig {
                jitter: ms(5),
                ..LinkConfig::delay(ms(delay))
            };
            let pair = sim.pair(accepting.access(far), accepting);
            sim.run_for(secs(2));
            let _flow = if seed % 2 == 0 {
                sim.echo(pair.a, pair.b)
            } else {
                sim.echo(pair.b, pair.a)
            };
            sim.run_until("a direct path", secs(15), |sim| {
                sim.is_direct(pair.a, pair.b)
            });
        }
    });
}

#[test]
fn a_pair_that_cannot_punch_makes_few_mappings() {
    // Nobody's router may suffer. The worst ones make a mapping for each address and port that is tried. Where trying many
    // ports may help, each attempt at that has its budget, and what it made is forgotten before the next one.
    let spray = mesh_core::limits::SPRAY_PROBES;
    for (mapping, filtering) in [
        (Mapping::Apdm, Filtering::Apdf),
        (Mapping::Apdm, Filtering::Eif),
        (Mapping::Apdm, Filtering::Adf),
    ] {
        for_seeds(0..3, |seed| {
            let nat = NatConfig::new(mapping, filtering).allocation(Allocation::Random);
            let mut sim = Sim::new(seed);
            let pair = sim.pair(Site::nat(nat), Site::nat(nat));
            sim.run_for(secs(1));
            sim.echo(pair.a, pair.b);
            let now = |sim: &Sim| sim.now();
            for _ in 0..60 {
                sim.run_for(secs(1));
                let at = now(&sim);
                for router in [pair.router_a, pair.router_b].into_iter().flatten() {
                    let mappings = sim
                        .router_mut(router)
                        .nat
                        .as_ref()
                        .map_or(0, |nat| nat.mappings(at));
                    let most = if filtering == Filtering::Adf {
                        spray + 64
                    } else {
                        64
                    };
                    assert!(
                        mappings <= most,
                        "{mappings} mappings at once behind {mapping:?}/{filtering:?}"
                    );
                }
            }
        });
    }
}
