//! Relays: the real relay server behind simulated sockets and the modelled QUIC.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use mesh_core::identity::{Identity, NodeId, RelayUrl};
use mesh_core::relay::server::{Access, ConnId, Output, Server, Settings, Socket, Verdict};
use mesh_core::time::Instant;
use mesh_core::wire::relay::{Alternatives, ClientMessage, Framer};
use zeroize::Zeroizing;

use super::packet::{Body, Packet};
use super::quic::{Connection, Content, Frame, Notice};
use super::rng::Rng;

/// Port of everything.
pub(super) const PORT: u16 = 443;
/// Second port for STUN.
pub(super) const ALT_PORT: u16 = 3_478;

/// Outputs that one input may cause.
const MAX_OUTPUTS: usize = 256;

/// A datagram that a relay wants sent: from which of its ports, where to, what.
pub(super) type Outgoing = (u16, SocketAddr, Body);

/// A relay.
pub struct Relay {
    id: NodeId,
    settings: Settings,
    server: Option<Server>,
    clients: BTreeMap<u64, Client>,
    /// The wake-up that is in the queue of events.
    pub(super) armed: Option<Instant>,
    rng: Rng,
}

struct Client {
    connection: Connection,
    address: SocketAddr,
    framer: Framer,
}

impl Relay {
    pub(super) fn new(mut rng: Rng) -> Self {
        let mut relay = Self {
            id: Identity::from_seed(Zeroizing::new(rng.seed())).id(),
            settings: Settings {
                access: Access::Open,
                alternatives: Alternatives {
                    port: Some(ALT_PORT),
                    address: None,
                },
                rate_limit: mesh_core::limits::RELAY_RATE,
            },
            server: None,
            clients: BTreeMap::new(),
            armed: None,
            rng,
        };
        relay.start();
        relay
    }

    /// Its node ID.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Its address for configurations.
    pub fn url(&self, ip: IpAddr) -> RelayUrl {
        RelayUrl {
            id: self.id(),
            host: ip.to_string(),
            port: PORT,
        }
    }

