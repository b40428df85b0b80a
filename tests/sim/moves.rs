//! Hosts that change networks, in the ways that real ones do: in several steps, with a pause, with a relay that is gone.

use std::time::Duration;

use mesh_tests::sim::{
    Families, FlowConfig, HostId, LinkConfig, NatConfig, RouterConfig, RouterId, Site,
};

use crate::common::{ms, secs};
use crate::scene::{Scene, for_lines, home};

impl Scene {
    /// A network that nobody is in yet.
    fn elsewhere(&mut self) -> RouterId {
        self.sim.router(
            RouterConfig::nat(NatConfig::home()),
            LinkConfig::delay(self.line),
        )
    }

    /// Moves a host at once; how long it took until both send directly again.
    fn move_to(&mut self, mover: HostId, next: RouterId) -> std::time::Duration {
        self.sim.unplug(mover, true);
        self.sim.plug(mover, next, Families::V4, false);
        self.until_direct_again(mover, next)
    }
}

#[test]
fn an_address_that_stun_shows_is_told_to_the_peers_that_are_being_called() {
    for_lines(10, |seed, line| {
        let mut scene = Scene::direct(seed, line);
        let mover = scene.mover(seed);
        let next = scene.elsewhere();
        // The first call cannot name it: STUN takes a round trip. The second one is at the peer half of one way over the relay
        // later, and the peer's probe is answered after a round trip.
        let took = scene.move_to(mover, next);
        let most = ms(40) + scene.rtt() * 3;
        assert!(took <= most, "direct after {took:?} at {line:?}");
    });
}

#[test]
fn a_relay_that_does_not_answer_holds_up_no_address_that_another_one_shows() {
    for_lines(10, |seed, line| {
        let mut scene = Scene::new(seed, line, [home(line), home(line)], 2);
        scene.until_direct();
        scene.sim.run_for(secs(3));
        let mover = scene.mover(seed);
        let next = scene.elsewhere();
        if let Some(standby) = scene.standby {
            scene.sim.stop_relay(standby);
        }
        let took = scene.move_to(mover, next);
        let most = ms(40) + scene.rtt() * 3;
        assert!(took <= most, "direct after {took:?} at {line:?}");
    });
}

/// Loses the link, is told so, and gets another one after `pause`. `direct`: longest time beyond three round trips until
/// the path is direct again; `stall`: longest time without data.
fn replugged(pause: Duration, direct: Duration, stall: impl Fn(&Scene) -> Duration + Sync) {
    for_lines(10, |seed, line| {
        let mut scene = Scene::direct(seed, line);
        let mover = scene.mover(seed);
        let next = scene.elsewhere();
        scene.sim.unplug(mover, false);
        scene.sim.run_for(pause);
        let start = scene.sim.now();
        scene.sim.plug(mover, next, Families::V4, false);
        let took = scene.until_direct_again(mover, next);
        let most = direct + scene.rtt() * 3;
        assert!(took <= most, "direct after {took:?} at {line:?}");
        scene.sim.run_for(secs(4));
        let stall = stall(&scene);
        scene.check_since(start, stall);
    });
}

#[test]
fn a_change_in_two_steps_costs_no_more_than_one() {
    // The link is lost, and the host told; what manages its network gives it another one 20 ms later.
    replugged(ms(20), ms(40), |scene| ms(50) + scene.rtt() * 2 + ms(20));
}

#[test]
fn a_host_without_any_network_for_a_while_is_direct_soon_after_it_has_one() {
    replugged(secs(2), ms(500), |_| ms(500));
}

#[test]
fn a_host_without_any_network_dials_nobody_and_at_once_when_it_has_one() {
    for_lines(4, |seed, line| {
        let mut scene = Scene::relayed(seed, line, 1);
        let mover = scene.mover(seed);
        let next = scene.elsewhere();
        scene.sim.unplug(mover, false);
        let before = scene.sim.host(mover).counters.dials;
        scene.sim.run_for(secs(60));
        let dials = scene.sim.host(mover).counters.dials - before;
        assert_eq!(dials, 0, "dials in a minute without a network");
        scene.check(ms(500), |sim| sim.plug(mover, next, Families::V4, false));
    });
}

#[test]
fn a_direct_path_that_was_not_in_use_gets_no_data_after_a_move() {
    for_lines(6, |seed, line| {
        let both = home(line);
        let mut scene = Scene::new(seed, line, [both, both], 1);
        let (a, b) = (scene.pair.a, scene.pair.b);
        for (host, router) in [(a, scene.pair.router_a), (b, scene.pair.router_b)] {
            if let Some(router) = router {
                scene.sim.add_ipv6(host, router);
                scene.sim.announce_change(host);
            }
        }
        scene.sim.run_for(secs(2));
        scene.until_direct();
        // Both families lead to the peer, and both have been proved in the last half minute.
        scene.sim.run_for(secs(6));
        let next = scene.elsewhere();
        // Five times what copies may take.
        let flow = scene.sim.flow(FlowConfig {
            from: a,
            to: b,
            interval: ms(1),
            size: 1_280,
            echo: false,
        });
        scene.sim.run_for(secs(1));
        let start = scene.sim.now();
        scene.sim.unplug(a, true);
        scene.sim.plug(a, next, Families::V4, false);
        scene.sim.run_for(secs(2));
        scene.sim.stop_flow(flow);
        let end = scene.sim.now();
        scene.sim.run_for(secs(1));
        let missing = scene.sim.stream(flow).missing(start..end);
        // One packet a millisecond, until the relay has confirmed the new address.
        let lost = ms(missing as u64);
        assert!(
            lost <= ms(10) + scene.rtt(),
            "{missing} packets were lost at {line:?}"
        );
    });
}

#[test]
fn a_host_that_moves_without_a_relay_is_proved_in_two_round_trips() {
    for_lines(6, |seed, line| {
        let stays = Site::public().access(LinkConfig::delay(line));
        let mut scene = Scene::new(seed, line, [home(line), stays], 0);
        scene.until_direct();
        scene.sim.run_for(secs(3));
        let (mover, next) = (scene.pair.a, scene.elsewhere());
        let start = scene.sim.now();
        let took = scene.move_to(mover, next);
        assert!(took <= ms(20) + scene.rtt() * 2, "{took:?} at {line:?}");
        scene.sim.run_for(secs(4));
        scene.check_since(start, ms(50) + scene.rtt() * 2);
    });
}
