//! The same seed is the same run.

use mesh_tests::sim::{Entry, LinkConfig, Sim};

use crate::common::{hard, home, secs};

/// A run with a bit of everything.
fn run(seed: u64) -> (u64, u64, Vec<String>) {
    let mut sim = Sim::new(seed);
    let relays = [
        sim.add_relay(LinkConfig::access()),
        sim.add_relay(LinkConfig::bad()),
    ];
    let sites = [
        home(),
        hard(),
        home().access(LinkConfig::bad()),
        hard().access(LinkConfig::bad()),
    ];
    let hosts: Vec<_> = (0..4)
        .map(|n| sim.host_at(&format!("h{n}"), sites[n]).0)
        .collect();
    sim.network(&hosts, &relays);
    sim.run_for(secs(2));
    for pair in hosts.windows(2) {
        sim.echo(pair[0], pair[1]);
    }
    sim.run_for(secs(10));
    sim.start(hosts[1]);
    sim.stop_relay(relays[0]);
    sim.run_for(secs(30));
    let line = |(at, node, entry): &(_, usize, Entry)| format!("{at:?} {node} {entry}");
    let entries = sim.log().entries().map(line).collect();
    (sim.log().fingerprint(), sim.log().count(), entries)
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another_one() {
    let (first, second) = (run(1), run(1));
    for (a, b) in first.2.iter().zip(&second.2) {
        assert_eq!(a, b);
    }
    assert_eq!((first.0, first.1), (second.0, second.1));
    assert_ne!(first.0, run(2).0);
}
