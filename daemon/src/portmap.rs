//! Talks to routers that map ports, as the engine says; `mesh_core::nat::portmap` decides everything.
//!
//! Each exchange has a socket of its own, connected to the router, and a task of its own with a deadline: whatever a
//! router does or does not do, nothing else waits for it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::engine::{PortMapAction, PortMapEvent};
use mesh_core::wire::http;
use mesh_core::wire::natpmp::ANNOUNCEMENT_PORT;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::dataplane::{Command, DataPlane};
use crate::sockets::FWMARK;

/// How long answers to one datagram are waited for: longer than the engine does.
const EXCHANGE: Duration = Duration::from_secs(3);
/// How long an HTTP exchange may take, with its connection.
const HTTP: Duration = Duration::from_secs(4);
/// Exchanges under way at the same time; the engine wants a dozen at most.
const MAX_EXCHANGES: usize = 32;
/// Answers to one datagram; routers give one.
const MAX_ANSWERS: usize = 8;
/// Announcements are read at most this often: anybody on the link can send them.
const ANNOUNCEMENT_PAUSE: Duration = Duration::from_millis(100);
/// Largest datagram that is read: PCP's limit is 1,100 bytes, and UPnP's answers fit one packet.
const DATAGRAM: usize = 1_500;

/// See the module.
pub struct PortMapIo {
    data: DataPlane,
    held: watch::Sender<bool>,
    exchanges: Arc<Semaphore>,
    listeners: Vec<AbortHandle>,
}

impl PortMapIo {
    /// Answers go to `data`.
    pub fn new(data: DataPlane) -> Self {
        Self {
            data,
            held: watch::Sender::new(false),
            exchanges: Arc::new(Semaphore::new(MAX_EXCHANGES)),
            listeners: Vec::new(),
        }
    }

    /// True while a router holds something for us.
    pub fn held(&self) -> watch::Receiver<bool> {
        self.held.subscribe()
    }

    /// Does what the engine wants done. Never waits.
    pub fn handle(&mut self, action: PortMapAction) {
        match action {
            PortMapAction::Exchange { from, to, payload } => {
                let data = self.data.clone();
                self.start(async move {
                    if let Err(error) = exchange(&data, from, to, &payload).await {
                        tracing::trace!(%to, %error, "no answer from the router");
                    }
                });
            }
            PortMapAction::Search { from, requests } => {
                let data = self.data.clone();
                self.start(async move {
                    if let Err(error) = search(&data, from, &requests).await {
                        tracing::trace!(%from, %error, "cannot search for routers");
                    }
                });
            }
            PortMapAction::Http {
                id,
                from,
                to,
                request,
            } => {
                let data = self.data.clone();
                self.start(async move {
                    let response = match timeout(HTTP, ask(from, to, &request)).await {
                        Ok(response) => response,
                        Err(_) => Err(io::ErrorKind::TimedOut.into()),
                    };
                    if let Err(error) = &response {
                        tracing::trace!(%to, %error, "no answer from the router");
                    }
                    let response = response.ok();
                    tell(&data, PortMapEvent::Http { id, response }).await;
                });
            }
            PortMapAction::Held(held) => {
                self.listen(held);
                tracing::debug!(held, "mapping at a router");
                self.held.send_replace(held);
            }
        }
    }

    /// Runs an exchange, unless there are too many: the engine repeats what matters.
    fn start(&self, exchange: impl Future<Output = ()> + Send + 'static) {
        if let Ok(permit) = Arc::clone(&self.exchanges).try_acquire_owned() {
            tokio::spawn(async move {
                exchange.await;
                drop(permit);
            });
        }
    }

