//! One peer: its keys, its session, its paths, and what is being done to reach it.

pub(crate) mod handshake;
pub(crate) mod queue;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

use self::handshake::Handshake;
use self::queue::PacketQueue;
use crate::engine::{NetworkIndex, PeerKey, PeerSetup, PeerState, Record, RelayHandle};
use crate::identity::{NetworkId, NodeId};
use crate::lan::Hints;
use crate::limits;
use crate::nat::NatProfile;
use crate::nat::punch::Punch;
use crate::path::PathKey;
use crate::path::agent::{PathSet, Use};
use crate::session::{LocalKey, Session};
use crate::time::Instant;

/// A slot in the engine's peer table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerIndex(pub(crate) u32);

/// A peer without traffic for this long is idle: nothing is probed and nothing is punched for it.
pub(crate) const ACTIVE: Duration = Duration::from_secs(120);
/// Pauses between hellos; a session that saw none of them answered talks to something that is no meshd.
const HELLO_RETRY: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// The exchange that shows that a peer speaks our control protocol.
#[derive(Debug, Default)]
pub(crate) struct Hello {
    /// The run of the peer that answered; `None` until it has.
    pub(crate) instance: Option<u64>,
    next: Option<Instant>,
    /// When the last one was sent.
    sent: Option<Instant>,
    tries: usize,
}

impl Hello {
    /// A new session: say hello (again), the peer may have forgotten us.
    pub(crate) fn start(&mut self, now: Instant) {
        self.next = Some(now);
        self.tries = 0;
    }

    pub(crate) fn finished(&mut self, instance: u64) {
        self.instance = Some(instance);
        self.next = None;
    }

    /// True when one has to be sent now.
    pub(crate) fn poll(&mut self, now: Instant) -> bool {
        if self.next.is_none_or(|next| now < next) {
            return false;
        }
        self.next = HELLO_RETRY.get(self.tries).map(|pause| now + *pause);
        self.tries += 1;
        self.sent = Some(now);
        true
    }

    /// Round trip time, if the answer can only be to the one hello that was sent.
    pub(crate) fn round_trip(&mut self, now: Instant) -> Option<Duration> {
        let sent = self.sent.take()?;
        (self.tries == 1).then(|| now.since(sent))
    }
}

/// Checks of new addresses are counted over this time.
const CHECK_WINDOW: Duration = Duration::from_secs(10);

/// When to try to open a direct path.
#[derive(Debug, Default)]
pub(crate) struct PunchSchedule {
    /// Start of the present window, and checks in it.
    checks: (Instant, usize),
    /// When the last round began, whoever asked for it.
    pub(crate) started: Option<Instant>,
    pub(crate) running: Option<Punch>,
    /// Earliest next round; `None` until the first.
    pub(crate) next: Option<Instant>,
    /// Rounds in a row that ended without a path.
    pub(crate) failed: u32,
    /// Which plan for hard NATs is next, and whether it is due before the next plain round.
    pub(crate) plan: u8,
    pub(crate) plan_due: bool,
    /// Where the peer is, as a relay has seen it last.
    pub(crate) observed: Option<SocketAddr>,
    /// The same by relay.
    pub(crate) seen: BTreeMap<RelayHandle, SocketAddr>,
    /// What the peer says of its NAT.
    pub(crate) profile: Option<NatProfile>,
    /// What was tried.
    pub(crate) record: Record,
    /// NAT mappings that attempts to get through hard NATs have made for this peer.
    pub(crate) mappings: u64,
    pub(crate) round: u32,
    /// When the call that started the present round was sent, until it is answered.
    pub(crate) called: Option<Instant>,
}

impl PunchSchedule {
    /// True if one more address that the peer turned out to send from may be probed.
    ///
    /// Between NATs with a mapping for each destination every probe shows a new address; without a bound, two hosts
    /// would fill their routers' tables.
    pub(crate) fn may_check(&mut self, now: Instant) -> bool {
        if now.since(self.checks.0) >= CHECK_WINDOW {
            self.checks = (now, 0);
        }
        self.checks.1 += 1;
        self.checks.1 <= limits::MAX_CANDIDATES
    }
}

