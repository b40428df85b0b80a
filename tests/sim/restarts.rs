//! Hosts that are killed and start again with nothing but their key.

use mesh_tests::sim::{FlowConfig, Sim, Site, for_seeds};

use crate::common::{hard, home, ms, secs, until_works};

/// Who restarts and who talks: the streams of the other side go on all the time.
fn restart(seed: u64, a: Site, b: Site, away: u64) {
    let mut sim = Sim::new(seed);
    let pair = sim.pair(a, b);
    sim.run_for(secs(1));
    let to_b = sim.echo(pair.a, pair.b);
    sim.run_for(secs(8));
    sim.stop(pair.b);
    sim.run_for(ms(away));
    sim.start(pair.b);
    until_works(
        &mut sim,
        "an answer from the restarted host",
        to_b,
        secs(12),
    );
    let direct = a == home();
    if direct {
        sim.run_until("a direct path again", secs(20), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
    }
    let from_b = sim.echo(pair.b, pair.a);
    until_works(&mut sim, "an answer to the restarted host", from_b, secs(2));
}

#[test]
fn a_peer_that_restarts_is_reached_again_by_a_host_that_goes_on_sending() {
    for_seeds(0..5, |seed| {
        for away in [10, 1_000, 20_000, 200_000] {
            restart(seed, home(), home(), away);
            restart(seed, hard(), hard(), away);
        }
    });
}

#[test]
fn a_host_that_restarts_reaches_its_peer_at_once() {
    for_seeds(0..10, |seed| {
        for site in [home(), hard()] {
            let mut sim = Sim::new(seed);
            let pair = sim.pair(site, site);
            sim.run_for(secs(1));
            let flow = sim.echo(pair.a, pair.b);
            sim.run_for(secs(8));
            sim.stop_flow(flow);
            sim.start(pair.a);
            // Dialling the relay takes two round trips of 40 ms, the handshake and the packet two of 80 ms.
            let again = sim.echo(pair.a, pair.b);
            until_works(&mut sim, "an answer", again, secs(1));
        }
    });
}

#[test]
fn two_hosts_that_restart_at_once_find_each_other_again() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let flow = sim.echo(pair.a, pair.b);
        sim.run_for(secs(8));
        sim.start(pair.a);
        sim.start(pair.b);
        until_works(&mut sim, "an answer", flow, secs(3));
        sim.run_until("a direct path again", secs(20), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
    });
}

#[test]
fn two_hosts_that_start_to_talk_at_the_same_instant_agree_on_a_session() {
    for_seeds(0..20, |seed| {
        for site in [home(), hard()] {
            let mut sim = Sim::new(seed);
            let pair = sim.pair(site, site);
            sim.run_for(secs(1));
            let flows = [sim.echo(pair.a, pair.b), sim.echo(pair.b, pair.a)];
            for flow in flows {
                until_works(&mut sim, "an answer", flow, secs(1));
            }
        }
    });
}

#[test]
fn sessions_are_renewed_without_losing_a_packet() {
    for_seeds(0..3, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let (from, to) = (pair.a, pair.b);
        let flow = sim.flow(FlowConfig {
            from,
            to,
            interval: ms(100),
            size: 500,
            echo: true,
        });
        sim.run_until("a direct path", secs(10), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        let start = sim.now();
        // WireGuard renews its keys every two minutes.
        sim.run_for(secs(15 * 60));
        sim.stop_flow(flow);
        let end = sim.now();
        sim.run_for(secs(1));
        assert_eq!(sim.stream(flow).missing(start..end), 0);
        let age = sim
            .status(pair.a)
            .and_then(|status| status.peers[0].last_handshake);
        assert!(age.is_some_and(|age| age < secs(130)), "{age:?}");
    });
}
