//! Connections to relays: QUIC on the mesh's own sockets.
//!
//! The engine decides when to dial, what to say and when to hang up; this file does it. quinn runs on sockets that it does
//! not own: what it sends goes straight to the shared UDP sockets, so that a relay sees the NAT mapping that peers will
//! use, and what arrives for it comes from the data thread through a bounded queue.
//!
//! Each dial is one task, which ends by itself when the connection does and at once when the engine hangs up. A task
//! waits for nothing without a bound except for the next message.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use mesh_core::engine::{NetworkIndex, RelayAction, RelayEvent, RelayHandle};
use mesh_core::identity::{Identity, RelayUrl};
use mesh_core::limits;
use mesh_core::wire::relay::{ClientMessage, Framer, ServerMessage};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, TokioRuntime, UdpPoller};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::dataplane::{Command, DataPlane, DialId, QuicDatagram};
use crate::sockets::{Family, Sockets};

/// Messages that wait to be written to one control stream. It is full when the relay has not read for long.
const MESSAGE_QUEUE: usize = 256;
/// Addresses of each family that a relay's name may stand for; more are not tried.
const ADDRESSES_PER_FAMILY: usize = 2;
/// Largest QUIC datagram that we take, which the peer is told.
const MAX_QUIC_DATAGRAM: u16 = 1_472;
/// Bytes read from a control stream at a time.
const READ_BYTES: usize = 4_096;

/// Keeps the connections to relays that the engine asks for.
///
/// Dropping it closes them.
pub struct RelayDialer {
    endpoint: quinn::Endpoint,
    sockets: Arc<Sockets>,
    data: DataPlane,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    identities: BTreeMap<NetworkIndex, Arc<Identity>>,
    connections: HashMap<RelayHandle, Connection>,
}

/// What is left here of a connection; the rest belongs to its task.
struct Connection {
    id: DialId,
    /// `None` after an overflow, which ends the connection.
    messages: Option<mpsc::Sender<ClientMessage>>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Drops the QUIC connection, which tells the relay.
        self.task.abort();
    }
}

impl RelayDialer {
    /// Starts the QUIC endpoint; `incoming` is [`crate::dataplane::Started::quic`]. Must be called on a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the endpoint cannot be made.
    pub fn new(
        sockets: Arc<Sockets>,
        incoming: mpsc::Receiver<QuicDatagram>,
        data: DataPlane,
    ) -> io::Result<Self> {
        let mut config = EndpointConfig::default();
        // With the bit always set, the first byte tells QUIC from everything else on the port.
        config.grease_quic_bit(false);
        config
            .max_udp_payload_size(MAX_QUIC_DATAGRAM)
            .map_err(io::Error::other)?;
        let socket = QuicSocket {
            sockets: Arc::clone(&sockets),
            incoming: Mutex::new(incoming),
        };
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            config,
            None,
            Arc::new(socket),
            Arc::new(TokioRuntime),
        )?;
        Ok(Self {
            endpoint,
            sockets,
            data,
            state: Mutex::default(),
        })
    }

    /// Which key to authenticate with for `network`; to be set before the network is added to the data plane.
    pub fn set_identity(&self, network: NetworkIndex, identity: Identity) {
        self.state().identities.insert(network, Arc::new(identity));
    }

    /// Forgets the key of a network that is down.
    pub fn remove_identity(&self, network: NetworkIndex) {
        self.state().identities.remove(&network);
    }

    /// Does what the engine wants done. Never waits. Must be called on a Tokio runtime.
    pub fn handle(&self, id: DialId, action: RelayAction) {
        match action {
            RelayAction::Dial { network, url } => self.dial(id, network, url),
            RelayAction::Send(message) => self.send(id, message),
            RelayAction::Hangup => {
                self.state().connections.remove(&id.relay);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dial(&self, id: DialId, network: NetworkIndex, url: RelayUrl) {
        let identity = self.state().identities.get(&network).map(Arc::clone);
        let (messages, queue) = mpsc::channel(MESSAGE_QUEUE);
        let dial = Dial {
            endpoint: self.endpoint.clone(),
            sockets: Arc::clone(&self.sockets),
            data: self.data.clone(),
            id,
            url,
        };
        let task = tokio::spawn(async move {
            let reason = dial.run(identity, queue).await;
            dial.report(RelayEvent::Closed { reason }).await;
        });
        let connection = Connection {
            id,
            messages: Some(messages),
            task: task.abort_handle(),
        };
        // Ends the one before, if there is any.
        self.state().connections.insert(id.relay, connection);
    }

    fn send(&self, id: DialId, message: ClientMessage) {
        let mut state = self.state();
        let Some(connection) = state.connections.get_mut(&id.relay) else {
            return;
        };
        if connection.id != id {
            return;
        }
        if let Some(queue) = &connection.messages
            && queue.try_send(message).is_err()
        {
            // A control stream with a gap is worth nothing. The task notices, and reports.
            connection.messages = None;
        }
    }
}

/// One dial, from the name of the relay to the end of the connection.
struct Dial {
    endpoint: quinn::Endpoint,
    sockets: Arc<Sockets>,
    data: DataPlane,
    id: DialId,
    url: RelayUrl,
}

impl Dial {
    /// Returns why it is over.
    async fn run(
        &self,
        identity: Option<Arc<Identity>>,
        messages: mpsc::Receiver<ClientMessage>,
    ) -> String {
        let Some(identity) = identity else {
            return "the network is not up".to_owned();
        };
        let connected = timeout(limits::CONTROL_TIMEOUT, self.connect(&identity)).await;
        let (connection, send, receive) = match connected {
            Ok(Ok(connected)) => connected,
            Ok(Err(reason)) => return reason,
            Err(_) => return format!("no answer in {} s", limits::CONTROL_TIMEOUT.as_secs()),
        };
        let remote = canonical(connection.remote_address());
        self.report(RelayEvent::Connected { remote }).await;
        tokio::select! {
            reason = self.read(receive) => reason,
            reason = write(send, messages) => reason,
        }
    }

    async fn report(&self, event: RelayEvent) {
        // Without a data thread there is nobody who wants to know.
        let _ = self.data.send(Command::Relay(self.id, event)).await;
    }

    /// Tries all addresses of the relay at once: the first that proves to be it wins.
    async fn connect(
        &self,
        identity: &Identity,
    ) -> Result<(quinn::Connection, quinn::SendStream, quinn::RecvStream), String> {
        let config = mesh_relay::tls::client_config(identity, &self.url.id)
            .map_err(|error| error.to_string())?;
        let mut attempts = JoinSet::new();
        let mut failure = None;
        for address in self.resolve().await? {
            match self
                .endpoint
                .connect_with(config.clone(), address, mesh_relay::tls::SERVER_NAME)
            {
                Ok(connecting) => {
                    attempts.spawn(connecting);
                }
                Err(error) => failure = Some(error.to_string()),
            }
        }
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok(Ok(connection)) => {
                    let (send, receive) = connection
                        .open_bi()
                        .await
                        .map_err(|error| error.to_string())?;
                    return Ok((connection, send, receive));
                }
                Ok(Err(error)) => failure = Some(error.to_string()),
                Err(error) => failure = Some(error.to_string()),
            }
        }
        Err(failure.unwrap_or_else(|| format!("{} has no address", self.url.host)))
    }

    /// Addresses that there is a socket for.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        if let Some(ip) = self.url.host_is_ip() {
            return Ok(self.usable([SocketAddr::new(ip, self.url.port)]));
        }
        let host = self.url.host.as_str();
        let found = tokio::net::lookup_host((host, self.url.port))
            .await
            .map_err(|error| format!("cannot resolve {host}: {error}"))?;
        Ok(self.usable(found))
    }

    fn usable(&self, found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        let mut taken = Vec::new();
        for address in found.into_iter().map(canonical) {
            let family = Family::of(&address);
            let same = taken
                .iter()
                .filter(|taken| Family::of(taken) == family)
                .count();
            if self.sockets.port(family).is_some()
                && same < ADDRESSES_PER_FAMILY
                && !taken.contains(&address)
            {
                taken.push(address);
            }
        }
        taken
    }

    /// Passes on what the relay says until it stops; returns why.
    async fn read(&self, mut stream: quinn::RecvStream) -> String {
        let mut framer = Framer::default();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let mut bytes = match stream.read(&mut buffer).await {
                Ok(Some(count)) => &buffer[..count],
                Ok(None) => return "the relay closed the connection".to_owned(),
                Err(error) => return error.to_string(),
            };
            loop {
                match framer
                    .next(&mut bytes)
                    .map(|body| body.map(ServerMessage::decode))
                {
                    Ok(None) => break,
                    Ok(Some(Ok(message))) => self.report(RelayEvent::Message(message)).await,
                    Ok(Some(Err(error))) | Err(error) => {
                        return format!("the relay does not speak our protocol: {error}");
                    }
                }
            }
        }
    }
}

