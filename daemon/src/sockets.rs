//! The UDP sockets that everything shares: mesh traffic, STUN and QUIC to the relays.
//!
//! One socket for each address family, on one port where that is possible. The data thread alone receives; anyone may
//! send. A send never blocks and never fails towards the caller: what the kernel refuses is counted by reason, because
//! every protocol above this one has to cope with loss anyway, and a host moves between networks where errors are normal.

mod bound;

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mesh_core::batch::Run;
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::RecvMeta;

pub(crate) use self::bound::Bound;
use crate::tuning::Tuning;

/// Mark on every packet that this daemon sends outside the tunnel, so that routing rules can tell them apart
/// (`ip rule … fwmark`). Spells `MESH`.
pub const FWMARK: u32 = 0x4d45_5348;

/// The address that packets to `remote` leave from, if there is a way there: what the kernel says by its routes.
pub(crate) fn local_address(remote: SocketAddr, port: u16) -> Option<SocketAddr> {
    let any = match remote {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).ok()?;
    let _ = setsockopt(&socket, sockopt::Mark, &FWMARK);
    // Sends nothing: it only looks a route up.
    socket.connect(remote).ok()?;
    Some(SocketAddr::new(socket.local_addr().ok()?.ip(), port))
}

/// How often another port is tried when the one that IPv4 got is taken for IPv6.
const PORT_ATTEMPTS: usize = 16;

