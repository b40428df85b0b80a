//! The thread that receives everything and forwards data.
//!
//! One thread, poll(2), drained until empty, outside the async runtime: the way of a data frame is one `recvmmsg`, one
//! look at the channel table, eight bytes rewritten where they lie, and one `sendmsg` for as many frames as fit. No
//! payload is copied in between.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

use mesh_core::relay::server::{DropReason, Reply, Server, Socket, Verdict};
use mesh_core::time::Instant;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use quinn_udp::{BATCH_SIZE, RecvMeta};
use tokio::sync::mpsc;

use crate::quic::Datagram;
use crate::runs::Runs;
use crate::shared::Shared;
use crate::sockets::Port;

/// Room for one message: the kernel coalesces up to 64 KiB of datagrams of one flow (GRO).
const MESSAGE_BYTES: usize = 65_536;
/// Rounds of receiving on one socket before the others get their turn.
const ROUNDS: usize = 8;

/// A reply and where it goes.
struct Answer {
    to: SocketAddr,
    from: Option<IpAddr>,
    reply: Reply,
}

/// The state of the thread.
pub(crate) struct Pump {
    shared: Arc<Shared>,
    /// To quinn, one for each listener.
    quic: Vec<mpsc::Sender<Datagram>>,
    stop: Arc<EventFd>,
    storage: Vec<u8>,
    meta: [RecvMeta; BATCH_SIZE],
    runs: Runs,
    answers: Vec<Answer>,
}

impl Pump {
    pub(crate) fn new(
        shared: Arc<Shared>,
        quic: Vec<mpsc::Sender<Datagram>>,
        stop: Arc<EventFd>,
    ) -> Self {
        Self {
            shared,
            quic,
            stop,
            storage: vec![0; BATCH_SIZE * MESSAGE_BYTES],
            meta: [RecvMeta::default(); BATCH_SIZE],
            runs: Runs::default(),
            answers: Vec::new(),
        }
    }

    /// Runs until `stop` is written to.
    ///
    /// # Errors
    /// If poll(2) fails, which it has no reason to.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let stop = Arc::clone(&self.stop);
        let ports: Vec<(usize, Socket, &Port)> = shared
            .listeners
            .iter()
            .enumerate()
            .flat_map(|(index, listener)| {
                let alt = listener.alt.as_deref().filter(|_| listener.owns_alt);
                std::iter::once((index, Socket::Main, &listener.main))
                    .chain(alt.map(|alt| (index, Socket::Alt, alt)))
            })
            .collect();
        let mut polled = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        polled.extend(
            ports
                .iter()
                .map(|(_, _, port)| PollFd::new(port.as_fd(), PollFlags::POLLIN)),
        );
        loop {
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if polled[0].any() == Some(true) {
                return Ok(());
            }
            for (fd, &(listener, socket, port)) in polled[1..].iter().zip(&ports) {
                if fd.any() == Some(true) {
                    self.drain(listener, socket, port);
                }
            }
        }
    }

    fn drain(&mut self, listener: usize, socket: Socket, port: &Port) {
        for _ in 0..ROUNDS {
            let mut chunks = self.storage.chunks_mut(MESSAGE_BYTES);
            let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            match port.recv(&mut buffers, &mut self.meta) {
                Ok(received) => {
                    self.handle(listener, socket, received);
                    self.send(listener);
                    if received < BATCH_SIZE {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What the network says about something that we have sent; the next call goes on.
                Err(_) => {}
            }
        }
    }

    /// Sorts what was received. The server is locked once for all of it, and while no system call is made.
    fn handle(&mut self, listener: usize, socket: Socket, received: usize) {
        let now = self.shared.now();
        let mut server = self.shared.lock();
        for (index, meta) in self.meta[..received].iter().enumerate() {
            let start = index * MESSAGE_BYTES;
            let end = start + meta.len.min(MESSAGE_BYTES);
            let stride = meta.stride.max(1);
            let mut at = start;
            while at < end {
                let range = at..end.min(at + stride);
                at = range.end;
                let round = &mut Round {
                    quic: &self.quic[listener],
                    runs: &mut self.runs,
                    answers: &mut self.answers,
                };
                round.segment(&mut server, now, socket, meta, &mut self.storage, range);
            }
        }
    }

    fn send(&mut self, listener: usize) {
        let mut failed = 0;
        for (run, pieces) in self.runs.iter() {
            if let Some(listener) = self.shared.listeners.get(usize::from(run.local.listener)) {
                let pieces = pieces.map(|range| &self.storage[range]);
                let from = run.local.ip;
                failed += listener.main.gather(run.to, from, pieces, run.segment);
            }
        }
        for answer in self.answers.drain(..) {
            let payload = answer.reply.payload();
            let elsewhere = self.shared.elsewhere.filter(|_| answer.reply.other_address);
            let (listener, from) = match elsewhere {
                Some((listener, address)) => (listener, Some((*address.ip()).into())),
                None => (listener, answer.from),
            };
            if let Some(port) = self.shared.listeners[listener].port(answer.reply.socket) {
                failed += port.send(answer.to, from, None, payload, payload.len());
            }
        }
        self.runs.clear();
        if failed > 0 {
            self.shared
                .lock()
                .count_drops(DropReason::SendFailed, failed as u64);
        }
    }
}

/// Where the segments of one round go.
struct Round<'a> {
    quic: &'a mpsc::Sender<Datagram>,
    runs: &'a mut Runs,
    answers: &'a mut Vec<Answer>,
}

impl Round<'_> {
    fn segment(
        &mut self,
        server: &mut Server,
        now: Instant,
        socket: Socket,
        meta: &RecvMeta,
        storage: &mut [u8],
        range: std::ops::Range<usize>,
    ) {
        match server.handle_udp(now, socket, meta.addr, &mut storage[range.clone()]) {
            Verdict::Forward { to, local } => self.runs.push(range, to, local),
            Verdict::Reply(reply) => self.answers.push(Answer {
                to: meta.addr,
                from: meta.dst_ip,
                reply,
            }),
            Verdict::Quic => {
                let datagram = Datagram {
                    from: meta.addr,
                    to: meta.dst_ip,
                    ecn: meta.ecn,
                    bytes: storage[range].to_vec(),
                };
                if self.quic.try_send(datagram).is_err() {
                    server.count_drops(DropReason::QuicQueue, 1);
                }
            }
            Verdict::Dropped(_) => {}
        }
    }
}
