//! Clients of a relay with channels between them. Each has one UDP socket for QUIC and for frames.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mesh_core::identity::{Identity, NodeId};
use mesh_core::wire::relay::{ClientMessage, PROTOCOL_VERSION, ServerMessage};
use mesh_core::wire::{Protocol, classify};
use mesh_relay::client::{self, Receiver, Sender};
use mesh_tests::lab::Namespace;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, TokioRuntime, UdpPoller};
use quinn_udp::UdpSocketState;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::load::{self, Load, Sent};

/// Room for what the kernel coalesces.
const MESSAGE_BYTES: usize = 65_536;
/// What may wait in a socket: more than the load leaves on its way.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// How often the receiving thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// The thread that keeps the clients' QUIC connections going.
#[derive(Debug)]
pub(super) struct Control(tokio::runtime::Runtime);

impl Control {
    pub(super) fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        Ok(Self(runtime))
    }

    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.block_on(future)
    }
}

/// A node of its own for each number.
pub(super) fn identity(number: u64) -> Identity {
    let mut seed = Zeroizing::new([0x5c; 32]);
    seed[..8].copy_from_slice(&number.to_le_bytes());
    Identity::from_seed(seed)
}

/// An endpoint whose packets a relay can tell from everything else on its port.
pub(super) fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.grease_quic_bit(false);
    config
}

/// Connects and is welcomed.
pub(super) async fn enter(
    endpoint: &Endpoint,
    identity: &Identity,
    relay: &NodeId,
    at: SocketAddr,
) -> Result<(Sender, Receiver)> {
    let client = client::connect(endpoint, identity, relay, at).await?;
    let (mut sender, mut receiver) = client.split();
    let version = PROTOCOL_VERSION;
    say(&mut sender, &ClientMessage::Hello { version }).await?;
    match hear(&mut receiver).await? {
        ServerMessage::Welcome { .. } => Ok((sender, receiver)),
        other => bail!("the relay says {other:?} for a welcome"),
    }
}

async fn say(sender: &mut Sender, message: &ClientMessage) -> Result<()> {
    let sent = sender.send(message).await;
    sent.map_err(|closed| anyhow::anyhow!("the relay: {closed}"))
}

async fn hear(receiver: &mut Receiver) -> Result<ServerMessage> {
    let message = receiver.receive().await;
    message.map_err(|closed| anyhow::anyhow!("the relay: {closed}"))
}

/// See the module. The first sends, the others receive.
pub(super) struct Clients {
    links: Vec<Arc<Link>>,
    /// Where the first sends to, and the channels' numbers there.
    relay: SocketAddr,
    channels: Vec<u32>,
    streams: Vec<(Sender, Receiver)>,
    endpoints: Vec<Endpoint>,
}

impl Clients {
    pub(super) fn connect(
        control: &Control,
        hosts: &[Namespace; 2],
        relay: &NodeId,
        at: &[SocketAddr; 2],
    ) -> Result<Self> {
        // All receivers are on one host, each with a socket of its own.
        let sides = std::iter::once(0).chain([1; load::RECEIVERS]);
        let mut clients = Self {
            links: Vec::new(),
            relay: at[0],
            channels: Vec::new(),
            streams: Vec::new(),
            endpoints: Vec::new(),
        };
        for side in sides {
            let (link, quic) = Link::new(&hosts[side])?;
            control.block_on(clients.enter(link, quic, relay, at[side]))?;
        }
        control.block_on(clients.open_channels())?;
        Ok(clients)
    }

    async fn enter(
        &mut self,
        link: Arc<Link>,
        quic: mpsc::Receiver<Datagram>,
        relay: &NodeId,
        at: SocketAddr,
    ) -> Result<()> {
        let socket = QuicSocket {
            link: Arc::clone(&link),
            incoming: Mutex::new(quic),
        };
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config(),
            None,
            Arc::new(socket),
            Arc::new(TokioRuntime),
        )?;
        let identity = identity(self.links.len() as u64);
        self.links.push(link);
        self.streams
            .push(enter(&endpoint, &identity, relay, at).await?);
        self.endpoints.push(endpoint);
        Ok(())
    }

    /// From the first client to each of the others.
    async fn open_channels(&mut self) -> Result<()> {
        let (sender, receiver) = &mut self.streams[0];
        for number in 1..self.links.len() {
            let peer = identity(number as u64).id();
            say(sender, &ClientMessage::OpenChannel { peer }).await?;
            match hear(receiver).await? {
                ServerMessage::Channel { channel, .. } => self.channels.push(channel),
                other => bail!("the relay says {other:?} for a channel"),
            }
        }
        Ok(())
    }

    /// Sends as fast as it goes for a while, and tells what arrived.
    pub(super) fn load(&self, load: Load) -> Result<Sent> {
        let receivers: Vec<&Arrived> = self.links[1..].iter().map(|link| &link.arrived).collect();
        let socket = &self.links[0].socket;
        let sent = load::send(socket, self.relay, &self.channels, load, &receivers)?;
        ensure!(sent.received > 0, "nothing arrived by {load}");
        Ok(sent)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for link in &self.links {
            link.stop.store(1, Ordering::Relaxed);
        }
    }
}