/// Why there is no socket to work with.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port is taken or may not be used.
    #[error(
        "cannot listen on UDP port {port} ({family}): {source}; set another listen_port, or 0 for any"
    )]
    Port {
        /// Port as configured.
        port: u16,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// Neither family works.
    #[error("this host offers neither IPv4 nor IPv6 sockets")]
    NoFamily,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: &SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Datagrams that could not be sent, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendErrors {
    /// No route, network down, or no socket of that family.
    pub unreachable: u64,
    /// A firewall on this host refused.
    pub refused: u64,
    /// Larger than the link takes.
    pub too_big: u64,
    /// The kernel's send buffer was full.
    pub buffer_full: u64,
    /// Anything else.
    pub other: u64,
}

/// [`SendErrors`] as several threads count them.
#[derive(Debug, Default)]
struct SendErrorCounters {
    unreachable: AtomicU64,
    refused: AtomicU64,
    too_big: AtomicU64,
    buffer_full: AtomicU64,
    other: AtomicU64,
}

impl SendErrorCounters {
    fn count(&self, errno: i32, datagrams: u64) {
        let counter = match errno {
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::EADDRNOTAVAIL
            | libc::EAFNOSUPPORT
            | libc::ECONNREFUSED => &self.unreachable,
            libc::EPERM | libc::EACCES => &self.refused,
            libc::EMSGSIZE => &self.too_big,
            libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => &self.buffer_full,
            _ => &self.other,
        };
        counter.fetch_add(datagrams, Ordering::Relaxed);
    }

    fn snapshot(&self) -> SendErrors {
        SendErrors {
            unreachable: self.unreachable.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            too_big: self.too_big.load(Ordering::Relaxed),
            buffer_full: self.buffer_full.load(Ordering::Relaxed),
            other: self.other.load(Ordering::Relaxed),
        }
    }
}

/// The pair of sockets; at least one of them exists.
#[derive(Debug)]
pub struct Sockets {
    v4: Option<Bound>,
    v6: Option<Bound>,
    errors: SendErrorCounters,
    cut_off: AtomicBool,
    tuning: Tuning,
}

impl Sockets {
    /// Binds both families to `port`, or to any common port for 0.
    ///
    /// A host without one of the families gets along with the other.
    ///
    /// # Errors
    ///
    /// [`BindError`] when a port that was asked for is not to be had, or when there is no family at all.
    pub fn bind(port: u16) -> Result<Self, BindError> {
        Self::bind_with(port, Tuning::default())
    }

    /// As [`Self::bind`], with some of the offloads switched off.
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    pub fn bind_with(port: u16, tuning: Tuning) -> Result<Self, BindError> {
        let attempts = if port == 0 { PORT_ATTEMPTS } else { 1 };
        for attempt in 1..=attempts {
            let v4 = Bound::open(Family::V4, port, tuning)?;
            let v6 = match Bound::open(
                Family::V6,
                v4.as_ref().map_or(port, |bound| bound.port),
                tuning,
            ) {
                Ok(v6) => v6,
                Err(_) if port == 0 && attempt < attempts => continue,
                Err(_) if port == 0 => Bound::open(Family::V6, 0, tuning)?,
                Err(error) => return Err(error),
            };
            if v4.is_none() && v6.is_none() {
                break;
            }
            return Ok(Self {
                v4,
                v6,
                errors: SendErrorCounters::default(),
                cut_off: AtomicBool::new(false),
                tuning,
            });
        }
        Err(BindError::NoFamily)
    }

    fn bound(&self, family: Family) -> Option<&Bound> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Port of the socket of `family`, if there is one.
    pub fn port(&self, family: Family) -> Option<u16> {
        self.bound(family).map(|bound| bound.port)
    }

    /// Descriptor of the socket of `family`, to wait on.
    pub fn fd(&self, family: Family) -> Option<BorrowedFd<'_>> {
        self.bound(family).map(Bound::fd)
    }

    /// Notes whether the host has no address at all; see [`Engine::is_cut_off`](mesh_core::engine::Engine::is_cut_off).
    pub(crate) fn set_cut_off(&self, cut_off: bool) {
        self.cut_off.store(cut_off, Ordering::Relaxed);
    }

    /// True if nothing should be sent now.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Datagrams that could not be sent so far.
    pub fn send_errors(&self) -> SendErrors {
        self.errors.snapshot()
    }

    /// One more socket, set up as those here, on a port that the kernel chooses.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn open_spare(&self, family: Family) -> io::Result<Bound> {
        let bound = Bound::try_open(family, 0, self.tuning)?;
        // For [`Bound::take_icmp_errors`]. Not on the mesh sockets: every error would fail an unrelated call.
        match family {
            Family::V4 => setsockopt(&bound.socket, sockopt::Ipv4RecvErr, &true)?,
            Family::V6 => setsockopt(&bound.socket, sockopt::Ipv6RecvErr, &true)?,
        }
        Ok(bound)
    }

    /// Receives what has arrived, one GRO buffer for each of `buffers`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when nothing has arrived or there is no such socket, else whatever the kernel says.
    pub fn recv(
        &self,
        family: Family,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        let bound = self.bound(family).ok_or(io::ErrorKind::WouldBlock)?;
        bound.recv(buffers, meta)
    }

    /// Sends `contents` as datagrams of `segment` bytes each, the last of which may be shorter.
    pub fn send(&self, remote: SocketAddr, contents: &[u8], segment: usize) {
        match self.bound(Family::of(&remote)) {
            Some(bound) => self.send_by(bound, remote, contents, segment),
            None => {
                let segment = segment.clamp(1, contents.len().max(1));
                let datagrams = contents.len().div_ceil(segment);
                self.errors.count(libc::EAFNOSUPPORT, datagrams as u64);
            }
        }
    }

    /// As [`Self::send`], from a socket of [`Self::open_spare`].
    pub(crate) fn send_by(
        &self,
        bound: &Bound,
        remote: SocketAddr,
        contents: &[u8],
        segment: usize,
    ) {
        let segment = segment.clamp(1, contents.len().max(1));
        let mut rest = contents;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(bound.burst(segment).min(rest.len()));
            let Err(error) = bound.transmit(remote, now, segment) else {
                rest = later;
                continue;
            };
            // A NIC or kernel that refuses segmentation makes quinn-udp give up on it: send the same bytes one by one.
            let segmented = now.len() > segment;
            if segmented && bound.state.max_gso_segments() == 1 {
                continue;
            }
            self.errors.count(
                error.raw_os_error().unwrap_or(0),
                now.len().div_ceil(segment) as u64,
            );
            rest = later;
        }
    }

    /// Sends a run of sealed datagrams, from a socket of [`Self::open_spare`] if one is given.
    ///
    /// Those that may be fragmented are for the data thread only: meanwhile everything that the socket sends may be cut up, and
    /// probes of a path's MTU, which must not be, come from that thread as well.
    pub(crate) fn send_run(&self, spare: Option<&Bound>, run: &Run, bytes: &[u8]) {
        let Some(bound) = spare.or_else(|| self.bound(Family::of(&run.remote))) else {
            return self.send(run.remote, bytes, run.segment);
        };
        if !run.fragments {
            return self.send_by(bound, run.remote, bytes, run.segment);
        }
        bound.allow_fragments(true);
        for datagram in bytes.chunks(run.segment.max(1)) {
            self.send_by(bound, run.remote, datagram, datagram.len());
        }
        bound.allow_fragments(false);
    }

    /// Sends one datagram that lives for `ttl` hops only; the sockets' default stays what it is.
    pub fn send_with_ttl(&self, remote: SocketAddr, payload: &[u8], ttl: u8) {
        match self.bound(Family::of(&remote)) {
            Some(bound) => self.send_with_ttl_by(bound, remote, payload, ttl),
            None => self.errors.count(libc::EAFNOSUPPORT, 1),
        }
    }

    /// As [`Self::send_with_ttl`], from a socket of [`Self::open_spare`].
    pub(crate) fn send_with_ttl_by(
        &self,
        bound: &Bound,
        remote: SocketAddr,
        payload: &[u8],
        ttl: u8,
    ) {
        if let Err(errno) = bound.try_send_with_ttl(remote, payload, ttl) {
            self.errors.count(errno as i32, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    use nix::cmsg_space;
    use nix::sys::socket::{self, ControlMessageOwned, MsgFlags, SockaddrStorage};
    use socket2::{Domain, Socket, Type};

    use super::*;

    fn loopback(family: Family, port: u16) -> SocketAddr {
        match family {
            Family::V4 => (Ipv4Addr::LOCALHOST, port).into(),
            Family::V6 => (Ipv6Addr::LOCALHOST, port).into(),
        }
    }

    /// Receives until `count` datagrams have come, cut apart as the engine does it.
    fn receive(sockets: &Sockets, family: Family, count: usize) -> Vec<Vec<u8>> {
        let mut storage = vec![0; quinn_udp::BATCH_SIZE * 65_536];
        let mut datagrams = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(5);
        while datagrams.len() < count && Instant::now() < deadline {
            let mut buffers: Vec<_> = storage.chunks_mut(65_536).map(IoSliceMut::new).collect();
            let mut meta = [RecvMeta::default(); quinn_udp::BATCH_SIZE];
            match sockets.recv(family, &mut buffers, &mut meta) {
                Ok(received) => {
                    for (meta, buffer) in meta.iter().zip(&buffers).take(received) {
                        datagrams
                            .extend(buffer[..meta.len].chunks(meta.stride).map(<[u8]>::to_vec));
                    }
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        datagrams
    }

    fn burst(segment: usize, count: usize, last: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
        let datagrams: Vec<Vec<u8>> = (0..count)
            .map(|i| vec![i as u8; if i + 1 == count { last } else { segment }])
            .collect();
        (datagrams.concat(), datagrams)
    }

    #[test]
    fn datagrams_may_be_cut_up_on_demand_and_only_then() {
        let sockets = Sockets::bind(0).unwrap();
        for family in [Family::V4, Family::V6] {
            let Some(bound) = sockets.bound(family) else {
                continue;
            };
            let discover = || {
                let (level, name) = match family {
                    Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
                    Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
                };
                let (mut value, mut length) = (0_i32, 4);
                let fd = bound.socket.as_raw_fd();
                // SAFETY: both pointers are to variables of the lengths that are given.
                let result = unsafe {
                    libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut length)
                };
                assert_eq!(result, 0);
                value
            };
            assert_eq!(discover(), libc::IP_PMTUDISC_PROBE);
            bound.allow_fragments(true);
            assert_eq!(discover(), libc::IP_PMTUDISC_DONT);
            bound.allow_fragments(false);
            assert_eq!(discover(), libc::IP_PMTUDISC_PROBE);
        }
    }

    #[test]
    fn both_families_share_a_port() {
        let sockets = Sockets::bind(0).unwrap();
        assert_ne!(sockets.port(Family::V4), Some(0));
        if sockets.port(Family::V6).is_some() {
            assert_eq!(sockets.port(Family::V4), sockets.port(Family::V6));
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let first = Sockets::bind(0).unwrap();
        let port = first.port(Family::V4).unwrap();
        let error = Sockets::bind(port).unwrap_err().to_string();
        assert!(
            error.contains(&format!("UDP port {port} (IPv4)")),
            "{error}"
        );
        assert!(error.contains("listen_port"), "{error}");
    }

    #[test]
    fn a_burst_arrives_as_the_datagrams_it_was_made_of() {
        for family in [Family::V4, Family::V6] {
            let (sender, receiver) = (Sockets::bind(0).unwrap(), Sockets::bind(0).unwrap());
            let Some(port) = receiver.port(family) else {
                continue;
            };
            // More than one GSO send can carry, with a shorter last one.
            let (bytes, expected) = burst(1_328, 150, 77);
            sender.send(loopback(family, port), &bytes, 1_328);
            assert_eq!(receive(&receiver, family, expected.len()), expected);
            assert_eq!(sender.send_errors(), SendErrors::default());
        }
    }

    #[test]
    fn a_burst_goes_out_one_by_one_when_segmentation_is_refused() {
        let (sender, receiver) = (Sockets::bind(0).unwrap(), Sockets::bind(0).unwrap());
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is open, and the value is a C int whose size is given.
        let rc = unsafe {
            libc::setsockopt(
                sender.v4.as_ref().unwrap().socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NO_CHECK,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        assert_eq!(rc, 0);
        let (bytes, expected) = burst(1_000, 20, 1_000);
        let to = loopback(Family::V4, receiver.port(Family::V4).unwrap());
        sender.send(to, &bytes, 1_000);
        assert_eq!(receive(&receiver, Family::V4, expected.len()), expected);
        assert_eq!(sender.v4.as_ref().unwrap().state.max_gso_segments(), 1);
        assert_eq!(sender.send_errors(), SendErrors::default());
    }

    /// TTL or hop limit of the next datagram at `socket`.
    fn received_ttl(socket: &Socket) -> i32 {
        let mut payload = [0; 64];
        let mut iov = [IoSliceMut::new(&mut payload)];
        let mut control = cmsg_space!(i32);
        let message = socket::recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut iov,
            Some(&mut control),
            MsgFlags::empty(),
        )
        .unwrap();
        message
            .cmsgs()
            .unwrap()
            .find_map(|message| match message {
                ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                    Some(ttl)
                }
                _ => None,
            })
            .unwrap()
    }

    #[test]
    fn a_ttl_holds_for_its_datagram_alone() {
        let sender = Sockets::bind(0).unwrap();
        for family in [Family::V4, Family::V6] {
            if sender.port(family).is_none() {
                continue;
            }
            let domain = if family == Family::V4 {
                Domain::IPV4
            } else {
                Domain::IPV6
            };
            let receiver = Socket::new(domain, Type::DGRAM, None).unwrap();
            receiver.bind(&loopback(family, 0).into()).unwrap();
            receiver
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            match family {
                Family::V4 => setsockopt(&receiver, sockopt::Ipv4RecvTtl, &true).unwrap(),
                Family::V6 => setsockopt(&receiver, sockopt::Ipv6RecvHopLimit, &true).unwrap(),
            }
            let to = receiver.local_addr().unwrap().as_socket().unwrap();
            sender.send_with_ttl(to, b"opener", 3);
            assert_eq!(received_ttl(&receiver), 3);
            sender.send(to, b"data", 4);
            assert_eq!(received_ttl(&receiver), 64);
        }
        assert_eq!(sender.send_errors(), SendErrors::default());
    }

    #[test]
    fn what_the_kernel_refuses_is_counted() {
        let sockets = Sockets::bind(0).unwrap();
        // Broadcast takes SO_BROADCAST; port 0 is no destination.
        sockets.send((Ipv4Addr::BROADCAST, 9).into(), &[0; 30], 10);
        sockets.send_with_ttl((Ipv4Addr::LOCALHOST, 0).into(), b"x", 1);
        let errors = sockets.send_errors();
        // A host without any route does not get as far as the refusal.
        assert_eq!(errors.refused + errors.unreachable, 3);
        assert_eq!(errors.other, 1);
    }

    #[test]
    fn a_senseless_address_does_not_cost_segmentation() {
        let sockets = Sockets::bind(0).unwrap();
        sockets.send((Ipv4Addr::LOCALHOST, 0).into(), b"x", 1);
        assert_eq!(sockets.send_errors().other, 1);
        assert!(sockets.v4.unwrap().state.max_gso_segments() > 1);
    }
}