/// Writes messages until there is no more point; returns why.
async fn write(
    mut stream: quinn::SendStream,
    mut messages: mpsc::Receiver<ClientMessage>,
) -> String {
    let mut buffer = Vec::new();
    while let Some(message) = messages.recv().await {
        buffer.clear();
        message.encode(&mut buffer);
        match timeout(limits::CONTROL_TIMEOUT, stream.write_all(&buffer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => break,
        }
    }
    "the relay does not take our messages".to_owned()
}

/// IPv4 as IPv4: the endpoint knows it as IPv4-mapped IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
        _ => address,
    }
}

/// The other way round.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
        SocketAddr::V6(_) => address,
    }
}

/// quinn's view of the mesh sockets: one dual-stack socket that is always writable.
#[derive(Debug)]
struct QuicSocket {
    sockets: Arc<Sockets>,
    /// Locked by nobody but the endpoint's driver.
    incoming: Mutex<mpsc::Receiver<QuicDatagram>>,
}

impl AsyncUdpSocket for QuicSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // A full buffer counts as loss: these are a few small messages, and QUIC repeats them.
        self.sockets.send(
            canonical(transmit.destination),
            transmit.contents,
            transmit.segment_size.unwrap_or(transmit.contents.len()),
        );
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        while count < buffers.len().min(meta.len()) {
            let (from, datagram) = match incoming.poll_recv(context) {
                Poll::Ready(Some(datagram)) => datagram,
                // After the end of the data thread nothing comes any more.
                Poll::Ready(None) | Poll::Pending => break,
            };
            // Larger than what we told the peer to send: not for us.
            let Some(buffer) = buffers[count].get_mut(..datagram.len()) else {
                continue;
            };
            buffer.copy_from_slice(&datagram);
            meta[count] = RecvMeta {
                addr: mapped(from),
                len: datagram.len(),
                stride: datagram.len(),
                ecn: None,
                dst_ip: None,
            };
            count += 1;
        }
        if count == 0 {
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // An IPv6 address makes the endpoint accept both families.
        let port = [Family::V6, Family::V4]
            .into_iter()
            .find_map(|family| self.sockets.port(family));
        Ok((Ipv6Addr::UNSPECIFIED, port.unwrap_or(0)).into())
    }

    fn may_fragment(&self) -> bool {
        // It may not. But this keeps quinn from looking for a larger MTU, which a few small messages do not need.
        true
    }
}

/// Sending never waits, see [`QuicSocket::try_send`].
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
