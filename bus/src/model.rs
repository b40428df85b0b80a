//! The JSON documents. Field names are a stable interface: scripts read them from `meshctl --json`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// `meshctl status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of meshd.
    pub version: String,
    /// The configuration file that meshd reads, whether or not it is there.
    pub config: String,
    /// Every configured network.
    pub networks: Vec<Network>,
    /// What was dropped since the start, by reason; a reason that never occurred may be missing.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
}

/// A network in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Name in the configuration.
    pub name: String,
    /// Network ID.
    pub id: String,
    /// Whether its interface is there.
    pub state: NetworkState,
    /// Name of its network interface.
    pub interface: String,
    /// This host as a member.
    #[serde(rename = "self")]
    pub this: SelfInfo,
    /// Everyone else, by name.
    pub peers: Vec<Peer>,
    /// What is wrong, one line each, with what to do.
    pub health: Vec<String>,
}

/// Whether a network's interface is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkState {
    /// Taken down, or not to be started.
    Down,
    /// Being brought up.
    Starting,
    /// Interface, addresses and routes are there.
    Up,
}

/// This host in a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelfInfo {
    /// Our node ID.
    pub id: String,
    /// Our name.
    pub name: String,
    /// Our overlay addresses, the derived one first.
    pub addresses: Vec<IpAddr>,
    /// The relay that others reach us by, once connected.
    pub home_relay: Option<String>,
    /// Our public addresses as others see them.
    pub endpoints: Vec<SocketAddr>,
}

/// Another member of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Node ID; of a stock WireGuard device its public key in base64.
    pub id: String,
    /// Name.
    pub name: String,
    /// Overlay addresses, the derived one first.
    pub addresses: Vec<IpAddr>,
    /// Prefixes behind it.
    pub routes: Vec<String>,
    /// In use or not.
    pub state: PeerState,
    /// How it is reached; `null` while nothing has answered.
    pub path: Option<Path>,
    /// Inner bytes sent to it.
    pub tx_bytes: u64,
    /// Inner bytes received from it.
    pub rx_bytes: u64,
    /// Seconds since the last completed WireGuard handshake.
    pub last_handshake_s: Option<f64>,
    /// Seconds since the last authenticated packet.
    pub last_rx_s: Option<f64>,
}

/// Whether a peer is in use and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// In use, and it answers.
    Active,
    /// Nothing to say to it.
    Idle,
    /// It was tried and does not answer.
    Offline,
}

/// A way to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// What kind of way.
    pub kind: PathKind,
    /// Our address on it, where it is known.
    pub local: Option<String>,
    /// The peer's address, or the relay's.
    pub remote: String,
    /// The relay's `mesh://…` address, on a way through one.
    pub relay: Option<String>,
    /// Smoothed round trip time in milliseconds, once measured.
    pub rtt_ms: Option<f64>,
    /// Largest inner packet in bytes.
    pub mtu: u16,
    /// Seconds that it has been the way to this peer.
    pub since_s: f64,
    /// Why it became the way to this peer, in words.
    #[serde(default)]
    pub reason: String,
}

/// Kinds of way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// UDP from host to host.
    Direct,
    /// Through a relay.
    Relay,
}

/// `meshctl ping --json`, one for each ping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pong {
    /// Network that the peer was found in.
    pub network: String,
    /// Node ID of the peer, or its WireGuard public key.
    pub id: String,
    /// Name of the peer.
    pub name: String,
    /// The overlay address that was pinged.
    pub address: IpAddr,
    /// `null` when none came in time.
    pub answer: Option<Answer>,
}

/// The answer to an overlay ping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Milliseconds from sending to the answer.
    pub rtt_ms: f64,
    /// The kind of way that the answer came by.
    pub kind: PathKind,
    /// The peer's address on it, or the relay's.
    pub via: String,
}

/// `meshctl explain --json`: why a peer is reached as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Network that the peer was found in.
    pub network: String,
    /// Node ID of the peer, or its WireGuard public key.
    pub id: String,
    /// Name of the peer.
    pub name: String,
    /// The way that is in use; `null` while nothing has answered.
    pub path: Option<Path>,
    /// Why that is the way, in one sentence.
    pub summary: String,
    /// What our NAT does.
    pub own_nat: Nat,
    /// What the peer's NAT does, as it says; `null` while it has not.
    pub peer_nat: Option<Nat>,
    /// What was tried to open a direct way, the newest last.
    pub attempts: Vec<Attempt>,
    /// NAT mappings that attempts to get through hard NATs have made for this peer since meshd started.
    #[serde(default)]
    pub mappings: u64,
}

