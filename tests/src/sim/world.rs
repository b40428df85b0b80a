//! The simulation itself: virtual time, the queue of events, and the way of a packet from node to node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_core::batch::Batches;
use mesh_core::time::Instant;

use super::build::Lan;
use super::host::{Host, Input};
use super::link::{Link, Swallowed};
use super::log::{Entry, Log};
use super::packet::{Body, DEFAULT_TTL, Packet};
use super::relay::Relay;
use super::rng::Rng;
use super::router::{LinkIndex, Router, Table};
use super::traffic::{Flow, FlowId};

/// Names a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub usize);

/// Names a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub(super) NodeIndex);

/// Names a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId(pub(super) NodeIndex);

/// Names a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId(pub(super) NodeIndex);

/// What a node is.
pub(super) enum Role {
    Router(Box<Router>),
    Host(Box<Host>),
    Relay(Box<Relay>),
}

/// A node with its place in the network.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) table: Table,
    pub(super) role: Role,
}

/// Something that happens at an instant.
pub(super) enum Event {
    /// A packet comes off a link.
    Arrive {
        node: NodeIndex,
        link: LinkIndex,
        packet: Packet,
    },
    /// A host reads what has arrived.
    Read(HostId),
    /// A host's engine is told something.
    Tell(HostId, Input),
    /// A host's engine wants its timeout.
    Wake(HostId),
    /// Timers of a host's relay connections.
    WakeQuic(HostId),
    /// A relay's timers.
    WakeRelay(RelayId),
    /// A stream sends its next packet.
    Flow(FlowId),
    /// A host's application sends an answer.
    Answer(HostId, Vec<u8>),
    /// A test wants something done.
    Script(Box<dyn FnOnce(&mut Sim)>),
}

struct Scheduled {
    at: Instant,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// When a run begins: some time after boot, as for a real host.
const START: Instant = Instant::from_boot(Duration::from_secs(100_000));
/// Entries of the log that a failing run shows, unless `MESH_SIM_LOG` asks for all that are kept.
const SHOWN: usize = 400;

/// One run. Use one per thread at a time: the clock of the sessions is the thread's.
pub struct Sim {
    seed: u64,
    pub(super) now: Instant,
    queue: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    pub(super) connections: u64,
    pub(super) batches: Option<Batches>,
    pub(super) log: Log,
    pub(super) rng: Rng,
    pub(super) nodes: Vec<Node>,
    pub(super) links: Vec<Link>,
    pub(super) neighbours: Vec<BTreeMap<IpAddr, NodeIndex>>,
    pub(super) flows: Vec<Flow>,
    pub(super) sites: u8,
    pub(super) lans: BTreeMap<RouterId, Lan>,
    /// Inner packets that belong to no stream, with their receivers.
    pub foreign: Vec<(HostId, Vec<u8>)>,
}

impl Sim {
    /// An internet without anybody in it.
    pub fn new(seed: u64) -> Self {
        let mut sim = Self {
            seed,
            now: START,
            queue: BinaryHeap::new(),
            sequence: 0,
            connections: 0,
            batches: None,
            log: Log::default(),
            rng: Rng::new(seed),
            nodes: Vec::new(),
            links: Vec::new(),
            neighbours: Vec::new(),
            flows: Vec::new(),
            sites: 0,
            lans: BTreeMap::new(),
            foreign: Vec::new(),
        };
        sim.add_core();
        sim
    }

    /// The seed of the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The present.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Since the run began.
    pub fn elapsed(&self) -> Duration {
        self.now.since(START)
    }

    /// What happened.
    pub fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn note(&mut self, node: NodeIndex, text: String) {
        self.log.push(self.now, node.0, Entry::Note(text));
    }

    pub(super) fn schedule(&mut self, at: Instant, event: Event) {
        let at = at.max(self.now);
        self.sequence += 1;
        let sequence = self.sequence;
        self.queue.push(Reverse(Scheduled {
            at,
            sequence,
            event,
        }));
    }

    /// Does something after a while.
    pub fn after(&mut self, delay: Duration, script: impl FnOnce(&mut Self) + 'static) {
        self.schedule(self.now + delay, Event::Script(Box::new(script)));
    }