/// A QUIC datagram and where it came from.
type Datagram = (SocketAddr, Vec<u8>);

/// What arrived at a client so far.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) frames: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// One client's socket, with a thread that receives from it.
#[derive(Debug)]
struct Link {
    socket: UdpSocket,
    arrived: Arrived,
    stop: AtomicU64,
}

impl Link {
    fn new(ns: &Namespace) -> Result<(Arc<Self>, mpsc::Receiver<Datagram>)> {
        let socket = ns.udp("0.0.0.0:0".parse().context("an address")?)?;
        let link = Arc::new(Self {
            socket,
            arrived: Arrived::default(),
            stop: AtomicU64::new(0),
        });
        let (quic, incoming) = mpsc::channel(1_024);
        let receiving = Arc::clone(&link);
        std::thread::Builder::new()
            .name("receive".into())
            .spawn(move || receiving.receive(&quic))?;
        Ok((link, incoming))
    }

    /// Counts frames, and passes QUIC on.
    fn receive(&self, quic: &mpsc::Sender<Datagram>) -> io::Result<()> {
        let state = UdpSocketState::new((&self.socket).into())?;
        state.set_recv_buffer_size((&self.socket).into(), SOCKET_BUFFER)?;
        state.set_send_buffer_size((&self.socket).into(), SOCKET_BUFFER)?;
        let mut storage = vec![0; quinn_udp::BATCH_SIZE * MESSAGE_BYTES];
        let mut meta = [quinn_udp::RecvMeta::default(); quinn_udp::BATCH_SIZE];
        while self.stop.load(Ordering::Relaxed) == 0 {
            load::wait_readable(&self.socket, LOOK)?;
            loop {
                let mut chunks = storage.chunks_mut(MESSAGE_BYTES);
                let mut buffers: [IoSliceMut<'_>; quinn_udp::BATCH_SIZE] =
                    std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
                let Ok(count) = state.recv((&self.socket).into(), &mut buffers, &mut meta) else {
                    break;
                };
                for (bytes, meta) in storage.chunks(MESSAGE_BYTES).zip(&meta[..count]) {
                    for datagram in bytes[..meta.len].chunks(meta.stride.max(1)) {
                        self.take(datagram, meta.addr, quic);
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&self, datagram: &[u8], from: SocketAddr, quic: &mpsc::Sender<Datagram>) {
        match classify(datagram) {
            Protocol::RelayFrame => {
                let len = datagram.len() as u64;
                self.arrived.bytes.fetch_add(len, Ordering::Relaxed);
                self.arrived.frames.fetch_add(1, Ordering::Release);
            }
            // What does not fit is lost, and sent again.
            Protocol::Quic => drop(quic.try_send((from, datagram.to_vec()))),
            _ => {}
        }
    }
}

/// The socket as quinn sees it.
#[derive(Debug)]
struct QuicSocket {
    link: Arc<Link>,
    incoming: Mutex<mpsc::Receiver<Datagram>>,
}

impl AsyncUdpSocket for QuicSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // The relay's clients do not segment; what the kernel does not take is sent again.
        let _ = self
            .link
            .socket
            .send_to(transmit.contents, transmit.destination);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.lock().expect("no thread panics with it");
        loop {
            let Poll::Ready(Some((addr, bytes))) = incoming.poll_recv(cx) else {
                return Poll::Pending;
            };
            let len = bytes.len();
            let Some(buffer) = buffers[0].get_mut(..len) else {
                continue;
            };
            buffer.copy_from_slice(&bytes);
            meta[0] = RecvMeta {
                addr,
                len,
                stride: len,
                ecn: None,
                dst_ip: None,
            };
            return Poll::Ready(Ok(1));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.link.socket.local_addr()
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
