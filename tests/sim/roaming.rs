//! Hosts that move to another network.

use mesh_tests::sim::{LinkConfig, Sim, for_seeds};

use crate::common::{hard, home, secs, until_direct, until_relayed, until_works};

#[test]
fn a_host_that_moves_is_reached_within_two_seconds_and_directly_soon_after() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(home(), home());
        sim.run_for(secs(1));
        let flow = until_direct(&mut sim, pair);
        sim.run_for(secs(5));
        let mover = if seed % 2 == 0 { pair.a } else { pair.b };
        sim.move_to_public(mover, LinkConfig::access());
        until_works(&mut sim, "an answer", flow, secs(2));
        sim.run_until("a direct path again", secs(10), |sim| {
            sim.is_direct(pair.a, pair.b)
        });
        until_works(&mut sim, "data", flow, secs(1));
    });
}

#[test]
fn a_relayed_host_that_moves_is_reached_within_two_seconds() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let pair = sim.pair(hard(), hard());
        sim.run_for(secs(1));
        let flow = until_relayed(&mut sim, pair);
        sim.run_for(secs(5));
        let mover = if seed % 2 == 0 { pair.a } else { pair.b };
        sim.move_to_public(mover, LinkConfig::access());
        until_works(&mut sim, "an answer", flow, secs(2));
    });
}
