//! The one state machine: every decision of the daemon, and the packet path that carries them out.
//!
//! The shell feeds inputs with a time stamp and then drains what they caused; nothing else changes state:
//!
//! ```text
//! loop {
//!     engine.handle_udp | handle_tun | handle_relay | handle_timeout | … (now, …, &mut batches);
//!     flush(&mut batches);                                  // bulk data, in the shape of the kernel's offloads
//!     while let Some(output) = engine.poll_output() { … }   // everything else
//!     wait for input until engine.poll_timeout();
//! }
//! ```
//!
//! A session has one owner, this engine on one thread: keys and send counters are never copied, so no nonce repeats.

mod api;
mod control;
mod explain;
mod lan;
mod lifetime;
mod measuring;
mod metrics;
mod opening;
mod plane;
mod portmap;
mod punching;
mod relays;
mod roaming;
mod service;
mod setup;
mod spares;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use slab::Slab;

pub use api::*;
pub(crate) use explain::Record;
pub use explain::{AttemptReport, Explanation, Outcomes, Strategy, Traversal};
pub use metrics::{Metrics, NetworkMetrics, PeerMetrics, RelayMetrics};
pub use setup::SetupError;

use self::lifetime::Lifetimes;
use self::metrics::PathChanges;
use self::punching::Attempt;
use self::spares::Spares;
use crate::batch::Batches;
use crate::identity::NetworkId;
use crate::lan::Lan;
use crate::limits;
use crate::nat::hairpins::Hairpins;
use crate::nat::ledger::Ledger;
use crate::nat::portmap::PortMapper;
use crate::nat::profile::Prober;
use crate::nat::{NatProfile, Pooling};
use crate::path::PathKey;
use crate::path::candidates::own_candidates;
use crate::peer::{Peer, PeerIndex, PendingPing};
use crate::rate::Bucket;
use crate::relay::client::RelayClient;
use crate::rng::Random;
use crate::routing::RoutingTable;
use crate::session::{Indices, Kernel, LocalKey};
use crate::time::Instant;
use crate::wire::control::Control;

/// One network: our key in it, and who belongs to it.
struct Network {
    name: String,
    id: NetworkId,
    local: LocalKey,
    /// Our derived overlay address.
    overlay: Ipv6Addr,
    routes: RoutingTable,
    by_key: BTreeMap<PeerKey, PeerIndex>,
    by_wireguard_key: BTreeMap<[u8; 32], PeerIndex>,
    relays: Vec<RelayHandle>,
    /// The relay that first packets go to.
    home: Option<RelayHandle>,
    /// Our addresses in it beside the derived one.
    addresses: Vec<IpAddr>,
    /// MTU of its device.
    mtu: u16,
    changes: PathChanges,
}

/// See the module's documentation.
pub struct Engine {
    rng: Random,
    kernel: Kernel,
    /// The time of day at the origin of [`Instant`], since 1970.
    unix: Duration,
    /// Random per run: tells peers that we forgot everything.
    instance: u64,
    networks: BTreeMap<NetworkIndex, Network>,
    peers: Slab<Peer>,
    indices: Indices,
    /// When each peer has to be looked at; at most one entry for each.
    timers: BTreeSet<(Instant, PeerIndex)>,
    relays: BTreeMap<RelayHandle, RelayClient>,
    next_relay: u32,
    /// Relay channels by the relay's address and the number that it gave us.
    channels: BTreeMap<(SocketAddr, u32), (RelayHandle, PeerIndex)>,
    host: Vec<HostAddress>,
    /// There was a real one among them at some time.
    was_online: bool,
    ports: (Option<u16>, Option<u16>),
    /// The largest MTU among this host's links.
    link_mtu: u16,
    /// Bounds ICMP messages to this host's applications.
    too_big: Bucket,
    prober: Prober,
    lifetimes: Lifetimes,
    spares: Spares,
    /// The attempt to get through a hard NAT that is under way: one for all peers.
    attempt: Option<Box<Attempt>>,
    ledger: Ledger,
    hairpins: Hairpins,
    traversal: Traversal,
    /// Our addresses, and what our NAT does, as peers were last told.
    offered: (Vec<SocketAddr>, NatProfile),
    port_mapper: PortMapper,
    lan: Lan,
    netchecks: VecDeque<(NetworkIndex, u64)>,
    outputs: VecDeque<Output>,
    drops: Drops,
    /// Control messages are sealed and opened here.
    scratch: Box<[u8; limits::MAX_DATAGRAM]>,
}

