//! Opens what arrives, in groups: packets of one session and one path that follow each other.

use std::ops::Range;
use std::sync::Arc;

use super::Engine;
use crate::batch::{Batches, Inbox};
use crate::offload::{clamp_mss, opens_tcp};
use crate::path::PathKey;
use crate::peer::{Peer, PeerIndex};
use crate::session::cipher::{self, Job, Key, MAX_JOBS, TAG};
use crate::session::{HEADER, Kernel, counter, number};
use crate::time::Instant;
use crate::wire::control::NEXT_HEADER;
use crate::wire::ip::IpHeader;

/// Data messages with one receiver index that came by one path.
pub(super) struct Group {
    /// What the session and the path of the present messages are; `None` while there is no group.
    session: Option<GroupSession>,
    messages: [(usize, usize); MAX_JOBS],
    count: usize,
}

struct GroupSession {
    path: PathKey,
    receiver: u32,
    /// Without a key the messages are dropped: there is no such session.
    open: Option<(PeerIndex, Arc<Key>)>,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            session: None,
            messages: [(0, 0); MAX_JOBS],
            count: 0,
        }
    }
}

impl Group {
    /// True if a message may follow those of the group, or if there is none yet.
    #[inline]
    pub(super) fn takes(&self, path: PathKey, message: &[u8]) -> bool {
        self.session.as_ref().is_none_or(|session| {
            self.count < MAX_JOBS && session.path == path && self.is_open_for(message)
        })
    }

    /// True if the message is data of the group's session.
    #[inline]
    pub(super) fn is_open_for(&self, message: &[u8]) -> bool {
        let receiver = self.session.as_ref().map(|session| session.receiver);
        message[0] == 4 && receiver.is_some() && number(message, 4) == receiver
    }

    /// Adds the message that lies at `range` of the inbox.
    #[inline]
    pub(super) fn add(&mut self, range: Range<usize>) {
        if let Some(place) = self.messages.get_mut(self.count) {
            *place = (range.start, range.end);
            self.count += 1;
        }
    }

    fn messages(&self) -> &[(usize, usize)] {
        &self.messages[..self.count]
    }
}

impl Engine {
    /// Begins a group with a data message.
    pub(super) fn begin(&mut self, now: Instant, path: PathKey, message: &[u8], group: &mut Group) {
        let receiver = number(message, 4).unwrap_or_default();
        let peer = self
            .indices
            .get(receiver)
            .and_then(|index| self.peer(index));
        let open = peer.and_then(|peer| {
            // Relays carry nothing for stock WireGuard peers: someone replays there.
            let allowed = peer.node_id().is_some() || matches!(path, PathKey::Direct(..));
            let key = peer.keys().filter(|_| allowed)?.opening(now, receiver)?;
            Some((peer.index, Arc::clone(key)))
        });
        group.session = Some(GroupSession {
            path,
            receiver,
            open,
        });
        group.count = 0;
    }