/// An overlay ping that waits.
#[derive(Debug)]
pub(crate) struct PendingPing {
    pub(crate) token: u64,
    /// What identifies it on the wire: `token` is the caller's and may repeat.
    pub(crate) nonce: u64,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    pub(crate) sent: bool,
}

/// What one peer takes at most: each part with its own bound, all of them together. What the configuration gives it, its
/// routes above all, is bounded there.
const MOST_BYTES: usize = size_of::<Peer>()
    + Session::MOST_BYTES
    + limits::QUEUED_PACKETS * (size_of::<Vec<u8>>() + limits::MAX_DATAGRAM)
    + PathSet::MOST_BYTES
    + Record::MOST_BYTES
    + limits::MAX_CANDIDATES * size_of::<SocketAddr>()
    + 2 * limits::MAX_RELAYS * size_of::<(RelayHandle, SocketAddr)>()
    + Hints::MOST_BYTES
    + limits::MAX_PINGS * size_of::<PendingPing>();
const _: () = assert!(MOST_BYTES <= limits::PEER_BYTES);

/// One peer of one network.
pub(crate) struct Peer {
    pub(crate) index: PeerIndex,
    pub(crate) network: NetworkIndex,
    pub(crate) key: PeerKey,
    pub(crate) name: String,
    /// The derived overlay address; a stock WireGuard peer has none.
    pub(crate) overlay: Option<Ipv6Addr>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) routes: Vec<IpNet>,
    pub(crate) endpoints: Vec<SocketAddr>,
    psk: Option<Zeroizing<[u8; 32]>>,

    /// Made on first use: a key agreement for each of 10,000 silent peers would take half a second.
    session: Option<Box<Session>>,
    pub(crate) handshake: Option<Handshake>,
    /// Where our response to the peer's initiation went, and the number of the session that it offered; the first
    /// packet of that session confirms it.
    pub(crate) awaiting_confirmation: Option<(PathKey, u32)>,
    pub(crate) queue: PacketQueue,
    pub(crate) hello: Hello,
    pub(crate) paths: PathSet,
    pub(crate) punching: PunchSchedule,
    /// Addresses that the peer, or a relay about it, named.
    pub(crate) candidates: Vec<SocketAddr>,
    /// Where it may be on a link of ours.
    pub(crate) hints: Hints,
    pub(crate) pings: Vec<PendingPing>,

    pub(crate) tx_bytes: u64,
    pub(crate) rx_bytes: u64,
    /// Last inner packet of a user, either way; an overlay ping counts.
    pub(crate) last_data: Option<Instant>,
    pub(crate) last_rx: Option<Instant>,
    pub(crate) last_handshake: Option<Instant>,
    /// MTU of the current path, as the shell knows it.
    pub(crate) reported_mtu: u16,
    /// When the peer is next looked at, as entered in the engine's timer queue.
    pub(crate) armed: Option<Instant>,
}

impl Peer {
    pub(crate) fn new(
        index: PeerIndex,
        network: NetworkIndex,
        id: &NetworkId,
        setup: PeerSetup,
    ) -> Self {
        Self {
            index,
            network,
            key: setup.key,
            overlay: setup.overlay(id),
            name: setup.name,
            addresses: setup.addresses,
            routes: setup.routes,
            endpoints: setup.endpoints,
            psk: setup.psk,
            session: None,
            handshake: None,
            awaiting_confirmation: None,
            queue: PacketQueue::default(),
            hello: Hello::default(),
            paths: PathSet::default(),
            punching: PunchSchedule::default(),
            candidates: Vec::new(),
            hints: Hints::default(),
            pings: Vec::new(),
            tx_bytes: 0,
            rx_bytes: 0,
            last_data: None,
            last_rx: None,
            last_handshake: None,
            reported_mtu: limits::INNER_MTU,
            armed: None,
        }
    }

