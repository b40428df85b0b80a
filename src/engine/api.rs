//! What goes into the engine and what comes out of it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::identity::{Identity, NetworkId, NodeId, RelayUrl, overlay_address};
pub use crate::lan::{LanAction, LanAddress, LanGroup, LanPacket};
pub use crate::nat::portmap::{Gateway, PortMapAction, PortMapEvent, PortMapProtocol};
use crate::nat::{Filtering, NatProfile};
pub use crate::path::reason::PathReason;
use crate::wire::relay::{ClientMessage, ServerMessage};

/// Names a network of this daemon; chosen by the shell, below [`crate::limits::MAX_NETWORKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkIndex(pub u16);

/// Names one of our UDP sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u16);

impl SocketId {
    /// The one on the configured port, which relays and peers know; it is there for as long as the engine.
    pub const MESH: Self = Self(0);
}

/// Names a relay connection: one relay of one network. Chosen by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayHandle(pub u32);

/// A network as the engine runs it: the validated configuration with its secrets loaded.
pub struct NetworkSetup {
    /// Name in the configuration.
    pub name: String,
    /// Network ID; the overlay addresses derive from it.
    pub id: NetworkId,
    /// Our key in this network.
    pub identity: Identity,
    /// Our overlay addresses beside the derived one.
    pub addresses: Vec<IpAddr>,
    /// MTU of the network's device, in bytes: at least [`crate::limits::INNER_MTU`] and at most
    /// [`crate::limits::MAX_INNER_MTU`]. What is used is found out for each path, and never exceeds this.
    pub mtu: u16,
    /// Who else is in it.
    pub peers: Vec<PeerSetup>,
    /// Relays to keep connections to, at most [`crate::limits::MAX_RELAYS`].
    pub relays: Vec<RelayUrl>,
}

/// A peer that the configuration vouches for.
#[derive(Clone)]
pub struct PeerSetup {
    /// Which kind of peer, and its key.
    pub key: PeerKey,
    /// Name for people; unique in the network.
    pub name: String,
    /// Overlay addresses beside the derived one.
    pub addresses: Vec<IpAddr>,
    /// Prefixes behind this peer.
    pub routes: Vec<IpNet>,
    /// WireGuard preshared key.
    pub psk: Option<Zeroizing<[u8; 32]>>,
    /// Where it can be reached without any relay.
    pub endpoints: Vec<SocketAddr>,
}

/// A peer's public key, by kind of peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKey {
    /// A host that runs meshd.
    Mesh(NodeId),
    /// A stock WireGuard device: its X25519 public key. One path, no control messages.
    WireGuard([u8; 32]),
}

impl PeerKey {
    /// The peer's X25519 public key.
    pub const fn to_wireguard(&self) -> [u8; 32] {
        match self {
            Self::Mesh(id) => id.to_wireguard(),
            Self::WireGuard(key) => *key,
        }
    }
}

impl PeerSetup {
    /// The derived overlay address in a network; a stock WireGuard peer has none.
    pub(crate) fn overlay(&self, network: &NetworkId) -> Option<Ipv6Addr> {
        match &self.key {
            PeerKey::Mesh(node) => Some(overlay_address(network, node)),
            PeerKey::WireGuard(_) => None,
        }
    }
}

/// What the shell tells the engine about the relay connection that a [`RelayAction::Dial`] asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEvent {
    /// The TLS handshake is done, both sides have proved their keys; `remote` is the relay's UDP address.
    Connected {
        /// Address that data frames and STUN requests go to.
        remote: SocketAddr,
    },
    /// A message arrived on the control stream.
    Message(ServerMessage),
    /// Dialling failed, or the connection broke; the reason is for people.
    Closed {
        /// What happened, for `status`.
        reason: String,
    },
}

/// What the engine wants done about a relay connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayAction {
    /// Connect; answered by [`RelayEvent::Connected`] or [`RelayEvent::Closed`]. The engine decides when to retry.
    Dial {
        /// Whose key to authenticate with.
        network: NetworkIndex,
        /// Where to, and which relay must answer.
        url: RelayUrl,
    },
    /// Send a message on the control stream, in order.
    Send(ClientMessage),
    /// Send it as a QUIC datagram (RFC 9221), at once or not at all: the same message follows on the stream, which may have
    /// to wait for what was lost on it.
    Hasten(ClientMessage),
    /// Close the connection and forget it; no [`RelayEvent`] follows.
    Hangup,
}

