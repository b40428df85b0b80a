//! Debian's `tincd` 1.0.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Result;
use mesh_tests::lab::{Lab, Namespace, Program};
use nix::sys::signal::Signal;

use super::{Tunnel, address, overlay};
use crate::topology::OUTER;

const INTERFACE: &str = "tinc0";
const NAMES: [&str; 2] = ["a", "b"];

struct Tinc([Program; 2]);

impl Tunnel for Tinc {
    fn programs(&mut self) -> Vec<&mut Program> {
        self.0.iter_mut().collect()
    }

    /// Until both have found the size of packets that fit, they send larger ones over TCP.
    fn settled(&mut self) -> Result<bool> {
        let mut settled = true;
        for program in &self.0 {
            // Makes it write what it knows of its peers to its log.
            program.signal(Signal::SIGUSR2)?;
            let log = program.log();
            let mut lines = log.lines().filter(|line| line.contains(" pmtu "));
            settled &= lines
                .rfind(|line| !line.contains("MYSELF"))
                .is_some_and(packet_size_known);
        }
        Ok(settled)
    }
}

/// Reads the end of a line such as ` b at 44.128.0.2 port 655 … pmtu 1451 (min 1451 max 1451)`.
fn packet_size_known(line: &str) -> bool {
    let sizes = line
        .rsplit_once("(min ")
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    sizes
        .and_then(|sizes| sizes.split_once(" max "))
        .is_some_and(|(min, max)| min == max && min != "0")
}

pub(super) fn start(
    lab: &Lab,
    a: &Namespace,
    b: &Namespace,
) -> Result<(Box<dyn Tunnel>, Ipv4Addr)> {
    let addresses = overlay(80);
    let dirs = NAMES.map(|name| lab.dir().join(format!("tinc-{name}")));
    for (own, peer) in [(0, 1), (1, 0)] {
        configure(a, &dirs[own], own, peer, addresses[own])?;
    }
    for (own, peer) in [(0, 1), (1, 0)] {
        let file = format!("hosts/{}", NAMES[own]);
        std::fs::copy(dirs[own].join(&file), dirs[peer].join(&file))?;
    }
    let programs = [launch(lab, a, &dirs[0])?, launch(lab, b, &dirs[1])?];
    for (ns, own) in [(a, addresses[0]), (b, addresses[1])] {
        address(ns, INTERFACE, own)?;
    }
    Ok((Box::new(Tinc(programs)), addresses[1]))
}

fn configure(ns: &Namespace, dir: &Path, own: usize, peer: usize, overlay: Ipv4Addr) -> Result<()> {
    let (name, peer) = (NAMES[own], NAMES[peer]);
    std::fs::create_dir_all(dir.join("hosts"))?;
    std::fs::write(
        dir.join("tinc.conf"),
        format!("Name = {name}\nInterface = {INTERFACE}\nConnectTo = {peer}\n"),
    )?;
    std::fs::write(
        dir.join("hosts").join(name),
        format!("Address = {}\nSubnet = {overlay}/32\n", OUTER[own]),
    )?;
    // Without a terminal it asks nothing, and appends the public key to the host's file.
    let dir = dir.display().to_string();
    ns.run("tincd", &["-c", &dir, "-K", "2048"]).map(drop)
}

fn launch(lab: &Lab, ns: &Namespace, dir: &Path) -> Result<Program> {
    let mut command = ns.command("tincd");
    command.arg("-D").arg("-c").arg(dir);
    command.arg(format!("--pidfile={}", dir.join("pid").display()));
    Program::spawn(lab, &format!("tinc-{}", ns.name()), command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packet_size_is_known_when_both_bounds_meet() {
        let line = |min, max| format!(" b at 44.128.0.2 port 655 pmtu {max} (min {min} max {max})");
        assert!(packet_size_known(&line(1451, 1451)));
        assert!(!packet_size_known(&line(1446, 1495)));
        assert!(!packet_size_known(&line(0, 0)));
    }
}
