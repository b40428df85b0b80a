//! What `meshctl status` and `meshctl netcheck` show.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use mesh_bus::{NatBehaviour, NetworkState, PortAllocation};
use mesh_core::engine::{
    Drops, NetcheckReport, NetworkStatus, PathKind, PathStatus, PeerState, PeerStatus,
};
use mesh_core::identity::overlay_address;
use mesh_core::nat::{Allocation, Filtering, Mapping, Pooling};

use super::names::{addresses, key_text};
use super::network::{Network, Phase};
use crate::dataplane::{Counters, StatusReport};
use crate::sockets::{self, SendErrors};

/// A network with what the data plane says about it, if it runs.
pub(super) fn network(
    network: &Network,
    running: Option<&NetworkStatus>,
    notes: &[String],
) -> mesh_bus::Network {
    let mut health = notes.to_vec();
    if let Phase::Failed(reason) = &network.phase {
        health.push(reason.clone());
    }
    if network.interface().is_some_and(|interface| !interface.ipv6) {
        health.push(format!(
            "IPv6 is disabled on {0}, so peers are reached by their IPv4 addresses only; \
             run: sysctl net.ipv6.conf.default.disable_ipv6=0, then: meshctl down {1} && meshctl up {1}",
            network.config.interface, network.config.name
        ));
    }
    health.extend(
        running
            .into_iter()
            .flat_map(|running| running.health.clone()),
    );
    mesh_bus::Network {
        name: network.config.name.clone(),
        id: network.config.id.to_string(),
        state: state(network),
        interface: network.config.interface.clone(),
        this: this(network, running),
        peers: match running {
            Some(running) => running.peers.iter().map(peer).collect(),
            None => silent_peers(network),
        },
        health,
    }
}

fn state(network: &Network) -> NetworkState {
    match &network.phase {
        Phase::Up(_) => NetworkState::Up,
        Phase::Down if network.wanted => NetworkState::Starting,
        Phase::Down | Phase::Failed(_) => NetworkState::Down,
    }
}

fn this(network: &Network, running: Option<&NetworkStatus>) -> mesh_bus::SelfInfo {
    let derived = network
        .id
        .map(|id| IpAddr::from(overlay_address(&network.config.id, &id)));
    let given = network.config.addresses.iter().map(|net| net.addr());
    mesh_bus::SelfInfo {
        id: network.id.map(|id| id.to_string()).unwrap_or_default(),
        name: host_name(),
        addresses: derived.into_iter().chain(given).collect(),
        home_relay: running
            .and_then(|running| running.home_relay.as_ref())
            .map(ToString::to_string),
        endpoints: running
            .map(|running| running.endpoints.clone())
            .unwrap_or_default(),
    }
}

/// The host's name without its domain.
pub(super) fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name = name.to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn peer(peer: &PeerStatus) -> mesh_bus::Peer {
    mesh_bus::Peer {
        id: key_text(&peer.key),
        name: peer.name.clone(),
        addresses: peer.addresses.clone(),
        routes: peer.routes.iter().map(ToString::to_string).collect(),
        state: match peer.state {
            PeerState::Active => mesh_bus::PeerState::Active,
            PeerState::Idle => mesh_bus::PeerState::Idle,
            PeerState::Offline => mesh_bus::PeerState::Offline,
        },
        path: peer.path.as_ref().map(path),
        tx_bytes: peer.tx_bytes,
        rx_bytes: peer.rx_bytes,
        last_handshake_s: peer.last_handshake.map(|age| age.as_secs_f64()),
        last_rx_s: peer.last_rx.map(|age| age.as_secs_f64()),
    }
}

/// The peers of a network that does not run.
fn silent_peers(network: &Network) -> Vec<mesh_bus::Peer> {
    let mut peers: Vec<mesh_bus::Peer> = network
        .config
        .peers
        .iter()
        .map(|peer| mesh_bus::Peer {
            id: key_text(&peer.key),
            name: peer.name.clone(),
            addresses: addresses(network, peer),
            routes: peer.routes.iter().map(ToString::to_string).collect(),
            state: mesh_bus::PeerState::Idle,
            path: None,
            tx_bytes: 0,
            rx_bytes: 0,
            last_handshake_s: None,
            last_rx_s: None,
        })
        .collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    peers
}

pub(super) fn path(path: &PathStatus) -> mesh_bus::Path {
    mesh_bus::Path {
        kind: path_kind(path.kind),
        local: path
            .local_port
            .and_then(|port| sockets::local_address(path.remote, port))
            .map(|local| local.to_string()),
        remote: path.remote.to_string(),
        relay: path.relay.as_ref().map(ToString::to_string),
        rtt_ms: path.rtt.map(milliseconds),
        mtu: path.mtu,
        since_s: path.age.as_secs_f64(),
        reason: path.reason.to_owned(),
    }
}

