//! What Prometheus is told about this host: who is reached how, what was done for it, what was dropped.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::engine::{
    NetworkIndex, NetworkMetrics, PathKind, PeerMetrics, PeerState, RelayMetrics, Strategy,
};
use mesh_core::wire::prometheus::{Exposition, Kind};

use super::names::key_text;
use super::status;
use crate::control::Counters as ControlCounters;
use crate::dataplane::MetricsReport;

/// A configured network, whether it runs or not.
#[derive(Debug)]
pub(super) struct Configured {
    pub(super) index: NetworkIndex,
    pub(super) name: String,
    pub(super) up: bool,
}

/// The networks with their names, as the lines are labelled.
type Named<'a> = Vec<(&'a str, &'a NetworkMetrics)>;

/// Everything, in the format of Prometheus.
pub(super) fn render(
    configured: &[Configured],
    report: &MetricsReport,
    control: &ControlCounters,
) -> String {
    let mut out = Exposition::default();
    out.family("meshd_build_info", Kind::Gauge, "The version that runs.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], true);
    let mut up = out.family(
        "meshd_network_up",
        Kind::Gauge,
        "Whether the network has its interface.",
    );
    for network in configured {
        up.sample(&[("network", &network.name)], network.up);
    }
    let named: Named<'_> = report
        .metrics
        .networks
        .iter()
        .filter_map(|network| {
            let is = |known: &&Configured| known.index == network.index;
            let known = configured.iter().find(is)?;
            Some((known.name.as_str(), network))
        })
        .collect();
    networks(&mut out, &named);
    relays(&mut out, &named);
    peers(&mut out, &named, SystemTime::now());
    out.single(
        "meshd_peers_omitted",
        Kind::Gauge,
        "Peers without series of their own because there are too many.",
        report.metrics.peers_omitted,
    );
    traversal(&mut out, report);
    traffic(&mut out, report, control);
    out.finish()
}

fn networks(out: &mut Exposition, networks: &Named<'_>) {
    let mut peers = out.family("meshd_peers", Kind::Gauge, "Peers by their state.");
    for (network, found) in networks {
        for (state, count) in PeerState::ALL.into_iter().zip(found.peers_by_state) {
            let labels = [("network", *network), ("state", state.as_str())];
            peers.sample(&labels, count);
        }
    }
    let mut changes = out.family(
        "meshd_path_changes_total",
        Kind::Counter,
        "How often the path to a peer became one of this kind, for this reason.",
    );
    for (network, found) in networks {
        for ((path, reason), count) in &found.path_changes {
            let path = path.map_or("none", PathKind::as_str);
            let labels = [
                ("network", *network),
                ("path", path),
                ("reason", reason.label()),
            ];
            changes.sample(&labels, *count);
        }
    }
    let mut fallbacks = out.family(
        "meshd_relay_fallbacks_total",
        Kind::Counter,
        "How often the path to a peer became a relay after a direct one.",
    );
    for (network, found) in networks {
        fallbacks.sample(&[("network", network)], found.relay_fallbacks);
    }
}

fn relays(out: &mut Exposition, networks: &Named<'_>) {
    let relays: Vec<(&str, String, &RelayMetrics)> = networks
        .iter()
        .flat_map(|(network, found)| {
            let relays = found.relays.iter();
            relays.map(|relay| (*network, relay.url.to_string(), relay))
        })
        .collect();
    let mut connected = out.family(
        "meshd_relay_connected",
        Kind::Gauge,
        "Whether the relay has welcomed this host.",
    );
    for (network, url, relay) in &relays {
        connected.sample(&[("network", network), ("relay", url)], relay.connected);
    }
    let mut home = out.family(
        "meshd_relay_home",
        Kind::Gauge,
        "Whether first packets go to this relay.",
    );
    for (network, url, relay) in &relays {
        home.sample(&[("network", network), ("relay", url)], relay.home);
    }
    let mut rtt = out.family(
        "meshd_relay_rtt_seconds",
        Kind::Gauge,
        "Round trip time to the relay, once measured.",
    );
    for (network, url, relay) in &relays {
        if let Some(time) = relay.rtt {
            rtt.sample(&[("network", network), ("relay", url)], time);
        }
    }
}

fn peers(out: &mut Exposition, networks: &Named<'_>, now: SystemTime) {
    let peers: Vec<([(&str, &str); 2], &PeerMetrics)> = networks
        .iter()
        .flat_map(|(network, found)| {
            let peers = found.peers.iter();
            peers.map(|peer| ([("network", *network), ("peer", peer.name.as_str())], peer))
        })
        .collect();
    let mut info = out.family(
        "meshd_peer_info",
        Kind::Gauge,
        "Node ID of the peer; of a stock WireGuard device its public key.",
    );
    for ([network, name], peer) in &peers {
        info.sample(&[*network, *name, ("id", &key_text(&peer.key))], true);
    }
    let mut current = out.family(
        "meshd_peer_path",
        Kind::Gauge,
        "1 for the kind of path that leads to the peer, 0 for others.",
    );
    for ([network, name], peer) in &peers {
        for kind in PathKind::ALL {
            let is = peer.path.is_some_and(|(current, _)| current == kind);
            current.sample(&[*network, *name, ("path", kind.as_str())], is);
        }
    }
    let mut times = out.family(
        "meshd_peer_path_seconds_total",
        Kind::Counter,
        "How long a path of this kind has led to the peer.",
    );
    for ([network, name], peer) in &peers {
        for (kind, time) in PathKind::ALL.into_iter().zip(peer.path_times) {
            times.sample(&[*network, *name, ("path", kind.as_str())], time);
        }
    }
    let mut rtt = out.family(
        "meshd_peer_rtt_seconds",
        Kind::Gauge,
        "Round trip time on the peer's path, once measured.",
    );
    for (labels, peer) in &peers {
        if let Some((_, Some(time))) = peer.path {
            rtt.sample(labels, time);
        }
    }
    let mut handshakes = out.family(
        "meshd_peer_last_handshake_timestamp_seconds",
        Kind::Gauge,
        "When the last WireGuard handshake with the peer was complete, since 1970.",
    );
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    for (labels, peer) in &peers {
        if let Some(age) = peer.last_handshake {
            handshakes.sample(labels, milliseconds(now.saturating_sub(age)));
        }
    }
    let mut sent = out.family(
        "meshd_peer_sent_bytes_total",
        Kind::Counter,
        "Bytes of packets sent to the peer, without the tunnel's headers.",
    );
    for (labels, peer) in &peers {
        sent.sample(labels, peer.tx_bytes);
    }
    let mut received = out.family(
        "meshd_peer_received_bytes_total",
        Kind::Counter,
        "Bytes of packets received from the peer, without the tunnel's headers.",
    );
    for (labels, peer) in &peers {
        received.sample(labels, peer.rx_bytes);
    }
}

/// Two clocks are read for a point in time; what differs below this is their noise.
fn milliseconds(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn traversal(out: &mut Exposition, report: &MetricsReport) {
    let done = &report.metrics.traversal;
    let mut punches = out.family(
        "meshd_punches_total",
        Kind::Counter,
        "Attempts to open a direct path that have ended, by what was tried and what came of it.",
    );
    for strategy in Strategy::ALL {
        let outcomes = done.outcomes(strategy);
        for (result, count) in [("opened", outcomes.opened), ("failed", outcomes.failed)] {
            let labels = [("strategy", strategy.label()), ("result", result)];
            punches.sample(&labels, count);
        }
    }
    out.single(
        "meshd_hard_nat_probes_total",
        Kind::Counter,
        "Probes sent to get through NATs that a plain punch does not open.",
        done.probes,
    );
    out.single(
        "meshd_hard_nat_mappings_total",
        Kind::Counter,
        "Mappings that these probes have made in NATs, as far as that is known.",
        done.mappings,
    );
}

fn traffic(out: &mut Exposition, report: &MetricsReport, control: &ControlCounters) {
    let counters = &report.counters;
    let mut datagrams = out.family(
        "meshd_udp_datagrams_total",
        Kind::Counter,
        "Datagrams on the mesh sockets.",
    );
    datagrams.sample(&[("direction", "received")], counters.datagrams_received);
    datagrams.sample(&[("direction", "sent")], counters.datagrams_sent);
    let mut packets = out.family(
        "meshd_tun_packets_total",
        Kind::Counter,
        "Packets on the networks' interfaces: received from peers, sent by this host.",
    );
    packets.sample(&[("direction", "received")], counters.packets_to_tun);
    packets.sample(&[("direction", "sent")], counters.packets_from_tun);
    out.single(
        "meshd_wakeups_total",
        Kind::Counter,
        "How often the thread that moves packets has woken up.",
        counters.wakeups,
    );
    let mut drops = out.family(
        "meshd_drops_total",
        Kind::Counter,
        "Packets and datagrams that were dropped, by reason.",
    );
    let all = status::all_drops(&report.metrics.drops, counters, &report.send_errors);
    for (reason, count) in all {
        drops.sample(&[("reason", reason)], count);
    }
    let mut refused = out.family(
        "meshd_control_refused_total",
        Kind::Counter,
        "Connections to the control socket that came to nothing, by reason.",
    );
    for (reason, count) in control.all() {
        refused.sample(&[("reason", reason)], count);
    }
}
