//! Holes in the IPv6 firewall of a router, which let in a peer that nothing was sent to.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use mesh_tests::lab::{
    Internet, Lab, MiniUpnpd, Nat, Node, Relay, Speaks, WanInput, scenario, within,
};

use super::SOON;

/// Both hosts are behind NATs that cannot be punched, and behind firewalls for IPv6. That of `a` has no memory: what comes
/// from outside over UDP passes a hole or nothing, even as an answer.
fn lets_the_peer_in(lab: &Lab, speaks: Speaks) -> Result<()> {
    let mut internet = Internet::new(true)?;
    let (relay, address) = internet.host("relay")?;
    let mut nat_a = internet.router("nat-a", Nat::Symmetric, WanInput::Drop)?;
    let mut nat_b = internet.router("nat-b", Nat::Symmetric, WanInput::Drop)?;
    let ((a, _), (b, _)) = (nat_a.host("a")?, nat_b.host("b")?);
    nat_a.ns.nft(
        "insert rule inet filter forward meta nfproto ipv6 iifname wan meta l4proto udp counter drop",
    )?;
    // Another router's address is offered to nobody, so that the way over IPv4 stays closed.
    let speaks = Speaks {
        claims: Some(Ipv4Addr::new(44, 129, 0, 9)),
        ..speaks
    };
    let upnpd = MiniUpnpd::start(lab, &nat_a, nat_a.at(1), speaks)?;
    let relay = Relay::start(lab, &relay, address)?;
    let (mut a, mut b) = Node::pair(lab, &a, &b, &[&relay.url])?;
    // miniupnpd 2.3.1 checks the port that a hole is removed for in the wrong byte order; this one it takes.
    let config = std::fs::read_to_string(a.config_path())?;
    a.configure_text(&config.replace("listen_port = 0", "listen_port = 41820"))?;
    for node in [&mut a, &mut b] {
        node.start()?;
        node.wait_relay(SOON)?;
    }
    within("a hole", SOON, || {
        Ok(!MiniUpnpd::pinholes(&nat_a)?.is_empty())
    })?;
    let target = b.overlay()?;
    within("a to reach b", SOON, || Ok(a.icmp(target, 1).is_ok()))?;
    a.wait_path("b", "direct", SOON)?;
    b.wait_path("a", "direct", SOON)?;
    let remote = b.peer("a")?["path"]["remote"].to_string();
    ensure!(
        remote.contains("[2a00:a000:2:1::2]:41820"),
        "by the hole: {remote}"
    );
    a.icmp(target, 20)?;

    a.stop()?;
    let left = MiniUpnpd::pinholes(&nat_a)?;
    // miniupnpd 2.3.1 forgets whose a hole is when it is asked for it twice, which a busy machine makes happen: then it
    // refuses to remove it by PCP.
    let forgotten = upnpd.said("updating pinhole") && upnpd.said("Unauthorized to remove PCP");
    ensure!(left.is_empty() || forgotten, "after SIGTERM: {left:?}");
    Ok(())
}

#[test]
fn a_hole_by_pcp_lets_the_peer_in_and_is_gone_after_the_end() {
    scenario(|lab| {
        let pcp = Speaks {
            pcp: true,
            ..Speaks::default()
        };
        lets_the_peer_in(lab, pcp)
    });
}

#[test]
fn a_hole_by_upnp_lets_the_peer_in_and_is_gone_after_the_end() {
    scenario(|lab| {
        let upnp = Speaks {
            upnp: true,
            ..Speaks::default()
        };
        lets_the_peer_in(lab, upnp)
    });
}
