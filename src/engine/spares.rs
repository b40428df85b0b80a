//! Spare sockets: local ports beside the mesh socket's, for measurements and for NATs that one port does not open.
//!
//! All are IPv4, as hardly anybody translates the ports of IPv6, except for those that measure what is done there.

use std::collections::BTreeMap;

use super::{Engine, Output, SocketAction, SocketId};
use crate::limits;
use crate::peer::PeerIndex;
use crate::time::Instant;

/// What a spare socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The measurement of the NAT.
    Survey,
    /// The measurement of how long the NAT remembers.
    Lifetime,
    /// The attempt that is under way.
    Attempt,
    /// A path of this peer, which was won with it.
    Peer(PeerIndex),
}

#[derive(Debug)]
struct Spare {
    owner: Owner,
    /// Once the kernel has given it one.
    port: Option<u16>,
}

/// The spare sockets that are open.
#[derive(Debug, Default)]
pub(super) struct Spares {
    open: BTreeMap<SocketId, Spare>,
    last: u16,
}

impl Spares {
    /// A name that is not in use, and was not for as long as possible: what comes late is told apart by it.
    fn allot(&mut self, owner: Owner) -> Option<SocketId> {
        if self.open.len() >= limits::SPARE_SOCKETS {
            return None;
        }
        loop {
            self.last = self.last.wrapping_add(1);
            let socket = SocketId(self.last);
            if socket != SocketId::MESH && !self.open.contains_key(&socket) {
                self.open.insert(socket, Spare { owner, port: None });
                return Some(socket);
            }
        }
    }

    pub(super) fn contains(&self, socket: SocketId) -> bool {
        self.open.contains_key(&socket)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn of(&self, owner: Owner) -> Vec<SocketId> {
        let own = self.open.iter().filter(|(_, spare)| spare.owner == owner);
        own.map(|(socket, _)| *socket).collect()
    }

    pub(super) fn give(&mut self, socket: SocketId, to: Owner) {
        if let Some(spare) = self.open.get_mut(&socket) {
            spare.owner = to;
        }
    }

    fn port(&self, socket: SocketId) -> Option<u16> {
        self.open.get(&socket)?.port
    }
}

impl Engine {
    /// Says which port the kernel gave to a socket that was asked for by [`SocketAction::Open`] or [`SocketAction::OpenV6`]; `None` if there is none to be
    /// had.
    pub fn socket_opened(&mut self, now: Instant, socket: SocketId, port: Option<u16>) {
        let owner = self.spares.open.get_mut(&socket).map(|spare| {
            spare.port = port;
            spare.owner
        });
        if port.is_none() {
            self.spares.open.remove(&socket);
        }
        match owner {
            Some(Owner::Survey) => self.survey_opened(now, socket, port),
            Some(Owner::Lifetime) => self.lifetime_opened(now, socket, port),
            Some(Owner::Attempt) => self.attempt_opened(now, socket, port),
            Some(Owner::Peer(_)) | None => {}
        }
    }

    /// The local port of a socket, towards an address of this family.
    pub(super) fn local_port(&self, socket: SocketId, v4: bool) -> Option<u16> {
        match socket {
            SocketId::MESH if v4 => self.ports.0,
            SocketId::MESH => self.ports.1,
            spare => self.spares.port(spare),
        }
    }

    /// So many new spare sockets, or none at all.
    pub(super) fn open_spares(
        &mut self,
        owner: Owner,
        action: SocketAction,
        count: usize,
    ) -> Vec<SocketId> {
        if self.spares.open.len() + count > limits::SPARE_SOCKETS {
            return Vec::new();
        }
        let sockets: Vec<SocketId> = (0..count)
            .filter_map(|_| self.spares.allot(owner))
            .collect();
        for socket in &sockets {
            self.outputs.push_back(Output::Socket(*socket, action));
        }
        sockets
    }

    pub(super) fn close_spare(&mut self, socket: SocketId) {
        if self.spares.open.remove(&socket).is_some() {
            self.outputs
                .push_back(Output::Socket(socket, SocketAction::Close));
        }
    }

    /// Closes sockets whose paths to the peer have lapsed.
    pub(super) fn service_spares(&mut self, now: Instant, index: PeerIndex) {
        if self.spares.is_empty() {
            return;
        }
        for socket in self.spares.of(Owner::Peer(index)) {
            let peer = self.peer_mut(index);
            if peer.is_none_or(|peer| !peer.paths.retain_socket(socket, now)) {
                self.close_spare(socket);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_not_used_again_soon_and_their_number_is_bounded() {
        let mut spares = Spares::default();
        let first = spares.allot(Owner::Survey).unwrap();
        spares.open.remove(&first);
        for _ in 0..60_000 {
            let next = spares.allot(Owner::Attempt).unwrap();
            assert!(next != first && next != SocketId::MESH);
            spares.open.remove(&next);
        }
        for _ in 0..limits::SPARE_SOCKETS {
            assert!(spares.allot(Owner::Survey).is_some());
        }
        assert_eq!(spares.allot(Owner::Survey), None);
    }
}
