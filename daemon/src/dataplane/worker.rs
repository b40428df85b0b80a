//! The data thread: wait, take a batch from whatever is ready, repeat.
//!
//! Each pass takes at most one batch from each source that is ready, so that no source starves another, and timers and
//! commands get their turn. A source stays ready until it said that it is empty; the thread sleeps only when all are.
//! The wait is epoll, level-triggered: what a pass leaves behind is found again by the next.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use mesh_core::engine::{Engine, NetworkIndex, NetworkSetup, SocketId};
use mesh_core::limits;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc;

use super::clock::{self, ResumeWatch, Timer};
use super::egress::Egress;
use super::outbox::Outbox;
use super::spare::Spares;
use super::tun::{Read, TunInput, TunPort};
use super::udp::UdpInput;
use super::{Command, MetricsReport, QuicDatagram, StatusReport};
use crate::netlink::monitor::Surroundings;
use crate::sockets::{Family, Sockets};
use crate::tuning::Tuning;

/// Bytes that are read from one TUN device in a pass: about as much as one receive from a socket yields.
const TUN_BYTES: usize = 1 << 20;
/// And reads: small packets fill two or three bursts of UDP GSO, each of which costs as much as forty packets.
const TUN_READS: usize = 128;
/// Commands in a pass.
const COMMANDS: usize = 64;

/// What epoll reports for each descriptor; devices follow, by network index.
const TOKEN_WAKE: u64 = 0;
const TOKEN_TIMER: u64 = 1;
const TOKEN_UDP: [u64; 2] = [2, 3];
const TOKEN_RESUME: u64 = 4;
const TOKEN_TUN: u64 = 5;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The thread's ends of its queues.
pub(crate) struct Queues {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) wake: Arc<EventFd>,
    pub(crate) outbox: Outbox,
    pub(crate) quic: mpsc::Sender<QuicDatagram>,
}

/// Sources that may have something.
#[derive(Debug, Default)]
struct Ready {
    commands: bool,
    udp: [bool; 2],
    /// One bit for each network index.
    tun: u64,
    spares: BTreeSet<SocketId>,
}

const _: () = assert!(limits::MAX_NETWORKS <= u64::BITS as usize);

impl Ready {
    fn any(&self) -> bool {
        self.commands || self.udp != [false; 2] || self.tun != 0 || !self.spares.is_empty()
    }
}

/// The data thread's state.
pub(crate) struct Worker {
    engine: Engine,
    egress: Egress,
    udp: UdpInput,
    tun: TunInput,
    commands: mpsc::Receiver<Command>,
    wake: Arc<EventFd>,
    timer: Timer,
    resume: ResumeWatch,
    epoll: Arc<Epoll>,
    ready: Ready,
    running: bool,
    tuning: Tuning,
}

