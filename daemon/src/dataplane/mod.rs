//! The data plane: one thread that moves every packet, outside the async runtime.
//!
//! The thread owns the [`Engine`](mesh_core::engine::Engine), the TUN devices and the receiving side of the UDP sockets;
//! the rest of the daemon talks to it through [`DataPlane`] (commands, a bounded queue) and hears from it through
//! [`FromData`] (a bounded queue). The thread waits for nothing but its descriptors: it drops and counts rather than
//! waits for the async side.
//!
//! Per packet there is no lock, no allocation and no log line.

mod clock;
mod coalesce;
mod counters;
mod egress;
mod outbox;
mod requests;
mod segment;
mod spare;
#[cfg(test)]
mod tests;
mod tun;
mod udp;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_core::engine::{
    Drops, Event, Explanation, LanAction, LanPacket, Metrics, NetcheckReport, NetworkIndex,
    NetworkSetup, NetworkStatus, PeerKey, PongInfo, PortMapAction, PortMapEvent, RelayAction,
    RelayEvent, RelayHandle,
};
use mesh_core::limits;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{mpsc, oneshot};

pub use counters::Counters;

use crate::netlink::monitor::Surroundings;
use crate::sockets::{SendErrors, Sockets};
use crate::tuning::Tuning;

/// Commands on their way to the data thread; senders wait when it is full.
const COMMAND_QUEUE: usize = 256;
/// QUIC datagrams on their way to the relay client: control messages of at most [`limits::MAX_RELAYS`] relays a network.
const QUIC_QUEUE: usize = 512;

/// Which dialling of a relay connection something belongs to.
///
/// The engine uses a [`RelayHandle`] again when it dials again; what the connection before said on its way out must not
/// be taken for news of the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DialId {
    /// The engine's name for the connection.
    pub relay: RelayHandle,
    /// Counts the dials of that handle.
    pub(crate) dial: u64,
}

/// A QUIC datagram and where it came from.
pub type QuicDatagram = (SocketAddr, Vec<u8>);