/// What a NAT does, as far as it is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nat {
    /// How it maps.
    pub mapping: NatBehaviour,
    /// What it lets in.
    pub filtering: NatBehaviour,
    /// Which external port a new mapping gets.
    pub port_allocation: PortAllocation,
    /// Which of its external addresses a mapping gets.
    #[serde(default)]
    pub pooling: Pooling,
}

/// One address of a peer that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Our UDP port; `null` if it was many, and none of them won.
    pub local_port: Option<u16>,
    /// Where probes went. For a search, with the port that answered, or 0.
    pub target: SocketAddr,
    /// How: `punch`, `port prediction`, and so on.
    pub strategy: String,
    /// Probes that were sent there.
    pub probes: u32,
    /// NAT mappings that they made, as far as that is known.
    pub mappings: u32,
    /// Whether one was answered.
    pub answered: bool,
    /// Seconds since it began.
    pub age_s: f64,
    /// Seconds to the answer, or to the end.
    pub duration_s: f64,
}

/// `meshctl netcheck --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Netcheck {
    /// Network whose relays were asked.
    pub network: String,
    /// Whether UDP reaches at least one relay.
    pub udp: bool,
    /// Our address as relays see it over IPv4.
    pub ipv4: Option<SocketAddr>,
    /// Our address as relays see it over IPv6.
    pub ipv6: Option<SocketAddr>,
    /// How the NAT before this host maps.
    pub mapping: NatBehaviour,
    /// What the NAT before this host lets in.
    pub filtering: NatBehaviour,
    /// Which external port a new mapping gets.
    pub port_allocation: PortAllocation,
    /// From one port to the next, if it is `sequential`; else `null`.
    pub delta: Option<i8>,
    /// Which of the NAT's external IPv4 addresses a mapping gets.
    #[serde(default)]
    pub pooling: Pooling,
    /// The external IPv4 addresses that were seen.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Seconds for which the NAT keeps a mapping that nobody uses, at least; 0 if that is less than 9. `null` if it was
    /// not measured yet, which takes three minutes.
    #[serde(default)]
    pub mapping_lifetime_s: Option<u64>,
    /// Whether IPv6 addresses are translated; `null` if no relay was reached over IPv6.
    #[serde(default)]
    pub ipv6_translated: Option<bool>,
    /// What is let in over IPv6, by a NAT or a firewall.
    #[serde(default)]
    pub ipv6_filtering: NatBehaviour,
    /// Hosts behind the NAT reach each other by its outside; `null` without a NAT, or if that was not measured.
    pub hairpin: Option<bool>,
    /// How routers would map a port for us: `pcp`, `nat-pmp`, `upnp`.
    #[serde(default)]
    pub port_mapping: Vec<String>,
    /// The relays of the network.
    pub relays: Vec<RelayLatency>,
}

/// A relay in [`Netcheck`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelayLatency {
    /// Its `mesh://…` address.
    pub url: String,
    /// Round trip time in milliseconds; `null` when it did not answer.
    pub rtt_ms: Option<f64>,
    /// What it was reached over: `udp`; `null` when it was not reached.
    pub via: Option<String>,
}

/// What a NAT's mapping or filtering depends on (RFC 4787).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatBehaviour {
    /// On nothing but the inside.
    EndpointIndependent,
    /// On the other side's address.
    AddressDependent,
    /// On the other side's address and port.
    AddressAndPortDependent,
    /// Not measured, or not measurable with the relays at hand.
    #[default]
    Unknown,
}

/// How a NAT with several external addresses chooses one (RFC 4787, REQ-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// One and the same for this host; there may be no other.
    Paired,
    /// Any, for each mapping or destination anew.
    Arbitrary,
    /// Not measured, or there is no NAT.
    #[default]
    Unknown,
}

/// How a NAT chooses the ports of new mappings (RFC 4787, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortAllocation {
    /// The inside's own port.
    Preserving,
    /// The one before plus a step.
    Sequential,
    /// By no rule that was found.
    Random,
    /// Not measured.
    Unknown,
}

/// `meshctl reload --json`: names of networks by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// New in the file.
    pub added: Vec<String>,
    /// Gone from the file.
    pub removed: Vec<String>,
    /// Different from before; sessions of peers that did not change live on.
    pub changed: Vec<String>,
    /// As before.
    pub unchanged: Vec<String>,
}

