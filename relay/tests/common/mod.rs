//! Relays and clients on loopback.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "not every test file uses everything; none is a library"
)]

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mesh_core::identity::{Identity, NodeId};
use mesh_core::relay::server::{Access, Stats};
use mesh_core::wire::relay::{
    ClientMessage, FRAME_HEADER, PROTOCOL_VERSION, ServerMessage, write_data_header,
};
use mesh_core::wire::{Protocol, classify};
use mesh_relay::client::{self, ClientError, Closed};
use mesh_relay::config::Config;
use mesh_relay::{Observer, Relay};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, TokioRuntime, UdpPoller};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

/// Nothing here takes a tenth of it; a busy machine may.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it takes too long")
}

pub fn identity(seed: u8) -> Identity {
    Identity::from_seed(Zeroizing::new([seed; 32]))
}

pub fn node(seed: u8) -> NodeId {
    identity(seed).id()
}

pub fn config(access: Access) -> Config {
    Config {
        listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        listen_configured: true,
        alt_port: 0,
        alt_port_configured: true,
        access,
        ..Config::default()
    }
}

/// A relay in this process.
pub struct TestRelay {
    pub id: NodeId,
    pub address: SocketAddr,
    pub alt_port: u16,
    pub observer: Observer,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<io::Result<()>>,
}

impl TestRelay {
    pub fn start(config: &Config) -> Self {
        let relay = Relay::bind(config, &identity(200)).unwrap();
        let (stop, stopped) = oneshot::channel();
        Self {
            id: relay.id(),
            address: relay.local_addresses()[0],
            alt_port: relay.alt_port().unwrap(),
            observer: relay.observer(),
            stop: Some(stop),
            task: tokio::spawn(relay.run(async {
                let _ = stopped.await;
            })),
        }
    }

    pub fn open() -> Self {
        Self::start(&config(Access::Open))
    }

    pub fn stats(&self) -> Stats {
        self.observer.stats()
    }

    pub fn begin_to_stop(&mut self) {
        self.stop.take();
    }

    pub async fn stop(mut self) {
        self.begin_to_stop();
        within(self.task).await.unwrap().unwrap();
    }
}

/// A UDP socket that QUIC shares with frames and STUN, and that can be exchanged behind QUIC's back, as a NAT does.
#[derive(Debug)]
pub struct SharedSocket {
    current: Mutex<Arc<UdpSocket>>,
    waker: Mutex<Option<Waker>>,
    others: mpsc::UnboundedSender<(SocketAddr, Vec<u8>)>,
}

impl SharedSocket {
    fn current(&self) -> Arc<UdpSocket> {
        Arc::clone(&self.current.lock().unwrap())
    }
}

impl AsyncUdpSocket for SharedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        assert!(transmit.segment_size.is_none());
        let _ = self
            .current()
            .try_send_to(transmit.contents, transmit.destination);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        *self.waker.lock().unwrap() = Some(cx.waker().clone());
        let socket = self.current();
        loop {
            let mut bytes = [0; 2048];
            let mut buffer = ReadBuf::new(&mut bytes);
            let from = match socket.poll_recv_from(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => continue,
                Poll::Ready(Ok(from)) => from,
            };
            let datagram = buffer.filled();
            if classify(datagram) != Protocol::Quic {
                let _ = self.others.send((from, datagram.to_vec()));
                continue;
            }
            buffers[0][..datagram.len()].copy_from_slice(datagram);
            meta[0] = RecvMeta {
                addr: from,
                len: datagram.len(),
                stride: datagram.len(),
                ecn: None,
                dst_ip: None,
            };
            return Poll::Ready(Ok(1));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.current().local_addr()
    }
}

#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A host with one UDP socket.
pub struct Host {
    pub identity: Identity,
    pub socket: Arc<SharedSocket>,
    pub endpoint: Endpoint,
    others: mpsc::UnboundedReceiver<(SocketAddr, Vec<u8>)>,
    ip: std::net::IpAddr,
}