    /// Takes over what a reload may change without touching the session. `false` if the keys differ.
    pub(crate) fn update(&mut self, setup: &PeerSetup) -> bool {
        let same_psk = match (&self.psk, &setup.psk) {
            (None, None) => true,
            (Some(a), Some(b)) => **a == **b,
            _ => false,
        };
        if self.key != setup.key || !same_psk {
            return false;
        }
        self.name.clone_from(&setup.name);
        self.addresses.clone_from(&setup.addresses);
        self.routes.clone_from(&setup.routes);
        self.endpoints.clone_from(&setup.endpoints);
        true
    }

    /// The node ID; `None` for a stock WireGuard peer.
    pub(crate) fn node_id(&self) -> Option<NodeId> {
        match self.key {
            PeerKey::Mesh(id) => Some(id),
            PeerKey::WireGuard(_) => None,
        }
    }

    /// Every prefix that belongs to it: addresses as host prefixes, and its routes.
    pub(crate) fn prefixes(&self) -> Vec<IpNet> {
        prefixes(self.overlay, &self.addresses, &self.routes).collect()
    }

    pub(crate) fn session(&mut self) -> Option<&mut Session> {
        self.session.as_deref_mut()
    }

    /// The session and the paths, to use both at once.
    pub(crate) fn session_and_paths(&mut self) -> (Option<&mut Session>, &mut PathSet) {
        (self.session.as_deref_mut(), &mut self.paths)
    }

    /// The session, made if there is none; `None` for a key with which no secret can be agreed.
    pub(crate) fn session_or_new(&mut self, local: &LocalKey) -> Option<&mut Session> {
        if self.session.is_none() {
            let psk = self.psk.as_deref();
            self.session =
                Session::new(local, self.index, self.key.to_wireguard(), psk).map(Box::new);
        }
        self.session()
    }

    /// The session, to look something up.
    pub(crate) fn keys(&self) -> Option<&Session> {
        self.session.as_deref()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.keys().is_some_and(Session::is_ready)
    }

    /// Traffic of users lately.
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        self.last_data.is_some_and(|at| now.since(at) < ACTIVE)
    }

    pub(crate) fn uses(&self, now: Instant) -> Use {
        Use {
            active: self.is_active(now),
            probes: self.hello.instance.is_some() && self.is_ready(),
        }
    }

    /// As `status` shows it.
    pub(crate) fn state(&self, now: Instant) -> PeerState {
        let failing = self
            .handshake
            .as_ref()
            .is_some_and(|handshake| handshake.is_failing(now));
        if failing
            && self
                .last_rx
                .is_none_or(|at| now.since(at) > limits::CONTROL_TIMEOUT)
        {
            PeerState::Offline
        } else if self.is_active(now) && self.is_ready() {
            PeerState::Active
        } else {
            PeerState::Idle
        }
    }

    /// When something has to be done about it.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        let session = self.keys().and_then(Session::deadline);
        let handshake = self.handshake.as_ref().map(Handshake::deadline);
        let using = self.uses(now);
        let reachable = self.is_ready() && self.paths.current().is_some();
        let hello = self.hello.next.filter(|_| reachable);
        let punch = self.punching.running.as_ref().map(Punch::wake);
        let wants_punch = self.punching.running.is_none() && using.active && using.probes;
        let next_punch = self.punching.next.filter(|_| wants_punch);
        let ping = self.pings.iter().map(|ping| ping.deadline).min();
        let paths = self.paths.deadline(using);
        let mtu = self.paths.mtu_deadline(now, using);
        [
            session, handshake, hello, punch, next_punch, ping, paths, mtu,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// The prefixes of a peer with this derived address, these other addresses and these routes.
pub(crate) fn prefixes(
    overlay: Option<Ipv6Addr>,
    addresses: &[IpAddr],
    routes: &[IpNet],
) -> impl Iterator<Item = IpNet> {
    let hosts = overlay.map(IpAddr::from).into_iter();
    let hosts = hosts.chain(addresses.iter().copied());
    hosts.map(IpNet::from).chain(routes.iter().copied())
}
