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
use mesh_core::wire::relay::ClientMessage;
use mesh_relay::client::{self, Client};
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

/// What a relay is to be told.
enum Message {
    /// On the control stream, in order.
    Stream(ClientMessage),
    /// Past it.
    Datagram(ClientMessage),
}

/// What is left here of a connection; the rest belongs to its task.
struct Connection {
    id: DialId,
    /// `None` after an overflow, which ends the connection.
    messages: Option<mpsc::Sender<Message>>,
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
            RelayAction::Send(message) => self.send(id, Message::Stream(message)),
            RelayAction::Hasten(message) => self.send(id, Message::Datagram(message)),
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

    fn send(&self, id: DialId, message: Message) {
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
        messages: mpsc::Receiver<Message>,
    ) -> String {
        let Some(identity) = identity else {
            return "the network is not up".to_owned();
        };
        let client = match self.connect(&identity).await {
            Ok(client) => client,
            Err(reason) => return reason,
        };
        let remote = canonical(client.remote_address());
        self.report(RelayEvent::Connected { remote }).await;
        let (sender, receiver) = client.split();
        tokio::select! {
            biased;
            reason = self.listen(receiver) => reason,
            reason = speak(sender, messages) => reason,
        }
    }

    async fn report(&self, event: RelayEvent) {
        // Without a data thread there is nobody who wants to know.
        let _ = self.data.send(Command::Relay(self.id, event)).await;
    }