    /// Lets time pass.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    /// Lets time pass until `condition` holds, and returns how long that took.
    ///
    /// # Panics
    /// If it does not hold within `limit`; `what` says what was waited for.
    pub fn run_until(
        &mut self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Self) -> bool,
    ) -> Duration {
        match self.try_until(limit, condition) {
            Some(took) => took,
            None => panic!("not within {limit:?}: {what}"),
        }
    }

    /// As [`Self::run_until`]; `None` if the condition does not hold in time.
    pub fn try_until(
        &mut self,
        limit: Duration,
        condition: impl Fn(&Self) -> bool,
    ) -> Option<Duration> {
        let (start, end) = (self.now, self.now + limit);
        loop {
            if condition(self) {
                return Some(self.now.since(start));
            }
            if !self.step(end) {
                return condition(self).then(|| self.now.since(start));
            }
        }
    }

    /// Carries out the next event up to `end`; `false` if there is none.
    fn step(&mut self, end: Instant) -> bool {
        if self.queue.peek().is_none_or(|Reverse(next)| next.at > end) {
            self.now = end;
            return false;
        }
        if let Some(Reverse(next)) = self.queue.pop() {
            self.now = next.at;
            self.dispatch(next.event);
        }
        true
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Arrive { node, link, packet } => self.arrive(node, link, packet),
            Event::Read(host) => {
                for input in self.host_mut(host).take_inbox() {
                    self.tell(host, input);
                }
            }
            Event::Tell(host, input) => self.tell(host, input),
            Event::Wake(host) => self.wake(host),
            Event::WakeQuic(host) => self.wake_quic(host),
            Event::WakeRelay(relay) => self.wake_relay(relay),
            Event::Flow(flow) => self.flow_tick(flow),
            Event::Answer(host, packet) => self.inner(host, packet),
            Event::Script(script) => script(self),
        }
    }

    // The network.

    /// Sends a packet off on its way from the node that made it.
    pub(super) fn send(&mut self, from: NodeIndex, packet: Packet) {
        self.log
            .push(self.now, from.0, Entry::Sent((&packet).into()));
        match self.nodes[from.0].table.route(packet.destination.ip()) {
            Some((link, next)) => self.transmit(from, link, next, packet),
            None => self.dropped(from, &packet, "no route"),
        }
    }

    fn transmit(&mut self, from: NodeIndex, link: LinkIndex, next: IpAddr, packet: Packet) {
        let Some(node) = self.neighbours[link.0].get(&next).copied() else {
            return self.dropped(from, &packet, "nobody has that address");
        };
        let why = match self.links[link.0].transmit(self.now, from, &packet) {
            Ok(times) => {
                for at in times {
                    let packet = packet.clone();
                    self.schedule(at, Event::Arrive { node, link, packet });
                }
                return;
            }
            Err(Swallowed::TooLarge) => "larger than the MTU",
            Err(Swallowed::QueueFull) => "the link is congested",
            Err(Swallowed::Lost) => "lost",
        };
        self.dropped(from, &packet, why);
    }

    fn dropped(&mut self, node: NodeIndex, packet: &Packet, why: &'static str) {
        self.log
            .push(self.now, node.0, Entry::Dropped(packet.into(), why));
    }

    fn arrive(&mut self, node: NodeIndex, link: LinkIndex, packet: Packet) {
        let now = self.now;
        let place = &mut self.nodes[node.0];
        match &mut place.role {
            Role::Router(router) => {
                let kept = packet.clone();
                match router.forward(now, link, &place.table, packet) {
                    Ok((link, next, packet)) => self.transmit(node, link, next, packet),
                    Err(why) => self.dropped(node, &kept, why),
                }
            }
            _ if !place.table.owns(packet.destination.ip()) => {
                self.dropped(node, &packet, "not for this node")
            }
            Role::Host(_) => self.arrive_at_host(HostId(node), packet),
            Role::Relay(relay) if relay.server().is_none() => {
                self.dropped(node, &packet, "the relay is down");
            }
            Role::Relay(relay) => {
                let outgoing = relay.receive(now, packet.clone());
                self.log
                    .push(now, node.0, Entry::Received((&packet).into()));
                self.relay_sends(RelayId(node), outgoing);
            }
        }
    }

    fn arrive_at_host(&mut self, id: HostId, packet: Packet) {
        if let Some(tried) = &mut self.host_mut(id).tried {
            tried.insert(packet.destination.port());
        }
        if self.host(id).frozen {
            return self.dropped(id.0, &packet, "nobody reads");
        }
        let Some(socket) = self.host(id).socket_at(packet.destination.port()) else {
            return self.dropped(id.0, &packet, "no such port");
        };
        self.log
            .push(self.now, id.0.0, Entry::Received((&packet).into()));
        let Packet { source, body, .. } = packet;
        let host = self.host_mut(id);
        if let Body::Bytes(bytes) = &body
            && host.recorder.1.len() < host.recorder.0
        {
            host.recorder.1.push_back((source, bytes.clone()));
        }
        match body {
            Body::Quic(frame) => self.quic_arrived(id, frame),
            Body::Bytes(bytes) if host.engine.is_none() => host.raw.push_back((source, bytes)),
            Body::Bytes(bytes) => {
                host.inbox.push((socket, source, bytes));
                if host.inbox.len() == 1 {
                    self.schedule(self.now, Event::Read(id));
                }
            }
        }
    }

    /// Sends a datagram from a host's mesh socket.
    pub(super) fn send_from_host(
        &mut self,
        id: HostId,
        to: SocketAddr,
        ttl: Option<u8>,
        body: Body,
    ) {
        let port = self.host(id).port;
        self.send_from_port(id, port, to, ttl, body);
    }

    /// Sends a datagram from one of a host's ports.
    pub(super) fn send_from_port(
        &mut self,
        id: HostId,
        port: u16,
        to: SocketAddr,
        ttl: Option<u8>,
        body: Body,
    ) {
        let Some(ip) = self.nodes[id.0.0].table.source_for(to.ip()) else {
            let text = format!("no route to {to}");
            return self.note(id.0, text);
        };
        let packet = Packet {
            source: SocketAddr::new(ip, port),
            destination: to,
            ttl: ttl.unwrap_or(DEFAULT_TTL),
            body,
        };
        self.send(id.0, packet);
    }

    // Access to nodes.

    /// A host.
    pub fn host(&self, id: HostId) -> &Host {
        match &self.nodes[id.0.0].role {
            Role::Host(host) => host,
            _ => unreachable!("a host's name names a host"),
        }
    }

    /// A host, to be configured.
    pub fn host_mut(&mut self, id: HostId) -> &mut Host {
        match &mut self.nodes[id.0.0].role {
            Role::Host(host) => host,
            _ => unreachable!("a host's name names a host"),
        }
    }

    /// A relay.
    pub fn relay(&self, id: RelayId) -> &Relay {
        match &self.nodes[id.0.0].role {
            Role::Relay(relay) => relay,
            _ => unreachable!("a relay's name names a relay"),
        }
    }

    pub(super) fn relay_mut(&mut self, id: RelayId) -> &mut Relay {
        match &mut self.nodes[id.0.0].role {
            Role::Relay(relay) => relay,
            _ => unreachable!("a relay's name names a relay"),
        }
    }

    /// A router, to be changed.
    pub fn router_mut(&mut self, id: RouterId) -> &mut Router {
        match &mut self.nodes[id.0.0].role {
            Role::Router(router) => router,
            _ => unreachable!("a router's name names a router"),
        }
    }

    /// Shows the newest entries of the log, as a run does that panics; all that are kept, if `MESH_SIM_LOG` is set.
    pub fn print(&self) {
        eprintln!(
            "--- the run of seed {} ended at {:?}; newest entries:",
            self.seed,
            self.elapsed()
        );
        let entries: Vec<_> = self.log.entries().collect();
        let shown = if std::env::var_os("MESH_SIM_LOG").is_some() {
            entries.len()
        } else {
            SHOWN
        };
        for (at, node, entry) in &entries[entries.len().saturating_sub(shown)..] {
            let name = &self.nodes[*node].name;
            eprintln!("{:>11.6} {name:<8} {entry}", at.since(START).as_secs_f64());
        }
        for node in &self.nodes {
            if let Role::Host(host) = &node.role {
                let drops = host.engine().map(mesh_core::engine::Engine::drops);
                eprintln!("--- {}: {:?} {drops:?}", node.name, host.counters);
            }
        }
        eprintln!("--- SEED {} (set MESH_SIM_SEED to run it alone)", self.seed);
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print();
        }
    }
}
