//! Routers that map ports, and what becomes of that when they restart or are left.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::lab::{Lab, MiniUpnpd, Nat, Speaks, TwoNats, WanInput, scenario, within};

use super::{Pair, SOON};

/// Far below the hour after which a mapping is renewed; other tests share the machine.
const AT_ONCE: Duration = Duration::from_secs(5);

fn mapped(router: &mesh_tests::lab::Router, count: usize) -> Result<Duration> {
    let what = format!("{count} mappings at {}", router.ns.name());
    within(&what, SOON, || {
        Ok(MiniUpnpd::mappings(router)?.len() == count)
    })
}

fn survives_a_restart(lab: &Lab, speaks: Speaks) -> Result<()> {
    let net = TwoNats::new(Nat::Symmetric, Nat::Symmetric)?;
    let lan = net.nat_a.at(1);
    let mut upnpd = MiniUpnpd::start(lab, &net.nat_a, lan, speaks)?;
    let mut pair = Pair::on(lab, net)?;
    mapped(&pair.net.nat_a, 1)?;
    pair.settle("direct")?;
    let before = MiniUpnpd::mappings(&pair.net.nat_a)?;
    // The router's clock counts seconds, and protocols allow for two: a restart before that cannot be told.
    std::thread::sleep(Duration::from_secs(4));
    upnpd.restart(lab, &pair.net.nat_a)?;
    let start = Instant::now();
    mapped(&pair.net.nat_a, 1)?;
    let took = start.elapsed();
    ensure!(took < AT_ONCE, "the mapping came back after {took:?}");
    ensure!(
        MiniUpnpd::mappings(&pair.net.nat_a)? == before,
        "the same port, so that no peer has to be told"
    );
    pair.b.icmp(pair.a.overlay()?, 5)?;
    pair.a.stop()?;
    mapped(&pair.net.nat_a, 0).map(drop)
}

#[test]
fn a_router_that_restarts_is_asked_by_pcp_for_the_same_mapping_at_once() {
    scenario(|lab| {
        let pcp = Speaks {
            pcp: true,
            ..Speaks::default()
        };
        survives_a_restart(lab, pcp)
    });
}

#[test]
fn a_router_that_restarts_is_asked_by_natpmp_for_the_same_mapping_at_once() {
    scenario(|lab| {
        let natpmp = Speaks {
            natpmp: true,
            ..Speaks::default()
        };
        survives_a_restart(lab, natpmp)
    });
}

/// The default route leads to another router, while the first one stays in reach: each is told at once.
fn moves_its_mapping(lab: &Lab, speaks: Speaks) -> Result<()> {
    let mut net = TwoNats::new(Nat::Symmetric, Nat::Symmetric)?;
    let mut other = net
        .internet
        .router("other", Nat::Symmetric, WanInput::Drop)?;
    other.attach(&net.a, "eth1", 200)?;
    let _first = MiniUpnpd::start(lab, &net.nat_a, net.nat_a.at(1), speaks)?;
    let _second = MiniUpnpd::start(lab, &other, other.at(1), speaks)?;
    let mut pair = Pair::on(lab, net)?;
    mapped(&pair.net.nat_a, 1)?;
    mapped(&other, 0)?;
    let gateway = pair.net.nat_a.at(1);
    for (from, to, change) in [
        (&pair.net.nat_a, &other, "del"),
        (&other, &pair.net.nat_a, "add"),
    ] {
        let metric = if change == "add" { " metric 0" } else { "" };
        let start = Instant::now();
        pair.a.ns.ip(&format!(
            "route {change} default via {gateway} dev eth0{metric}"
        ))?;
        mapped(to, 1)?;
        mapped(from, 0)?;
        let took = start.elapsed();
        ensure!(took < AT_ONCE, "{} after {took:?}", to.ns.name());
    }
    pair.settle("direct")?;
    pair.a.stop()?;
    mapped(&pair.net.nat_a, 0).map(drop)
}

#[test]
fn another_gateway_is_asked_by_pcp_at_once_and_the_old_one_is_given_back_its_mapping() {
    scenario(|lab| {
        let pcp = Speaks {
            pcp: true,
            ..Speaks::default()
        };
        moves_its_mapping(lab, pcp)
    });
}

#[test]
fn another_gateway_is_asked_by_upnp_at_once_and_the_old_one_is_given_back_its_mapping() {
    scenario(|lab| {
        let upnp = Speaks {
            upnp: true,
            ..Speaks::default()
        };
        moves_its_mapping(lab, upnp)
    });
}