impl Host {
    pub async fn new(seed: u8, ip: impl Into<std::net::IpAddr>) -> Self {
        let ip = ip.into();
        let (others, received) = mpsc::unbounded_channel();
        let socket = Arc::new(SharedSocket {
            current: Mutex::new(Arc::new(UdpSocket::bind((ip, 0)).await.unwrap())),
            waker: Mutex::new(None),
            others,
        });
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false);
        let endpoint = Endpoint::new_with_abstract_socket(
            config,
            None,
            Arc::clone(&socket) as Arc<dyn AsyncUdpSocket>,
            Arc::new(TokioRuntime),
        )
        .unwrap();
        Self {
            identity: identity(seed),
            socket,
            endpoint,
            others: received,
            ip,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// The same socket once more.
    pub fn duplicate(&self) -> std::net::UdpSocket {
        let socket = self.socket.current();
        std::os::fd::AsFd::as_fd(&*socket)
            .try_clone_to_owned()
            .unwrap()
            .into()
    }

    /// Moves to another port, unnoticed by QUIC.
    pub async fn move_away(&self) {
        *self.socket.current.lock().unwrap() =
            Arc::new(UdpSocket::bind((self.ip, 0)).await.unwrap());
        if let Some(waker) = self.socket.waker.lock().unwrap().take() {
            waker.wake();
        }
    }

    pub async fn send(&self, to: SocketAddr, datagram: &[u8]) {
        self.socket.current().send_to(datagram, to).await.unwrap();
    }

    /// The next datagram that is not QUIC.
    pub async fn receive(&mut self) -> Vec<u8> {
        self.receive_from().await.1
    }

    /// The next datagram that is not QUIC, with its sender.
    pub async fn receive_from(&mut self) -> (SocketAddr, Vec<u8>) {
        within(self.others.recv()).await.unwrap()
    }

    pub async fn connect(self, relay: NodeId, address: SocketAddr) -> Result<Client, ClientError> {
        let connected = within(client::connect(
            &self.endpoint,
            &self.identity,
            &relay,
            address,
        ))
        .await?;
        let (to_relay, outgoing) = mpsc::channel(16);
        let (incoming, from_relay) = mpsc::channel(16);
        Ok(Client {
            host: self,
            relay: address,
            to_relay,
            from_relay,
            pump: tokio::spawn(connected.run(outgoing, incoming)),
        })
    }
}

/// A host that is connected to a relay.
pub struct Client {
    pub host: Host,
    relay: SocketAddr,
    to_relay: mpsc::Sender<ClientMessage>,
    from_relay: mpsc::Receiver<ServerMessage>,
    pump: JoinHandle<Closed>,
}

impl Client {
    /// Connects and says hello.
    pub async fn new(relay: &TestRelay, seed: u8) -> Self {
        let host = Host::new(seed, relay.address.ip()).await;
        let mut client = host.connect(relay.id, relay.address).await.unwrap();
        client.greet().await;
        client
    }

    /// Says hello and takes the welcome.
    pub async fn greet(&mut self) -> ServerMessage {
        self.say(ClientMessage::Hello {
            version: PROTOCOL_VERSION,
        })
        .await;
        let welcome = self.hear().await;
        assert!(
            matches!(welcome, ServerMessage::Welcome { .. }),
            "{welcome:?}"
        );
        welcome
    }

    pub async fn say(&self, message: ClientMessage) {
        within(self.to_relay.send(message)).await.unwrap();
    }

    pub async fn hear(&mut self) -> ServerMessage {
        within(self.from_relay.recv())
            .await
            .expect("the connection is open")
    }

    /// Asserts that nothing was said before what is said now.
    pub async fn ping(&mut self, nonce: u64) {
        self.say(ClientMessage::Ping { nonce }).await;
        assert_eq!(self.hear().await, ServerMessage::Pong { nonce });
    }

    /// Waits for the end of the connection.
    pub async fn closed(mut self) -> (Vec<ServerMessage>, String) {
        let mut last = Vec::new();
        while let Some(message) = within(self.from_relay.recv()).await {
            last.push(message);
        }
        (last, within(self.pump).await.unwrap().reason)
    }

    /// Hangs up and waits for that to be done.
    pub async fn hang_up(self) {
        drop(self.to_relay);
        within(self.pump).await.unwrap();
    }

    /// Sends a data frame.
    pub async fn send(&self, channel: u32, payload: &[u8]) {
        let mut frame = vec![0; FRAME_HEADER];
        write_data_header(&mut frame, channel);
        frame.extend(payload);
        self.host.send(self.relay, &frame).await;
    }

    /// Opens a channel to another client and returns the numbers of both ends.
    pub async fn channel_to(&mut self, other: &mut Self) -> (u32, u32) {
        let peer = other.host.identity.id();
        self.say(ClientMessage::OpenChannel { peer }).await;
        let number = |message| match message {
            ServerMessage::Channel { channel, .. } => channel,
            other => panic!("{other:?}"),
        };
        (number(self.hear().await), number(other.hear().await))
    }
}
