//! Everything that leaves the data thread: datagrams, inner packets, QUIC for the relay client, and news.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::batch::{Batches, ReceiveBatch};
use mesh_core::engine::{
    Engine, Event, NetworkIndex, Output, RelayEvent, RelayHandle, SocketAction, SocketId,
};
use mesh_core::limits;
use mesh_core::offload::VIRTIO_NET_HDR;
use mesh_core::session::Kernel;
use mesh_core::time::Instant;
use nix::sys::epoll::Epoll;
use tokio::sync::mpsc;

use super::QuicDatagram;
use super::coalesce::Coalescer;
use super::counters::Counters;
use super::outbox::Outbox;
use super::requests::Requests;
use super::spare::Spares;
use super::tun::TunPort;
use crate::sockets::Sockets;

/// Where the engine's output goes.
pub(crate) struct Egress {
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) spares: Spares,
    /// What the engine writes into; empty after [`Self::settle`].
    pub(crate) batches: Batches,
    /// Devices by network index.
    pub(crate) tuns: Vec<Option<TunPort>>,
    pub(crate) requests: Requests,
    pub(crate) counters: Counters,
    outbox: Outbox,
    quic: mpsc::Sender<QuicDatagram>,
    coalescer: Coalescer,
    /// An overflow of the outbox is logged once, and counted.
    overflow_reported: bool,
}

impl Egress {
    pub(crate) fn new(
        sockets: Arc<Sockets>,
        outbox: Outbox,
        quic: mpsc::Sender<QuicDatagram>,
        kernel: Kernel,
        epoll: Arc<Epoll>,
    ) -> Self {
        Self {
            sockets,
            spares: Spares::new(epoll),
            batches: Batches::new(kernel),
            tuns: (0..limits::MAX_NETWORKS).map(|_| None).collect(),
            requests: Requests::default(),
            counters: Counters::default(),
            outbox,
            quic,
            coalescer: Coalescer::default(),
            overflow_reported: false,
        }
    }

    /// The device of a network.
    pub(crate) fn tun(&mut self, network: NetworkIndex) -> Option<&mut TunPort> {
        self.tuns.get_mut(usize::from(network.0))?.as_mut()
    }

    /// True if the engine wants to hear of this dial.
    pub(crate) fn is_current(&self, id: super::DialId) -> bool {
        self.outbox.is_current(id)
    }

    /// Hands sealed datagrams to the kernel.
    pub(crate) fn flush_send(&mut self) {
        for (run, bytes) in self.batches.send.runs() {
            self.counters.datagrams_sent += bytes.len().div_ceil(run.segment.max(1)) as u64;
            let spare = match run.socket {
                SocketId::MESH => None,
                socket => match self.spares.get(socket) {
                    None => continue,
                    spare => spare,
                },
            };
            self.sockets.send_run(spare, run, bytes);
        }
        self.batches.send.clear();
    }

    /// Writes opened packets to their devices, from where they were received.
    pub(crate) fn write(&mut self, received: &mut ReceiveBatch) {
        let Self {
            tuns,
            coalescer,
            counters,
            ..
        } = self;
        received.write(|network, storage, packets| {
            // A network that has just lost its device has no place for them.
            if let Some(Some(port)) = tuns.get_mut(usize::from(network.0)) {
                port.write(coalescer, storage, packets, counters);
            }
        });
    }

    /// Writes one packet that did not come by the mesh socket.
    fn write_packet(&mut self, network: NetworkIndex, packet: &[u8]) {
        if let Some(Some(port)) = self.tuns.get_mut(usize::from(network.0)) {
            let mut storage = [&[0; VIRTIO_NET_HDR], packet].concat();
            let range = VIRTIO_NET_HDR..storage.len();
            port.write(
                &mut self.coalescer,
                &mut storage,
                &[range],
                &mut self.counters,
            );
        }
    }

    /// Sends what is in the batches and does what the engine asks for, after each batch of inputs.
    pub(crate) fn settle(&mut self, engine: &mut Engine, now: Instant) {
        self.flush();
        let mut failed_dials = Vec::new();
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Socket(socket, action) => {
                    let port = self.spares.act(&self.sockets, socket, action);
                    if action != SocketAction::Close {
                        engine.socket_opened(now, socket, port);
                    }
                }
                output => self.output(output, &mut failed_dials),
            }
        }
        for relay in failed_dials {
            let reason = "the daemon is overloaded".to_owned();
            engine.handle_relay(now, relay, RelayEvent::Closed { reason }, &mut self.batches);
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.flush_send();
        for datagram in self.batches.quic.drain(..) {
            // QUIC repeats what gets lost.
            if self.quic.try_send(datagram).is_err() {
                self.counters.quic_queue_full += 1;
            }
        }
    }

    fn output(&mut self, output: Output, failed_dials: &mut Vec<RelayHandle>) {
        match output {
            Output::Datagram {
                socket,
                remote,
                ttl,
                payload,
            } => {
                self.counters.datagrams_sent += 1;
                self.datagram(socket, remote, ttl, &payload);
            }
            Output::Socket(..) => {} // done by `settle`, as it is answered
            Output::Packet { network, packet } => self.write_packet(network, &packet),
            Output::Relay(relay, action) => {
                if self.outbox.relay(relay, action).is_err() {
                    self.report_overflow();
                    failed_dials.push(relay);
                }
            }
            Output::PortMap(action) => {
                if self.outbox.port_map(action).is_err() {
                    self.report_overflow();
                }
            }
            Output::Lan(action) => {
                if self.outbox.lan(action).is_err() {
                    self.report_overflow();
                }
            }
            Output::Event(Event::Pong { token, answer }) => self.requests.pong(token, answer),
            Output::Event(Event::Netcheck { token, report }) => {
                self.requests.netcheck(token, report)
            }
            Output::Event(event) => {
                if self.outbox.event(event).is_err() {
                    self.report_overflow();
                }
            }
        }
    }

    fn datagram(&self, socket: SocketId, remote: SocketAddr, ttl: Option<u8>, payload: &[u8]) {
        let sockets = &self.sockets;
        match (self.spares.get(socket), ttl) {
            (Some(spare), Some(ttl)) => sockets.send_with_ttl_by(spare, remote, payload, ttl),
            (Some(spare), None) => sockets.send_by(spare, remote, payload, payload.len()),
            (None, _) if socket != SocketId::MESH => {} // the kernel gave none
            (None, Some(ttl)) => sockets.send_with_ttl(remote, payload, ttl),
            (None, None) => sockets.send(remote, payload, payload.len()),
        }
    }

    /// Tells the daemon that a device is gone.
    pub(crate) fn tun_lost(&mut self, network: NetworkIndex) {
        if self.outbox.tun_lost(network).is_err() {
            self.report_overflow();
        }
    }

    fn report_overflow(&mut self) {
        self.counters.output_queue_full += 1;
        if !self.overflow_reported {
            self.overflow_reported = true;
            tracing::warn!(
                "the daemon does not keep up with the data plane: events and relay messages are lost"
            );
        }
    }
}
