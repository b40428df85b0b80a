//! The switches in the environment: each part of the packet path has another way to go, and the two ends need not agree.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::lab::{Internet, Lab, Namespace, Node, PeerConfig, Settings, scenario, within};

use super::SOON;
use super::paths::copy;

const PORT: u16 = 41_820;
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// A daemon on a public host, with one switch set.
fn launch(node: &mut Node, (name, value): (&str, &str)) -> Result<()> {
    let mut command = node.command()?;
    command.env(name, value);
    node.launch_as(command)?;
    node.program().wait_ready(SOON).map(drop)
}

fn nodes(lab: &Lab, hosts: [(&Namespace, IpAddr); 2]) -> Result<[Node; 2]> {
    let nodes = [
        Node::new(lab, hosts[0].0, "a")?,
        Node::new(lab, hosts[1].0, "b")?,
    ];
    for (own, peer) in [(0, 1), (1, 0)] {
        nodes[own].configure(&Settings {
            listen_port: PORT,
            address: Some(ADDRESSES[own].to_owned()),
            peers: vec![PeerConfig {
                endpoint: Some(SocketAddr::new(hosts[peer].1, PORT)),
                ..nodes[peer].as_peer(ADDRESSES[peer])
            }],
            ..Settings::default()
        })?;
    }
    Ok(nodes)
}

/// With `switch` at one end and nothing at the other, data gets through whole in both directions.
fn works_with(name: &str, value: &str) {
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let (a, b) = (internet.host("a")?, internet.host("b")?);
        let mut nodes = nodes(lab, [(&a.0, a.1.into()), (&b.0, b.1.into())])?;
        launch(&mut nodes[0], (name, value))?;
        nodes[1].start()?;
        let [a, b] = &nodes;
        let overlay = b.overlay()?;
        within("a to reach b", SOON, || Ok(a.icmp(overlay, 1).is_ok()))?;
        a.wait_path("b", "direct", SOON)?;
        copy(a, b, 20_000_000, |_| Duration::ZERO)?;
        copy(b, a, 20_000_000, |_| Duration::ZERO)?;
        a.icmp(b.overlay()?, 5)
    });
}

#[test]
fn data_gets_through_with_rings_cipher() {
    works_with("MESHD_CIPHER", "ring");
}

#[test]
fn data_gets_through_without_udp_offload() {
    works_with("MESHD_DISABLE", "udp-gso,udp-gro");
}

#[test]
fn data_gets_through_without_tun_offload() {
    works_with("MESHD_DISABLE", "tun-segmentation,tun-coalescing");
}

#[test]
fn a_misspelt_switch_is_refused_by_name() {
    scenario(|lab| {
        let ns = Namespace::new("host")?;
        let node = Node::new(lab, &ns, "host")?;
        node.configure(&Settings::default())?;
        let output = node.command()?.env("MESHD_DISABLE", "gso").output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "it started");
        ensure!(
            text.contains("\"gso\"") && text.contains("udp-gso"),
            "{text}"
        );
        Ok(())
    });
}
