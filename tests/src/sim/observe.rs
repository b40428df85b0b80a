//! What tests do to a running simulation, and what they ask it.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use mesh_core::engine::{Event, Explanation, NetworkStatus, PathKind, PeerKey, PongInfo};
use mesh_core::identity::RelayUrl;
use mesh_core::time::Instant;

use super::host::{Host, Input, NETWORK};
use super::packet::{Body, DEFAULT_TTL, Packet};
use super::traffic::{Flow, FlowConfig, FlowId};
use super::world::{Event as Happening, HostId, RelayId, Sim};

impl Sim {
    /// Starts a host, or starts it anew: it remembers nothing but its configuration.
    pub fn start(&mut self, id: HostId) {
        let (now, seed) = (self.now(), self.rng.seed());
        self.note(id.0, "starts".to_owned());
        let host = self.host_mut(id);
        host.stop();
        host.start(now, seed);
        self.tell(id, Input::Addresses);
    }

    /// Stops a host without any farewell.
    pub fn stop(&mut self, id: HostId) {
        self.note(id.0, "stops".to_owned());
        self.host_mut(id).stop();
    }

    /// Stops a relay without any farewell.
    pub fn stop_relay(&mut self, id: RelayId) {
        self.note(id.0, "stops".to_owned());
        self.relay_mut(id).stop();
    }

    /// Starts a relay that was stopped: it remembers nothing but its key.
    pub fn start_relay(&mut self, id: RelayId) {
        self.note(id.0, "starts".to_owned());
        self.relay_mut(id).start();
        self.relay_sends(id, Vec::new());
    }

    /// How one host names another.
    pub fn key_of(&self, peer: HostId) -> PeerKey {
        PeerKey::Mesh(self.host(peer).id())
    }

    /// The kind of path that `from` uses to `to` now, if there is one.
    pub fn path(&self, from: HostId, to: HostId) -> Option<PathKind> {
        let path = self.host(from).paths.get(&self.key_of(to))?;
        path.as_ref().map(|path| path.kind)
    }

    /// The address that `from` sends to when it talks to `to`.
    pub fn remote(&self, from: HostId, to: HostId) -> Option<SocketAddr> {
        let path = self.host(from).paths.get(&self.key_of(to))?;
        path.as_ref().map(|path| path.remote)
    }

    /// True if both hosts send to each other directly.
    pub fn is_direct(&self, a: HostId, b: HostId) -> bool {
        let direct = Some(PathKind::Direct);
        self.path(a, b) == direct && self.path(b, a) == direct
    }

    /// True if both hosts send to each other over a relay.
    pub fn is_relayed(&self, a: HostId, b: HostId) -> bool {
        let relay = Some(PathKind::Relay);
        self.path(a, b) == relay && self.path(b, a) == relay
    }

    /// What `meshctl status` would show, if the host runs.
    pub fn status(&self, id: HostId) -> Option<NetworkStatus> {
        let engine = self.host(id).engine()?;
        engine
            .status(self.now())
            .into_iter()
            .find(|status| status.index == NETWORK)
    }

    /// What `meshctl explain` would show, if the host runs.
    pub fn explain(&self, from: HostId, to: HostId) -> Option<Explanation> {
        let engine = self.host(from).engine()?;
        engine.explain(self.now(), NETWORK, self.key_of(to))
    }

    /// What is wrong at a host, in its own words.
    pub fn health(&self, id: HostId) -> Vec<String> {
        self.status(id)
            .map(|status| status.health)
            .unwrap_or_default()
    }

    /// Starts a stream of inner packets.
    pub fn flow(&mut self, config: FlowConfig) -> FlowId {
        let id = FlowId(self.flows.len());
        self.flows.push(Flow::new(config));
        self.schedule(self.now(), Happening::Flow(id));
        id
    }

    /// Starts a stream of 100-byte packets every 50 ms that are sent back.
    pub fn echo(&mut self, from: HostId, to: HostId) -> FlowId {
        let interval = Duration::from_millis(50);
        self.flow(FlowConfig {
            from,
            to,
            interval,
            size: 100,
            echo: true,
        })
    }

