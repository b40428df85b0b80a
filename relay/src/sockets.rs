//! The relay's UDP sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use mesh_core::relay::server::Socket;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Type};

use crate::config::Config;

/// What the kernel may queue for a socket: 30 ms at 1 Gbit/s. It grants `net.core.rmem_max` and `wmem_max` at most.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// Why a relay cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A socket of the configuration.
    #[error("cannot listen on UDP {address}: {source}{}", advice(source))]
    Socket {
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// Something that has no address.
    #[error("cannot {what}: {source}")]
    Io {
        /// What failed.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// See [`crate::tls::TlsError`].
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program has the port: stop it, or set `listen` or `stun_alt_port`"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; this host does not have the address: correct `listen` or `stun_alt_address`"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: start it by systemd, or set `listen`"
        }
        _ => "",
    }
}

/// An address that the relay listens on.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) main: Port,
    /// The same for listeners on one address.
    pub(crate) alt: Option<Arc<Port>>,
    /// Whether this listener is the one to receive from `alt`.
    pub(crate) owns_alt: bool,
}

impl Listener {
    pub(crate) fn port(&self, socket: Socket) -> Option<&Port> {
        match socket {
            Socket::Main => Some(&self.main),
            Socket::Alt => self.alt.as_deref(),
        }
    }
}

/// One UDP socket with offloads. Addresses are canonical on this side of it, whatever the kernel wants to see.
#[derive(Debug)]
pub(crate) struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
    /// As bound, with the port that the kernel chose.
    pub(crate) local: SocketAddr,
}

