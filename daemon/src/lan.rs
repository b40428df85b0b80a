//! The sockets of multicast DNS; `mesh_core::lan` decides what is said and what is believed.
//!
//! Each group that the engine wants to be in has a socket of its own, bound to the group's address: it gets what is sent
//! to the group on its one interface and nothing else, and takes no packets away from other programs that speak
//! multicast DNS. A filter in the kernel lets through what begins with our service's name: on a link full of printers
//! and televisions meshd sleeps.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::engine::{LanAction, LanGroup, LanPacket};
use mesh_core::wire::mdns::{GROUP_V4, GROUP_V6, HEADER, HOP_LIMIT, LEADER, PORT};
use nix::sys::socket::{
    self, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
    setsockopt, sockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::dataplane::{Command, DataPlane};
use crate::sockets::FWMARK;

/// Largest packet that is read. Ours fit an Ethernet frame.
const DATAGRAM: usize = 1_500;
/// At most so many packets are read from a group in a [`WINDOW`]; the kernel drops the rest. The engine has a limit of
/// its own, this one keeps a flood from waking us.
const PACKETS: u32 = 32;
/// See [`PACKETS`].
const WINDOW: Duration = Duration::from_millis(250);
/// Reading goes on after an error, later: an interface may be on its way out.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
pub struct LanIo {
    data: DataPlane,
    members: BTreeMap<LanGroup, Member>,
}

/// Our membership of a group.
struct Member {
    socket: Arc<UdpSocket>,
    reader: AbortHandle,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl LanIo {
    /// What is heard goes to `data`.
    pub fn new(data: DataPlane) -> Self {
        let members = BTreeMap::new();
        Self { data, members }
    }

    /// Does what the engine wants done. Never waits.
    pub fn handle(&mut self, action: LanAction) {
        match action {
            LanAction::Listen(groups) => self.listen(&groups),
            LanAction::Send {
                interface,
                from,
                payload,
            } => {
                let ipv6 = from.is_ipv6();
                let Some(member) = self.members.get(&LanGroup { interface, ipv6 }) else {
                    return;
                };
                // What gets lost is said again, or asked for.
                if let Err(error) = send(&member.socket, interface, from, &payload) {
                    tracing::debug!(%error, %from, "cannot speak to the link");
                }
            }
        }
    }

    fn listen(&mut self, groups: &[LanGroup]) {
        self.members.retain(|group, _| groups.contains(group));
        for group in groups {
            if self.members.contains_key(group) {
                continue;
            }
            match join(*group) {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    let hear = hear(self.data.clone(), Arc::clone(&socket), group.interface);
                    let reader = tokio::spawn(hear).abort_handle();
                    self.members.insert(*group, Member { socket, reader });
                }
                // Peers are found by relays and endpoints all the same.
                Err(error) => tracing::warn!(
                    %error,
                    interface = group.interface,
                    ipv6 = group.ipv6,
                    "peers on this link cannot be looked for"
                ),
            }
        }
        let groups = self.members.len();
        tracing::debug!(groups, "listening for peers on our links");
    }
}

/// A socket that is a member of the group.
fn join(group: LanGroup) -> io::Result<UdpSocket> {
    let (domain, address) = if group.ipv6 {
        let address = SocketAddrV6::new(GROUP_V6, PORT, 0, group.interface);
        (Domain::IPV6, SocketAddr::V6(address))
    } else {
        (Domain::IPV4, SocketAddr::from((GROUP_V4, PORT)))
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // Takes CAP_NET_ADMIN; see `Sockets`.
    let _ = setsockopt(&socket, sockopt::Mark, &FWMARK);
    // Avahi and systemd-resolved have the port as well (RFC 6762, section 15.1).
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.attach_filter(&filter())?;
    if group.ipv6 {
        socket.set_only_v6(true)?;
        socket.set_multicast_hops_v6(HOP_LIMIT.into())?;
        socket.set_multicast_loop_v6(false)?;
        setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
    } else {
        socket.set_multicast_ttl_v4(HOP_LIMIT.into())?;
        socket.set_multicast_loop_v4(false)?;
        // Not what other programs' memberships bring in by other interfaces.
        socket.set_multicast_all_v4(false)?;
        setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if group.ipv6 {
        socket.join_multicast_v6(&GROUP_V6, group.interface)?;
    } else {
        let interface = InterfaceIndexOrAddress::Index(group.interface);
        socket.join_multicast_v4_n(&GROUP_V4, &interface)?;
    }
    UdpSocket::from_std(socket.into())
}

/// Classic BPF: lets through the UDP packets whose first DNS name begins with [`LEADER`].
fn filter() -> [SockFilter; 6] {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// The UDP header comes first.
    const NAME: u32 = 8 + HEADER as u32;
    let [a, b, c, d, e, f, g, h] = LEADER;
    let (first, second) = ([a, b, c, d], [e, f, g, h]);
    [
        SockFilter::new(LOAD_WORD, 0, 0, NAME),
        SockFilter::new(JUMP_EQUAL, 0, 3, u32::from_be_bytes(first)),
        SockFilter::new(LOAD_WORD, 0, 0, NAME + 4),
        SockFilter::new(JUMP_EQUAL, 0, 1, u32::from_be_bytes(second)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Sends to the group, from one address of ours: who recognises us takes the packet's source for where we are.
fn send(socket: &UdpSocket, interface: u32, from: IpAddr, payload: &[u8]) -> io::Result<()> {
    let iov = [IoSlice::new(payload)];
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    match from {
        IpAddr::V4(from) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: i32::try_from(interface).map_err(io::Error::other)?,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(from.octets()),
                },
                ipi_addr: libc::in_addr {
                    s_addr: u32::from(Ipv4Addr::UNSPECIFIED),
                },
            };
            let to = SockaddrIn::from(std::net::SocketAddrV4::new(GROUP_V4, PORT));
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            socket::sendmsg(fd, &iov, &control, flags, Some(&to))?;
        }
        IpAddr::V6(from) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: from.octets(),
                },
                ipi6_ifindex: interface,
            };
            let to = SockaddrIn6::from(SocketAddrV6::new(GROUP_V6, PORT, 0, interface));
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            socket::sendmsg(fd, &iov, &control, flags, Some(&to))?;
        }
    }
    Ok(())
}