/// What the engine wants done about a spare socket: one on a port that the kernel chooses, beside the mesh socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketAction {
    /// Bind one of IPv4, as the mesh socket is; answered at once by `Engine::socket_opened`.
    Open,
    /// Bind one of IPv6.
    OpenV6,
    /// Close it and forget it.
    Close,
}

/// Something that the shell has to do; drained by `Engine::poll_output` after every input.
#[derive(Debug)]
pub enum Output {
    /// Send one datagram. Bulk data goes through [`crate::batch::SendBatch`] instead.
    Datagram {
        /// From which of our sockets.
        socket: SocketId,
        /// Where it goes.
        remote: SocketAddr,
        /// IP TTL or hop limit for this datagram alone; `None` for the host's default.
        ttl: Option<u8>,
        /// The whole UDP payload.
        payload: Vec<u8>,
    },
    /// Write one packet to the device of a network. Bulk data stays in its [`crate::batch::ReceiveBatch`] instead.
    Packet {
        /// Whose device.
        network: NetworkIndex,
        /// The packet, without any header before it.
        packet: Vec<u8>,
    },
    /// Open or close a spare socket.
    Socket(SocketId, SocketAction),
    /// Act on a relay connection.
    Relay(RelayHandle, RelayAction),
    /// Talk to the router; answered by `Engine::handle_port_map`.
    PortMap(PortMapAction),
    /// Talk to the neighbours on our links; what they say goes to `Engine::handle_lan`.
    Lan(LanAction),
    /// Tell whoever listens.
    Event(Event),
}

/// Something that happened, for logs, D-Bus signals and pending commands.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A peer's current path changed, for the reason given in words.
    PathChanged {
        /// Network of the peer.
        network: NetworkIndex,
        /// The peer.
        peer: PeerKey,
        /// Name of the peer.
        name: String,
        /// The new path; `None` when the peer cannot be reached now.
        path: Option<PathStatus>,
        /// Why, in words.
        reason: &'static str,
    },
    /// Packets to a peer may be larger than before, or may no longer be as large.
    MtuChanged {
        /// Network of the peer.
        network: NetworkIndex,
        /// The peer.
        peer: PeerKey,
        /// Largest inner packet, in bytes. Until the first such event it is [`crate::limits::INNER_MTU`].
        mtu: u16,
    },
    /// It was measured how long the NAT before this host keeps a mapping that nobody uses.
    MappingLifetime {
        /// At least so long.
        at_least: Duration,
        /// How often idle paths are used from now on.
        keepalive: Duration,
    },
    /// The health lines of a network changed.
    HealthChanged {
        /// Which network.
        network: NetworkIndex,
    },
    /// The answer to `Engine::ping`.
    Pong {
        /// As given to `Engine::ping`.
        token: u64,
        /// Round trip time and path of the answer; `None` when none came in time.
        answer: Option<PongInfo>,
    },
    /// The answer to `Engine::netcheck`.
    Netcheck {
        /// As given to `Engine::netcheck`.
        token: u64,
        /// What was found.
        report: NetcheckReport,
    },
}

/// The path that an overlay ping's answer came on.
#[derive(Debug, Clone, PartialEq)]
pub struct PongInfo {
    /// Time from sending to the answer.
    pub rtt: Duration,
    /// What kind of path.
    pub kind: PathKind,
    /// `203.0.113.7:41820`, or the relay's address.
    pub via: String,
}

/// Kinds of path, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// UDP from host to host.
    Direct,
    /// Through a relay.
    Relay,
}

impl PathKind {
    /// Every kind, in the order of declaration.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Relay];

    /// As in `status --json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
        }
    }
}

/// A path as `status` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct PathStatus {
    /// What kind of path.
    pub kind: PathKind,
    /// Our UDP port.
    pub local_port: Option<u16>,
    /// The peer's address, or the relay's.
    pub remote: SocketAddr,
    /// The relay, for a path through one.
    pub relay: Option<RelayUrl>,
    /// Smoothed round trip time, once measured.
    pub rtt: Option<Duration>,
    /// Largest inner packet on this path, in bytes.
    pub mtu: u16,
    /// How long it has been the current path.
    pub age: Duration,
    /// Why it became the current path, in words.
    pub reason: &'static str,
}