/// What the rest of the daemon asks of the data thread.
pub enum Command {
    /// Start a network on a TUN device made with offload; the device lives until [`Command::RemoveNetwork`].
    AddNetwork {
        /// Chosen by the caller, not in use.
        index: NetworkIndex,
        /// The network.
        setup: Box<NetworkSetup>,
        /// Its device.
        tun: tun_rs::SyncDevice,
        /// Done, or what was wrong.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Replace the setup of a network; sessions of unchanged peers live on.
    UpdateNetwork {
        /// Which one.
        index: NetworkIndex,
        /// The network as it should be.
        setup: Box<NetworkSetup>,
        /// Done, or what was wrong.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Stop a network and close its device.
    RemoveNetwork {
        /// Which one.
        index: NetworkIndex,
        /// Sent when the device is closed.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// The addresses and gateways of this host, at the start and after every change.
    Surroundings(Surroundings),
    /// Whether peers on our links are looked for, and told that we are here; they are unless this says no.
    LanDiscovery(bool),
    /// Something that was said on one of our links.
    LanPacket(LanPacket),
    /// logind says that the host has woken from sleep.
    Woken,
    /// News of a router that maps ports.
    PortMap(PortMapEvent),
    /// News of a relay connection.
    Relay(DialId, RelayEvent),
    /// Overlay ping.
    Ping {
        /// Network of the peer.
        network: NetworkIndex,
        /// The peer.
        peer: PeerKey,
        /// How long to wait for the answer.
        timeout: Duration,
        /// The answer, `None` for none in time; dropped when too many pings are under way.
        reply: oneshot::Sender<Option<PongInfo>>,
    },
    /// Why a peer is reached as it is.
    Explain {
        /// Network of the peer.
        network: NetworkIndex,
        /// The peer.
        peer: PeerKey,
        /// The result; dropped when there is no such peer.
        reply: oneshot::Sender<Explanation>,
    },
    /// Measure the network around us.
    Netcheck {
        /// Whose relays to use.
        network: NetworkIndex,
        /// The result; dropped when too many are under way.
        reply: oneshot::Sender<NetcheckReport>,
    },
    /// What there is to monitor.
    Metrics {
        /// The result.
        reply: oneshot::Sender<MetricsReport>,
    },
    /// What is there and how it is doing.
    Status {
        /// The result.
        reply: oneshot::Sender<StatusReport>,
    },
    /// End the thread; every TUN device is closed.
    Shutdown,
}

/// What the data thread tells the rest of the daemon.
#[derive(Debug)]
pub enum FromData {
    /// To be handed to [`crate::relays::RelayDialer::handle`].
    Relay(DialId, RelayAction),
    /// To be handed to [`crate::portmap::PortMapIo::handle`].
    PortMap(PortMapAction),
    /// To be handed to [`crate::lan::LanIo::handle`].
    Lan(LanAction),
    /// Something happened. Answers to pings and netchecks are not among these: they go to who asked.
    Event(Event),
    /// The TUN device of a network is gone (somebody deleted the interface); nothing is read from it any more.
    TunLost(NetworkIndex),
}

/// The state of the data plane.
#[derive(Debug)]
pub struct StatusReport {
    /// The networks in order of their index.
    pub networks: Vec<NetworkStatus>,
    /// Packets that the engine dropped, by reason.
    pub drops: Drops,
    /// What the thread itself counted.
    pub counters: Counters,
    /// Datagrams that the kernel did not take, by reason.
    pub send_errors: SendErrors,
}

/// What the data plane has counted and measured.
#[derive(Debug)]
pub struct MetricsReport {
    /// What the engine tells.
    pub metrics: Metrics,
    /// What the thread itself counted.
    pub counters: Counters,
    /// Datagrams that the kernel did not take, by reason.
    pub send_errors: SendErrors,
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The engine refused.
    #[error("{0}")]
    Refused(String),
    /// Too many of the same kind under way.
    #[error("too many requests at the same time; try again in a few seconds")]
    Busy,
    /// No answer in [`limits::CONTROL_TIMEOUT`].
    #[error("the data plane does not answer")]
    Timeout,
    /// The thread has ended.
    #[error("the data plane has stopped")]
    Stopped,
}

/// A running data plane as [`DataPlane::start`] returns it.
pub struct Started {
    /// To give commands with.
    pub handle: DataPlane,
    /// What the thread says; must be read all the time.
    pub outputs: mpsc::Receiver<FromData>,
    /// QUIC datagrams for [`crate::relays::RelayDialer::new`].
    pub quic: mpsc::Receiver<QuicDatagram>,
    /// The thread.
    pub thread: DataThread,
}

/// The data thread, to be waited for after [`DataPlane::shutdown`].
pub struct DataThread(JoinHandle<()>);

impl DataThread {
    /// Waits until the thread has ended and its descriptors are closed. Blocks: not for a runtime's worker.
    pub fn join(self) {
        // The panic of a thread has been reported by the panic hook.
        let _ = self.0.join();
    }
}

/// Gives commands to the data thread.
#[derive(Clone)]
pub struct DataPlane {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
}

impl DataPlane {
    /// Starts the data thread on `sockets`. `seed` feeds all randomness of the engine.
    ///
    /// # Errors
    ///
    /// When the kernel gives no descriptor or no thread.
    pub fn start(seed: [u8; 32], sockets: Arc<Sockets>, tuning: Tuning) -> io::Result<Started> {
        let (commands, command_queue) = mpsc::channel(COMMAND_QUEUE);
        let (quic_sender, quic) = mpsc::channel(QUIC_QUEUE);
        let (outbox, outputs) = outbox::Outbox::new();
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
        )?);
        let mut worker = worker::Worker::new(
            seed,
            sockets,
            worker::Queues {
                commands: command_queue,
                wake: Arc::clone(&wake),
                outbox,
                quic: quic_sender,
            },
            tuning,
        )?;
        let thread = std::thread::Builder::new()
            .name("data".to_owned())
            .spawn(move || worker.run())?;
        Ok(Started {
            handle: Self { commands, wake },
            outputs,
            quic,
            thread: DataThread(thread),
        })
    }

    /// A handle without a thread, and what is sent to it.
    #[cfg(test)]
    pub(crate) fn for_tests() -> (Self, mpsc::Receiver<Command>) {
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        (Self { commands, wake }, queue)
    }

    /// Hands `command` to the thread; waits while the queue is full, at most [`limits::CONTROL_TIMEOUT`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Stopped`] and [`CommandError::Timeout`].
    pub async fn send(&self, command: Command) -> Result<(), CommandError> {
        match self
            .commands
            .send_timeout(command, limits::CONTROL_TIMEOUT)
            .await
        {
            Ok(()) => {}
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(CommandError::Timeout),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => return Err(CommandError::Stopped),
        }
        // Fails only when the counter is at its maximum, and then the thread is going to wake anyway.
        let _ = self.wake.write(1);
        Ok(())
    }

    async fn ask<T>(
        &self,
        wait: Duration,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        match tokio::time::timeout(wait, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) if self.commands.is_closed() => Err(CommandError::Stopped),
            Ok(Err(_)) => Err(CommandError::Busy),
            Err(_) => Err(CommandError::Timeout),
        }
    }

