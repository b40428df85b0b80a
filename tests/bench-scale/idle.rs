//! A daemon with a hundred peers, of which ten are there and say something now and then.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Internet, Lab, Namespace, Node, PeerConfig, Relay, Settings, within};

use crate::table::{Goal, Spread, Table};
use crate::{mesh, procfs};

/// Peers that are there, and peers that are not.
const PRESENT: u8 = 10;
const ABSENT: u32 = 90;
/// Every present peer pings once in each, so that it counts as in use all the time.
const WINDOW: Duration = Duration::from_secs(20);
const WINDOWS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 41_820;

/// Goals: of a core, and of memory.
const CPU_PERCENT: f64 = 0.1;
const RESIDENT_MIB: f64 = 24.0;
/// Goal: wake-ups a second that no packet caused.
const WAKEUPS: f64 = 1.0;

pub(crate) fn run(lab: &Lab, _: usize, table: &mut Table) -> Result<()> {
    let mut internet = Internet::new(false)?;
    let (relay_ns, relay_address) = internet.host("relay")?;
    let relay = Relay::start(lab, &relay_ns, relay_address)?;
    let (hub, peers) = nodes(lab, &mut internet, &relay.url)?;
    let mut hub = hub;
    hub.start()?;
    let peers = start(peers, &hub)?;
    let pid = hub.program().pid();
    procfs::settled(pid)?;

    let mut windows = Vec::new();
    for _ in 0..WINDOWS {
        windows.push(window(&hub, pid, &peers)?);
    }
    // Only now: a status costs something as well.
    for peer in &peers {
        let kind = hub.path_kind(&peer.name)?;
        ensure!(
            kind.as_deref() == Some("direct"),
            "{} lost its path",
            peer.name
        );
    }
    report(table, &windows);
    let memory = procfs::memory(pid)?;
    let mut mib = |what: &str, kib: f64, goal| {
        table.add(
            format!("idle: {what}"),
            "MiB",
            Spread::of([kib / 1024.0]),
            goal,
        );
    };
    mib("resident", memory.resident, Goal::AtMost(RESIDENT_MIB));
    mib(
        "resident, shared pages divided",
        memory.proportional,
        Goal::None,
    );
    mib("heap and stacks", memory.anonymous, Goal::None);
    Ok(())
}

/// The daemon that is measured and the ten that talk to it, each at a site of its own, configured and not started.
fn nodes(lab: &Lab, internet: &mut Internet, relay: &str) -> Result<(Node, Vec<Node>)> {
    let (ns, hub_outer) = internet.host("hub")?;
    let hub = Node::new(lab, &ns, "hub")?.quiet();
    let (mut peers, mut known) = (Vec::new(), Vec::new());
    let settings = |address: u8, peers| Settings {
        listen_port: PORT,
        relays: vec![relay.to_owned()],
        address: Some(mesh::address(address).to_string()),
        peers,
        ..Settings::default()
    };
    let with_endpoint = |node: &Node, address: u8, outer: IpAddr| PeerConfig {
        endpoint: Some(SocketAddr::new(outer, PORT)),
        ..node.as_peer(&mesh::address(address).to_string())
    };
    for number in 2..2 + PRESENT {
        let (ns, outer) = internet.host(&format!("peer-{number}"))?;
        let node = Node::new(lab, &ns, &format!("peer-{number}"))?.quiet();
        let hub_as_peer = with_endpoint(&hub, 1, hub_outer.into());
        node.configure(&settings(number, vec![hub_as_peer]))?;
        known.push(with_endpoint(&node, number, outer.into()));
        peers.push(node);
    }
    known.extend(mesh::absent(ABSENT));
    hub.configure(&settings(1, known))?;
    Ok((hub, peers))
}

/// Starts the others and waits until all of them have a direct path.
fn start(mut peers: Vec<Node>, hub: &Node) -> Result<Vec<Node>> {
    for peer in &mut peers {
        peer.start()?;
    }
    for peer in &peers {
        within("an answer to a peer", PATIENCE, || {
            Ok(peer.icmp(mesh::address(1), 1).is_ok())
        })?;
        hub.wait_path(&peer.name, "direct", PATIENCE)?;
    }
    Ok(peers)
}

/// What a while of rest cost.
struct Window {
    cpu_percent: f64,
    /// A second, by the thread's name.
    switches: BTreeMap<String, f64>,
    /// Packets a second that the daemon was woken for.
    packets: f64,
}

fn window(hub: &Node, pid: u32, peers: &[Node]) -> Result<Window> {
    let before = (
        procfs::switches(pid)?,
        packets(&hub.ns)?,
        procfs::cpu_seconds(pid)?,
    );
    let started = Instant::now();
    for peer in peers {
        peer.icmp(mesh::address(1), 1)?;
    }
    // Time passing is what is measured here.
    std::thread::sleep(WINDOW.saturating_sub(started.elapsed()));
    let after = (
        procfs::switches(pid)?,
        packets(&hub.ns)?,
        procfs::cpu_seconds(pid)?,
    );
    let seconds = started.elapsed().as_secs_f64();
    let mut switches = BTreeMap::new();
    for (thread, count) in after.0 {
        let count = count - before.0.get(&thread).copied().unwrap_or(0);
        *switches.entry(thread.1).or_insert(0.0) += count as f64 / seconds;
    }
    Ok(Window {
        cpu_percent: (after.2 - before.2) / seconds * 100.0,
        switches,
        packets: (after.1 - before.1) / seconds,
    })
}

/// Packets that came for the daemon: over the cable, and from the kernel into its TUN device.
fn packets(ns: &Namespace) -> Result<f64> {
    let text = ns.run("ip", &["-json", "-stats", "link"])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let count = |name: &str, direction: &str| {
        let mut links = links.as_array().into_iter().flatten();
        links
            .find(|link| link["ifname"] == name)
            .and_then(|link| link["stats64"][direction]["packets"].as_f64())
            .with_context(|| format!("no packets of {name}"))
    };
    Ok(count("wan", "rx")? + count("mesh-lab", "tx")?)
}

fn report(table: &mut Table, windows: &[Window]) {
    let spread = |value: &dyn Fn(&Window) -> f64| Spread::of(windows.iter().map(value));
    let what = format!(
        "idle: {} peers, {PRESENT} of them there",
        u32::from(PRESENT) + ABSENT
    );
    table.add(
        what,
        "% of a core",
        spread(&|w| w.cpu_percent),
        Goal::AtMost(CPU_PERCENT),
    );
    let names: std::collections::BTreeSet<&String> = windows
        .iter()
        .flat_map(|window| window.switches.keys())
        .collect();
    for name in names {
        let woken = |w: &Window| w.switches.get(name).copied().unwrap_or(0.0);
        table.add(
            format!("idle: wake-ups of thread {name}"),
            "a second",
            spread(&woken),
            Goal::None,
        );
    }
    table.add(
        "idle: packets to the daemon",
        "a second",
        spread(&|w| w.packets),
        Goal::None,
    );
    // A packet may be answered in the same turn as others, so this is what timers cause at least.
    let timers = |w: &Window| (w.switches.values().sum::<f64>() - w.packets).max(0.0);
    table.add(
        "idle: wake-ups of all threads beyond packets",
        "a second",
        spread(&timers),
        Goal::AtMost(WAKEUPS),
    );
}
