//! Debian's `wireguard-go`.

use std::net::Ipv4Addr;

use anyhow::Result;
use mesh_tests::lab::{Lab, Namespace, Program, WireGuardGo};

use super::{Tunnel, overlay};
use crate::topology::OUTER;

const PORT: u16 = 51_820;

impl Tunnel for [WireGuardGo; 2] {
    fn programs(&mut self) -> Vec<&mut Program> {
        self.iter_mut().map(WireGuardGo::program).collect()
    }
}

pub(super) fn start(
    lab: &Lab,
    a: &Namespace,
    b: &Namespace,
) -> Result<(Box<dyn Tunnel>, Ipv4Addr)> {
    let addresses = overlay(78);
    let mut devices = [
        WireGuardGo::start(lab, a, PORT)?,
        WireGuardGo::start(lab, b, PORT)?,
    ];
    for (own, peer) in [(0, 1), (1, 0)] {
        let section = format!(
            "[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:{PORT}\n",
            devices[peer].public_key, addresses[peer], OUTER[peer]
        );
        devices[own].configure(&section)?;
        devices[own].up(&format!("{}/24", addresses[own]))?;
    }
    Ok((Box::new(devices), addresses[1]))
}