/// Whether a peer is in use and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// Traffic in the last two minutes, and it answers.
    Active,
    /// Nothing to say to it for two minutes, or never.
    Idle,
    /// It was tried and does not answer.
    Offline,
}

impl PeerState {
    /// Every state, in the order of declaration.
    pub const ALL: [Self; 3] = [Self::Active, Self::Idle, Self::Offline];

    /// As in `status --json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Offline => "offline",
        }
    }
}

/// A peer as `status` shows it.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its key.
    pub key: PeerKey,
    /// Its WireGuard public key.
    pub wireguard_key: [u8; 32],
    /// Its name.
    pub name: String,
    /// Overlay addresses, the derived one first.
    pub addresses: Vec<IpAddr>,
    /// Prefixes behind it.
    pub routes: Vec<IpNet>,
    /// In use or not.
    pub state: PeerState,
    /// Current path, once something answered.
    pub path: Option<PathStatus>,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Since the last completed WireGuard handshake.
    pub last_handshake: Option<Duration>,
    /// Since the last authenticated packet.
    pub last_rx: Option<Duration>,
}

/// A network as `status` shows it.
#[derive(Debug, Clone)]
pub struct NetworkStatus {
    /// Which one.
    pub index: NetworkIndex,
    /// Home relay, if one is connected.
    pub home_relay: Option<RelayUrl>,
    /// Public addresses of our mesh socket as others see them.
    pub endpoints: Vec<SocketAddr>,
    /// The peers, by name.
    pub peers: Vec<PeerStatus>,
    /// What is wrong, one line each, with what to do.
    pub health: Vec<String>,
}

/// One relay as `netcheck` saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct RelayReport {
    /// Which relay.
    pub url: RelayUrl,
    /// Round trip time of STUN, if it answered.
    pub rtt: Option<Duration>,
}

/// What `netcheck` found.
#[derive(Debug, Clone, PartialEq)]
pub struct NetcheckReport {
    /// Does UDP get through to at least one relay.
    pub udp: bool,
    /// Our address as relays see it over IPv4.
    pub ipv4: Option<SocketAddr>,
    /// Our address as relays see it over IPv6.
    pub ipv6: Option<SocketAddr>,
    /// What the NAT before us does.
    pub profile: NatProfile,
    /// Its external IPv4 addresses that were seen.
    pub addresses: Vec<IpAddr>,
    /// How long it keeps a mapping that nobody uses, at least; zero if that is below 9 s. Known after three minutes.
    pub mapping_lifetime: Option<Duration>,
    /// Whether our IPv6 address or port is translated, if that is known.
    pub ipv6_translated: Option<bool>,
    /// What is let in over IPv6.
    pub ipv6_filtering: Filtering,
    /// By which protocols routers would map a port for us.
    pub port_mapping: Vec<PortMapProtocol>,
    /// The relays of the network.
    pub relays: Vec<RelayReport>,
}

/// An address of this host that peers may try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The address.
    pub ip: IpAddr,
    /// True for docker and other virtual bridges, which are tried last. Tunnels, ours or another VPN's, are left out.
    pub virtual_interface: bool,
    /// MTU of its link, in bytes.
    pub mtu: u16,
}

/// Datagrams and packets that were dropped, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    /// Not of any protocol that we speak.
    pub unknown_protocol: u64,
    /// WireGuard packet for no session of ours, or from an unknown key.
    pub unknown_session: u64,
    /// WireGuard packet that does not authenticate.
    pub unauthentic: u64,
    /// WireGuard packet seen before or too old.
    pub replayed: u64,
    /// Handshakes beyond the rate that we answer, and announcements on our links beyond the rate that we read.
    pub rate_limited: u64,
    /// Frame from a relay on a channel that we do not know.
    pub unknown_channel: u64,
    /// Malformed inner packet or control message.
    pub malformed: u64,
    /// Inner packet whose source does not belong to the peer that sent it.
    pub wrong_source: u64,
    /// Inner packet from TUN that no peer has the destination of.
    pub no_route: u64,
    /// Inner packet with the reserved next header, written by a local process.
    pub forged_control: u64,
    /// Inner packets beyond the queue of a peer that has no session yet.
    pub queue_full: u64,
    /// Inner packets from TUN that are larger than the path to their peer carries.
    pub too_big: u64,
}