    /// Ends a stream; what is under way arrives.
    pub fn stop_flow(&mut self, id: FlowId) {
        self.flows[id.0].running = false;
    }

    /// Continues a stream that was stopped.
    pub fn resume_flow(&mut self, id: FlowId) {
        if !std::mem::replace(&mut self.flows[id.0].running, true) {
            self.schedule(self.now(), Happening::Flow(id));
        }
    }

    /// A stream and what became of its packets.
    pub fn stream(&self, id: FlowId) -> &Flow {
        &self.flows[id.0]
    }

    /// Sends one inner packet.
    pub fn send_inner(&mut self, from: HostId, packet: Vec<u8>) {
        self.inner(from, packet);
    }

    /// Sends one datagram from a host's mesh socket, behind the back of its engine.
    pub fn send_raw(&mut self, from: HostId, to: SocketAddr, ttl: Option<u8>, bytes: Vec<u8>) {
        self.send_from_host(from, to, ttl, Body::Bytes(bytes));
    }

    /// Sends a datagram whose source address is forged.
    pub fn send_forged(
        &mut self,
        from: HostId,
        source: SocketAddr,
        destination: SocketAddr,
        bytes: Vec<u8>,
    ) {
        let (ttl, body) = (DEFAULT_TTL, Body::Bytes(bytes));
        self.send(
            from.0,
            Packet {
                source,
                destination,
                ttl,
                body,
            },
        );
    }

    /// Keeps a copy of the next datagrams that arrive at a host, at most this many.
    pub fn record(&mut self, host: HostId, count: usize) {
        self.host_mut(host).recorder = (count, VecDeque::new());
    }

    /// What was recorded, oldest first, with the senders.
    pub fn recorded(&self, host: HostId) -> Vec<(SocketAddr, Vec<u8>)> {
        self.host(host).recorder.1.iter().cloned().collect()
    }

    /// Remembers the ports that datagrams for a host come for from now on.
    pub fn record_ports(&mut self, host: HostId) {
        self.host_mut(host).tried = Some(BTreeSet::new());
    }

    /// The ports that were recorded.
    pub fn ports_tried(&self, host: HostId) -> BTreeSet<u16> {
        self.host(host).tried.clone().unwrap_or_default()
    }

    /// The IPv6 address of a relay, for configurations.
    pub fn relay_url_v6(&self, relay: RelayId) -> RelayUrl {
        let addresses = &self.nodes[relay.0.0].table.addresses;
        let mut v6 = addresses.iter().filter(|(_, ip)| ip.is_ipv6());
        let ip = v6.next().expect("relays have both families").1;
        self.relay(relay).url(ip)
    }

    /// The address of a relay.
    pub fn relay_address(&self, relay: RelayId) -> SocketAddr {
        SocketAddr::new(self.address(relay.0), super::relay::PORT)
    }

    /// Starts an overlay ping; see [`Self::pong`].
    pub fn ping(&mut self, from: HostId, to: HostId, token: u64, timeout: Duration) {
        let peer = self.key_of(to);
        self.tell(
            from,
            Input::Ping {
                peer,
                token,
                timeout,
            },
        );
    }

    /// The answer to a ping: `None` while it is waited for, `Some(None)` if none came.
    pub fn pong(&self, host: HostId, token: u64) -> Option<Option<PongInfo>> {
        self.host(host)
            .events
            .iter()
            .find_map(|(_, event)| match event {
                Event::Pong { token: own, answer } if *own == token => Some(answer.clone()),
                _ => None,
            })
    }

    /// Starts a measurement of the network; see [`Host::events`].
    pub fn netcheck(&mut self, host: HostId, token: u64) {
        self.tell(host, Input::Netcheck { token });
    }

    /// When a host's path to another became direct for the first time.
    pub fn direct_since(&self, from: HostId, to: HostId) -> Option<Instant> {
        let key = self.key_of(to);
        let host: &Host = self.host(from);
        host.events.iter().find_map(|(at, event)| match event {
            Event::PathChanged {
                peer,
                path: Some(path),
                ..
            } if *peer == key && path.kind == PathKind::Direct => Some(*at),
            _ => None,
        })
    }
}