impl Port {
    fn bind(address: SocketAddr, only_v6: bool) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        socket.bind(&address.into())?;
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into())?;
        // A small buffer only loses packets sooner.
        let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER);
        let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER);
        let local = socket.local_addr()?;
        Ok(Self {
            socket,
            state,
            local,
        })
    }

    /// Receives what there is.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing; ICMP errors of what was sent before.
    pub(crate) fn recv(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        let received = self.state.recv((&self.socket).into(), buffers, meta)?;
        for meta in &mut meta[..received] {
            meta.addr = canonical(meta.addr);
            meta.dst_ip = meta.dst_ip.map(|ip| ip.to_canonical());
        }
        Ok(received)
    }

    /// Sends datagrams of `segment` bytes each, the last of which may be shorter, to one address. Returns how many
    /// datagrams were not taken.
    pub(crate) fn send(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        datagrams: &[u8],
        segment: usize,
    ) -> usize {
        let segment = segment.max(1);
        let most = self.state.max_gso_segments().max(1) * segment;
        datagrams
            .chunks(most)
            .map(|burst| {
                let count = burst.len().div_ceil(segment);
                match self.send_burst(to, from, ecn, burst, segment) {
                    Ok(()) => 0,
                    // The device cannot segment, as the state has noticed by now.
                    Err(_) if count > 1 && self.state.max_gso_segments() == 1 => burst
                        .chunks(segment)
                        .filter(|one| self.send_burst(to, from, ecn, one, segment).is_err())
                        .count(),
                    Err(_) => count,
                }
            })
            .sum()
    }

    /// As [`Self::send`], with datagrams that lie in several pieces, each of whole ones but for the last, and that are no
    /// more than the kernel takes at once.
    pub(crate) fn gather<'a>(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        pieces: impl Iterator<Item = &'a [u8]> + Clone,
        segment: usize,
    ) -> usize {
        let several = pieces.clone().nth(1).is_some();
        if several && self.state.max_gso_segments() > 1 {
            match self.send_pieces(to, from, pieces.clone(), segment) {
                Ok(()) => return 0,
                // The kernel or the device does not do it; below, the state notices as well.
                Err(Errno::EIO | Errno::EINVAL) => {}
                Err(_) => return pieces.map(|piece| piece.len().div_ceil(segment)).sum(),
            }
        }
        pieces
            .map(|piece| self.send(to, from, None, piece, segment))
            .sum()
    }

    fn send_pieces<'a>(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        pieces: impl Iterator<Item = &'a [u8]>,
        segment: usize,
    ) -> Result<(), Errno> {
        let pieces: Vec<IoSlice<'_>> = pieces.map(IoSlice::new).collect();
        let segment = u16::try_from(segment).map_err(|_| Errno::EINVAL)?;
        let (v4, v6);
        let mut control = vec![ControlMessage::UdpGsoSegments(&segment)];
        match from {
            Some(IpAddr::V4(ip)) => {
                v4 = nix::libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: nix::libc::in_addr {
                        s_addr: u32::from_ne_bytes(ip.octets()),
                    },
                    ipi_addr: nix::libc::in_addr { s_addr: 0 },
                };
                control.push(ControlMessage::Ipv4PacketInfo(&v4));
            }
            Some(IpAddr::V6(ip)) => {
                v6 = nix::libc::in6_pktinfo {
                    ipi6_ifindex: 0,
                    ipi6_addr: nix::libc::in6_addr {
                        s6_addr: ip.octets(),
                    },
                };
                control.push(ControlMessage::Ipv6PacketInfo(&v6));
            }
            None => {}
        }
        let to = SockaddrStorage::from(self.for_kernel(to));
        let fd = self.socket.as_raw_fd();
        sendmsg(fd, &pieces, &control, MsgFlags::empty(), Some(&to)).map(drop)
    }

    fn send_burst(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        burst: &[u8],
        segment: usize,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.for_kernel(to),
            ecn,
            contents: burst,
            segment_size: (burst.len() > segment).then_some(segment),
            src_ip: from,
        };
        self.state.try_send((&self.socket).into(), &transmit)
    }

    /// An IPv6 socket takes IPv4 addresses in IPv6 form only.
    fn for_kernel(&self, to: SocketAddr) -> SocketAddr {
        match (to, self.local) {
            (SocketAddr::V4(v4), SocketAddr::V6(_)) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            _ => to,
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// IPv4 out of its IPv6 form. A link-local address keeps its scope, without which nothing can be sent back.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Opens every socket of the configuration.
pub(crate) fn bind(config: &Config) -> Result<Vec<Listener>, BindError> {
    let mut listeners = Vec::new();
    for &address in &config.listen {
        // Where IPv4 has a socket of its own on this port, this one must leave it alone.
        let v4_too = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port();
        let only_v6 = config.listen.iter().any(v4_too);
        let main = match Port::bind(address, only_v6) {
            Err(error) if no_ipv6(&error) && !config.listen_configured => {
                let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
                Port::bind(v4, false).map_err(|source| BindError::Socket {
                    address: v4,
                    source,
                })
            }
            other => other.map_err(|source| BindError::Socket { address, source }),
        }?;
        listeners.push(Listener {
            main,
            alt: None,
            owns_alt: false,
        });
    }
    if let Some(address) = config.alt_address {
        bind_elsewhere(address, &mut listeners)?;
    }
    bind_alt(config, &mut listeners)?;
    Ok(listeners)
}

/// Makes sure that packets to and from the second address pass through some listener.
fn bind_elsewhere(address: Ipv4Addr, listeners: &mut Vec<Listener>) -> Result<(), BindError> {
    let failed = |port| {
        let address = SocketAddr::new(address.into(), port);
        move |source| BindError::Socket { address, source }
    };
    // Without a look at the address itself a wildcard would hide that this host has none like it.
    Port::bind(SocketAddr::new(address.into(), 0), false).map_err(failed(0))?;
    if covering(address, listeners).is_none()
        && let Some(port) = listeners.first().map(|first| first.main.local.port())
    {
        let main = Port::bind(SocketAddr::new(address.into(), port), false);
        listeners.push(Listener {
            main: main.map_err(failed(port))?,
            alt: None,
            owns_alt: false,
        });
    }
    Ok(())
}

/// The listener that takes what is sent to an address.
pub(crate) fn covering(address: Ipv4Addr, listeners: &[Listener]) -> Option<usize> {
    let bound = |ip: IpAddr| listeners.iter().position(|one| one.main.local.ip() == ip);
    let any_v4 = || bound(Ipv4Addr::UNSPECIFIED.into());
    // Where IPv4 has sockets of its own, the wildcard of IPv6 is for that alone.
    let has_v4 = listeners.iter().any(|one| one.main.local.is_ipv4());
    let any_v6 = || bound(Ipv6Addr::UNSPECIFIED.into()).filter(|_| !has_v4);
    bound(address.into()).or_else(any_v4).or_else(any_v6)
}

/// Gives every address a socket on the second port: all of them the same port, as clients are told one.
fn bind_alt(config: &Config, listeners: &mut [Listener]) -> Result<(), BindError> {
    let only_v6 = listeners
        .iter()
        .any(|listener| listener.main.local.is_ipv4());
    let mut port = config.alt_port;
    let mut alts: BTreeMap<IpAddr, Arc<Port>> = BTreeMap::new();
    for listener in &*listeners {
        let ip = listener.main.local.ip();
        if alts.contains_key(&ip) {
            continue;
        }
        let address = SocketAddr::new(ip, port);
        match Port::bind(address, only_v6) {
            Ok(alt) => {
                port = alt.local.port();
                alts.insert(ip, Arc::new(alt));
            }
            Err(source) if config.alt_port_configured => {
                return Err(BindError::Socket { address, source });
            }
            Err(source) => {
                let error = BindError::Socket { address, source };
                tracing::warn!(
                    "no second STUN port, so clients cannot tell every kind of NAT: {error}"
                );
                return Ok(());
            }
        }
    }
    let mut owned = BTreeSet::new();
    for listener in listeners {
        let ip = listener.main.local.ip();
        listener.alt = alts.get(&ip).map(Arc::clone);
        listener.owns_alt = owned.insert(ip);
    }
    Ok(())
}

fn no_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
        || error.kind() == io::ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gathers `pieces` at `sender` and gives what arrives at a socket on `receiver`, with where it came from.
    fn gathered(
        sender: &str,
        receiver: &str,
        from: &str,
        pieces: &[&[u8]],
    ) -> Vec<(IpAddr, Vec<u8>)> {
        let port = Port::bind(sender.parse().unwrap(), false).unwrap();
        let there = UdpSocket::bind(receiver).unwrap();
        there
            .set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        let to = there.local_addr().unwrap();
        let from = Some(from.parse().unwrap());
        assert_eq!(port.gather(to, from, pieces.iter().copied(), 4), 0);
        let count: usize = pieces.iter().map(|piece| piece.len().div_ceil(4)).sum();
        let receive = |_| {
            let mut buffer = [0; 64];
            let (len, from) = there.recv_from(&mut buffer).unwrap();
            (from.ip(), buffer[..len].to_vec())
        };
        (0..count).map(receive).collect()
    }

    #[test]
    fn pieces_arrive_as_the_datagrams_that_they_are_in_order_and_from_the_right_address() {
        let pieces: [&[u8]; 3] = [b"aaaabbbb", b"cccc", b"dddde"];
        let datagrams = ["aaaa", "bbbb", "cccc", "dddd", "e"];
        for (sender, receiver, from) in [
            ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"),
            ("0.0.0.0:0", "127.0.0.1:0", "127.0.0.2"),
            ("[::]:0", "127.0.0.1:0", "127.0.0.2"),
            ("[::]:0", "[::1]:0", "::1"),
        ] {
            let from_ip: IpAddr = from.parse().unwrap();
            assert_eq!(
                gathered(sender, receiver, from, &pieces),
                datagrams.map(|datagram| (from_ip, datagram.as_bytes().to_vec()))
            );
        }
    }

    #[test]
    fn one_piece_is_sent_as_well() {
        let arrived = gathered("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1", &[b"aaaab"]);
        let payloads: Vec<_> = arrived.into_iter().map(|(_, payload)| payload).collect();
        assert_eq!(payloads, [b"aaaa".to_vec(), b"b".to_vec()]);
    }
}
