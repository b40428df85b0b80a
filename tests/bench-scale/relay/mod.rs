//! A relay with two load clients, each in a namespace of its own.
//!
//! The figure is what arrives at the far end, divided by the CPU time of the relay's process.

mod clients;
mod idle;
mod load;

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use mesh_core::identity::{NodeId, RelayUrl};
use mesh_tests::lab::{Lab, Namespace, Relay};

use self::clients::{Clients, Control};
use self::load::{Load, Sent};
use crate::procfs;
use crate::table::{Goal, Spread, Table};

/// The sides' addresses at the relay and at the client.
const SIDES: [[Ipv4Addr; 2]; 2] = [
    [Ipv4Addr::new(44, 128, 1, 1), Ipv4Addr::new(44, 128, 1, 2)],
    [Ipv4Addr::new(44, 128, 2, 1), Ipv4Addr::new(44, 128, 2, 2)],
];
/// Where a lab's relay listens.
const PORT: u16 = 443;
/// As much as the configuration allows: here the relay is what limits.
const CONFIG: &str = "access = \"open\"\nrate_limit = \"1000 Gbit/s\"\n";

/// Goals for one core.
const GBIT_S: f64 = 3.0;
const KPPS: f64 = 300.0;
/// Goal for an idle client, in KiB.
const CLIENT_KIB: f64 = 16.0;

/// What the cables do beside carrying packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cable {
    /// Everything that veth can: a burst crosses it in one piece.
    Veth,
    /// Nothing for the sender, and GRO for the receiver: closer to a network card.
    Nic,
}

/// A relay with two hosts, and the thread for their QUIC.
struct Setting {
    relay_ns: Namespace,
    hosts: [Namespace; 2],
    relay: Relay,
    id: NodeId,
    at: [SocketAddr; 2],
    control: Control,
}

impl Setting {
    fn new(lab: &Lab) -> Result<Self> {
        let relay_ns = Namespace::new("relay")?;
        let hosts = [host(&relay_ns, 0)?, host(&relay_ns, 1)?];
        let relay = Relay::start_with(lab, &relay_ns, SIDES[0][0], CONFIG)?;
        let url: RelayUrl = relay.url.parse().context("what the relay printed")?;
        Ok(Self {
            relay_ns,
            hosts,
            relay,
            id: url.id,
            at: SIDES.map(|[relay, _]| SocketAddr::new(relay.into(), PORT)),
            control: Control::start()?,
        })
    }
}

/// What is forwarded.
pub(crate) fn run(lab: &Lab, runs: usize, table: &mut Table) -> Result<()> {
    let mut setting = Setting::new(lab)?;
    let pid = setting.relay.program().pid();
    let clients = Clients::connect(&setting.control, &setting.hosts, &setting.id, &setting.at)?;
    let mut figures: Vec<(Cable, Load, Vec<Figure>)> = [Cable::Veth, Cable::Nic]
        .into_iter()
        .flat_map(|cable| load::KINDS.map(|load| (cable, load, Vec::new())))
        .collect();
    for run in 1..=runs {
        for (cable, load, figures) in &mut figures {
            offload(&setting.relay_ns, &setting.hosts, *cable)?;
            let before = procfs::cpu_seconds(pid)?;
            let sent = clients.load(*load)?;
            let figure = Figure::new(&sent, procfs::cpu_seconds(pid)? - before);
            println!("  run {run}: {:<42} {figure}", name(*cable, *load));
            figures.push(figure);
        }
    }
    drop(clients);
    for (cable, load, figures) in &figures {
        report(table, &name(*cable, *load), *load, figures);
    }
    setting.relay.stop()
}

/// What clients cost that are only connected. Each run has a new relay.
pub(crate) fn idle_clients(lab: &Lab, runs: usize, table: &mut Table) -> Result<()> {
    let mut setting = Setting::new(lab)?;
    let mut figures = Vec::new();
    for _ in 0..runs {
        setting.relay.restart()?;
        let pid = setting.relay.program().pid();
        let (host, id, at) = (&setting.hosts[0], &setting.id, setting.at[0]);
        figures.push(idle::measure(pid, &setting.control, host, id, at)?);
    }
    table.add(
        format!("relay: memory of one of {} idle clients", idle::CLIENTS),
        "KiB",
        Spread::of(figures),
        Goal::AtMost(CLIENT_KIB),
    );
    setting.relay.stop()
}

fn report(table: &mut Table, name: &str, load: Load, figures: &[Figure]) {
    let spread = |value: fn(&Figure) -> f64| Spread::of(figures.iter().map(value));
    // The goals are for full packets; small ones show what a frame costs by itself.
    let full = load.frame == load::FULL;
    let goal = |least| {
        if full {
            Goal::AtLeast(least)
        } else {
            Goal::None
        }
    };
    table.add(name, "Gb/s a core", spread(|f| f.gbit_s), goal(GBIT_S));
    table.add(name, "kpps a core", spread(|f| f.kpps), goal(KPPS));
    table.add(name, "Gb/s", spread(|f| f.wall_gbit_s), Goal::None);
    table.add(name, "% lost", spread(|f| f.loss), Goal::None);
}

fn name(cable: Cable, load: Load) -> String {
    let cable = match cable {
        Cable::Veth => "veth",
        Cable::Nic => "no offloads but GRO",
    };
    format!("relay: {load}, {cable}")
}

/// One run.
#[derive(Debug, Clone, Copy)]
struct Figure {
    gbit_s: f64,
    kpps: f64,
    wall_gbit_s: f64,
    loss: f64,
}

impl Figure {
    fn new(sent: &Sent, cpu: f64) -> Self {
        let bits = sent.received_bytes as f64 * 8.0;
        Self {
            gbit_s: bits / cpu / 1e9,
            kpps: sent.received as f64 / cpu / 1e3,
            wall_gbit_s: bits / sent.time.as_secs_f64() / 1e9,
            loss: (sent.frames - sent.received) as f64 / sent.frames as f64 * 100.0,
        }
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:6.2} Gb/s and {:5.0} kpps a core; {:5.2} Gb/s, {:.2} % lost",
            self.gbit_s, self.kpps, self.wall_gbit_s, self.loss
        )
    }
}

/// A namespace with a cable to the relay's.
fn host(relay: &Namespace, side: usize) -> Result<Namespace> {
    let ns = Namespace::new(["a", "b"][side])?;
    relay.ip(&format!(
        "link add side{side} type veth peer name side{side} netns {}",
        ns.path()
    ))?;
    for (ns, address) in [relay, &ns].into_iter().zip(SIDES[side]) {
        ns.ip(&format!(
            "addr add {address}/24 dev side{side}\nlink set side{side} up"
        ))?;
    }
    Ok(ns)
}

fn offload(relay: &Namespace, hosts: &[Namespace; 2], cable: Cable) -> Result<()> {
    let [send, receive] = match cable {
        Cable::Veth => ["on", "off"],
        Cable::Nic => ["off", "on"],
    };
    for (side, host) in ["side0", "side1"].into_iter().zip(hosts) {
        for ns in [relay, host] {
            let args = [
                "-K",
                side,
                "tso",
                send,
                "tx-udp-segmentation",
                send,
                "gro",
                receive,
            ];
            ns.run("ethtool", &args)?;
        }
    }
    Ok(())
}
