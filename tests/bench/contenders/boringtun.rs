//! `boringtun-cli` of crates.io, configured by `wg` as any WireGuard is.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mesh_tests::lab::{Lab, Namespace, Program, within};

use super::{PATIENCE, Tunnel, address, overlay, tool};
use crate::topology::OUTER;

const PORT: u16 = 51_820;
/// What wg-quick sets, and wireguard-go by itself; boringtun leaves it to them.
const MTU: u16 = 1420;

struct Device {
    interface: String,
    private_key: String,
    public_key: String,
    program: Program,
}

impl Device {
    fn start(lab: &Lab, ns: &Namespace) -> Result<Self> {
        // Its control socket is a file in /run named after the interface, and namespaces share that directory.
        let interface = format!("bt{}{}", std::process::id(), ns.name());
        let keys = ns.run(
            "sh",
            &[
                "-c",
                "key=$(wg genkey) && echo $key && echo $key | wg pubkey",
            ],
        )?;
        let (private_key, public_key) = keys.trim().split_once('\n').context("wg genkey")?;
        let mut command = ns.command(tool("boringtun-cli")?);
        command.args(["--foreground", "--disable-drop-privileges", &interface]);
        let program = Program::spawn(lab, &format!("boringtun-{}", ns.name()), command)?;
        Ok(Self {
            interface,
            private_key: private_key.to_owned(),
            public_key: public_key.to_owned(),
            program,
        })
    }

    fn socket(&self) -> PathBuf {
        Path::new("/run/wireguard").join(format!("{}.sock", self.interface))
    }

    fn configure(&mut self, lab: &Lab, ns: &Namespace, own: Ipv4Addr, peer: &str) -> Result<()> {
        let (interface, key) = (&self.interface, &self.private_key);
        let file = lab.dir().join(format!("{interface}.conf"));
        let text = format!("[Interface]\nPrivateKey = {key}\nListenPort = {PORT}\n{peer}");
        std::fs::write(&file, text)?;
        within("boringtun's control socket", PATIENCE, || {
            Ok(self.socket().exists())
        })?;
        ns.run("wg", &["setconf", interface, &file.display().to_string()])?;
        address(ns, interface, own)?;
        ns.ip(&format!("link set {interface} mtu {MTU}"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // It is killed, so it cannot do this itself.
        let _ = std::fs::remove_file(self.socket());
    }
}

impl Tunnel for [Device; 2] {
    fn programs(&mut self) -> Vec<&mut Program> {
        self.iter_mut().map(|device| &mut device.program).collect()
    }
}

pub(super) fn start(
    lab: &Lab,
    a: &Namespace,
    b: &Namespace,
) -> Result<(Box<dyn Tunnel>, Ipv4Addr)> {
    let addresses = overlay(81);
    let mut devices = [Device::start(lab, a)?, Device::start(lab, b)?];
    for (own, peer, ns) in [(0, 1, a), (1, 0, b)] {
        let section = format!(
            "[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:{PORT}\n",
            devices[peer].public_key, addresses[peer], OUTER[peer]
        );
        devices[own].configure(lab, ns, addresses[own], &section)?;
    }
    Ok((Box::new(devices), addresses[1]))
}