    /// Hears routers announce that they have restarted, or no longer.
    fn listen(&mut self, wanted: bool) {
        for listener in self.listeners.drain(..) {
            listener.abort();
        }
        if !wanted {
            return;
        }
        for any in [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ] {
            match bind(SocketAddr::new(any, ANNOUNCEMENT_PORT)) {
                Ok(socket) => {
                    let task = tokio::spawn(hear(self.data.clone(), socket));
                    self.listeners.push(task.abort_handle());
                }
                // Restarts are then noticed at the next renewal.
                Err(error) => tracing::debug!(%error, "cannot hear the announcements of routers"),
            }
        }
    }
}

/// A socket that is told apart from the tunnel's traffic like all of ours.
fn bind(local: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    // Takes CAP_NET_ADMIN; see `Sockets`.
    let _ = setsockopt(&socket, sockopt::Mark, &FWMARK);
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if local.port() == ANNOUNCEMENT_PORT {
        // Others on this host may want to hear them as well. Multicast goes to all of them, and to hosts that have
        // joined nothing: both groups are those of all hosts.
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&local.into())?;
    UdpSocket::from_std(socket.into())
}

async fn exchange(
    data: &DataPlane,
    from: IpAddr,
    to: SocketAddr,
    payload: &[u8],
) -> io::Result<()> {
    let socket = bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await?;
    socket.send(payload).await?;
    let end = Instant::now() + EXCHANGE;
    let mut buffer = [0; DATAGRAM];
    for _ in 0..MAX_ANSWERS {
        let Ok(length) = timeout_at(end, socket.recv(&mut buffer)).await else {
            break;
        };
        report(data, to, &buffer[..length?]).await;
    }
    Ok(())
}

/// Answers come from wherever there is a device; what is to be believed is for the engine to say.
async fn search(
    data: &DataPlane,
    from: IpAddr,
    requests: &[(SocketAddr, Vec<u8>)],
) -> io::Result<()> {
    let socket = bind(SocketAddr::new(from, 0))?;
    if let IpAddr::V4(from) = from {
        SockRef::from(&socket).set_multicast_if_v4(&from)?;
    }
    let mut result = Err(io::ErrorKind::NotConnected.into());
    for (to, request) in requests {
        // Either of them may be out of reach.
        result = result.or(socket.send_to(request, to).await.map(drop));
    }
    result?;
    let end = Instant::now() + EXCHANGE;
    let mut buffer = [0; DATAGRAM];
    for _ in 0..MAX_ANSWERS {
        match timeout_at(end, socket.recv_from(&mut buffer)).await {
            Ok(Ok((length, from))) => report(data, from, &buffer[..length]).await,
            // ICMP says that the router itself does not listen; another device may.
            Ok(Err(_)) => {}
            Err(_) => break,
        }
    }
    Ok(())
}

/// One HTTP exchange. How much is read is bounded by the parser.
async fn ask(from: IpAddr, to: SocketAddr, request: &[u8]) -> io::Result<http::Response> {
    let socket = if to.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // Takes CAP_NET_ADMIN; see `Sockets`.
    let _ = setsockopt(&socket, sockopt::Mark, &FWMARK);
    socket.bind(SocketAddr::new(from, 0))?;
    let stream = socket.connect(to).await?;
    let mut rest = request;
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        stream.readable().await?;
        let length = match stream.try_read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        bytes.extend_from_slice(&buffer[..length]);
        if let Some(response) =
            http::Response::parse(&bytes, length == 0).map_err(io::Error::other)?
        {
            return Ok(response);
        }
    }
}

async fn hear(data: DataPlane, socket: UdpSocket) {
    let mut buffer = [0; DATAGRAM];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            report(&data, from, &buffer[..length]).await;
        }
        tokio::time::sleep(ANNOUNCEMENT_PAUSE).await;
    }
}

async fn report(data: &DataPlane, from: SocketAddr, payload: &[u8]) {
    let payload = payload.to_vec();
    tell(data, PortMapEvent::Datagram { from, payload }).await;
}

async fn tell(data: &DataPlane, event: PortMapEvent) {
    // Fails when the data plane is on its way out.
    let _ = data.send(Command::PortMap(event)).await;
}