impl Engine {
    /// An engine without networks. `seed` comes from the operating system's random generator; `unix` is the time of
    /// day, since 1970: peers take handshakes of ours only if they are newer than any before, also of an earlier run.
    pub fn new(seed: [u8; 32], kernel: Kernel, now: Instant, unix: Duration) -> Self {
        let mut rng = Random::from_seed(seed);
        Self {
            instance: rng.u64(),
            rng,
            kernel,
            unix: unix.saturating_sub(now.since_boot()),
            networks: BTreeMap::new(),
            peers: Slab::new(),
            indices: Indices::default(),
            timers: BTreeSet::new(),
            relays: BTreeMap::new(),
            next_relay: 0,
            channels: BTreeMap::new(),
            host: Vec::new(),
            was_online: false,
            ports: (None, None),
            link_mtu: 0,
            too_big: Bucket::default(),
            prober: Prober::new(now),
            lifetimes: Lifetimes::default(),
            spares: Spares::default(),
            attempt: None,
            ledger: Ledger::default(),
            hairpins: Hairpins::default(),
            traversal: Traversal::default(),
            offered: Default::default(),
            port_mapper: PortMapper::default(),
            lan: Lan::default(),
            netchecks: VecDeque::new(),
            outputs: VecDeque::new(),
            drops: Drops::default(),
            scratch: Box::new([0; limits::MAX_DATAGRAM]),
        }
    }

