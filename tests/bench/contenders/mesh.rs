//! Two `meshd` that know each other's address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;
use mesh_tests::lab::{Lab, Namespace, Node, PeerConfig, Program, Settings};

use super::{MESHD, MESHD_RING, Tunnel, overlay};
use crate::topology::OUTER;

const PORT: u16 = 41_820;

/// A way to run meshd.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// The program, beside this one.
    binary: &'static str,
    environment: &'static [(&'static str, &'static str)],
    arguments: &'static [&'static str],
}

/// As users run it.
pub(crate) const PLAIN: Variant = Variant {
    name: MESHD,
    binary: "meshd",
    environment: &[],
    arguments: &[],
};

/// What `--variants` adds. The second needs a program built without any cipher, which is never shipped.
pub(crate) const VARIANTS: [Variant; 2] = [
    Variant {
        name: MESHD_RING,
        environment: &[("MESHD_CIPHER", "ring")],
        ..PLAIN
    },
    Variant {
        name: "meshd (no cipher)",
        binary: "meshd-no-cipher",
        ..PLAIN
    },
];

impl Variant {
    /// Where the program lies.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        Lab::binary(self.binary)
    }
}

/// Two hosts and their daemons.
pub(super) struct Nodes(pub(super) [Node; 2]);

impl Tunnel for Nodes {
    fn programs(&mut self) -> Vec<&mut Program> {
        self.0.iter_mut().map(Node::program).collect()
    }
}

pub(super) fn start(
    lab: &Lab,
    a: &Namespace,
    b: &Namespace,
    variant: Variant,
) -> Result<(Box<dyn Tunnel>, Ipv4Addr)> {
    let addresses = overlay(77);
    let mut nodes = nodes(lab, a, b, variant.name)?;
    for (own, peer) in [(0, 1), (1, 0)] {
        let endpoint = SocketAddr::new(IpAddr::V4(OUTER[peer]), PORT);
        nodes[own].configure(&Settings {
            listen_port: PORT,
            address: Some(addresses[own].to_string()),
            peers: vec![PeerConfig {
                endpoint: Some(endpoint),
                ..nodes[peer].as_peer(&addresses[peer].to_string())
            }],
            ..Settings::default()
        })?;
    }
    for node in &mut nodes {
        launch(node, variant)?;
    }
    Ok((Box::new(Nodes(nodes)), addresses[1]))
}

/// Two hosts that are not configured; `name` keeps their files apart from those of other contenders.
pub(super) fn nodes(lab: &Lab, a: &Namespace, b: &Namespace, name: &str) -> Result<[Node; 2]> {
    let name = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "");
    Ok([
        Node::new(lab, a, &format!("{name}-a"))?.quiet(),
        Node::new(lab, b, &format!("{name}-b"))?.quiet(),
    ])
}

fn launch(node: &mut Node, variant: Variant) -> Result<()> {
    let mut command = node.ns.command(variant.program()?);
    command
        .args(node.command()?.get_args())
        .args(variant.arguments)
        .envs(variant.environment.iter().copied());
    node.launch_as(command)?;
    node.program().wait_ready(super::PATIENCE).map(drop)
}
