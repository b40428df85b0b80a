//! Hosts: a real engine, driven by its contract of use, with simulated sockets, TUN device and relay connections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mesh_core::batch::{Batches, ReceiveBatch};
use mesh_core::engine::{
    Engine, Event, HostAddress, LanAction, LanAddress, LanPacket, NetworkIndex, NetworkSetup,
    Output, PathStatus, PeerKey, PeerSetup, RelayAction, RelayEvent, RelayHandle, SocketAction,
    SocketId,
};
use mesh_core::identity::{Identity, NetworkId, NodeId, RelayUrl, overlay_address};
use mesh_core::limits;
use mesh_core::offload::SuperPacket;
use mesh_core::session::Kernel;
use mesh_core::time::Instant;
use mesh_core::wire::relay::{Framer, ServerMessage};
use zeroize::Zeroizing;

use super::multicast::Multicast;
use super::quic::Connection;
use super::rng::Rng;

/// The only network of each host.
pub const NETWORK: NetworkIndex = NetworkIndex(0);
/// The mesh socket's port unless a test says otherwise.
pub const PORT: u16 = 41_820;

/// The time of day, since 1970, when virtual time begins.
const TIME_OF_DAY: Duration = Duration::from_secs(1_800_000_000);
/// Timeouts that an engine may want at one and the same instant.
const MAX_TIMEOUTS_AT_ONCE: usize = 32;
/// Outputs and datagrams that one input may cause: every peer's punch with all candidates, doubled; as many as open and
/// use the sockets of a spray.
const MAX_OUTPUTS: usize = 1_024;
/// Datagrams in one GRO buffer.
const MAX_COALESCED: usize = 64;
/// Events that are kept.
const KEPT_EVENTS: usize = 1_000;

/// Something that the engine is to be told.
#[derive(Debug)]
pub(super) enum Input {
    Udp {
        socket: SocketId,
        from: SocketAddr,
        bytes: Vec<u8>,
        stride: usize,
    },
    Tun(Vec<u8>),
    Relay(RelayHandle, RelayEvent),
    Timeout,
    Ping {
        peer: PeerKey,
        token: u64,
        timeout: std::time::Duration,
    },
    Netcheck {
        token: u64,
    },
    Addresses,
    Links(Vec<LanAddress>),
    Lan(LanPacket),
}

/// What an input caused.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// From which of our ports, where to, the TTL if it is not the usual one, and what.
    pub(super) datagrams: Vec<(u16, SocketAddr, Option<u8>, Vec<u8>)>,
    pub(super) inner: Vec<Vec<u8>>,
    pub(super) relay: Vec<(RelayHandle, RelayAction)>,
    pub(super) lan: Vec<LanAction>,
    pub(super) events: Vec<Event>,
    pub(super) timeout: Option<Instant>,
}

/// A relay connection that the engine asked for.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) connection: Connection,
    pub(super) remote: SocketAddr,
    pub(super) framer: Framer,
}

/// What a host has done and seen, for tests to look at.
#[derive(Debug, Default)]
pub struct Counters {
    /// Datagrams sent.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Relay connections asked for.
    pub dials: u64,
    /// Changes of the path to any peer.
    pub path_changes: u64,
}

/// What a host is in its network; survives restarts.
#[derive(Debug, Clone)]
pub struct Membership {
    key: [u8; 32],
    id: NodeId,
    overlay: Ipv6Addr,
    /// Who it knows.
    pub peers: Vec<PeerEntry>,
    /// Relays it uses.
    pub relays: Vec<RelayUrl>,
}

/// A peer in a host's configuration.
#[derive(Debug, Clone)]
pub struct PeerEntry {
    /// Its ID.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where it can be reached without any relay.
    pub endpoints: Vec<SocketAddr>,
}

/// Name of the network, and source of its ID.
const NAME: &str = "home";

impl Membership {
    /// Nobody's peer yet, with the key of this seed.
    pub fn new(key: [u8; 32]) -> Self {
        let id = identity(key).id();
        Self {
            key,
            id,
            overlay: overlay_address(&NetworkId::from_name(NAME), &id),
            peers: Vec::new(),
            relays: Vec::new(),
        }
    }

