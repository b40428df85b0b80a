//! `vpncloud` of crates.io.

use std::net::Ipv4Addr;

use anyhow::Result;
use mesh_tests::lab::{Lab, Namespace, Program};

use super::{Tunnel, address, overlay, tool};
use crate::topology::OUTER;

const PORT: u16 = 3210;
const INTERFACE: &str = "vpncloud0";

pub(super) fn start(
    lab: &Lab,
    a: &Namespace,
    b: &Namespace,
) -> Result<(Box<dyn Tunnel>, Ipv4Addr)> {
    let addresses = overlay(82);
    let launch = |ns: &Namespace, own: Ipv4Addr| {
        let mut command = ns.command(tool("vpncloud")?);
        command
            .args(["--type", "tun", "--mode", "router", "--device", INTERFACE])
            .args(["--no-port-forwarding", "--no-auto-claim"])
            .args(["--password", "bench"])
            .args(["--claim", &format!("{own}/32")])
            .args(["--listen", &PORT.to_string()]);
        // Two that call each other at the same time give up on one another.
        if own == addresses[0] {
            command.args(["--peer", &format!("{}:{PORT}", OUTER[1])]);
        }
        Program::spawn(lab, &format!("vpncloud-{}", ns.name()), command)
    };
    let programs = [launch(b, addresses[1])?, launch(a, addresses[0])?];
    // Its own `--ip` sets a wrong address, seen in 2.3.0.
    for (ns, own) in [(a, addresses[0]), (b, addresses[1])] {
        address(ns, INTERFACE, own)?;
    }
    let [b, a] = programs;
    Ok((Box::new([a, b]), addresses[1]))
}
