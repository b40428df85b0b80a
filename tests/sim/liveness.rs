//! The path under the data: what happens to packets while it changes, and when it dies.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_tests::sim::{FlowConfig, Pair, PathKind, Sim, for_seeds};

use crate::common::{hard, home, ms, secs, until_direct, until_relayed, until_works};

/// The address that a host of the pair shows to the internet.
fn externals(sim: &Sim, pair: Pair) -> (IpNet, IpNet) {
    let external = |router| match router {
        Some(router) => IpNet::from(sim.external(router)),
        None => panic!("both hosts are behind routers"),
    };
    (external(pair.router_a), external(pair.router_b))
}

#[test]
fn no_packet_is_lost_while_the_path_moves_from_relay_to_direct() {
    for_seeds(0..20, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let stream = |from, to| FlowConfig {
            from,
            to,
            interval: ms(2),
            size: 1_280,
            echo: true,
        };
        let flows = [
            sim.flow(stream(pair.a, pair.b)),
            sim.flow(stream(pair.b, pair.a)),
        ];
        sim.run_until("a direct path", secs(10), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        sim.run_for(secs(1));
        for flow in flows {
            sim.stop_flow(flow);
        }
        let end = sim.now();
        sim.run_for(secs(1));
        for flow in flows {
            let stream = sim.stream(flow);
            let Some(first) = stream.first_success() else {
                panic!("no packet was answered");
            };
            assert_eq!(stream.missing(first..end), 0);
            assert_eq!(stream.duplicates, 0);
        }
    });
}

#[test]
fn the_first_answer_takes_one_handshake_over_the_relay() {
    for_seeds(0..20, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let flow = sim.echo(pair.a, pair.b);
        // From host to host over the relay: 40 ms. Handshake there and back, packet there and back.
        let took = until_works(&mut sim, "an answer", flow, secs(2));
        assert!(took < ms(250), "{took:?}");
    });
}

#[test]
fn data_goes_over_the_relay_again_within_a_second_of_the_death_of_the_direct_path() {
    for_seeds(0..20, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let flow = until_direct(&mut sim, pair);
        sim.run_for(secs(5));
        let (a, b) = externals(&sim, pair);
        sim.core().block(a, b);
        sim.core().block(b, a);
        until_works(&mut sim, "an answer over the relay", flow, secs(1));
        sim.run_for(secs(1));
        assert!(sim.is_relayed(pair.a, pair.b));
    });
}

#[test]
fn a_path_that_is_dead_in_one_direction_is_left_within_two_seconds() {
    for_seeds(0..20, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let flow = until_direct(&mut sim, pair);
        sim.run_for(secs(5));
        let (a, b) = externals(&sim, pair);
        match seed % 2 {
            0 => sim.core().block(a, b),
            _ => sim.core().block(b, a),
        }
        until_works(&mut sim, "an answer", flow, secs(2));
    });
}

#[test]
fn data_that_nobody_answers_leaves_a_dead_path_too() {
    for_seeds(0..20, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let (from, to) = if seed % 2 == 0 {
            (pair.a, pair.b)
        } else {
            (pair.b, pair.a)
        };
        let flow = sim.flow(FlowConfig {
            from,
            to,
            interval: ms(20),
            size: 1_000,
            echo: false,
        });
        sim.run_until("a direct path", secs(10), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        sim.run_for(secs(5));
        let (a, b) = externals(&sim, pair);
        sim.core().block(a, b);
        sim.core().block(b, a);
        until_works(&mut sim, "a packet over the relay", flow, secs(2));
    });
}

#[test]
fn a_direct_path_that_comes_back_is_used_again() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let flow = until_direct(&mut sim, pair);
        let (a, b) = externals(&sim, pair);
        sim.core().block(a, b);
        sim.core().block(b, a);
        until_works(&mut sim, "an answer over the relay", flow, secs(2));
        sim.run_for(secs(10));
        sim.core().unblock();
        // The pauses between punches: 5, 15, 60 seconds.
        sim.run_until("a direct path again", secs(70), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
    });
}

#[test]
fn a_quiet_one_way_stream_keeps_its_direct_path() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let (from, to) = (pair.a, pair.b);
        let flow = sim.flow(FlowConfig {
            from,
            to,
            interval: ms(1_000),
            size: 200,
            echo: false,
        });
        sim.run_until("a direct path", secs(10), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        let start = sim.now();
        let changes = |sim: &Sim| {
            (
                sim.host(pair.a).counters.path_changes,
                sim.host(pair.b).counters.path_changes,
            )
        };
        let before = changes(&sim);
        sim.run_for(secs(600));
        assert_eq!(changes(&sim), before, "the path was left without need");
        sim.stop_flow(flow);
        let end = sim.now();
        sim.run_for(secs(1));
        assert_eq!(sim.stream(flow).missing(start..end), 0);
    });
}

#[test]
fn a_relayed_pair_stays_on_the_relay_for_hours_without_losing_a_packet() {
    let mut sim = Sim::new(1);
    let pair = sim.pair(hard(), hard());
    sim.run_for(secs(1));
    let flow = until_relayed(&mut sim, pair);
    sim.stop_flow(flow);
    let (from, to) = (pair.a, pair.b);
    let flow = sim.flow(FlowConfig {
        from,
        to,
        interval: ms(1_000),
        size: 200,
        echo: true,
    });
    let start = sim.now();
    sim.run_for(secs(2 * 3_600));
    sim.stop_flow(flow);
    let end = sim.now();
    sim.run_for(secs(1));
    assert_eq!(sim.stream(flow).missing(start..end), 0);
    assert!(sim.is_relayed(pair.a, pair.b));
}

#[test]
fn the_first_ping_comes_back_over_the_relay_and_a_later_one_directly() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let kind = |sim: &mut Sim, token| {
            sim.ping(pair.a, pair.b, token, secs(5));
            sim.run_until("a pong", secs(6), |sim| sim.pong(pair.a, token).is_some());
            sim.pong(pair.a, token).flatten().map(|pong| pong.kind)
        };
        assert_eq!(kind(&mut sim, 1), Some(PathKind::Relay));
        sim.run_until("a direct path", secs(10), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        assert_eq!(kind(&mut sim, 2), Some(PathKind::Direct));
        let external: IpAddr = externals(&sim, pair).1.addr();
        let via = sim.pong(pair.a, 2).flatten().map(|pong| pong.via);
        assert_eq!(via, Some(format!("{external}:41820")));
    });
}