impl Worker {
    /// # Errors
    ///
    /// When the kernel gives no descriptors.
    pub(crate) fn new(
        seed: [u8; 32],
        sockets: Arc<Sockets>,
        queues: Queues,
        tuning: Tuning,
    ) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        let timer = Timer::new()?;
        epoll.add(queues.wake.as_fd(), readable(TOKEN_WAKE))?;
        let resume = ResumeWatch::new()?;
        epoll.add(timer.as_fd(), readable(TOKEN_TIMER))?;
        epoll.add(resume.as_fd(), readable(TOKEN_RESUME))?;
        for (family, token) in FAMILIES.into_iter().zip(TOKEN_UDP) {
            if let Some(fd) = sockets.fd(family) {
                epoll.add(fd, readable(token))?;
            }
        }
        Ok(Self {
            engine: Engine::new(seed, tuning.kernel, clock::now(), clock::unix()),
            egress: Egress::new(
                sockets,
                queues.outbox,
                queues.quic,
                tuning.kernel,
                Arc::clone(&epoll),
            ),
            udp: UdpInput::new(),
            tun: TunInput::new(),
            commands: queues.commands,
            wake: queues.wake,
            timer,
            resume,
            epoll,
            ready: Ready::default(),
            running: true,
            tuning,
        })
    }

    /// Until [`Command::Shutdown`].
    pub(crate) fn run(&mut self) {
        while self.running {
            self.handle_timeout();
            self.wait();
            self.pass();
        }
    }

    /// Lets the engine do what is due, and makes sure to be there for what comes next.
    fn handle_timeout(&mut self) {
        let now = clock::now();
        if self.engine.poll_timeout().is_some_and(|due| due <= now) {
            self.engine.handle_timeout(now, &mut self.egress.batches);
            self.egress.settle(&mut self.engine, now);
        }
        self.timer.arm(self.engine.poll_timeout());
    }

    /// Sleeps unless something is left to do, and notes what is ready.
    fn wait(&mut self) {
        let timeout = if self.ready.any() {
            EpollTimeout::ZERO
        } else {
            self.egress.counters.wakeups += 1;
            EpollTimeout::NONE
        };
        let mut events = [EpollEvent::empty(); 16];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            // Only a descriptor that is no epoll gives another error.
            Err(errno) => panic!("epoll_wait: {errno}"),
        };
        for event in &events[..count] {
            match event.data() {
                TOKEN_WAKE => {
                    // First the counter, then the queue: a command that comes in between wakes us again.
                    let _ = self.wake.read();
                    self.ready.commands = true;
                }
                TOKEN_TIMER => self.timer.fired(),
                TOKEN_RESUME => {
                    let now = clock::now();
                    if self.resume.fired(now) {
                        self.engine.resumed(now);
                    }
                }
                token if token < TOKEN_TUN => {
                    self.ready.udp[(token - TOKEN_UDP[0]) as usize] = true
                }
                token => match Spares::of_token(token) {
                    Some(socket) => {
                        self.ready.spares.insert(socket);
                    }
                    None => self.ready.tun |= 1 << (token - TOKEN_TUN),
                },
            }
        }
    }

    /// Devices come last. To read what answers the last batch as early as possible was tried, by asking them first or
    /// again after each write: it makes bursts smaller, and TCP a tenth slower.
    fn pass(&mut self) {
        for (index, family) in FAMILIES.into_iter().enumerate() {
            if self.ready.udp[index] {
                self.ready.udp[index] = self.receive(family);
            }
        }
        for socket in std::mem::take(&mut self.ready.spares) {
            if self.receive_spare(socket) {
                self.ready.spares.insert(socket);
            }
        }
        let mut tuns = self.ready.tun;
        while tuns != 0 {
            let index = tuns.trailing_zeros();
            tuns &= tuns - 1;
            if !self.read_tun(index as u16) {
                self.ready.tun &= !(1 << index);
            }
        }
        if self.ready.commands {
            self.ready.commands = self.run_commands();
        }
    }

    /// One receive; true if there may be more.
    fn receive(&mut self, family: Family) -> bool {
        let received = self.udp.receive(&self.egress.sockets, family);
        self.received(received)
    }

    /// The same for a spare socket, which the engine may have given back meanwhile.
    fn receive_spare(&mut self, socket: SocketId) -> bool {
        let Some(spare) = self.egress.spares.get(socket) else {
            return false;
        };
        let errors = spare.take_icmp_errors();
        let received = self.udp.receive_spare(socket, spare);
        if errors > 0 {
            let now = clock::now();
            self.engine.icmp_errors(now, socket, errors);
            self.egress.settle(&mut self.engine, now);
        }
        self.received(received)
    }

    /// Takes what was received into the batch; true if there may be more.
    fn received(&mut self, received: io::Result<bool>) -> bool {
        let drained = match received {
            Ok(drained) => drained,
            Err(error) => {
                let nothing = error.kind() == io::ErrorKind::WouldBlock;
                self.egress.counters.udp_receive_errors += u64::from(!nothing);
                return false;
            }
        };
        let now = clock::now();
        let received = &mut self.udp.batch;
        self.egress.counters.datagrams_received += received.datagrams() as u64;
        self.engine
            .handle_udp(now, received, &mut self.egress.batches);
        // Answers first: somebody may wait for them.
        self.egress.settle(&mut self.engine, now);
        self.egress.write(received);
        !drained
    }

    /// Several reads from the device of a network; true if there may be more.
    fn read_tun(&mut self, index: u16) -> bool {
        let network = NetworkIndex(index);
        let now = clock::now();
        let mut more = true;
        let (mut reads, mut bytes) = (0, 0);
        while reads < TUN_READS && bytes < TUN_BYTES {
            reads += 1;
            let Some(port) = self.egress.tun(network) else {
                more = false;
                break;
            };
            match port.read(&mut self.tun) {
                Read::Packet(packet) => {
                    bytes += packet.bytes().len();
                    self.egress.counters.packets_from_tun += packet.count() as u64;
                    let batches = &mut self.egress.batches;
                    self.engine.handle_tun(now, network, &packet, batches);
                    if batches.send.is_full() {
                        self.egress.flush_send();
                    }
                }
                Read::Empty => {
                    more = false;
                    break;
                }
                Read::Failed => self.egress.counters.tun_read_errors += 1,
                Read::Lost => {
                    self.lose_tun(network);
                    more = false;
                    break;
                }
            }
        }
        self.egress.settle(&mut self.engine, now);
        more
    }

    /// The interface was deleted under us: waiting on its descriptor would return at once for ever.
    fn lose_tun(&mut self, network: NetworkIndex) {
        self.close_tun(network);
        tracing::warn!(network = network.0, "the network's interface is gone");
        self.egress.tun_lost(network);
    }

    fn close_tun(&mut self, network: NetworkIndex) {
        let slot = self.egress.tuns.get_mut(usize::from(network.0));
        if let Some(port) = slot.and_then(Option::take) {
            // Closing the descriptor would do, were it not duplicated into a child by then.
            let _ = self.epoll.delete(port.as_fd());
            self.ready.tun &= !(1 << port.network().0);
        }
    }

    /// True if there may be more.
    fn run_commands(&mut self) -> bool {
        for _ in 0..COMMANDS {
            match self.commands.try_recv() {
                Ok(command) => self.run_command(command),
                Err(mpsc::error::TryRecvError::Empty) => return false,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    self.running = false;
                    return false;
                }
            }
            self.egress.settle(&mut self.engine, clock::now());
        }
        true
    }

    // Whoever asked may have given up: failures to reply are of no interest.
    fn run_command(&mut self, command: Command) {
        let now = clock::now();
        match command {
            Command::AddNetwork {
                index,
                setup,
                tun,
                reply,
            } => {
                let _ = reply.send(self.add_network(index, *setup, tun));
            }
            Command::UpdateNetwork {
                index,
                setup,
                reply,
            } => {
                let result = self.engine.update_network(now, index, *setup);
                let _ = reply.send(result.map_err(|error| error.to_string()));
            }
            Command::RemoveNetwork { index, reply } => {
                self.engine.remove_network(index);
                self.egress.settle(&mut self.engine, now);
                self.close_tun(index);
                let _ = reply.send(Ok(()));
            }
            Command::Surroundings(surroundings) => {
                let [v4, v6] = FAMILIES.map(|family| self.egress.sockets.port(family));
                let Surroundings {
                    addresses,
                    gateways,
                    lan,
                } = surroundings;
                self.engine.set_local_addresses(now, &addresses, v4, v6);
                self.egress.sockets.set_cut_off(self.engine.is_cut_off());
                self.engine.set_gateways(now, &gateways);
                self.engine.set_lan(now, &lan);
            }
            Command::LanDiscovery(wanted) => self.engine.set_lan_discovery(now, wanted),
            Command::LanPacket(packet) => {
                let batches = &mut self.egress.batches;
                self.engine.handle_lan(now, &packet, batches);
            }
            Command::Woken => {
                if self.resume.announced(now) {
                    self.engine.resumed(now);
                }
            }
            Command::PortMap(event) => self.engine.handle_port_map(now, &event),
            Command::Relay(id, event) => {
                if self.egress.is_current(id) {
                    self.engine
                        .handle_relay(now, id.relay, event, &mut self.egress.batches);
                }
            }
            Command::Ping {
                network,
                peer,
                timeout,
                reply,
            } => {
                if let Some(token) = self.egress.requests.add_ping(reply) {
                    let batches = &mut self.egress.batches;
                    self.engine
                        .ping(now, network, peer, token, timeout, batches);
                }
            }
            Command::Explain {
                network,
                peer,
                reply,
            } => {
                if let Some(explanation) = self.engine.explain(now, network, peer) {
                    let _ = reply.send(explanation);
                }
            }
            Command::Netcheck { network, reply } => {
                if let Some(token) = self.egress.requests.add_netcheck(reply) {
                    self.engine.netcheck(now, network, token);
                }
            }
            Command::Metrics { reply } => {
                let _ = reply.send(MetricsReport {
                    metrics: self.engine.metrics(now),
                    counters: self.egress.counters,
                    send_errors: self.egress.sockets.send_errors(),
                });
            }
            Command::Status { reply } => {
                let _ = reply.send(StatusReport {
                    networks: self.engine.status(now),
                    drops: self.engine.drops(),
                    counters: self.egress.counters,
                    send_errors: self.egress.sockets.send_errors(),
                });
            }
            Command::Shutdown => self.running = false,
        }
    }

    fn add_network(
        &mut self,
        index: NetworkIndex,
        setup: NetworkSetup,
        tun: tun_rs::SyncDevice,
    ) -> Result<(), String> {
        match self.egress.tuns.get(usize::from(index.0)) {
            None => return Err(format!("more than {} networks", limits::MAX_NETWORKS)),
            Some(Some(_)) => return Err("the network is up already".to_owned()),
            Some(None) => {}
        }
        let port = TunPort::new(index, tun, self.tuning)
            .map_err(|error| format!("the TUN device: {error}"))?;
        self.engine
            .add_network(clock::now(), index, setup)
            .map_err(|error| error.to_string())?;
        let token = TOKEN_TUN + u64::from(index.0);
        if let Err(errno) = self.epoll.add(port.as_fd(), readable(token)) {
            self.engine.remove_network(index);
            return Err(format!("the TUN device: {errno}"));
        }
        self.egress.tuns[usize::from(index.0)] = Some(port);
        Ok(())
    }
}

fn readable(token: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, token)
}
