//! Peers with configured `endpoints` and no relay at all.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use mesh_tests::lab::{
    Internet, Lab, Namespace, Nat, Node, Router, Settings, WanInput, scenario, within,
};

use super::SOON;

const PORT: u16 = 41_820;

/// Two hosts; of each the other one knows this endpoint, if any.
fn nodes(lab: &Lab, hosts: [&Namespace; 2], endpoints: [Option<Ipv4Addr>; 2]) -> Result<[Node; 2]> {
    let mut nodes = [
        Node::new(lab, hosts[0], "a")?,
        Node::new(lab, hosts[1], "b")?,
    ];
    for (own, peer) in [(0, 1), (1, 0)] {
        let mut entry = nodes[peer].as_peer(&format!("10.77.0.{}", peer + 1));
        entry.endpoint = endpoints[peer].map(|ip| SocketAddr::from((ip, PORT)));
        nodes[own].configure(&Settings {
            listen_port: PORT,
            address: Some(format!("10.77.0.{}", own + 1)),
            peers: vec![entry],
            ..Settings::default()
        })?;
    }
    for node in &mut nodes {
        node.start()?;
    }
    Ok(nodes)
}

/// Packets go both ways, directly, and b can reach a as well as a can reach b.
fn settle([a, b]: &[Node; 2]) -> Result<()> {
    let overlay = b.overlay()?;
    within("a to reach b", SOON, || Ok(a.icmp(overlay, 1).is_ok()))?;
    a.wait_path("b", "direct", SOON)?;
    b.wait_path("a", "direct", SOON)?;
    a.icmp(b.overlay()?, 5)?;
    b.icmp(a.overlay()?, 5)
}

fn forward(router: &Router, host: Ipv4Addr) -> Result<()> {
    router.ns.nft(&format!(
        "table ip forwarding {{
           chain pre {{ type nat hook prerouting priority dstnat;
             iifname wan udp dport {PORT} dnat to {host}
           }}
         }}"
    ))
}

#[test]
fn a_host_behind_a_nat_reaches_a_public_one() {
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let (public, address) = internet.host("b")?;
        let mut home = internet.router("home", Nat::Masquerade, WanInput::Drop)?;
        let (host, _) = home.host("a")?;
        settle(&nodes(lab, [&host, &public], [None, Some(address)])?)
    });
}

#[test]
fn a_host_behind_a_nat_reaches_one_behind_a_forwarded_port() {
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let mut near = internet.router("near", Nat::Masquerade, WanInput::Drop)?;
        let mut far = internet.router("far", Nat::Masquerade, WanInput::Drop)?;
        let (a, _) = near.host("a")?;
        let (b, inside) = far.host("b")?;
        forward(&far, inside)?;
        let nodes = nodes(lab, [&a, &b], [None, Some(far.wan)])?;
        settle(&nodes)?;
        let via = nodes[0].ping("b")?;
        ensure!(via == Some(format!("{}:{PORT}", far.wan)), "{via:?}");
        Ok(())
    });
}

#[test]
fn hosts_behind_two_nats_that_keep_ports_meet_when_both_call() {
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let mut near = internet.router("near", Nat::Masquerade, WanInput::Drop)?;
        let mut far = internet.router("far", Nat::Masquerade, WanInput::Drop)?;
        let (a, _) = near.host("a")?;
        let (b, _) = far.host("b")?;
        let nodes = nodes(lab, [&a, &b], [Some(near.wan), Some(far.wan)])?;
        let [a, b] = &nodes;
        within("both to call at a time", SOON, || {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| b.ping("a"));
                let answered = a.ping("b")?.is_some();
                let other = other.join().expect("no panic")?.is_some();
                Ok(answered && other)
            })
        })?;
        settle(&nodes)
    });
}