    /// Tries all addresses of the relay at once: the first that proves to be it wins.
    async fn connect(&self, identity: &Arc<Identity>) -> Result<Client, String> {
        let addresses = match timeout(limits::CONTROL_TIMEOUT, self.resolve()).await {
            Ok(addresses) => addresses?,
            Err(_) => {
                return Err(format!(
                    "the name server does not answer for {}",
                    self.url.host
                ));
            }
        };
        let mut attempts = JoinSet::new();
        for address in addresses {
            let (endpoint, identity, relay) =
                (self.endpoint.clone(), Arc::clone(identity), self.url.id);
            attempts
                .spawn(async move { client::connect(&endpoint, &identity, &relay, address).await });
        }
        let mut reason = format!("this host cannot reach any address of {}", self.url.host);
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                // The others are given up with the set.
                Ok(Ok(client)) => return Ok(client),
                Ok(Err(error)) => reason = error.to_string(),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
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

    /// Passes on what the relay says until the connection ends; returns why it did.
    async fn listen(&self, mut receiver: client::Receiver) -> String {
        loop {
            match receiver.receive().await {
                // Waits while the data thread is busy, and so does the relay in the end.
                Ok(message) => self.report(RelayEvent::Message(message)).await,
                Err(closed) => return closed.reason,
            }
        }
    }
}

/// Sends messages until there is no more point; returns why.
async fn speak(mut sender: client::Sender, mut messages: mpsc::Receiver<Message>) -> String {
    while let Some(message) = messages.recv().await {
        let message = match message {
            Message::Stream(message) => message,
            Message::Datagram(message) => {
                sender.hasten(&message);
                continue;
            }
        };
        match timeout(limits::CONTROL_TIMEOUT, sender.send(&message)).await {
            Ok(Ok(())) => {}
            Ok(Err(closed)) => return closed.reason,
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
        // Taken for lost: QUIC repeats it.
        if self.sockets.is_cut_off() {
            return Ok(());
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_core::wire::relay::{Alternatives, PROTOCOL_VERSION, ServerMessage};
    use mesh_relay::tls;
    use quinn_udp::BATCH_SIZE;

    use super::*;

    const NETWORK: NetworkIndex = NetworkIndex(3);

    fn identity(seed: u8) -> Identity {
        Identity::from_seed([seed; 32].into())
    }

    fn id(dial: u64) -> DialId {
        DialId {
            relay: RelayHandle(5),
            dial,
        }
    }

    /// Does what the data thread does for QUIC.
    async fn feed(sockets: Arc<Sockets>, quic: mpsc::Sender<QuicDatagram>) {
        let mut storage = vec![0; BATCH_SIZE * 65_536];
        loop {
            for family in [Family::V4, Family::V6] {
                let mut buffers: Vec<_> = storage.chunks_mut(65_536).map(IoSliceMut::new).collect();
                let mut meta = [quinn_udp::RecvMeta::default(); BATCH_SIZE];
                let count = sockets.recv(family, &mut buffers, &mut meta).unwrap_or(0);
                for (meta, buffer) in meta.iter().zip(&buffers).take(count) {
                    for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                        // The fixed bit is what the data thread tells QUIC by.
                        assert_ne!(datagram[0] & 0x40, 0);
                        let _ = quic.try_send((meta.addr, datagram.to_vec()));
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn quic_says_nothing_while_the_host_has_no_address() {
        let sockets = Arc::new(Sockets::bind(0).unwrap());
        let quic = QuicSocket {
            sockets: Arc::clone(&sockets),
            incoming: Mutex::new(mpsc::channel(1).1),
        };
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let send = |contents: &[u8]| {
            quic.try_send(&Transmit {
                destination: receiver.local_addr().unwrap(),
                ecn: None,
                contents,
                segment_size: None,
                src_ip: None,
            })
            .unwrap();
        };
        sockets.set_cut_off(true);
        send(b"lost");
        sockets.set_cut_off(false);
        send(b"kept");
        let mut buffer = [0; 16];
        let (length, _) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"kept");
    }

    struct Bench {
        dialer: RelayDialer,
        commands: mpsc::Receiver<Command>,
    }

    impl Bench {
        fn new() -> Self {
            let sockets = Arc::new(Sockets::bind(0).unwrap());
            let (data, commands) = DataPlane::for_tests();
            let (quic, incoming) = mpsc::channel(64);
            let dialer = RelayDialer::new(Arc::clone(&sockets), incoming, data).unwrap();
            dialer.set_identity(NETWORK, identity(1));
            tokio::spawn(feed(sockets, quic));
            Self { dialer, commands }
        }

        fn dial(&self, dial: u64, relay: &Identity, host: &str, port: u16) {
            let url = RelayUrl {
                id: relay.id(),
                host: host.to_owned(),
                port,
            };
            let network = NETWORK;
            self.dialer
                .handle(id(dial), RelayAction::Dial { network, url });
        }

        async fn event(&mut self) -> (DialId, RelayEvent) {
            let command = timeout(Duration::from_secs(10), self.commands.recv()).await;
            match command.expect("an event in time") {
                Some(Command::Relay(id, event)) => (id, event),
                _ => panic!("not a relay event"),
            }
        }

        async fn closed(&mut self) -> String {
            loop {
                if let (_, RelayEvent::Closed { reason }) = self.event().await {
                    return reason;
                }
            }
        }
    }

    fn relay(identity: &Identity, listen: &str) -> (quinn::Endpoint, u16) {
        let config = tls::server_config(identity).unwrap();
        let endpoint = quinn::Endpoint::server(config, listen.parse().unwrap()).unwrap();
        let port = endpoint.local_addr().unwrap().port();
        (endpoint, port)
    }

    /// Greets each client and answers pings.
    async fn serve(endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let connection = incoming.await.unwrap();
                assert_eq!(tls::peer_id(&connection), Some(identity(1).id()));
                let (mut send, mut receive) = connection.accept_bi().await.unwrap();
                let mut framer = mesh_core::wire::relay::Framer::default();
                let mut buffer = [0; 1024];
                while let Ok(Some(count)) = receive.read(&mut buffer).await {
                    let mut bytes = &buffer[..count];
                    while let Some(body) = framer.next(&mut bytes).unwrap() {
                        let mut answer = Vec::new();
                        match ClientMessage::decode(body).unwrap() {
                            ClientMessage::Hello { version } => ServerMessage::Welcome {
                                version,
                                observed: connection.remote_address(),
                                alternatives: Alternatives::default(),
                            }
                            .encode(&mut answer),
                            ClientMessage::Ping { nonce } => {
                                ServerMessage::Pong { nonce }.encode(&mut answer);
                            }
                            other => panic!("{other:?}"),
                        }
                        send.write_all(&answer).await.unwrap();
                    }
                }
            });
        }
    }

    #[tokio::test]
    async fn a_relay_is_dialled_and_talked_to() {
        for (listen, host) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("127.0.0.1:0", "localhost"),
        ] {
            let (endpoint, port) = relay(&identity(2), listen);
            tokio::spawn(serve(endpoint));
            let mut bench = Bench::new();
            bench.dial(1, &identity(2), host, port);
            let (from, event) = bench.event().await;
            let RelayEvent::Connected { remote } = event else {
                panic!("{host}: {event:?}");
            };
            assert_eq!((from, remote.port()), (id(1), port));
            assert!(remote.ip().is_loopback(), "{remote}");
            let hello = ClientMessage::Hello {
                version: PROTOCOL_VERSION,
            };
            bench.dialer.handle(id(1), RelayAction::Send(hello));
            let ping = ClientMessage::Ping { nonce: 7 };
            bench.dialer.handle(id(1), RelayAction::Send(ping));
            let (_, welcome) = bench.event().await;
            assert!(
                matches!(welcome, RelayEvent::Message(ServerMessage::Welcome { observed, .. })
                    if Some(observed.port()) == bench.dialer.sockets.port(Family::of(&observed))),
                "{welcome:?}"
            );
            let pong = RelayEvent::Message(ServerMessage::Pong { nonce: 7 });
            assert_eq!(bench.event().await, (id(1), pong));
        }
    }

    #[tokio::test]
    async fn another_relay_than_the_one_named_is_refused() {
        let (endpoint, port) = relay(&identity(2), "127.0.0.1:0");
        tokio::spawn(serve(endpoint));
        let mut bench = Bench::new();
        bench.dial(1, &identity(9), "127.0.0.1", port);
        let (_, event) = bench.event().await;
        assert!(
            matches!(&event, RelayEvent::Closed { reason } if reason.contains(&identity(2).id().to_string())),
            "{event:?}"
        );
    }

    #[tokio::test]
    async fn a_hangup_reaches_the_relay_and_nothing_follows() {
        let (endpoint, port) = relay(&identity(2), "127.0.0.1:0");
        let mut bench = Bench::new();
        bench.dial(1, &identity(2), "127.0.0.1", port);
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        assert!(matches!(
            bench.event().await.1,
            RelayEvent::Connected { .. }
        ));
        bench.dialer.handle(id(1), RelayAction::Hangup);
        let closed = timeout(Duration::from_secs(5), connection.closed())
            .await
            .unwrap();
        assert!(
            matches!(closed, quinn::ConnectionError::ApplicationClosed(_)),
            "{closed}"
        );
        let more = timeout(Duration::from_millis(100), bench.commands.recv()).await;
        assert!(more.is_err());
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_reported() {
        let (endpoint, port) = relay(&identity(2), "127.0.0.1:0");
        let mut bench = Bench::new();
        bench.dial(1, &identity(2), "127.0.0.1", port);
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        connection.close(0_u32.into(), b"draining");
        assert_eq!(bench.closed().await, "draining");
    }

    #[tokio::test]
    async fn a_connection_whose_messages_pile_up_ends() {
        let (endpoint, port) = relay(&identity(2), "127.0.0.1:0");
        tokio::spawn(serve(endpoint));
        let mut bench = Bench::new();
        bench.dial(1, &identity(2), "127.0.0.1", port);
        for nonce in 0..=MESSAGE_QUEUE as u64 {
            let ping = ClientMessage::Ping { nonce };
            bench.dialer.handle(id(1), RelayAction::Send(ping));
        }
        assert!(bench.closed().await.contains("does not take our messages"));
    }

    #[tokio::test]
    async fn a_new_dial_replaces_the_one_before() {
        let (endpoint, port) = relay(&identity(2), "127.0.0.1:0");
        let mut bench = Bench::new();
        bench.dial(1, &identity(2), "127.0.0.1", port);
        let first = endpoint.accept().await.unwrap().await.unwrap();
        assert_eq!(bench.event().await.0, id(1));
        bench.dial(2, &identity(2), "127.0.0.1", port);
        let second = endpoint.accept().await.unwrap().await.unwrap();
        timeout(Duration::from_secs(5), first.closed())
            .await
            .unwrap();
        assert_eq!(bench.event().await.0, id(2));
        // A message that was meant for the first.
        let ping = ClientMessage::Ping { nonce: 1 };
        bench.dialer.handle(id(1), RelayAction::Send(ping));
        let stray = timeout(Duration::from_millis(100), second.accept_bi()).await;
        assert!(stray.is_err());
    }

    #[tokio::test]
    async fn a_network_without_a_key_is_not_dialled() {
        let mut bench = Bench::new();
        bench.dialer.remove_identity(NETWORK);
        bench.dial(1, &identity(2), "127.0.0.1", 9);
        assert_eq!(bench.closed().await, "the network is not up");
    }

    #[tokio::test]
    async fn a_flood_of_quic_is_bounded_and_survived() {
        let sockets = Arc::new(Sockets::bind(0).unwrap());
        let (data, _commands) = DataPlane::for_tests();
        let (quic, incoming) = mpsc::channel(64);
        let _dialer = RelayDialer::new(sockets, incoming, data).unwrap();
        let from = SocketAddr::from(([192, 0, 2, 1], 443));
        let mut dropped = 0;
        for size in 0..200 {
            // From too short for a header to longer than allowed.
            if quic.try_send((from, vec![0xc0; size * 10])).is_err() {
                dropped += 1;
            }
        }
        assert!(dropped >= 136);
        // All taken out, none answered.
        timeout(Duration::from_secs(5), async {
            while quic.capacity() < 64 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
    }
}
