//! A host that changes its network, and what else breaks below it: each row of `make bench-heal` once, with limits that hold on
//! a busy machine. The bench measures against the real ones.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{
    DIRECT, Freezer, Nat, RELAYED, Setup, Uplink, Uplinks, block, scenario, within,
};

use super::SOON;

/// Generous: other tests share the machine.
const LIMIT: Duration = Duration::from_secs(3);

/// Pings have been answered again and the same TCP stream goes on.
fn healed(scene: &Uplinks, since: Instant) -> Result<()> {
    let took = scene.pulse.wait(since, SOON)?;
    ensure!(took < LIMIT, "pings were lost for {took:?}");
    scene.pulse.check_stream(SOON)
}

/// And pings come and go directly by the new way.
fn moved(scene: &Uplinks, since: Instant) -> Result<()> {
    healed(scene, since)?;
    within("a direct path by the new way", SOON, || {
        Ok(scene.direct_again(since)?.is_some())
    })
    .map(drop)
}

#[test]
fn a_path_that_is_dead_in_one_direction_is_left() {
    scenario(|lab| {
        let scene = Uplinks::new(lab, DIRECT)?;
        let start = Instant::now();
        block(&scene.internet, &[(scene.wifi.wan, scene.far)])?;
        healed(&scene, start)?;
        // Only the direction that is dead.
        scene.a.wait_path("b", "relay", SOON).map(drop)
    });
}

#[test]
fn a_host_whose_cable_is_pulled_goes_on_by_its_other_uplink() {
    scenario(|lab| {
        let scene = Uplinks::new(lab, DIRECT)?;
        let (ns, port) = (&scene.wifi.ns, scene.wifi.port(0));
        ns.ip(&format!("link set {port} down"))?;
        // The kernel keeps the route; what manages the network takes it away.
        scene.a.ns.ip("route del default dev wifi0")?;
        moved(&scene, Instant::now())
    });
}

#[test]
fn a_host_whose_default_route_changes_goes_on_by_the_other_uplink() {
    scenario(|lab| {
        let scene = Uplinks::new(lab, DIRECT)?;
        let start = Instant::now();
        scene.a.ns.ip("route del default dev wifi0")?;
        moved(&scene, start)
    });
}

#[test]
fn a_host_that_gets_another_address_goes_on_from_it() {
    scenario(|lab| {
        let scene = Uplinks::new(lab, DIRECT)?;
        scene.readdress()?;
        moved(&scene, Instant::now())
    });
}

#[test]
fn a_host_that_moves_from_ipv4_to_ipv6_goes_on() {
    scenario(|lab| {
        let (lte, late) = (Uplink::V6, true);
        let scene = Uplinks::new(
            lab,
            Setup {
                lte,
                late,
                ..DIRECT
            },
        )?;
        scene.change_uplink(Duration::ZERO)?;
        moved(&scene, Instant::now())
    });
}

#[test]
fn a_host_that_moves_from_ipv6_to_ipv4_goes_on() {
    scenario(|lab| {
        let wifi = Uplink::V6;
        let scene = Uplinks::new(lab, Setup { wifi, ..DIRECT })?;
        let start = Instant::now();
        scene.a.ns.ip("link set wifi0 down")?;
        moved(&scene, start)
    });
}

#[test]
fn a_router_that_forgets_its_mappings_and_gives_out_other_ports_is_healed() {
    scenario(|lab| {
        let nat = Nat::RandomPorts;
        let scene = Uplinks::new(lab, Setup { nat, ..DIRECT })?;
        let before = scene.remote_of_a()?;
        let start = Instant::now();
        scene.forget_mappings()?;
        healed(&scene, start)?;
        within("a to be reached at another port", SOON, || {
            Ok(scene.b.path_kind("a")?.as_deref() == Some("direct")
                && scene.remote_of_a()? != before)
        })
        .map(drop)
    });
}

#[test]
fn hosts_that_lose_their_relay_go_on_by_another_one() {
    scenario(|lab| {
        let relays = 2;
        let mut scene = Uplinks::new(lab, Setup { relays, ..RELAYED })?;
        let used = scene.a.peer("b")?["path"]["relay"].to_string();
        let mut relays = scene.relays.iter_mut();
        let used = relays.find(|relay| used.contains(&relay.url));
        let start = Instant::now();
        used.context("no relay is used")?.kill();
        healed(&scene, start)
    });
}

#[test]
fn a_link_that_was_down_for_five_seconds_carries_data_at_once() {
    scenario(|lab| {
        let scene = Uplinks::new(lab, RELAYED)?;
        scene.lose_link(Duration::from_secs(5))?;
        healed(&scene, Instant::now())
    });
}

#[test]
fn a_host_that_stood_still_and_wakes_on_another_network_goes_on() {
    scenario(|lab| {
        let mut scene = Uplinks::new(lab, DIRECT)?;
        let freezer = Freezer::around(scene.a.program())?;
        freezer.freeze()?;
        // Longer than what counts as no more than a busy machine.
        std::thread::sleep(Duration::from_secs(4));
        scene.a.ns.ip("link set wifi0 down")?;
        freezer.thaw()?;
        moved(&scene, Instant::now())
    });
}

#[test]
fn a_host_that_moves_is_found_without_any_relay() {
    scenario(|lab| {
        let relays = 0;
        let scene = Uplinks::new(lab, Setup { relays, ..DIRECT })?;
        let start = Instant::now();
        scene.a.ns.ip("link set wifi0 down")?;
        moved(&scene, start)
    });
}
