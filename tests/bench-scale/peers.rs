//! What peers cost that are only configured: at the start, in memory, and in the path of a packet.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::lab::{Lab, Namespace, Node, PeerConfig, Program, Settings, within};
use serde_json::Value;

use crate::table::{Goal, Spread, Table};
use crate::{mesh, procfs};

const FEW: u32 = 2;
const MANY: u32 = 10_000;
const OUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(44, 128, 0, 1), Ipv4Addr::new(44, 128, 0, 2)];
const PORT: u16 = 41_820;
const PATIENCE: Duration = Duration::from_secs(30);
/// Of one TCP stream.
const STREAM_SECONDS: &str = "3";

/// Goals: seconds until it is ready, KiB of memory for a peer, and throughput beside that with few peers.
const START_SECONDS: f64 = 1.0;
const PEER_KIB: f64 = 4.0;
const RATIO: f64 = 0.95;

/// Two daemons on one cable, both with so many configured peers.
struct Pair {
    peers: u32,
    nodes: [Node; 2],
    starts: Vec<f64>,
    /// CPU time of each start, which the rest of the machine does not touch.
    work: Vec<f64>,
    memory: Vec<f64>,
    streams: Vec<f64>,
    _server: Program,
}

pub(crate) fn run(lab: &Lab, runs: usize, table: &mut Table) -> Result<()> {
    let mut pairs = [Pair::new(lab, FEW)?, Pair::new(lab, MANY)?];
    for _ in 0..runs {
        for pair in &mut pairs {
            pair.restart()?;
        }
    }
    for pair in &mut pairs {
        pair.connect()?;
    }
    for run in 1..=runs {
        for pair in &mut pairs {
            let stream = pair.stream()?;
            println!("  run {run}: {} peers: {stream:.2} Gb/s", pair.peers);
            pair.streams.push(stream);
        }
    }
    report(table, &pairs);
    Ok(())
}

fn report(table: &mut Table, [few, many]: &[Pair; 2]) {
    for (pair, goal) in [(few, Goal::None), (many, Goal::AtMost(START_SECONDS))] {
        let spread = |figures: &[f64]| Spread::of(figures.iter().copied());
        let what = |what: &str| format!("peers: {what}, {} configured", pair.peers);
        table.add(what("start until ready"), "s", spread(&pair.starts), goal);
        table.add(
            what("CPU time of the start"),
            "s",
            spread(&pair.work),
            Goal::None,
        );
        table.add(what("resident"), "KiB", spread(&pair.memory), Goal::None);
        table.add(
            what("one TCP stream"),
            "Gb/s",
            spread(&pair.streams),
            Goal::None,
        );
    }
    let both = |f: fn(f64, f64) -> f64, few: &[f64], many: &[f64]| {
        Spread::of(few.iter().zip(many).map(|(few, many)| f(*few, *many)))
    };
    table.add(
        "peers: memory of one configured peer",
        "KiB",
        both(
            |few, many| (many - few) / f64::from(MANY - FEW),
            &few.memory,
            &many.memory,
        ),
        Goal::AtMost(PEER_KIB),
    );
    // The medians are compared, as single runs differ by more than the goal.
    let median = |pair: &Pair| Spread::of(pair.streams.iter().copied()).median;
    table.add(
        "peers: throughput with many beside that with few",
        "×",
        Spread::of([median(many) / median(few)]),
        Goal::AtLeast(RATIO),
    );
}

impl Pair {
    /// Two configured hosts; nothing runs yet.
    fn new(lab: &Lab, peers: u32) -> Result<Self> {
        let names = [format!("a{peers}"), format!("b{peers}")];
        let hosts = [Namespace::new(&names[0])?, Namespace::new(&names[1])?];
        hosts[0].ip(&format!(
            "link add veth0 type veth peer name veth0 netns {}",
            hosts[1].path()
        ))?;
        for (ns, address) in hosts.iter().zip(OUTER) {
            ns.ip(&format!(
                "addr add {address}/24 dev veth0\nlink set veth0 up"
            ))?;
        }
        let nodes = [
            Node::new(lab, &hosts[0], &names[0])?.quiet(),
            Node::new(lab, &hosts[1], &names[1])?.quiet(),
        ];
        for (own, other) in [(0, 1), (1, 0)] {
            let present = PeerConfig {
                endpoint: Some(SocketAddr::new(IpAddr::V4(OUTER[other]), PORT)),
                ..nodes[other].as_peer(&mesh::address(other as u8 + 1).to_string())
            };
            nodes[own].configure(&Settings {
                listen_port: PORT,
                relays: Vec::new(),
                address: Some(mesh::address(own as u8 + 1).to_string()),
                peers: std::iter::once(present)
                    .chain(mesh::absent(peers - 1))
                    .collect(),
                ..Settings::default()
            })?;
        }
        let mut server = hosts[1].command("iperf3");
        server.arg("-s");
        Ok(Self {
            peers,
            nodes,
            starts: Vec::new(),
            work: Vec::new(),
            memory: Vec::new(),
            streams: Vec::new(),
            _server: Program::spawn(lab, &format!("iperf3-{peers}"), server)?,
        })
    }

    /// Starts the first daemon anew; the second is not there, so that all that is seen is the start.
    fn restart(&mut self) -> Result<()> {
        let node = &mut self.nodes[0];
        node.stop()?;
        let started = Instant::now();
        node.start()?;
        self.starts.push(started.elapsed().as_secs_f64());
        let pid = node.program().pid();
        self.work.push(procfs::cpu_seconds(pid)?);
        procfs::settled(pid)?;
        self.memory.push(procfs::memory(pid)?.resident);
        println!(
            "  {} peers: ready after {:.3} s, {:.0} KiB",
            self.peers,
            self.starts.last().copied().unwrap_or_default(),
            self.memory.last().copied().unwrap_or_default()
        );
        Ok(())
    }

    fn connect(&mut self) -> Result<()> {
        self.nodes[1].start()?;
        let destination = mesh::address(2).to_string();
        within("an answer through the tunnel", PATIENCE, || {
            let ns = &self.nodes[0].ns;
            Ok(ns.run("ping", &["-c1", "-W1", &destination]).is_ok())
        })
        .map(drop)
    }

    /// Gb/s of one TCP stream.
    fn stream(&self) -> Result<f64> {
        let destination = mesh::address(2).to_string();
        let args = ["-c", &destination, "-t", STREAM_SECONDS, "-J"];
        let text = self.nodes[0].ns.run("iperf3", &args)?;
        let report: Value = serde_json::from_str(&text).context("the report of iperf3")?;
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(rate.context("a rate in the report of iperf3")? / 1e9)
    }
}
