//! Bad lines: delay, jitter, loss, reordering, duplication, little bandwidth.

use std::time::Duration;

use mesh_tests::sim::{FlowConfig, LinkConfig, Sim, Site, for_seeds};

use crate::common::{hard, home, ms, secs};

#[test]
fn a_bad_line_on_both_sides_delays_the_direct_path_and_does_not_prevent_it() {
    for_seeds(0..40, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(
            home().access(LinkConfig::bad()),
            home().access(LinkConfig::bad()),
        );
        sim.run_for(secs(2));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_until("an answer", secs(10), |sim| sim.stream(flow).works());
        sim.run_until("a direct path", secs(30), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
    });
}

#[test]
fn a_bad_line_does_not_make_the_path_flap() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home().access(LinkConfig::bad()), Site::public());
        sim.run_for(secs(2));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_until("a direct path", secs(30), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        let start = sim.now();
        let before =
            sim.host(pair.a).counters.path_changes + sim.host(pair.b).counters.path_changes;
        sim.run_for(secs(120));
        let changes = sim.host(pair.a).counters.path_changes
            + sim.host(pair.b).counters.path_changes
            - before;
        assert!(changes <= 4, "{changes} changes in two minutes");
        sim.stop_flow(flow);
        let end = sim.now();
        sim.run_for(secs(2));
        // One bad line with 5 % loss each way: one in ten is lost there and back.
        let (missing, sent) = (sim.stream(flow).missing(start..end), 120 * 20);
        assert!(missing < sent * 15 / 100, "{missing} of {sent} are missing");
    });
}

#[test]
fn a_relayed_pair_on_bad_lines_keeps_talking() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(
            hard().access(LinkConfig::bad()),
            hard().access(LinkConfig::bad()),
        );
        sim.run_for(secs(2));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_until("an answer", secs(10), |sim| sim.stream(flow).works());
        for _ in 0..60 {
            let since = sim.now();
            sim.run_until("an answer", secs(3), |sim| {
                sim.stream(flow).works_since(since)
            });
            sim.run_for(secs(2));
        }
    });
}

#[test]
fn a_satellite_line_of_300_ms_ends_direct() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let far = LinkConfig {
            jitter: ms(30),
            ..LinkConfig::delay(ms(300))
        };
        let pair = sim.pair(home().access(far), home());
        sim.run_for(secs(3));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_until("an answer", secs(10), |sim| sim.stream(flow).works());
        sim.run_until("a direct path", secs(20), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        let start = sim.now();
        sim.run_for(secs(30));
        assert!(sim.is_direct(pair.a, pair.b), "and stays so");
        let end = sim.now();
        sim.stop_flow(flow);
        sim.run_for(secs(3));
        assert_eq!(sim.stream(flow).missing(start..end), 0);
    });
}

#[test]
fn a_line_that_fills_up_at_once_does_not_make_the_path_flap() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        // 1 Mb/s: one packet of 1,340 bytes takes 10.7 ms. The round trip grows from 40 to 500 ms within an instant.
        let slow = LinkConfig {
            rate: Some(1_000_000),
            queue: Duration::from_millis(500),
            ..LinkConfig::access()
        };
        let pair = sim.pair(home().access(slow), home());
        sim.run_for(secs(1));
        let (from, to) = (pair.a, pair.b);
        let rare = sim.flow(FlowConfig {
            from,
            to,
            interval: ms(100),
            size: 100,
            echo: true,
        });
        sim.run_until("a direct path", secs(20), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        sim.run_for(secs(5));
        sim.stop_flow(rare);
        let (start, before) = (sim.now(), sim.host(pair.a).counters.path_changes);
        for _ in 0..40 {
            let burst = sim.flow(FlowConfig {
                from,
                to,
                interval: secs(1_000),
                size: 1_280,
                echo: false,
            });
            sim.run_for(Duration::ZERO);
            sim.stop_flow(burst);
        }
        let steady = sim.flow(FlowConfig {
            from,
            to,
            interval: ms(11),
            size: 1_280,
            echo: false,
        });
        sim.run_for(secs(30));
        sim.stop_flow(steady);
        let end = sim.now();
        sim.run_for(secs(2));
        // The round trip has grown tenfold, but data goes on arriving: no reason to leave, nor to send copies by the same line.
        let changes = sim.host(pair.a).counters.path_changes - before;
        assert_eq!(changes, 0);
        assert!(sim.is_direct(pair.a, pair.b));
        assert_eq!(sim.stream(steady).missing(start..end), 0);
    });
}

#[test]
fn an_overloaded_line_carries_what_it_can() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        // Half as much again as it carries, from a sender that does not care: probes are lost like everything else.
        let slow = LinkConfig {
            rate: Some(1_000_000),
            queue: Duration::from_millis(500),
            ..LinkConfig::access()
        };
        let pair = sim.pair(home().access(slow), home());
        sim.run_for(secs(1));
        let (from, to) = (pair.a, pair.b);
        let flow = sim.flow(FlowConfig {
            from,
            to,
            interval: ms(7),
            size: 1_280,
            echo: false,
        });
        sim.run_for(secs(20));
        let start = sim.now();
        sim.run_for(secs(60));
        let end = sim.now();
        sim.stop_flow(flow);
        sim.run_for(secs(2));
        let sent = sim
            .stream(flow)
            .packets
            .iter()
            .filter(|packet| packet.sent >= start)
            .count();
        let arrived = sent - sim.stream(flow).missing(start..end);
        // 60 s of 1 Mb/s are 5,600 packets.
        assert!(arrived > 5_000, "{arrived} of {sent} arrived");
        sim.run_for(secs(20));
        let after = sim.echo(pair.a, pair.b);
        sim.run_until("everything works afterwards", secs(1), |sim| {
            sim.stream(after).works()
        });
    });
}
