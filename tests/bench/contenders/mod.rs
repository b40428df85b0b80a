//! What is compared. Each contender has a file, and a pair of namespaces of its own.

mod boringtun;
mod mesh;
mod nebula;
mod raw;
mod relayed;
mod tinc;
mod vpncloud;
mod wireguard_go;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::lab::{Lab, Namespace, Program, within};
use serde_json::Value;

use crate::args::Args;
use crate::topology::Pair;

/// Names that promises are made about.
pub(crate) const RAW: &str = "raw";
pub(crate) const MESHD: &str = "meshd";
pub(crate) const MESHD_RING: &str = "meshd (ring)";
pub(crate) const RELAYED: &str = "meshd (relayed)";
pub(crate) const WIREGUARD_GO: &str = "wireguard-go";

/// Longest time from the start of a contender to the first answer through it.
const PATIENCE: Duration = Duration::from_secs(30);
/// What iperf3 writes before each test.
const LISTENING: &str = "Server listening";

/// Who may take part.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Contender {
    Raw,
    Mesh(mesh::Variant),
    WireGuardGo,
    Nebula,
    Tinc,
    Boringtun,
    VpnCloud,
    Relayed,
}

/// The processes of a contender.
pub(crate) trait Tunnel {
    /// Those of the first host, of the second, and of a relay; none of a bare link.
    fn programs(&mut self) -> Vec<&mut Program>;

    /// True when it has found out all that it finds out in its first seconds, such as the size of packets that fit.
    fn settled(&mut self) -> Result<bool> {
        Ok(true)
    }
}

impl<const N: usize> Tunnel for [Program; N] {
    fn programs(&mut self) -> Vec<&mut Program> {
        self.iter_mut().collect()
    }
}

/// A contender that was started.
pub(crate) struct Running {
    pub(crate) pair: Pair,
    /// The second host's address in the tunnel.
    pub(crate) destination: Ipv4Addr,
    /// The rate that UDP packets of a size had last.
    pub(crate) hints: BTreeMap<u16, f64>,
    tunnel: Box<dyn Tunnel>,
    server: Program,
    /// Tests that the server was asked for.
    tests: usize,
    lab: Lab,
}

/// All that may take part, in the order of the tables.
pub(crate) fn all(args: &Args) -> Vec<Contender> {
    let mut all = vec![];
    if args.direct() {
        all.extend([Contender::Raw, Contender::Mesh(mesh::PLAIN)]);
        if args.variants() {
            all.extend(mesh::VARIANTS.map(Contender::Mesh));
        }
        all.extend([
            Contender::WireGuardGo,
            Contender::Nebula,
            Contender::Tinc,
            Contender::Boringtun,
            Contender::VpnCloud,
        ]);
    }
    if args.relayed() {
        all.push(Contender::Relayed);
    }
    all
}