/// Reads for ever, and never fast.
async fn hear(data: DataPlane, socket: Arc<UdpSocket>, interface: u32) {
    let (mut window, mut count) = (Instant::now(), 0);
    loop {
        let received = socket.async_io(Interest::READABLE, || receive(&socket, interface));
        match received.await {
            Ok(packet) => {
                // Fails when the data plane is on its way out.
                let _ = data.send(Command::LanPacket(packet)).await;
            }
            Err(error) => {
                tracing::debug!(%error, interface, "cannot hear the link");
                sleep(RETRY).await;
            }
        }
        count += 1;
        if window.elapsed() >= WINDOW {
            (window, count) = (Instant::now(), 0);
        } else if count >= PACKETS {
            sleep_until(window + WINDOW).await;
        }
    }
}

fn receive(socket: &UdpSocket, interface: u32) -> io::Result<LanPacket> {
    let mut payload = [0; DATAGRAM];
    let mut iov = [IoSliceMut::new(&mut payload)];
    let mut control = nix::cmsg_space!(i32);
    let message = socket::recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut iov,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let from = message.address.and_then(|address| {
        let v4 = address.as_sockaddr_in();
        let v4 = v4.map(|v4| SocketAddr::from((v4.ip(), v4.port())));
        let v6 = address.as_sockaddr_in6();
        v4.or(v6.map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
    });
    let hop_limit = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4Ttl(limit) | ControlMessageOwned::Ipv6HopLimit(limit) => {
            u8::try_from(limit).ok()
        }
        _ => None,
    });
    let (length, from) = (message.bytes, from.ok_or(io::ErrorKind::InvalidData)?);
    Ok(LanPacket {
        interface,
        from,
        hop_limit: hop_limit.ok_or(io::ErrorKind::InvalidData)?,
        payload: payload[..length].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use mesh_core::wire::mdns::{self, query};
    use tokio::time::timeout;

    use super::*;
    use crate::sandbox;

    fn ip(arguments: &str) {
        let mut command = std::process::Command::new("ip");
        let status = command.args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    /// Another program that speaks multicast DNS, as Avahi binds.
    fn other(interface: u32) -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        socket.bind(&any.into()).unwrap();
        let interface = InterfaceIndexOrAddress::Index(interface);
        socket.join_multicast_v4_n(&GROUP_V4, &interface).unwrap();
        // There is no route to the group.
        let own = Ipv4Addr::new(192, 168, 1, 2);
        socket.set_multicast_if_v4(&own).unwrap();
        let seconds = Some(Duration::from_millis(300));
        socket.set_read_timeout(seconds).unwrap();
        socket
    }

    async fn next(socket: &UdpSocket) -> LanPacket {
        let received = socket.async_io(Interest::READABLE, || receive(socket, 2));
        let received = timeout(Duration::from_secs(5), received).await;
        received.expect("a packet in time").unwrap()
    }

    #[test]
    fn the_port_is_shared_and_only_our_own_name_is_heard() {
        sandbox::run(async || {
            ip("link set lo up");
            ip("link add eth0 type veth peer name eth1");
            ip("addr add 192.168.1.2/24 dev eth0");
            ip("link set eth0 up");
            ip("link set eth1 up");
            let index = nix::net::if_::if_nametoindex("eth0").unwrap();
            let other = other(index);
            let group = LanGroup {
                interface: index,
                ipv6: false,
            };
            let ours = join(group).unwrap();
            let to = SocketAddr::from((GROUP_V4, PORT)).into();
            let printer = b"\0\0\x84\0\0\0\0\x01\0\0\0\0\x04_ipp\x04_tcp\x05local\0";
            for ttl in [255, 3] {
                other.set_multicast_ttl_v4(ttl).unwrap();
                for payload in [printer.as_slice(), &[], &query()[..13], &query()] {
                    other.send_to(payload, &to).unwrap();
                }
                let packet = next(&ours).await;
                assert_eq!(packet.payload, query());
                assert_eq!(packet.from, "192.168.1.2:5353".parse().unwrap());
                assert_eq!(u32::from(packet.hop_limit), ttl);
            }
            // What is for the other program alone goes there.
            let sender = std::net::UdpSocket::bind("192.168.1.2:0").unwrap();
            sender
                .send_to(&query(), ("192.168.1.2", mdns::PORT))
                .unwrap();
            let mut seen = 0;
            let mut buffer = [std::mem::MaybeUninit::uninit(); 100];
            while other.recv(&mut buffer).is_ok() {
                seen += 1;
            }
            assert_eq!(seen, 9);
            let mut nothing = [0; 100];
            assert!(ours.try_recv(&mut nothing).is_err());
        });
    }
}