    /// The same member with another one's key.
    pub fn with_key_of(&self, other: &Self) -> Self {
        Self {
            peers: self.peers.clone(),
            relays: self.relays.clone(),
            ..other.clone()
        }
    }

    fn setup(&self) -> NetworkSetup {
        let peer = |peer: &PeerEntry| PeerSetup {
            key: PeerKey::Mesh(peer.id),
            name: peer.name.clone(),
            addresses: Vec::new(),
            routes: Vec::new(),
            psk: None,
            endpoints: peer.endpoints.clone(),
        };
        NetworkSetup {
            name: NAME.to_owned(),
            id: NetworkId::from_name(NAME),
            identity: identity(self.key),
            addresses: Vec::new(),
            mtu: limits::MAX_INNER_MTU,
            peers: self.peers.iter().map(peer).collect(),
            relays: self.relays.clone(),
        }
    }
}

fn identity(key: [u8; 32]) -> Identity {
    Identity::from_seed(Zeroizing::new(key))
}

/// A host.
pub struct Host {
    /// Port of its mesh socket.
    pub port: u16,
    /// What it is configured as.
    pub membership: Membership,
    /// What it has done and seen.
    pub counters: Counters,
    /// Addresses that are not its own, but that it says are.
    pub claims: Vec<IpAddr>,
    /// What it does on its links.
    pub multicast: Multicast,
    /// Ports that datagrams came for, open or not, if a test wants to know.
    pub(super) tried: Option<BTreeSet<u16>>,
    /// What its engine reported, newest last.
    pub events: VecDeque<(Instant, Event)>,
    /// The current path to each peer, as reported.
    pub paths: BTreeMap<PeerKey, Option<PathStatus>>,
    /// Datagrams that arrived while no engine was running, newest last: for tests without one.
    pub raw: VecDeque<(SocketAddr, Vec<u8>)>,
    /// A copy of datagrams that arrived, as many as were asked for.
    pub(super) recorder: (usize, VecDeque<(SocketAddr, Vec<u8>)>),
    pub(super) engine: Option<Engine>,
    pub(super) dialled: BTreeMap<RelayHandle, Dialled>,
    /// Datagrams that arrived at this instant, to be coalesced as GRO does.
    pub(super) inbox: Vec<(SocketId, SocketAddr, Vec<u8>)>,
    /// Ports of the engine's spare sockets.
    spares: BTreeMap<SocketId, u16>,
    rng: Rng,
    /// The engine's wake-up that is in the queue of events.
    pub(super) armed: Option<Instant>,
    /// The wake-up for relay connections that is in the queue of events.
    pub(super) quic_armed: Option<Instant>,
    /// Its process stands still.
    pub(super) frozen: bool,
    timeouts: (Instant, usize),
}