impl Contender {
    /// Its name in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => RAW,
            Self::Mesh(variant) => variant.name,
            Self::WireGuardGo => WIREGUARD_GO,
            Self::Nebula => "nebula",
            Self::Tinc => "tinc",
            Self::Boringtun => "boringtun-cli",
            Self::VpnCloud => "vpncloud",
            Self::Relayed => RELAYED,
        }
    }

    /// True when its two hosts are not on one link.
    pub(crate) fn relayed(self) -> bool {
        matches!(self, Self::Relayed)
    }

    /// What the program says of its version; nothing of the bare link.
    pub(crate) fn version(self) -> Result<String> {
        let (program, argument) = match self {
            Self::Raw => return Ok(String::new()),
            Self::Mesh(variant) => (variant.program()?, "--version"),
            Self::Relayed => (Lab::binary("mesh-relay")?, "--version"),
            Self::WireGuardGo => ("wireguard-go".into(), "--version"),
            Self::Nebula => ("nebula".into(), "-version"),
            Self::Tinc => ("tincd".into(), "--version"),
            Self::Boringtun => (tool("boringtun-cli")?, "--version"),
            Self::VpnCloud => (tool("vpncloud")?, "--version"),
        };
        let output = Command::new(&program).arg(argument).output();
        let output = output.with_context(|| format!("{} is not installed", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Starts it; [`Running::wait`] then waits until it carries packets. The load uses this congestion control.
    pub(crate) fn start(self, lab: &Lab, congestion_control: &str) -> Result<Running> {
        let relayed = self.relayed().then(|| relayed::topology(lab)).transpose()?;
        let (pair, relay) = match relayed {
            Some((pair, relay)) => (pair, Some(relay)),
            None => (Pair::new()?, None),
        };
        pair.use_congestion_control(congestion_control)?;
        let (a, b) = (&pair.a, &pair.b);
        let (tunnel, destination): (Box<dyn Tunnel>, Ipv4Addr) = match (self, relay) {
            (Self::Relayed, Some(relay)) => relayed::start(lab, a, b, relay)?,
            (Self::Mesh(variant), _) => mesh::start(lab, a, b, variant)?,
            (Self::WireGuardGo, _) => wireguard_go::start(lab, a, b)?,
            (Self::Nebula, _) => nebula::start(lab, a, b)?,
            (Self::Tinc, _) => tinc::start(lab, a, b)?,
            (Self::Boringtun, _) => boringtun::start(lab, a, b)?,
            (Self::VpnCloud, _) => vpncloud::start(lab, a, b)?,
            (Self::Raw | Self::Relayed, _) => raw::start(),
        };
        Ok(Running {
            server: server(lab, b)?,
            tests: 0,
            pair,
            destination,
            hints: BTreeMap::new(),
            tunnel,
            lab: lab.clone(),
        })
    }
}

impl Running {
    /// Waits until packets cross it.
    pub(crate) fn wait(&mut self) -> Result<()> {
        within("an answer through the tunnel", PATIENCE, || {
            self.check()?;
            let ping = ["-c1", "-W1", &self.destination.to_string()];
            Ok(self.pair.a.run("ping", &ping).is_ok())
        })?;
        within("the tunnel to settle", PATIENCE, || self.tunnel.settled()).map(drop)
    }

    /// The MTU of the interface that leads to the second host: each contender's own choice.
    pub(crate) fn mtu(&self) -> Result<u64> {
        let ask = |args: &[&str], key: &str| -> Result<Value> {
            let found: Value = serde_json::from_str(&self.pair.a.run("ip", args)?)?;
            Ok(found[0][key].clone())
        };
        let to = self.destination.to_string();
        let device = ask(&["-j", "route", "get", &to], "dev")?;
        let device = device.as_str().context("no route")?;
        let mtu = ask(&["-j", "link", "show", "dev", device], "mtu")?;
        mtu.as_u64().context("no MTU")
    }

    /// Process IDs: of the first host, of the second, of the relay.
    pub(crate) fn pids(&mut self) -> Vec<u32> {
        let programs = self.tunnel.programs();
        programs.iter().map(|program| program.pid()).collect()
    }

    /// Makes sure that its programs still run.
    pub(crate) fn check(&mut self) -> Result<()> {
        for program in self.tunnel.programs() {
            if !program.is_running() {
                let log = program.log();
                let last = log.lines().rfind(|line| !line.trim().is_empty());
                bail!("it ended: {}", last.unwrap_or("its log is empty"));
            }
        }
        Ok(())
    }

    /// Replaces the iperf3 server, which a client that was cut off may have left busy.
    pub(crate) fn renew_server(&mut self) -> Result<()> {
        // The old one has the port until it is gone.
        if self.server.is_running() {
            self.server.signal(nix::sys::signal::Signal::SIGKILL)?;
            self.server.wait(PATIENCE)?;
        }
        self.server = server(&self.lab, &self.pair.b)?;
        self.tests = 0;
        Ok(())
    }

    /// Waits until the iperf3 server is done with its last test: a client that comes earlier is refused.
    pub(crate) fn ready_server(&mut self) -> Result<()> {
        within("the iperf3 server to be free", PATIENCE, || {
            Ok(self.server.log().matches(LISTENING).count() > self.tests)
        })?;
        self.tests += 1;
        Ok(())
    }
}

fn server(lab: &Lab, ns: &Namespace) -> Result<Program> {
    let mut command = ns.command("iperf3");
    command.args(["-s", "--forceflush"]);
    let server = Program::spawn(lab, "iperf3", command)?;
    server.wait_log(LISTENING, PATIENCE)?;
    Ok(server)
}

/// A program that `make bench` installed from crates.io, beside this one's directory.
fn tool(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("no directory")?;
    let path = target.join("bench-tools/bin").join(name);
    if !path.exists() {
        bail!("{name} is not installed: `make bench` installs it");
    }
    Ok(path)
}

/// Gives an interface that a contender made its address, and brings it up.
fn address(ns: &Namespace, interface: &str, address: Ipv4Addr) -> Result<()> {
    within("the interface", PATIENCE, || {
        Ok(ns.run("ip", &["link", "show", interface]).is_ok())
    })?;
    ns.ip(&format!(
        "addr add {address}/24 dev {interface}\nlink set {interface} up"
    ))
}

/// The two hosts' addresses in the network 10.`number`.0.0/24.
fn overlay(number: u8) -> [Ipv4Addr; 2] {
    [1, 2].map(|host| Ipv4Addr::new(10, number, 0, host))
}
