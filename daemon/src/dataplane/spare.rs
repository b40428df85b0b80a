//! Spare sockets: ports beside the mesh socket's, which the engine asks for and gives back.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::engine::{SocketAction, SocketId};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::sockets::{Bound, Family, Sockets};

/// What epoll reports for a spare socket: this, and the number that the engine gave it.
const TOKEN: u64 = 1 << 32;

/// The spare sockets that are open.
pub(crate) struct Spares {
    epoll: Arc<Epoll>,
    open: BTreeMap<SocketId, Bound>,
}

impl Spares {
    /// None yet; `epoll` waits for what arrives.
    pub(crate) fn new(epoll: Arc<Epoll>) -> Self {
        let open = BTreeMap::new();
        Self { epoll, open }
    }

    /// Which socket an event of epoll is for, if it is for one of these.
    pub(crate) fn of_token(token: u64) -> Option<SocketId> {
        let number = token.checked_sub(TOKEN)?;
        u16::try_from(number).ok().map(SocketId)
    }

    pub(crate) fn get(&self, socket: SocketId) -> Option<&Bound> {
        self.open.get(&socket)
    }

    /// Does what the engine asks for. For a socket to be opened: its port, or `None` if there is none to be had.
    pub(crate) fn act(
        &mut self,
        sockets: &Sockets,
        socket: SocketId,
        action: SocketAction,
    ) -> Option<u16> {
        match action {
            SocketAction::Open => self.open(sockets, Family::V4, socket),
            SocketAction::OpenV6 => self.open(sockets, Family::V6, socket),
            SocketAction::Close => {
                if let Some(bound) = self.open.remove(&socket) {
                    // Closing would do, were the descriptor not duplicated into a child by then.
                    let _ = self.epoll.delete(bound.fd());
                }
                None
            }
        }
    }

    fn open(&mut self, sockets: &Sockets, family: Family, socket: SocketId) -> Option<u16> {
        let bound = sockets.open_spare(family).ok()?;
        let token = TOKEN + u64::from(socket.0);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        self.epoll.add(bound.fd(), event).ok()?;
        let port = bound.port();
        self.open.insert(socket, bound);
        Some(port)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use nix::sys::epoll::{EpollCreateFlags, EpollTimeout};

    use super::*;
    use crate::dataplane::udp::UdpInput;

    fn wait(epoll: &Epoll) -> Vec<u64> {
        let mut events = [EpollEvent::empty(); 8];
        let timeout = EpollTimeout::try_from(Duration::from_secs(5)).unwrap();
        let count = epoll.wait(&mut events, timeout).unwrap();
        events[..count].iter().map(EpollEvent::data).collect()
    }

    fn spares() -> (Sockets, Arc<Epoll>, Spares) {
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap());
        let spares = Spares::new(Arc::clone(&epoll));
        (Sockets::bind(0).unwrap(), epoll, spares)
    }

    #[test]
    fn a_spare_socket_sends_from_its_own_port_and_receives_there() {
        let (sockets, epoll, mut spares) = spares();
        let (one, two) = (SocketId(7), SocketId(65_535));
        let ports = [one, two].map(|id| spares.act(&sockets, id, SocketAction::Open).unwrap());
        assert_ne!(ports[0], ports[1]);
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[1]));
        sockets.send_by(spares.get(one).unwrap(), to, &[9; 250], 100);
        let tokens = wait(&epoll);
        assert_eq!(tokens.len(), 1);
        assert_eq!(Spares::of_token(tokens[0]), Some(two));
        let mut input = UdpInput::new();
        let mut received = 0;
        while received < 3 {
            if input.receive_spare(two, spares.get(two).unwrap()).is_ok() {
                received += input.batch.datagrams();
            }
        }
        assert_eq!(received, 3);
        assert!(
            sockets
                .port(Family::V4)
                .is_some_and(|port| !ports.contains(&port))
        );
    }

    #[test]
    fn a_closed_port_is_free_and_errors_of_the_network_are_counted() {
        let (sockets, epoll, mut spares) = spares();
        let (one, two) = (SocketId(1), SocketId(2));
        let port = spares.act(&sockets, one, SocketAction::Open).unwrap();
        spares.act(&sockets, two, SocketAction::Open).unwrap();
        spares.act(&sockets, one, SocketAction::Close);
        assert!(spares.get(one).is_none());
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let bound = spares.get(two).unwrap();
        sockets.send_by(bound, nobody, b"anybody there?", 14);
        assert_eq!(
            wait(&epoll).first().copied().and_then(Spares::of_token),
            Some(two)
        );
        assert_eq!(bound.take_icmp_errors(), 1);
        assert_eq!(bound.take_icmp_errors(), 0);
    }

    #[test]
    fn other_events_are_of_no_spare_socket() {
        assert_eq!(Spares::of_token(3), None);
        assert_eq!(Spares::of_token(TOKEN + 70_000), None);
    }
}