    /// The server while it runs.
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// Clients that are connected.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    pub(super) fn start(&mut self) {
        self.server = Some(Server::new(self.settings.clone(), self.rng.seed()));
    }

    /// Everything is forgotten and nobody is told, as with SIGKILL.
    pub(super) fn stop(&mut self) {
        self.server = None;
        self.clients.clear();
    }

    /// A datagram arrived.
    pub(super) fn receive(&mut self, now: Instant, packet: Packet) -> Vec<Outgoing> {
        if self.server.is_none() {
            return Vec::new();
        }
        let mut out = match packet.body {
            Body::Bytes(bytes) => {
                self.receive_bytes(now, packet.source, packet.destination.port(), bytes)
            }
            Body::Quic(frame) => self.receive_quic(now, packet.source, frame),
        };
        self.drain(now, &mut out);
        out
    }

    fn receive_bytes(
        &mut self,
        now: Instant,
        from: SocketAddr,
        port: u16,
        mut bytes: Vec<u8>,
    ) -> Vec<Outgoing> {
        let socket = if port == ALT_PORT {
            Socket::Alt
        } else {
            Socket::Main
        };
        let Some(server) = &mut self.server else {
            return Vec::new();
        };
        match server.handle_udp(now, socket, from, &mut bytes) {
            Verdict::Forward { to, .. } => vec![(PORT, to, Body::Bytes(bytes))],
            Verdict::Reply(reply) => {
                assert!(
                    reply.payload().len() <= bytes.len(),
                    "an answer larger than its question"
                );
                let port = if reply.socket == Socket::Alt {
                    ALT_PORT
                } else {
                    PORT
                };
                vec![(port, from, Body::Bytes(reply.payload().to_vec()))]
            }
            Verdict::Quic | Verdict::Dropped(_) => Vec::new(),
        }
    }

    fn receive_quic(&mut self, now: Instant, from: SocketAddr, frame: Frame) -> Vec<Outgoing> {
        let own = self.id();
        let id = frame.connection;
        let is_new = !self.clients.contains_key(&id);
        if is_new {
            match frame.content {
                Content::Connect { client, .. } => {
                    let connection = Connection::accept(now, id, client, own);
                    self.clients.insert(
                        id,
                        Client {
                            connection,
                            address: from,
                            framer: Framer::default(),
                        },
                    );
                }
                Content::Reset | Content::Close { .. } => {}
                _ => {
                    let reset = Frame {
                        connection: id,
                        content: Content::Reset,
                    };
                    return vec![(PORT, from, Body::Quic(reset))];
                }
            }
            return Vec::new();
        }
        let (Some(client), Some(server)) = (self.clients.get_mut(&id), &mut self.server) else {
            return Vec::new();
        };
        if client.address != from {
            client.address = from;
            server.handle_address(now, ConnId(id), from);
        }
        let notices = client.connection.receive(now, frame.content);
        self.notices(now, id, notices);
        Vec::new()
    }

    fn notices(&mut self, now: Instant, id: u64, notices: Vec<Notice>) {
        let (Some(client), Some(server)) = (self.clients.get_mut(&id), &mut self.server) else {
            return;
        };
        for notice in notices {
            match notice {
                Notice::Established(node) => {
                    server.handle_connected(now, ConnId(id), node, client.address)
                }
                Notice::Bytes(bytes) => {
                    let mut input = &bytes[..];
                    while let Ok(Some(body)) = client.framer.next(&mut input) {
                        let message = ClientMessage::decode(body);
                        assert!(
                            message.is_ok(),
                            "a client sent a message that the relay cannot read: {message:?}"
                        );
                        message
                            .into_iter()
                            .for_each(|message| server.handle_message(now, ConnId(id), message));
                    }
                }
                Notice::Datagram(body) => {
                    let message = ClientMessage::decode(&body);
                    assert!(
                        message.as_ref().is_ok_and(ClientMessage::may_be_hastened),
                        "a client sent a datagram that the relay does not take: {message:?}"
                    );
                    message
                        .into_iter()
                        .for_each(|message| server.handle_message(now, ConnId(id), message));
                }
                Notice::Closed(_) => server.handle_closed(ConnId(id)),
            }
        }
    }

    /// When [`Self::handle_timeout`] has to run.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let server = self.server.as_ref()?;
        let clients = self
            .clients
            .values()
            .filter_map(|client| client.connection.deadline());
        clients.chain(server.poll_timeout()).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<Outgoing> {
        let due: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.connection.deadline().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            let notices = self
                .clients
                .get_mut(&id)
                .map(|client| client.connection.handle_timeout(now));
            self.notices(now, id, notices.unwrap_or_default());
        }
        if let Some(server) = &mut self.server
            && server.poll_timeout().is_some_and(|at| at <= now)
        {
            server.handle_timeout(now);
        }
        let mut out = Vec::new();
        self.drain(now, &mut out);
        out
    }

    /// Carries out what the server wants, and collects the packets of all connections.
    fn drain(&mut self, now: Instant, out: &mut Vec<Outgoing>) {
        let Some(server) = &mut self.server else {
            return;
        };
        let mut outputs = 0;
        while let Some(output) = server.poll_output() {
            outputs += 1;
            assert!(
                outputs <= MAX_OUTPUTS,
                "one input of a relay caused more than {MAX_OUTPUTS} outputs"
            );
            match output {
                Output::Wake(conn) => {
                    let bytes = server.take_messages(conn);
                    if let Some(client) = self.clients.get_mut(&conn.0) {
                        client.connection.send(now, &bytes);
                    }
                }
                Output::Close { conn, last, reason } => {
                    if let Some(client) = self.clients.get_mut(&conn.0) {
                        client.connection.send(now, &last);
                        client.connection.close(now, &reason.to_string());
                    }
                }
                Output::Datagram { to, payload, .. } => out.push((PORT, to, Body::Bytes(payload))),
            }
        }
        for client in self.clients.values_mut() {
            let frames = client.connection.take_frames();
            out.extend(
                frames
                    .into_iter()
                    .map(|frame| (PORT, client.address, Body::Quic(frame))),
            );
        }
        self.clients
            .retain(|_, client| !client.connection.is_closed());
    }
}