macro_rules! words {
    ($($name:ident { $($variant:ident => $word:literal),+ $(,)? })+) => {$(
        impl $name {
            /// The word in the JSON documents.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    )+};
}

words! {
    NetworkState { Down => "down", Starting => "starting", Up => "up" }
    PeerState { Active => "active", Idle => "idle", Offline => "offline" }
    PathKind { Direct => "direct", Relay => "relay" }
    NatBehaviour {
        EndpointIndependent => "endpoint-independent",
        AddressDependent => "address-dependent",
        AddressAndPortDependent => "address-and-port-dependent",
        Unknown => "unknown",
    }
    Pooling { Paired => "paired", Arbitrary => "arbitrary", Unknown => "unknown" }
    PortAllocation {
        Preserving => "preserving",
        Sequential => "sequential",
        Random => "random",
        Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn status_has_the_field_names_of_the_contract() {
        let document = json!({
            "version": "0.1.0",
            "config": "/etc/meshd/config.toml",
            "networks": [{
                "name": "home", "id": "nnn", "state": "up", "interface": "mesh-home",
                "self": {
                    "id": "aaa", "name": "alice", "addresses": ["fd00::1", "10.77.0.1"],
                    "home_relay": "mesh://r@203.0.113.9:443", "endpoints": ["203.0.113.7:41820"]
                },
                "peers": [{
                    "id": "bbb", "name": "bob", "addresses": ["fd00::2", "10.77.0.2"],
                    "routes": ["192.168.50.0/24"], "state": "active",
                    "path": {
                        "kind": "direct", "local": null, "remote": "198.51.100.4:41820",
                        "relay": null, "rtt_ms": 12.3, "mtu": 1420, "since_s": 63.0,
                        "reason": "a direct path answered"
                    },
                    "tx_bytes": 1, "rx_bytes": 2, "last_handshake_s": 12.0, "last_rx_s": 0.2
                }],
                "health": ["one"]
            }],
            "drops": {"unauthentic": 3}
        });
        let status: Status = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(serde_json::to_value(&status).unwrap(), document);
        assert_eq!(
            status.networks[0].peers[0].path.as_ref().unwrap().kind,
            PathKind::Direct
        );
    }

    #[test]
    fn netcheck_has_the_field_names_of_the_contract() {
        let document = json!({
            "network": "home", "udp": true, "ipv4": "203.0.113.7:41820", "ipv6": null,
            "mapping": "endpoint-independent", "filtering": "address-and-port-dependent",
            "port_allocation": "sequential", "delta": -1, "hairpin": false,
            "mapping_lifetime_s": 28,
            "pooling": "arbitrary", "addresses": ["203.0.113.7", "203.0.113.8"],
            "ipv6_translated": false, "ipv6_filtering": "address-and-port-dependent",
            "port_mapping": ["pcp", "nat-pmp", "upnp"],
            "relays": [{"url": "mesh://r@203.0.113.9:443", "rtt_ms": 20.5, "via": "udp"}]
        });
        let netcheck: Netcheck = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(serde_json::to_value(&netcheck).unwrap(), document);
    }

    #[test]
    fn words_are_the_same_in_json_and_in_text() {
        fn same(value: impl Serialize + fmt::Display) {
            assert_eq!(
                serde_json::to_value(&value).unwrap(),
                json!(value.to_string())
            );
        }
        [NetworkState::Down, NetworkState::Starting, NetworkState::Up]
            .into_iter()
            .for_each(same);
        [PeerState::Active, PeerState::Idle, PeerState::Offline]
            .into_iter()
            .for_each(same);
        [PathKind::Direct, PathKind::Relay]
            .into_iter()
            .for_each(same);
        [
            NatBehaviour::EndpointIndependent,
            NatBehaviour::AddressDependent,
            NatBehaviour::AddressAndPortDependent,
            NatBehaviour::Unknown,
        ]
        .into_iter()
        .for_each(same);
        [
            PortAllocation::Preserving,
            PortAllocation::Sequential,
            PortAllocation::Random,
            PortAllocation::Unknown,
        ]
        .into_iter()
        .for_each(same);
        [Pooling::Paired, Pooling::Arbitrary, Pooling::Unknown]
            .into_iter()
            .for_each(same);
    }
}