    /// Opens the messages of a group where they lie and empties it.
    pub(super) fn open(
        &mut self,
        now: Instant,
        group: &mut Group,
        inbox: &mut Inbox<'_>,
        out: &mut Batches,
    ) {
        let Some(session) = group.session.take() else {
            return;
        };
        let Some((index, key)) = session.open else {
            self.drops.unknown_session += group.count as u64;
            return;
        };
        let authentic = open_all(self.kernel, &key, group.messages(), inbox.storage);
        let mut controls = [(0, 0); MAX_JOBS];
        let mut arrived = Arrived::default();
        for (at, &(start, end)) in group.messages().iter().enumerate() {
            if authentic & (1 << at) == 0 {
                self.drops.unauthentic += 1;
                continue;
            }
            let message = &inbox.storage[start..end];
            let number = counter(message);
            let fresh = number.is_some_and(|counter| {
                let peer = self.peers.get_mut(index.0 as usize);
                peer.and_then(Peer::session)
                    .is_some_and(|keys| keys.accept(session.receiver, counter))
            });
            if !fresh {
                self.drops.replayed += 1;
                continue;
            }
            arrived.bytes += end - start;
            arrived.any = true;
            let packet = start + HEADER..end - TAG;
            if packet.is_empty() {
                continue;
            }
            match self.sort(now, index, inbox, packet) {
                Sorted::Control(range) => {
                    controls[arrived.controls] = (range.start, range.end);
                    arrived.controls += 1;
                }
                sorted => {
                    arrived.user |= matches!(sorted, Sorted::User);
                    // The path has carried it, whatever is thought of it here.
                    arrived.data += 1;
                    arrived.highest = arrived.highest.max(number.unwrap_or_default());
                }
            }
        }
        if !arrived.any {
            return;
        }
        let Self { peers, indices, .. } = self;
        if let Some(keys) = peers.get_mut(index.0 as usize).and_then(Peer::session) {
            keys.received(now, session.receiver, arrived.user, indices);
        }
        self.authenticated(
            now,
            session.path,
            index,
            session.receiver,
            arrived.bytes,
            out,
        );
        if arrived.data > 0
            && let Some(peer) = self.peers.get_mut(index.0 as usize)
        {
            let (highest, count) = (arrived.highest, arrived.data);
            peer.paths
                .received_data(session.path, now, session.receiver, highest, count);
            self.look_soon(now, index);
        }
        for &(start, end) in &controls[..arrived.controls] {
            let packet = inbox.storage[start..end].to_vec();
            if let Some(header) = IpHeader::parse(&packet) {
                self.handle_control(now, session.path, index, &header, &packet, out);
            }
        }
    }

    /// What an opened packet is; a user's goes to the network's device if it may be from this peer.
    #[inline]
    fn sort(
        &mut self,
        now: Instant,
        index: PeerIndex,
        inbox: &mut Inbox<'_>,
        range: Range<usize>,
    ) -> Sorted {
        let Some(header) = IpHeader::parse(&inbox.storage[range.clone()]) else {
            self.drops.malformed += 1;
            return Sorted::Dropped;
        };
        // What follows is padding.
        let range = range.start..range.start + header.length;
        if header.protocol == NEXT_HEADER && header.source.is_ipv6() {
            return Sorted::Control(range);
        }
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return Sorted::Dropped;
        };
        let Some(network) = self.networks.get_mut(&peer.network) else {
            return Sorted::Dropped;
        };
        if network.routes.lookup(header.source) != Some(index) {
            self.drops.wrong_source += 1;
            return Sorted::Dropped;
        }
        if opens_tcp(&header, &inbox.storage[range.clone()])
            && !network.is_own(header.destination)
            && let Some(route) = peer.paths.route()
        {
            clamp_mss(&mut inbox.storage[range.clone()], route.mtu);
        }
        peer.last_data = Some(now);
        peer.rx_bytes += range.len() as u64;
        inbox.push(peer.network, range);
        Sorted::User
    }
}

enum Sorted {
    User,
    Control(Range<usize>),
    Dropped,
}

/// What was in a group.
#[derive(Default)]
struct Arrived {
    any: bool,
    user: bool,
    bytes: usize,
    controls: usize,
    /// Packets that are no control messages, and the highest counter among them.
    data: u32,
    highest: u64,
}

/// Opens messages in place; a bit for each that authenticates.
fn open_all(kernel: Kernel, key: &Key, messages: &[(usize, usize)], storage: &mut [u8]) -> u64 {
    let mut jobs: [Job<'_>; MAX_JOBS] = std::array::from_fn(|_| Job::default());
    let (mut rest, mut offset) = (storage, 0);
    for (job, &(start, end)) in jobs.iter_mut().zip(messages) {
        let (_, from) = std::mem::take(&mut rest).split_at_mut(start - offset);
        let (message, behind) = from.split_at_mut(end - start);
        (rest, offset) = (behind, end);
        let counter = counter(message).unwrap_or_default();
        let data = &mut message[HEADER..];
        *job = Job { counter, data };
    }
    cipher::open(kernel, key, &mut jobs[..messages.len()])
}
