//! Opens what arrives, in groups: packets of one session and one path that follow each other.

use std::ops::Range;
use std::sync::Arc;

use super::{Drops, Engine, Network, NetworkIndex};
use crate::batch::{Batches, Inbox};
use crate::offload::{clamp_mss, opens_tcp};
use crate::path::PathKey;
use crate::path::agent::PathSet;
use crate::peer::PeerIndex;
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
    /// True if a message is data of the session and path that the group is for, and may follow those that it has.
    #[inline]
    pub(super) fn takes(&self, path: &PathKey, message: &[u8]) -> bool {
        self.session.as_ref().is_some_and(|session| {
            message[0] == 4
                && number(message, 4) == Some(session.receiver)
                && session.path == *path
                && self.count < MAX_JOBS
        })
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
    /// Begins an empty group with a data message.
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
        let Some((index, key)) = &session.open else {
            self.drops.unknown_session += group.count as u64;
            return;
        };
        let index = *index;
        let authentic = open_all(self.kernel, key, group.messages(), inbox.storage);
        let Self {
            peers,
            networks,
            indices,
            drops,
            ..
        } = self;
        let Some(peer) = peers.get_mut(index.0 as usize) else {
            return;
        };
        let name = peer.network;
        let (Some(keys), paths) = peer.session_and_paths() else {
            return;
        };
        let (Some(network), Some(window)) =
            (networks.get_mut(&name), keys.receiving(session.receiver))
        else {
            return;
        };
        let mut sorter = Sorter {
            peer: index,
            name,
            network,
            paths,
            drops,
            arrived: Arrived::default(),
        };
        for (at, &(start, end)) in group.messages().iter().enumerate() {
            let number = counter(&inbox.storage[start..end]).unwrap_or(u64::MAX);
            if authentic & (1 << at) == 0 {
                sorter.drops.unauthentic += 1;
            } else if !window.accept(number) {
                sorter.drops.replayed += 1;
            } else {
                sorter.arrived.messages += 1;
                sorter.arrived.bytes += end - start;
                sorter.take(number, start + HEADER..end - TAG, inbox);
            }
        }
        let arrived = sorter.arrived;
        if arrived.messages == 0 {
            return;
        }
        let user = arrived.user_bytes > 0;
        keys.received(now, session.receiver, user, indices);
        if user {
            peer.last_data = Some(now);
            peer.rx_bytes += arrived.user_bytes;
        }
        self.opened(now, index, &session, &arrived, inbox, out);
    }

    /// Draws the conclusions from what was in a group.
    fn opened(
        &mut self,
        now: Instant,
        index: PeerIndex,
        session: &GroupSession,
        arrived: &Arrived,
        inbox: &Inbox<'_>,
        out: &mut Batches,
    ) {
        let (path, receiver) = (session.path, session.receiver);
        self.authenticated(now, path, index, receiver, arrived.bytes, out);
        if arrived.data > 0
            && let Some(peer) = self.peers.get_mut(index.0 as usize)
        {
            let (highest, count) = (arrived.highest, arrived.data);
            peer.paths
                .received_data(path, now, receiver, highest, count);
            self.look_soon(now, index);
        }
        for &(start, end) in &arrived.controls[..arrived.control_count] {
            let packet = inbox.storage[start..end].to_vec();
            if let Some(header) = IpHeader::parse(&packet) {
                self.handle_control(now, path, index, &header, &packet, out);
            }
        }
    }
}

/// What was in a group.
struct Arrived {
    /// Messages, and their bytes.
    messages: usize,
    bytes: usize,
    /// Of users' packets, as they go to the device.
    user_bytes: u64,
    /// Packets that are no control messages, and the highest counter among them.
    data: u32,
    highest: u64,
    controls: [(usize, usize); MAX_JOBS],
    control_count: usize,
}

impl Default for Arrived {
    fn default() -> Self {
        Self {
            messages: 0,
            bytes: 0,
            user_bytes: 0,
            data: 0,
            highest: 0,
            controls: [(0, 0); MAX_JOBS],
            control_count: 0,
        }
    }
}

/// Tells what the packets of a group are, all from one peer.
struct Sorter<'a> {
    peer: PeerIndex,
    name: NetworkIndex,
    network: &'a mut Network,
    paths: &'a PathSet,
    drops: &'a mut Drops,
    arrived: Arrived,
}

impl Sorter<'_> {
    /// Takes the packet at `range`, which has just been opened and is no copy. A user's goes to the network's device if
    /// it may be from this peer.
    #[inline]
    fn take(&mut self, number: u64, range: Range<usize>, inbox: &mut Inbox<'_>) {
        if range.is_empty() {
            return;
        }
        let arrived = &mut self.arrived;
        let header = IpHeader::parse(&inbox.storage[range.clone()]);
        // What follows is padding.
        let length = header.map_or(0, |header| header.length);
        let range = range.start..range.start + length;
        if header.is_some_and(|header| is_control(&header)) {
            arrived.controls[arrived.control_count] = (range.start, range.end);
            arrived.control_count += 1;
            return;
        }
        // The path has carried it, whatever is thought of it here.
        arrived.data += 1;
        arrived.highest = arrived.highest.max(number);
        let Some(header) = header else {
            self.drops.malformed += 1;
            return;
        };
        if self.network.routes.lookup(header.source) != Some(self.peer) {
            self.drops.wrong_source += 1;
            return;
        }
        if opens_tcp(&header, &inbox.storage[range.clone()])
            && !self.network.is_own(header.destination)
            && let Some(route) = self.paths.route()
        {
            clamp_mss(&mut inbox.storage[range.clone()], route.mtu);
        }
        arrived.user_bytes += length as u64;
        inbox.push(self.name, range);
    }
}

fn is_control(header: &IpHeader) -> bool {
    header.protocol == NEXT_HEADER && header.source.is_ipv6()
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
