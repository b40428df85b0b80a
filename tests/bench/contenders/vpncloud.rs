//! `vpncloud` of crates.io.

use std::net::Ipv4Addr;

use anyhow::Result;
use mesh_tests::lab::{Lab, Namespace, Program};

use super::{Tunnel, overlay, tool};
use crate::topology::OUTER;

const PORT: u16 = 3210;

pub(super) fn start(
    lab: &Lab,
    a: &Namespace,
    b: &Namespace,
) -> Result<(Box<dyn Tunnel>, Ipv4Addr)> {
    let addresses = overlay(82);
    let launch = |ns: &Namespace, own: Ipv4Addr, peer: Ipv4Addr| {
        let mut command = ns.command(tool("vpncloud")?);
        command
            .args(["--type", "tun", "--mode", "router", "--device", "vpncloud0"])
            .args([
                "--no-port-forwarding",
                "--no-auto-claim",
                "--password",
                "bench",
            ])
            .args([
                "--ip",
                &format!("{own}/24"),
                "--claim",
                &format!("{own}/32"),
            ])
            .args([
                "--listen",
                &PORT.to_string(),
                "--peer",
                &format!("{peer}:{PORT}"),
            ]);
        Program::spawn(lab, &format!("vpncloud-{}", ns.name()), command)
    };
    let programs = [
        launch(a, addresses[0], OUTER[1])?,
        launch(b, addresses[1], OUTER[0])?,
    ];
    Ok((Box::new(programs), addresses[1]))
}
