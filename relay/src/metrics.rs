//! What Prometheus is told about a relay. Nothing of it names a client.

use mesh_core::relay::server::DropReason;
use mesh_core::wire::prometheus::{Exposition, Kind};

use crate::Observer;

/// Everything, in the format of Prometheus.
pub fn render(observer: &Observer) -> String {
    let (stats, load) = (observer.stats(), observer.load());
    let mut out = Exposition::default();
    out.family(
        "mesh_relay_build_info",
        Kind::Gauge,
        "The version that runs.",
    )
    .sample(&[("version", env!("CARGO_PKG_VERSION"))], true);
    let gauges = [
        (
            "mesh_relay_clients",
            "Clients that are connected and admitted.",
            load.clients,
        ),
        (
            "mesh_relay_newcomers",
            "Connections that have not said hello yet.",
            load.newcomers,
        ),
        (
            "mesh_relay_channels",
            "Channels that are open between two clients.",
            load.channels,
        ),
        (
            "mesh_relay_queued_bytes",
            "Bytes of control messages that wait for clients to take them.",
            load.queued_bytes,
        ),
    ];
    for (name, help, value) in gauges {
        out.single(name, Kind::Gauge, help, value);
    }
    let counters = [
        (
            "mesh_relay_forwarded_packets_total",
            "Data packets passed on between clients.",
            stats.frames,
        ),
        (
            "mesh_relay_forwarded_bytes_total",
            "Bytes of data packets passed on, with the relay's header of 8 bytes each.",
            stats.bytes,
        ),
        (
            "mesh_relay_control_packets_total",
            "Packets passed on between the control connections of clients: handshakes and calls.",
            stats.packets,
        ),
        (
            "mesh_relay_stun_answers_total",
            "STUN requests answered.",
            stats.stun,
        ),
    ];
    for (name, help, value) in counters {
        out.single(name, Kind::Counter, help, value);
    }
    let mut drops = out.family(
        "mesh_relay_drops_total",
        Kind::Counter,
        "Datagrams and messages dropped, by reason.",
    );
    for reason in DropReason::ALL {
        drops.sample(&[("reason", reason.as_str())], stats.dropped(reason));
    }
    out.finish()
}