    /// The next thing that the shell has to do; call until `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let peer = self.timers.first().map(|(at, _)| *at);
        let relay = self.relays.values().filter_map(RelayClient::deadline).min();
        let prober = (!self.relays.is_empty()).then(|| self.prober.deadline());
        let mapper = self.port_mapper.deadline();
        let lan = self.lan.deadline();
        let lifetime = self.lifetimes.deadline();
        [peer, relay, prober, mapper, lan, lifetime]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does everything that is due at `now`.
    ///
    /// Whoever comes far too late was not running meanwhile, suspended or frozen: see [`Self::resumed`].
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Batches) {
        if self
            .poll_timeout()
            .is_some_and(|due| now.since(due) > limits::MAX_LATENESS)
        {
            self.resumed(now);
        }
        self.service_relays(now);
        self.service_prober(now);
        self.service_lifetime(now);
        self.service_port_mapper(now);
        self.service_lan(now);
        // A peer's service may arm it again for now; each gets one turn, so this ends.
        let due: Vec<PeerIndex> = self
            .timers
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, peer)| *peer)
            .collect();
        for peer in due {
            self.service_peer(now, peer, out);
        }
    }

    /// Asks a peer for an answer through the tunnel; answered by [`Event::Pong`] with `token` within `timeout`.
    pub fn ping(
        &mut self,
        now: Instant,
        network: NetworkIndex,
        peer: PeerKey,
        token: u64,
        timeout: Duration,
        out: &mut Batches,
    ) {
        let index = self
            .networks
            .get(&network)
            .and_then(|network| network.by_key.get(&peer))
            .copied();
        let nonce = self.rng.u64();
        let target = index.and_then(|index| self.peer_mut(index));
        let accepted = match target {
            Some(target)
                if target.node_id().is_some() && target.pings.len() < limits::MAX_PINGS =>
            {
                target.pings.push(PendingPing {
                    token,
                    nonce,
                    started: now,
                    deadline: now + timeout.min(limits::MAX_PING_TIMEOUT),
                    sent: false,
                });
                target.last_data = Some(now);
                true
            }
            _ => false,
        };
        match index {
            Some(index) if accepted => self.service_peer(now, index, out),
            _ => self.emit(Event::Pong {
                token,
                answer: None,
            }),
        }
    }

    /// Measures the NAT and the relays anew; answered by [`Event::Netcheck`] with `token` within two
    /// seconds; mostly in half of one.
    pub fn netcheck(&mut self, now: Instant, network: NetworkIndex, token: u64) {
        if self.netchecks.len() >= limits::MAX_NETCHECKS
            && let Some((network, token)) = self.netchecks.pop_front()
        {
            self.report_netcheck(network, token);
        }
        self.netchecks.push_back((network, token));
        self.prober.request(now);
        self.refresh_port_mapper(now);
        self.service_prober(now);
    }

    /// Our addresses for peers to try, best first. `neighbour`: who is behind the same outer NAT may reach us on this side of
    /// it as well.
    fn own_candidates(&self, neighbour: bool) -> Vec<SocketAddr> {
        let middle = neighbour.then(|| self.middle_mappings());
        let observed = self.relays.values().filter_map(|relay| relay.observed);
        own_candidates(
            &self.host,
            self.ports,
            middle.into_iter().flatten().chain(self.offered_mappings()),
            self.prober.reflexive().chain(observed).chain(self.pool()),
        )
    }

    /// The other addresses of a NAT that gives out several, with the port that relays see: what we send to a peer may come
    /// from any, and gets in where the peer has sent there.
    fn pool(&self) -> impl Iterator<Item = SocketAddr> {
        let pooling = self.nat_profile().pooling;
        let port = self.prober.reflexive().find(SocketAddr::is_ipv4);
        let port = port.filter(|_| pooling == Pooling::Arbitrary);
        let addresses = self.prober.findings().addresses.iter();
        addresses.filter_map(move |ip| Some(SocketAddr::new(*ip, port?.port())))
    }

    fn is_own_address(&self, address: SocketAddr) -> bool {
        let port = self.local_port(SocketId::MESH, address.is_ipv4());
        port == Some(address.port()) && self.host.iter().any(|own| own.ip == address.ip())
    }

    fn peer(&self, index: PeerIndex) -> Option<&Peer> {
        self.peers.get(index.0 as usize)
    }

    fn peer_mut(&mut self, index: PeerIndex) -> Option<&mut Peer> {
        self.peers.get_mut(index.0 as usize)
    }

    fn emit(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Users' packets flow: whatever follows from that is due in [`limits::ALIVE_DELAY`] at the earliest, and a look by
    /// then finds out. So packets move no timers.
    #[inline]
    fn look_soon(&mut self, now: Instant, index: PeerIndex) {
        let at = now + limits::ALIVE_DELAY;
        if self
            .peer(index)
            .is_some_and(|peer| peer.armed.is_none_or(|armed| armed > at))
        {
            self.arm(now, index, Some(at));
        }
    }

    /// Enters the peer into the timer queue, at its own deadline or at `at` if that is earlier.
    fn arm(&mut self, now: Instant, index: PeerIndex, at: Option<Instant>) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        let attempt = self.attempt.as_ref();
        let attempt = attempt.and_then(|attempt| attempt.deadline(index));
        let deadline = [peer.deadline(now), attempt, at]
            .into_iter()
            .flatten()
            .min();
        // What is due already is due now: a deadline in the past would look as if nobody had been here for long.
        let deadline = deadline.map(|at| coalesced(now, at.max(now)));
        if peer.armed == deadline {
            return;
        }
        if let Some(old) = peer.armed {
            self.timers.remove(&(old, index));
        }
        peer.armed = deadline;
        if let Some(deadline) = deadline {
            self.timers.insert((deadline, index));
        }
    }

    /// Seals a control message and sends it on one path, or on the current one. `false` if that is not possible now.
    fn send_control(
        &mut self,
        now: Instant,
        index: PeerIndex,
        path: Option<PathKey>,
        message: &Control,
        ttl: Option<u8>,
    ) -> bool {
        let current = |peer: &Peer| peer.paths.current().map(|path| path.key);
        let Some(key) = path.or_else(|| self.peer(index).and_then(current)) else {
            return false;
        };
        match self.seal_control(now, index, message) {
            Some(sealed) => self.transmit(now, index, key, sealed, ttl),
            None => false,
        }
    }

    /// A control message as it goes to a peer; `None` without a session.
    fn seal_control(
        &mut self,
        now: Instant,
        index: PeerIndex,
        message: &Control,
    ) -> Option<Vec<u8>> {
        let peer = self.peers.get_mut(index.0 as usize)?;
        let network = self.networks.get(&peer.network)?;
        let packet = message.to_packet(network.overlay, peer.overlay?);
        let (kernel, out) = (self.kernel, &mut self.scratch[..]);
        let length = peer.session()?.seal(now, kernel, &packet, out)?;
        Some(self.scratch[..length].to_vec())
    }
}

/// Deadlines that are far away are put off to a full second, so that those of many peers fall together: a sleeping CPU
/// then wakes once a second at most.
fn coalesced(now: Instant, at: Instant) -> Instant {
    const FAR: Duration = Duration::from_secs(2);
    if at.since(now) < FAR {
        // What is due at once is due now: a deadline in the past would look as if nobody had come for it.
        return at.max(now);
    }
    let second = Duration::from_secs(at.since_boot().as_secs() + 1);
    Instant::from_boot(second)
}

impl Network {
    /// True for an address that this host itself has in the overlay.
    fn is_own(&self, ip: IpAddr) -> bool {
        ip == IpAddr::V6(self.overlay) || self.addresses.contains(&ip)
    }

    /// True for an address inside the overlay: nothing of ours may be sent to it from the mesh socket.
    fn covers(&self, ip: IpAddr) -> bool {
        let derived = match ip {
            IpAddr::V6(ip) => crate::identity::overlay_prefix(&self.id).contains(&ip),
            IpAddr::V4(_) => false,
        };
        derived || self.routes.lookup_uncached(ip).is_some()
    }
}