    async fn change(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Command,
    ) -> Result<(), CommandError> {
        self.ask(limits::CONTROL_TIMEOUT, command)
            .await?
            .map_err(CommandError::Refused)
    }

    /// See [`Command::AddNetwork`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Refused`] with what is wrong with the setup or the device; the device is closed then.
    pub async fn add_network(
        &self,
        index: NetworkIndex,
        setup: NetworkSetup,
        tun: tun_rs::SyncDevice,
    ) -> Result<(), CommandError> {
        let setup = Box::new(setup);
        self.change(|reply| Command::AddNetwork {
            index,
            setup,
            tun,
            reply,
        })
        .await
    }

    /// See [`Command::UpdateNetwork`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Refused`] with what is wrong with the setup; the old one stays in force then.
    pub async fn update_network(
        &self,
        index: NetworkIndex,
        setup: NetworkSetup,
    ) -> Result<(), CommandError> {
        let setup = Box::new(setup);
        self.change(|reply| Command::UpdateNetwork {
            index,
            setup,
            reply,
        })
        .await
    }

    /// See [`Command::RemoveNetwork`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Refused`] when there is no such network.
    pub async fn remove_network(&self, index: NetworkIndex) -> Result<(), CommandError> {
        self.change(|reply| Command::RemoveNetwork { index, reply })
            .await
    }

    /// See [`Command::Ping`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Busy`] when too many pings are under way.
    pub async fn ping(
        &self,
        network: NetworkIndex,
        peer: PeerKey,
        timeout: Duration,
    ) -> Result<Option<PongInfo>, CommandError> {
        self.ask(timeout + limits::CONTROL_TIMEOUT, |reply| Command::Ping {
            network,
            peer,
            timeout,
            reply,
        })
        .await
    }

    /// See [`Command::Explain`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Busy`] when the peer is just being removed.
    pub async fn explain(
        &self,
        network: NetworkIndex,
        peer: PeerKey,
    ) -> Result<Explanation, CommandError> {
        self.ask(limits::CONTROL_TIMEOUT, |reply| Command::Explain {
            network,
            peer,
            reply,
        })
        .await
    }

    /// See [`Command::Netcheck`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Busy`] when too many are under way.
    pub async fn netcheck(&self, network: NetworkIndex) -> Result<NetcheckReport, CommandError> {
        self.ask(NETCHECK_TIMEOUT, |reply| Command::Netcheck {
            network,
            reply,
        })
        .await
    }

    /// See [`Command::Status`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Stopped`] and [`CommandError::Timeout`].
    pub async fn status(&self) -> Result<StatusReport, CommandError> {
        self.ask(limits::CONTROL_TIMEOUT, |reply| Command::Status { reply })
            .await
    }

    /// See [`Command::Metrics`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Stopped`] and [`CommandError::Timeout`].
    pub async fn metrics(&self) -> Result<MetricsReport, CommandError> {
        self.ask(limits::CONTROL_TIMEOUT, |reply| Command::Metrics { reply })
            .await
    }

    /// See [`Command::Surroundings`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Stopped`] and [`CommandError::Timeout`].
    pub async fn surroundings(&self, surroundings: Surroundings) -> Result<(), CommandError> {
        self.send(Command::Surroundings(surroundings)).await
    }

    /// See [`Command::LanDiscovery`].
    ///
    /// # Errors
    ///
    /// [`CommandError::Stopped`] and [`CommandError::Timeout`].
    pub async fn lan_discovery(&self, wanted: bool) -> Result<(), CommandError> {
        self.send(Command::LanDiscovery(wanted)).await
    }

    /// Ends the data thread; wait for it with [`DataThread::join`].
    pub async fn shutdown(&self) {
        // An error means that it has ended already.
        let _ = self.send(Command::Shutdown).await;
    }
}

/// A netcheck probes in several rounds, each with its own timeout.
const NETCHECK_TIMEOUT: Duration = Duration::from_secs(15);
