//! Lines that are slow, lossy, full or uneven, and alive: no alarm, no change of the path, no more copies than allowed.

use std::time::Duration;

use ipnet::IpNet;
use mesh_core::limits;
use mesh_tests::sim::{FlowConfig, FlowId, LinkConfig, Pair, PathKind, RelayId, Sim, for_seeds};

use crate::common::{home, ms, secs};

/// What the relay has forwarded so far, in bytes.
fn relayed(sim: &Sim, relay: RelayId) -> u64 {
    sim.relay(relay)
        .server()
        .map_or(0, |server| server.stats().bytes)
}

fn changes(sim: &Sim, pair: Pair) -> u64 {
    sim.host(pair.a).counters.path_changes + sim.host(pair.b).counters.path_changes
}

/// A pair on uneven lines with so much delay from host to host, direct.
fn uneven(seed: u64, delay: Duration) -> (Sim, Pair) {
    let mut sim = Sim::new(seed);
    let line = LinkConfig {
        jitter: ms(10),
        loss: 0.01,
        ..LinkConfig::delay(delay / 2)
    };
    let pair = sim.pair(home().access(line), home().access(line));
    sim.run_for(secs(3));
    let flow = sim.echo(pair.a, pair.b);
    sim.run_until("a direct path", secs(30), |sim| {
        sim.is_direct(pair.a, pair.b)
    });
    sim.stop_flow(flow);
    sim.run_for(secs(10));
    (sim, pair)
}

const DELAYS: [Duration; 3] = [ms(0), ms(30), ms(250)];
/// What probes of the spare path and the like may take a minute, in bytes.
const UPKEEP: u64 = 5_000;

/// Sends one way, a packet each `interval` while `time` passes, and sees that nothing is done about it.
fn stays_calm(interval: Duration, time: impl Fn(&mut Sim, FlowId) + Sync) {
    for delay in DELAYS {
        for_seeds(0..6, |seed| {
            let (mut sim, pair) = uneven(seed, delay);
            let before = (changes(&sim, pair), relayed(&sim, pair.relay));
            let flow = sim.flow(FlowConfig {
                from: pair.a,
                to: pair.b,
                interval,
                size: 1_000,
                echo: false,
            });
            time(&mut sim, flow);
            sim.stop_flow(flow);
            sim.run_for(secs(2));
            assert_eq!(changes(&sim, pair), before.0, "at {delay:?}");
            let extra = relayed(&sim, pair.relay) - before.1;
            assert!(extra <= UPKEEP, "{extra} bytes over the relay at {delay:?}");
        });
    }
}

#[test]
fn one_way_data_on_an_uneven_line_raises_no_alarm() {
    stays_calm(ms(10), |sim, _| sim.run_for(secs(60)));
}

#[test]
fn the_ends_of_bursts_on_an_uneven_line_raise_no_alarm() {
    // The last packet of one in fifty bursts is lost, and nothing follows that would tell.
    stays_calm(ms(1), |sim, flow| {
        for _ in 0..60 {
            sim.run_for(ms(20));
            sim.stop_flow(flow);
            sim.run_for(ms(980));
            sim.resume_flow(flow);
        }
    });
}

#[test]
fn a_path_that_answers_probes_and_carries_no_data_is_left() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let flow = sim.flow(FlowConfig {
            from: pair.a,
            to: pair.b,
            interval: ms(10),
            size: 600,
            echo: false,
        });
        sim.run_until("a direct path", secs(10), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        sim.run_for(secs(5));
        let (Some(a), Some(b)) = (pair.router_a, pair.router_b) else {
            panic!("both hosts are behind routers");
        };
        let (a, b) = (IpNet::from(sim.external(a)), IpNet::from(sim.external(b)));
        // Probes are smaller than that, and data is not.
        sim.core().block_large(a, b, 500);
        let (start, before) = (sim.now(), sim.host(pair.a).counters.path_changes);
        sim.run_for(secs(20));
        let end = sim.now();
        sim.run_for(secs(1));
        let stall = sim.stall(flow, start..end);
        assert!(stall <= secs(2), "{stall:?}");
        // Another port of the same router is no other path.
        assert_eq!(sim.host(pair.a).counters.path_changes, before + 1);
        assert_eq!(sim.path(pair.a, pair.b), Some(PathKind::Relay));
    });
}

#[test]
fn copies_of_half_a_gigabit_stay_within_their_budget() {
    for_seeds(0..2, |seed| {
        let mut sim = Sim::new(seed);
        let relay = sim.add_relay(LinkConfig {
            rate: Some(100_000_000),
            ..LinkConfig::access()
        });
        let (a, router_a) = sim.host_at("a", home());
        let (b, router_b) = sim.host_at("b", home());
        sim.network(&[a, b], &[relay]);
        let pair = Pair {
            a,
            b,
            relay,
            router_a,
            router_b,
        };
        sim.run_for(secs(1));
        let rare = sim.echo(a, b);
        sim.run_until("a direct path", secs(10), |sim| sim.is_direct(a, b));
        sim.run_for(secs(5));
        sim.stop_flow(rare);
        let flow = sim.flow(FlowConfig {
            from: a,
            to: b,
            interval: Duration::from_micros(20),
            size: 1_280,
            echo: false,
        });
        sim.run_for(ms(500));
        let before = (changes(&sim, pair), relayed(&sim, relay));
        // Everything is doubted, and is as it was.
        let start = sim.now();
        sim.announce_change(a);
        sim.run_for(ms(1_500));
        sim.stop_flow(flow);
        let end = sim.now();
        sim.run_for(secs(1));
        let extra = relayed(&sim, relay) - before.1;
        let budget = limits::DUPLICATE_BURST + limits::DUPLICATE_RATE * 2;
        assert!(extra > 1_000, "copies were sent at all");
        assert!(extra <= budget + UPKEEP, "{extra} bytes over the relay");
        assert_eq!(changes(&sim, pair), before.0);
        assert_eq!(sim.stream(flow).missing(start..end), 0);
        assert_eq!(sim.stream(flow).duplicates, 0);
    });
}

#[test]
fn two_paths_that_are_nearly_equal_are_not_changed_to_and_fro() {
    for_seeds(0..6, |seed| {
        let mut sim = Sim::new(seed);
        let line = LinkConfig {
            jitter: ms(8),
            ..LinkConfig::delay(ms(15))
        };
        let pair = sim.pair(home().access(line), home().access(line));
        for (host, router) in [(pair.a, pair.router_a), (pair.b, pair.router_b)] {
            if let Some(router) = router {
                sim.add_ipv6(host, router);
            }
        }
        sim.run_for(secs(1));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_until("a direct path", secs(10), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        sim.run_for(secs(30));
        let (start, before) = (sim.now(), changes(&sim, pair));
        sim.run_for(secs(600));
        sim.stop_flow(flow);
        let end = sim.now();
        sim.run_for(secs(1));
        let made = changes(&sim, pair) - before;
        assert!(made <= 2, "{made} changes in ten minutes");
        assert_eq!(sim.stream(flow).missing(start..end), 0);
    });
}