pub(super) fn path_kind(kind: PathKind) -> mesh_bus::PathKind {
    match kind {
        PathKind::Direct => mesh_bus::PathKind::Direct,
        PathKind::Relay => mesh_bus::PathKind::Relay,
    }
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What was dropped, by reason; reasons that never occurred are left out.
pub(super) fn drops(report: &StatusReport) -> BTreeMap<String, u64> {
    let all = all_drops(&report.drops, &report.counters, &report.send_errors);
    all.into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.to_owned(), count))
        .collect()
}

/// What was dropped, by every reason that there is.
pub(super) const fn all_drops(
    drops: &Drops,
    counters: &Counters,
    errors: &SendErrors,
) -> [(&'static str, u64); 22] {
    [
        ("unknown_protocol", drops.unknown_protocol),
        ("unknown_session", drops.unknown_session),
        ("unauthentic", drops.unauthentic),
        ("replayed", drops.replayed),
        ("rate_limited", drops.rate_limited),
        ("unknown_channel", drops.unknown_channel),
        ("malformed", drops.malformed),
        ("wrong_source", drops.wrong_source),
        ("no_route", drops.no_route),
        ("forged_control", drops.forged_control),
        ("queue_full", drops.queue_full),
        ("too_big", drops.too_big),
        ("udp_receive_errors", counters.udp_receive_errors),
        ("tun_read_errors", counters.tun_read_errors),
        ("tun_write_errors", counters.tun_write_errors),
        ("quic_queue_full", counters.quic_queue_full),
        ("output_queue_full", counters.output_queue_full),
        ("send_unreachable", errors.unreachable),
        ("send_refused", errors.refused),
        ("send_too_big", errors.too_big),
        ("send_buffer_full", errors.buffer_full),
        ("send_other", errors.other),
    ]
}

pub(super) fn mapping(mapping: Mapping) -> NatBehaviour {
    match mapping {
        Mapping::EndpointIndependent => NatBehaviour::EndpointIndependent,
        Mapping::AddressDependent => NatBehaviour::AddressDependent,
        Mapping::AddressAndPortDependent => NatBehaviour::AddressAndPortDependent,
        Mapping::Unknown => NatBehaviour::Unknown,
    }
}

pub(super) fn filtering(filtering: Filtering) -> NatBehaviour {
    match filtering {
        Filtering::EndpointIndependent => NatBehaviour::EndpointIndependent,
        Filtering::AddressDependent => NatBehaviour::AddressDependent,
        Filtering::AddressAndPortDependent => NatBehaviour::AddressAndPortDependent,
        Filtering::Unknown | Filtering::NotPortDependent => NatBehaviour::Unknown,
    }
}

pub(super) fn allocation(allocation: Allocation) -> PortAllocation {
    match allocation {
        Allocation::Preserving => PortAllocation::Preserving,
        Allocation::Sequential { .. } => PortAllocation::Sequential,
        Allocation::Random { .. } => PortAllocation::Random,
        Allocation::Unknown => PortAllocation::Unknown,
    }
}

pub(super) fn pooling(pooling: Pooling) -> mesh_bus::Pooling {
    match pooling {
        Pooling::Paired => mesh_bus::Pooling::Paired,
        Pooling::Arbitrary => mesh_bus::Pooling::Arbitrary,
        Pooling::Unknown => mesh_bus::Pooling::Unknown,
    }
}

/// What a netcheck of network `name` found.
pub(super) fn netcheck(name: &str, report: &NetcheckReport) -> mesh_bus::Netcheck {
    mesh_bus::Netcheck {
        network: name.to_owned(),
        udp: report.udp,
        ipv4: report.ipv4,
        ipv6: report.ipv6,
        mapping: mapping(report.profile.mapping),
        filtering: filtering(report.profile.filtering),
        port_allocation: allocation(report.profile.allocation),
        delta: report.profile.allocation.delta(),
        pooling: pooling(report.profile.pooling),
        addresses: report.addresses.clone(),
        ipv6_translated: report.ipv6_translated,
        ipv6_filtering: filtering(report.ipv6_filtering),
        hairpin: report.profile.hairpin,
        mapping_lifetime_s: report.mapping_lifetime.map(|time| time.as_secs()),
        port_mapping: report
            .port_mapping
            .iter()
            .map(|protocol| protocol.as_str().to_owned())
            .collect(),
        relays: report
            .relays
            .iter()
            .map(|relay| mesh_bus::RelayLatency {
                url: relay.url.to_string(),
                rtt_ms: relay.rtt.map(milliseconds),
                via: relay.rtt.map(|_| "udp".to_owned()),
            })
            .collect(),
    }
}
