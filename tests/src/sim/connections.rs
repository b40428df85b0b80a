//! Drives relay connections: those that hosts dial, and the relays at their other end.

use std::net::SocketAddr;

use mesh_core::engine::{RelayAction, RelayEvent, RelayHandle};
use mesh_core::wire::relay::Framer;

use super::host::{Dialled, Input, messages};
use super::packet::{Body, DEFAULT_TTL, Packet};
use super::quic::{Connection, Frame, Notice};
use super::relay::Outgoing;
use super::world::{Event, HostId, RelayId, Sim};

impl Sim {
    pub(super) fn relay_action(&mut self, id: HostId, handle: RelayHandle, action: RelayAction) {
        let now = self.now;
        match action {
            RelayAction::Dial { url, .. } => {
                let Some(ip) = url.host_is_ip() else {
                    let reason = format!("{} does not resolve", url.host);
                    let closed = Input::Relay(handle, RelayEvent::Closed { reason });
                    return self.schedule(now, Event::Tell(id, closed));
                };
                self.connections += 1;
                let connection =
                    Connection::connect(now, self.connections, self.host(id).id(), url.id);
                let dialled = Dialled {
                    connection,
                    remote: SocketAddr::new(ip, url.port),
                    framer: Framer::default(),
                };
                let text = format!("dials {}", dialled.remote);
                self.note(id.0, text);
                self.host_mut(id).dialled.insert(handle, dialled);
            }
            RelayAction::Send(message) => {
                let mut bytes = Vec::new();
                message.encode(&mut bytes);
                if let Some(dialled) = self.host_mut(id).dialled.get_mut(&handle) {
                    dialled.connection.send(now, &bytes);
                }
            }
            RelayAction::Hasten(message) => {
                if let Some(dialled) = self.host_mut(id).dialled.get_mut(&handle) {
                    dialled.connection.send_datagram(now, message.to_datagram());
                }
            }
            RelayAction::Hangup => {
                if let Some(dialled) = self.host_mut(id).dialled.get_mut(&handle) {
                    dialled.connection.close(now, "the client hung up");
                }
            }
        }
        self.flush_quic(id);
    }

    pub(super) fn quic_arrived(&mut self, id: HostId, frame: Frame) {
        let now = self.now;
        let host = self.host_mut(id);
        let found = host
            .dialled
            .iter_mut()
            .find(|(_, dialled)| dialled.connection.id() == frame.connection);
        let Some((handle, dialled)) = found else {
            return;
        };
        let (handle, notices) = (*handle, dialled.connection.receive(now, frame.content));
        self.quic_notices(id, handle, notices);
        self.flush_quic(id);
    }

    fn quic_notices(&mut self, id: HostId, handle: RelayHandle, notices: Vec<Notice>) {
        for notice in notices {
            let Some(dialled) = self.host_mut(id).dialled.get_mut(&handle) else {
                return;
            };
            let events = match notice {
                Notice::Established(_) => vec![RelayEvent::Connected {
                    remote: dialled.remote,
                }],
                Notice::Bytes(bytes) => {
                    let messages = messages(&mut dialled.framer, &bytes);
                    messages.into_iter().map(RelayEvent::Message).collect()
                }
                Notice::Datagram(_) => Vec::new(),
                Notice::Closed(reason) => vec![RelayEvent::Closed { reason }],
            };
            for event in events {
                if let RelayEvent::Closed { reason } = &event {
                    let text = format!("relay connection closed: {reason}");
                    self.note(id.0, text);
                }
                self.schedule(self.now, Event::Tell(id, Input::Relay(handle, event)));
            }
        }
    }

    /// Sends the packets of a host's relay connections, forgets those that are over, arms the timer of the others.
    fn flush_quic(&mut self, id: HostId) {
        let now = self.now;
        let host = self.host_mut(id);
        let mut packets = Vec::new();
        for dialled in host.dialled.values_mut() {
            let frames = dialled.connection.take_frames();
            packets.extend(frames.into_iter().map(|frame| (dialled.remote, frame)));
        }
        host.dialled
            .retain(|_, dialled| !dialled.connection.is_closed());
        let deadline = host
            .dialled
            .values()
            .filter_map(|dialled| dialled.connection.deadline())
            .min();
        let deadline = deadline.map(|at| at.max(now));
        let armed = std::mem::replace(&mut host.quic_armed, deadline);
        if let Some(at) = deadline
            && armed != deadline
        {
            self.schedule(at, Event::WakeQuic(id));
        }
        for (remote, frame) in packets {
            self.send_from_host(id, remote, None, Body::Quic(frame));
        }
    }

    pub(super) fn wake_quic(&mut self, id: HostId) {
        let now = self.now;
        let host = self.host_mut(id);
        if host.quic_armed != Some(now) || host.frozen {
            return;
        }
        host.quic_armed = None;
        let mut all = Vec::new();
        for (handle, dialled) in &mut host.dialled {
            if dialled.connection.deadline().is_some_and(|at| at <= now) {
                all.push((*handle, dialled.connection.handle_timeout(now)));
            }
        }
        for (handle, notices) in all {
            self.quic_notices(id, handle, notices);
        }
        self.flush_quic(id);
    }

    pub(super) fn wake_relay(&mut self, id: RelayId) {
        let now = self.now;
        let relay = self.relay_mut(id);
        if relay.armed != Some(now) {
            return;
        }
        relay.armed = None;
        let outgoing = relay.handle_timeout(now);
        self.relay_sends(id, outgoing);
    }

    pub(super) fn relay_sends(&mut self, id: RelayId, outgoing: Vec<Outgoing>) {
        for (port, destination, body) in outgoing {
            let Some(ip) = self.nodes[id.0.0].table.source_for(destination.ip()) else {
                continue;
            };
            let source = SocketAddr::new(ip, port);
            self.send(
                id.0,
                Packet {
                    source,
                    destination,
                    ttl: DEFAULT_TTL,
                    body,
                },
            );
        }
        let now = self.now;
        let relay = self.relay_mut(id);
        let deadline = relay.deadline().map(|at| at.max(now));
        let armed = std::mem::replace(&mut relay.armed, deadline);
        if let Some(at) = deadline
            && armed != deadline
        {
            self.schedule(at, Event::WakeRelay(id));
        }
    }
}