impl Host {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self {
            port: PORT,
            membership: Membership::new(key),
            counters: Counters::default(),
            claims: Vec::new(),
            multicast: Multicast::default(),
            tried: None,
            events: VecDeque::new(),
            paths: BTreeMap::new(),
            raw: VecDeque::new(),
            recorder: (0, VecDeque::new()),
            engine: None,
            dialled: BTreeMap::new(),
            inbox: Vec::new(),
            spares: BTreeMap::new(),
            rng: Rng::new(u64::from_le_bytes(std::array::from_fn(|at| key[at]))),
            armed: None,
            quic_armed: None,
            frozen: false,
            timeouts: (Instant::default(), 0),
        }
    }

    /// Its node ID.
    pub fn id(&self) -> NodeId {
        self.membership.id
    }

    /// Its overlay address.
    pub fn overlay(&self) -> Ipv6Addr {
        self.membership.overlay
    }

    /// The engine while it runs.
    pub fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// Starts an engine that knows nothing of any earlier one; it wants [`Input::Addresses`] next.
    pub(super) fn start(&mut self, now: Instant, seed: [u8; 32]) {
        let unix = TIME_OF_DAY + now.since_boot();
        let mut engine = Engine::new(seed, Kernel::Ring, now, unix);
        let added = engine.add_network(now, NETWORK, self.membership.setup());
        assert!(added.is_ok(), "the engine refuses its network: {added:?}");
        self.engine = Some(engine);
    }

    /// Stops the engine without any farewell, as SIGKILL does.
    pub(super) fn stop(&mut self) {
        self.engine = None;
        self.dialled.clear();
        self.inbox.clear();
        self.spares.clear();
        self.paths.clear();
    }

    /// How many spare sockets the engine has.
    pub fn spares(&self) -> usize {
        self.spares.len()
    }

    /// Which of the engine's sockets has a port.
    pub(super) fn socket_at(&self, port: u16) -> Option<SocketId> {
        if port == self.port {
            return Some(SocketId::MESH);
        }
        let mut spares = self.spares.iter();
        spares.find_map(|(socket, own)| (*own == port).then_some(*socket))
    }

    /// Feeds the engine and collects everything that comes of it.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        input: Input,
        addresses: &[IpAddr],
        batches: &mut Batches,
    ) -> Effects {
        let port = self.port;
        let Self {
            spares,
            rng,
            claims,
            engine: Some(engine),
            ..
        } = self
        else {
            return Effects::default();
        };
        let mut inner = Vec::new();
        match input {
            Input::Udp {
                socket,
                from,
                bytes,
                stride,
            } => {
                let mut received = ReceiveBatch::of(socket, from, &bytes, stride);
                engine.handle_udp(now, &mut received, batches);
                received.write(|network, storage, ranges| {
                    assert_eq!(network, NETWORK);
                    inner.extend(ranges.iter().map(|range| storage[range.clone()].to_vec()));
                });
            }
            Input::Tun(packet) => {
                engine.handle_tun(now, NETWORK, &SuperPacket::whole(&packet), batches);
            }
            Input::Relay(handle, event) => engine.handle_relay(now, handle, event, batches),
            Input::Timeout => engine.handle_timeout(now, batches),
            Input::Ping {
                peer,
                token,
                timeout,
            } => engine.ping(now, NETWORK, peer, token, timeout, batches),
            Input::Netcheck { token } => engine.netcheck(now, NETWORK, token),
            Input::Links(links) => engine.set_lan(now, &links),
            Input::Lan(packet) => engine.handle_lan(now, &packet, batches),
            Input::Addresses => {
                let address = |ip: &IpAddr| HostAddress {
                    ip: *ip,
                    virtual_interface: false,
                    mtu: 1_500,
                };
                let addresses: Vec<HostAddress> =
                    addresses.iter().chain(claims.iter()).map(address).collect();
                engine.set_local_addresses(now, &addresses, Some(port), Some(port));
            }
        }
        let port_of = |spares: &BTreeMap<SocketId, u16>, socket| match socket {
            SocketId::MESH => Some(port),
            spare => spares.get(&spare).copied(),
        };
        let mut effects = flush(batches, |socket| port_of(spares, socket));
        effects.inner = inner;
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Datagram {
                    socket,
                    remote,
                    ttl,
                    payload,
                } => {
                    let port = port_of(spares, socket);
                    assert!(port.is_some(), "a datagram from a socket that is not open");
                    let datagram = port.map(|port| (port, remote, ttl, payload));
                    effects.datagrams.extend(datagram);
                }
                Output::Socket(socket, SocketAction::Open | SocketAction::OpenV6) => {
                    // As Linux: any free port of a large range.
                    let free = |new: &u16| *new != port && !spares.values().any(|own| own == new);
                    let mut any = std::iter::repeat_with(|| 32_768 + rng.below(28_232) as u16);
                    let given = any.find(free);
                    spares.extend(given.map(|port| (socket, port)));
                    engine.socket_opened(now, socket, given);
                }
                Output::Socket(socket, SocketAction::Close) => {
                    let closed = spares.remove(&socket);
                    assert!(closed.is_some(), "a socket that is not open is closed");
                }
                Output::Packet { network, packet } => {
                    assert_eq!(network, NETWORK);
                    effects.inner.push(packet);
                }
                Output::Relay(handle, action) => effects.relay.push((handle, action)),
                // The simulated routers are not told of any gateway, so nothing is asked of them.
                Output::PortMap(_) => {}
                Output::Lan(action) => effects.lan.push(action),
                Output::Event(event) => effects.events.push(event),
            }
            let outputs = effects.datagrams.len() + effects.relay.len() + effects.events.len();
            assert!(
                outputs <= MAX_OUTPUTS,
                "one input caused more than {MAX_OUTPUTS} outputs"
            );
        }
        effects.timeout = engine.poll_timeout();
        self.note(now, &effects);
        effects
    }

    fn note(&mut self, now: Instant, effects: &Effects) {
        for (_, _, _, payload) in &effects.datagrams {
            self.counters.datagrams += 1;
            self.counters.bytes += payload.len() as u64;
        }
        let dials = effects
            .relay
            .iter()
            .filter(|(_, action)| matches!(action, RelayAction::Dial { .. }));
        self.counters.dials += dials.count() as u64;
        for event in &effects.events {
            if let Event::PathChanged { peer, path, .. } = event {
                self.counters.path_changes += 1;
                self.paths.insert(*peer, path.clone());
            }
            if self.events.len() == KEPT_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back((now, event.clone()));
        }
    }

    /// Counts the engine's timeouts at one instant: it must not spin.
    pub(super) fn count_timeout(&mut self, now: Instant) {
        let (at, count) = self.timeouts;
        self.timeouts = (now, if at == now { count + 1 } else { 1 });
        assert!(
            self.timeouts.1 <= MAX_TIMEOUTS_AT_ONCE,
            "the engine asked for more than {MAX_TIMEOUTS_AT_ONCE} timeouts at one instant"
        );
    }

    /// Takes what has arrived, coalesced as the kernel would: runs of one sender and one size, of which the last
    /// datagram may be shorter.
    pub(super) fn take_inbox(&mut self) -> Vec<Input> {
        let mut inputs: Vec<Input> = Vec::new();
        let mut open = false;
        for (socket, from, bytes) in std::mem::take(&mut self.inbox) {
            if let Some(Input::Udp {
                socket: by,
                from: last,
                bytes: buffer,
                stride,
            }) = inputs.last_mut()
                && open
                && (*by, *last) == (socket, from)
                && bytes.len() <= *stride
                && buffer.len() / *stride < MAX_COALESCED
            {
                open = bytes.len() == *stride;
                buffer.extend(bytes);
                continue;
            }
            let stride = bytes.len();
            open = stride > 0;
            inputs.push(Input::Udp {
                socket,
                from,
                bytes,
                stride,
            });
        }
        inputs
    }
}

/// Empties the batches as the shell does: datagrams are cut off their runs, and leave by the port of their socket.
fn flush(batches: &mut Batches, port_of: impl Fn(SocketId) -> Option<u16>) -> Effects {
    let mut effects = Effects::default();
    for (run, bytes) in batches.send.runs() {
        assert!(run.segment > 0, "a run of empty datagrams");
        let port = port_of(run.socket);
        assert!(port.is_some(), "a run from a socket that is not open");
        for datagram in bytes.chunks(run.segment) {
            let datagram = port.map(|port| (port, run.remote, None, datagram.to_vec()));
            effects.datagrams.extend(datagram);
        }
    }
    batches.send.clear();
    batches.quic.clear();
    effects
}

/// The messages in bytes of a relay's control stream.
pub(super) fn messages(framer: &mut Framer, mut bytes: &[u8]) -> Vec<ServerMessage> {
    let mut messages = Vec::new();
    while let Ok(Some(body)) = framer.next(&mut bytes) {
        let message = ServerMessage::decode(body);
        assert!(
            message.is_ok(),
            "the relay sent a message that the client cannot read: {message:?}"
        );
        messages.extend(message);
    }
    messages
}
