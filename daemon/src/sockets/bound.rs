//! One UDP socket with everything that is set on it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use mesh_core::limits;
use nix::errno::Errno;
use nix::sys::socket::{self, ControlMessage, MsgFlags, SockaddrStorage, setsockopt, sockopt};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use super::{BindError, FWMARK, Family};
use crate::tuning::Tuning;

/// Kernel buffer in each direction: about 10 ms at 5 Gb/s, for the time that the data thread is busy elsewhere.
const KERNEL_BUFFER_BYTES: usize = 7 << 20;

/// ICMP errors that are fetched at once.
const MAX_ICMP_ERRORS: u32 = 64;
/// What every IPv6 link carries (RFC 8200, section 5).
const IPV6_LEAST_MTU: i32 = 1_280;

/// One bound socket with what quinn-udp found out about it.
#[derive(Debug)]
pub(crate) struct Bound {
    family: Family,
    pub(super) socket: Socket,
    pub(super) state: UdpSocketState,
    pub(super) port: u16,
    /// The switch for segmentation; the kernel may still refuse it.
    gso: bool,
}

impl Bound {
    /// `Ok(None)` when the host does not have the family.
    pub(super) fn open(
        family: Family,
        port: u16,
        tuning: Tuning,
    ) -> Result<Option<Self>, BindError> {
        match Self::try_open(family, port, tuning) {
            Ok(bound) => Ok(Some(bound)),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPFNOSUPPORT)
                ) =>
            {
                Ok(None)
            }
            Err(source) => Err(BindError::Port {
                port,
                family: family.name(),
                source,
            }),
        }
    }

    pub(super) fn try_open(family: Family, port: u16, tuning: Tuning) -> io::Result<Self> {
        let (domain, any) = match family {
            Family::V4 => (
                Domain::IPV4,
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            ),
            Family::V6 => (
                Domain::IPV6,
                SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            ),
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if family == Family::V6 {
            socket.set_only_v6(true)?;
        }
        set_buffers(&socket);
        // Takes CAP_NET_ADMIN; without it there is no routing rule of ours either that could need it.
        let _ = setsockopt(&socket, sockopt::Mark, &FWMARK);
        socket.bind(&any.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        // quinn-udp asks for a time stamp on each packet, which makes the kernel read the clock for all that arrive.
        let _ = setsockopt(&socket, sockopt::ReceiveTimestampns, &false);
        if !tuning.udp_gro {
            setsockopt(&socket, sockopt::UdpGroSegment, &false)?;
        }
        let port = socket
            .local_addr()?
            .as_socket()
            .map_or(port, |address| address.port());
        Ok(Self {
            family,
            socket,
            state,
            port,
            gso: tuning.udp_gso,
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// As [`Sockets::recv`].
    pub(crate) fn recv(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.state.recv((&self.socket).into(), buffers, meta)
    }

    /// How many ICMP errors came back to what this socket sent; each is counted once. Only for spare sockets.
    pub(crate) fn take_icmp_errors(&self) -> u32 {
        let mut count = 0;
        // The first bytes of what was sent are of no interest.
        let mut payload = [0; 1];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        while count < MAX_ICMP_ERRORS {
            let mut iov = [IoSliceMut::new(&mut payload)];
            let fd = self.socket.as_raw_fd();
            if socket::recvmsg::<SockaddrStorage>(fd, &mut iov, None, flags).is_err() {
                break;
            }
            count += 1;
        }
        // The error is also kept for the next call, which it would fail.
        let _ = self.socket.take_error();
        count
    }

    pub(super) fn try_send_with_ttl(
        &self,
        remote: SocketAddr,
        payload: &[u8],
        ttl: u8,
    ) -> Result<(), Errno> {
        let ttl = i32::from(ttl);
        let hops = match Family::of(&remote) {
            Family::V4 => ControlMessage::Ipv4Ttl(&ttl),
            Family::V6 => ControlMessage::Ipv6HopLimit(&ttl),
        };
        let iov = [IoSlice::new(payload)];
        let to = SockaddrStorage::from(remote);
        let fd = self.socket.as_raw_fd();
        socket::sendmsg(fd, &iov, &[hops], MsgFlags::MSG_DONTWAIT, Some(&to)).map(drop)
    }

    /// Bytes that go into one call for datagrams of `segment` bytes.
    pub(super) fn burst(&self, segment: usize) -> usize {
        let allowed = if self.gso {
            limits::MAX_GSO_SEGMENTS
        } else {
            1
        };
        let most = self.state.max_gso_segments().clamp(1, allowed);
        segment * most.min((limits::MAX_GSO_BYTES / segment).max(1))
    }

    /// Whether datagrams may be fragmented. Over IPv6 only the sender can do it, and cuts to what every link carries.
    pub(super) fn allow_fragments(&self, allow: bool) {
        let fd = self.socket.as_raw_fd();
        // The names for IPv6 differ and the values do not (linux/in6.h).
        let discover = if allow {
            libc::IP_PMTUDISC_DONT
        } else {
            libc::IP_PMTUDISC_PROBE
        };
        if self.family == Family::V4 {
            set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover);
        } else {
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover);
            let cut = if allow { IPV6_LEAST_MTU } else { 0 };
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU, cut);
        }
    }

    pub(super) fn transmit(
        &self,
        remote: SocketAddr,
        contents: &[u8],
        segment: usize,
    ) -> io::Result<()> {
        if contents.len() <= segment {
            // Not by quinn-udp: it takes EINVAL, which any senseless address gives, for a lack of segmentation offload
            // and would never segment again.
            return self.socket.send_to(contents, &remote.into()).map(drop);
        }
        let transmit = Transmit {
            destination: remote,
            ecn: None,
            contents,
            segment_size: Some(segment),
            src_ip: None,
        };
        self.state.try_send((&self.socket).into(), &transmit)
    }
}

/// Sets an option of a socket; these cannot fail on one of the right family.
fn set_option(fd: std::os::fd::RawFd, level: i32, name: i32, value: i32) {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the value is a number of the length that is given.
    unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) };
}

/// As large as the host allows: the FORCE variants pass `net.core.rmem_max` but take CAP_NET_ADMIN.
fn set_buffers(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &KERNEL_BUFFER_BYTES).is_err() {
        let _ = socket.set_recv_buffer_size(KERNEL_BUFFER_BYTES);
    }
    if setsockopt(socket, sockopt::SndBufForce, &KERNEL_BUFFER_BYTES).is_err() {
        let _ = socket.set_send_buffer_size(KERNEL_BUFFER_BYTES);
    }
}
