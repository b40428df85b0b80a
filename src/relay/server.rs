//! The relay: which node may use it, where each one is, and what goes where.
//!
//! A client connects over QUIC with its node key ([`Server::handle_connected`]), says hello and is admitted or not. It
//! may then send packets to other clients over its control stream, and open channels: numbers under which the relay
//! forwards plain UDP between the addresses that both clients have *proved*, by their handshake or by returning a
//! challenge. All else is told that it has to prove itself first ([`Verdict::Reply`] with a rebind).
//!
//! Feed events in by the `handle_*` methods, then drain [`Server::poll_output`] until it returns `None` and arrange to
//! call [`Server::handle_timeout`] at [`Server::poll_timeout`]. Addresses are canonical: IPv4 is never in IPv6 form.

mod channels;
mod datagrams;
mod stats;
mod types;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use rand_chacha::ChaCha12Rng;
use rand_core::{Rng as _, SeedableRng as _};
use slab::Slab;

use self::channels::{Channels, EndIndex};
pub use self::stats::{DropReason, Load, Stats};
pub use self::types::{
    Access, CloseReason, ConnId, Local, Output, Reply, Settings, Socket, Verdict,
};
use crate::identity::NodeId;
use crate::limits;
use crate::rate::{Bucket, Rate};
use crate::time::Instant;
use crate::wire::relay::{
    ClientMessage, PROTOCOL_VERSION, Refusal, ServerMessage, challenge_frame,
};

/// A connection.
#[derive(Debug)]
struct Client {
    conn: ConnId,
    node: NodeId,
    /// Proved, by the QUIC handshake or by a challenge.
    address: SocketAddr,
    local: Local,
    /// Where QUIC packets come from now, if that is not proved yet.
    challenge: Option<Challenge>,
    /// Has said hello and was welcomed.
    admitted: bool,
    /// Encoded messages that the shell has not taken yet.
    outbox: Vec<u8>,
    /// Our ends of its channels, by the other client.
    channels: BTreeMap<usize, EndIndex>,
    /// When the hello or the answer to a challenge is due.
    deadline: Option<Instant>,
    bytes: Bucket,
    messages: Bucket,
    /// STUN answers from the other port to its IP address.
    knocks: Bucket,
}

/// A question to an unproven address.
#[derive(Debug, Clone, Copy)]
struct Challenge {
    address: SocketAddr,
    nonce: u64,
    /// How many were sent.
    sent: usize,
}

/// The state of a relay; lost without harm.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    rng: ChaCha12Rng,
    clients: Slab<Client>,
    by_conn: BTreeMap<ConnId, usize>,
    /// Admitted clients only, as are the addresses.
    by_node: BTreeMap<NodeId, usize>,
    by_address: BTreeSet<(SocketAddr, usize)>,
    channels: Channels,
    timers: BTreeSet<(Instant, usize)>,
    outputs: VecDeque<Output>,
    /// Bytes in all outboxes.
    queued: usize,
    /// Clients whose outbox overflowed, to be closed before the input is done with.
    slow: Vec<ConnId>,
    stats: Stats,
    byte_rate: Rate,
    message_rate: Rate,
    rebind_rate: Rate,
    knock_rate: Rate,
    rebinds: Bucket,
}

impl Server {
    /// A relay without clients; nonces and channel numbers come from `seed`.
    pub fn new(settings: Settings, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha12Rng::from_seed(seed);
        let burst = settings.rate_limit / (1_000 / limits::RELAY_BURST.as_millis() as u64);
        Self {
            byte_rate: Rate::new(settings.rate_limit, burst.max(limits::RELAY_MIN_BURST)),
            message_rate: Rate::new(limits::RELAY_MESSAGES.0, limits::RELAY_MESSAGES.1),
            rebind_rate: Rate::new(limits::RELAY_REBINDS.0, limits::RELAY_REBINDS.1),
            knock_rate: Rate::new(limits::RELAY_KNOCKS.0, limits::RELAY_KNOCKS.1),
            rebinds: Bucket::default(),
            settings,
            clients: Slab::new(),
            by_conn: BTreeMap::new(),
            by_node: BTreeMap::new(),
            by_address: BTreeSet::new(),
            channels: Channels::new(std::array::from_fn(|_| rng.next_u32())),
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
            queued: 0,
            slow: Vec::new(),
            stats: Stats::default(),
            rng,
        }
    }

    /// Admitted clients.
    pub fn clients(&self) -> usize {
        self.by_node.len()
    }

    /// What there is just now.
    pub fn load(&self) -> Load {
        Load {
            clients: self.by_node.len(),
            newcomers: self.clients.len() - self.by_node.len(),
            channels: self.channels.open_count(),
            queued_bytes: self.queued,
        }
    }

    /// What was done so far.
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Counts what the shell had to drop.
    pub const fn count_drops(&mut self, reason: DropReason, times: u64) {
        self.stats.count(reason, times);
    }

    /// A QUIC handshake is complete: the other side has proved its key, and that it receives at `remote`.
    pub fn handle_connected(
        &mut self,
        now: Instant,
        conn: ConnId,
        node: NodeId,
        remote: SocketAddr,
    ) {
        if self.clients.len() - self.by_node.len() >= limits::RELAY_NEWCOMERS {
            self.stats.count(DropReason::NewcomerLimit, 1);
            self.outputs.push_back(Output::Close {
                conn,
                last: Vec::new(),
                reason: CloseReason::Busy,
            });
            return;
        }
        let slot = self.clients.insert(Client {
            conn,
            node,
            address: remote,
            local: Local::default(),
            challenge: None,
            admitted: false,
            outbox: Vec::new(),
            channels: BTreeMap::new(),
            deadline: None,
            bytes: Bucket::default(),
            messages: Bucket::default(),
            knocks: Bucket::default(),
        });
        self.by_conn.insert(conn, slot);
        self.set_deadline(slot, Some(now + limits::RELAY_HELLO_TIMEOUT));
    }

    /// Tells which of the relay's addresses a client talks to, when that is known to have changed.
    pub fn set_local(&mut self, conn: ConnId, local: Local) {
        if let Some(&slot) = self.by_conn.get(&conn) {
            self.clients[slot].local = local;
        }
    }

    /// The connection is gone.
    pub fn handle_closed(&mut self, conn: ConnId) {
        if let Some(&slot) = self.by_conn.get(&conn) {
            self.remove(slot);
            self.settle();
        }
    }

    /// The client's QUIC packets come from `remote`. To be told whenever that may have changed; a known address costs
    /// nothing.
    pub fn handle_address(&mut self, now: Instant, conn: ConnId, remote: SocketAddr) {
        let Some((slot, client)) = self.admitted(conn) else {
            return;
        };
        if client.address == remote {
            client.challenge = None;
            self.set_deadline(slot, None);
            return;
        }
        match &client.challenge {
            // While it is being asked, asking again is the timer's business.
            Some(challenge) if challenge.address == remote && client.deadline.is_some() => {}
            _ => {
                let nonce = self.rng.next_u64();
                self.clients[slot].challenge = Some(Challenge {
                    address: remote,
                    nonce,
                    sent: 0,
                });
                self.send_challenge(now, slot);
            }
        }
    }

    /// A message came on a control stream.
    pub fn handle_message(&mut self, now: Instant, conn: ConnId, message: ClientMessage) {
        let Some(&slot) = self.by_conn.get(&conn) else {
            return;
        };
        let rate = self.message_rate;
        let client = &mut self.clients[slot];
        if !client.messages.take(now, rate, 1) {
            self.stats.count(DropReason::MessageLimit, 1);
            return;
        }
        match (client.admitted, message) {
            (false, ClientMessage::Hello { version }) => self.hello(slot, version),
            (false, _) | (true, ClientMessage::Hello { .. }) => self.handle_malformed(conn),
            (true, ClientMessage::Ping { nonce }) => {
                self.send(slot, &ServerMessage::Pong { nonce })
            }
            (true, ClientMessage::Send { to, packet }) => self.send_packet(slot, to, packet),
            (true, ClientMessage::OpenChannel { peer }) => self.open_channel(slot, peer),
            (true, ClientMessage::CloseChannel { channel }) => self.close_channel(slot, channel),
            (true, ClientMessage::ProveAddress { nonce }) => self.prove_address(slot, nonce),
            (true, ClientMessage::Knock { port, txn }) => self.knock(now, slot, port, &txn),
        }
        self.settle();
    }

    /// What came on a control stream is no message.
    pub fn handle_malformed(&mut self, conn: ConnId) {
        if let Some(&slot) = self.by_conn.get(&conn) {
            self.stats.count(DropReason::MalformedMessage, 1);
            self.close(slot, CloseReason::Protocol);
            self.settle();
        }
    }

    /// Acts on every deadline that has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(deadline, slot)) = self.timers.first()
            && deadline <= now
        {
            self.set_deadline(slot, None);
            if !self.clients[slot].admitted {
                self.close(slot, CloseReason::NoHello);
            } else if self.clients[slot].challenge.is_some() {
                self.send_challenge(now, slot);
            }
        }
        self.settle();
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(deadline, _)| *deadline)
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The messages that wait for a client, encoded, at most [`limits::RELAY_QUEUE_BYTES`]. Each client is to be asked
    /// only when its stream has taken what was fetched before, so that a slow one costs no more than that.
    pub fn take_messages(&mut self, conn: ConnId) -> Vec<u8> {
        match self.by_conn.get(&conn) {
            Some(&slot) => {
                let messages = std::mem::take(&mut self.clients[slot].outbox);
                self.queued -= messages.len();
                messages
            }
            None => Vec::new(),
        }
    }

    /// Tells every client that the relay stops, and closes all connections.
    pub fn stop(&mut self) {
        let slots: Vec<usize> = self.clients.iter().map(|(slot, _)| slot).collect();
        for &slot in &slots {
            // That their peers are gone, too, is no news to anybody now.
            self.clients[slot].channels.clear();
        }
        for slot in slots {
            self.send(slot, &ServerMessage::Draining);
            self.close(slot, CloseReason::Stopping);
        }
        self.channels.clear();
        self.slow.clear();
    }

    fn hello(&mut self, slot: usize, version: u8) {
        let node = self.clients[slot].node;
        let refusal = if version < PROTOCOL_VERSION {
            Some(Refusal::Version)
        } else if !self.settings.access.admits(&node) {
            Some(Refusal::NotAdmitted)
        } else if self.clients() >= limits::RELAY_CLIENTS && !self.by_node.contains_key(&node) {
            Some(Refusal::Full)
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.send(slot, &ServerMessage::Refused { reason });
            self.close(slot, CloseReason::Refused(reason));
            return;
        }
        if let Some(&older) = self.by_node.get(&node) {
            self.send(older, &ServerMessage::Replaced);
            self.close(older, CloseReason::Replaced);
        }
        self.set_deadline(slot, None);
        let client = &mut self.clients[slot];
        client.admitted = true;
        let observed = client.address;
        self.by_node.insert(node, slot);
        self.by_address.insert((observed, slot));
        let welcome = ServerMessage::Welcome {
            version: PROTOCOL_VERSION,
            observed,
            alternatives: self.settings.alternatives,
        };
        self.send(slot, &welcome);
    }

    fn send_packet(&mut self, slot: usize, to: NodeId, packet: Vec<u8>) {
        let from = self.clients[slot].node;
        let Some(&target) = self.by_node.get(&to) else {
            self.send(slot, &ServerMessage::PeerGone { peer: to });
            return;
        };
        // Packets may be lost; a receiver that is slow loses them before anything else.
        let waiting = self.clients[target].outbox.len() + packet.len();
        let total = self.queued + packet.len();
        if waiting > limits::RELAY_QUEUE_BYTES / 2 || total > limits::RELAY_TOTAL_QUEUE_BYTES {
            self.stats.count(DropReason::SlowClient, 1);
            return;
        }
        self.stats.packets += 1;
        self.send(target, &ServerMessage::Received { from, packet });
    }

    fn open_channel(&mut self, slot: usize, peer: NodeId) {
        let gone = ServerMessage::PeerGone { peer };
        let target = match self.by_node.get(&peer) {
            Some(&target) if target != slot => target,
            _ => return self.send(slot, &gone),
        };
        let existing = self.clients[slot].channels.get(&target).copied();
        let Some(end) = existing.or_else(|| self.new_channel(slot, target)) else {
            self.stats.count(DropReason::ChannelLimit, 1);
            return self.send(slot, &gone);
        };
        self.announce(slot, end);
        if existing.is_none()
            && let Some(end) = self.clients[target].channels.get(&slot).copied()
        {
            self.announce(target, end);
        }
    }

    fn new_channel(&mut self, slot: usize, target: usize) -> Option<EndIndex> {
        let full =
            |slot: usize| self.clients[slot].channels.len() >= limits::RELAY_CHANNELS_PER_CLIENT;
        if full(slot) || full(target) {
            return None;
        }
        let (end, twin) = self.channels.open(slot, target)?;
        self.clients[slot].channels.insert(target, end);
        self.clients[target].channels.insert(slot, twin);
        Some(end)
    }

    /// Tells a client the number of its end of a channel, and where the other one is.
    fn announce(&mut self, slot: usize, end: EndIndex) {
        let Some(end) = self.channels.get(end).copied() else {
            return;
        };
        let Some(twin) = self.channels.get(end.twin) else {
            return;
        };
        let peer = &self.clients[twin.owner];
        let message = ServerMessage::Channel {
            peer: peer.node,
            channel: end.number,
            peer_addr: Some(peer.address),
        };
        self.send(slot, &message);
    }

    fn close_channel(&mut self, slot: usize, number: u32) {
        let Some(end) = self.channels.find(number) else {
            return;
        };
        let Some(twin) = self.channels.get(end.twin) else {
            return;
        };
        if end.owner == slot {
            let (twin_index, target) = (end.twin, twin.owner);
            self.channels.close(twin_index);
            self.forget_channel(slot, target);
        }
    }

    /// Removes a channel, whose ends are closed, from both clients and tells the second one.
    fn forget_channel(&mut self, slot: usize, target: usize) {
        let node = self.clients[slot].node;
        self.clients[slot].channels.remove(&target);
        self.clients[target].channels.remove(&slot);
        self.send(target, &ServerMessage::PeerGone { peer: node });
    }

    fn prove_address(&mut self, slot: usize, nonce: u64) {
        let client = &mut self.clients[slot];
        let Some(challenge) = client.challenge.take_if(|c| c.nonce == nonce) else {
            // An answer to an older challenge: not wrong, only late.
            return;
        };
        let addr = challenge.address;
        self.by_address.remove(&(client.address, slot));
        self.by_address.insert((addr, slot));
        client.address = addr;
        self.set_deadline(slot, None);
        self.send(slot, &ServerMessage::Observed { addr });
    }

    fn send_challenge(&mut self, now: Instant, slot: usize) {
        let client = &mut self.clients[slot];
        let local = client.local;
        let Some(challenge) = &mut client.challenge else {
            return;
        };
        let payload = challenge_frame(challenge.nonce).to_vec();
        let to = challenge.address;
        let Some(wait) = limits::RELAY_CHALLENGE_WAITS.get(challenge.sent) else {
            return;
        };
        challenge.sent += 1;
        self.set_deadline(slot, Some(now + *wait));
        self.outputs
            .push_back(Output::Datagram { to, local, payload });
    }

    fn admitted(&mut self, conn: ConnId) -> Option<(usize, &mut Client)> {
        let slot = *self.by_conn.get(&conn)?;
        let client = self.clients.get_mut(slot)?;
        client.admitted.then_some((slot, client))
    }

    fn set_deadline(&mut self, slot: usize, deadline: Option<Instant>) {
        if let Some(old) = std::mem::replace(&mut self.clients[slot].deadline, deadline) {
            self.timers.remove(&(old, slot));
        }
        if let Some(new) = deadline {
            self.timers.insert((new, slot));
        }
    }

    /// Puts a message into a client's queue. A client that lets it overflow is closed by [`Self::settle`].
    fn send(&mut self, slot: usize, message: &ServerMessage) {
        let Some(client) = self.clients.get_mut(slot) else {
            return;
        };
        let before = client.outbox.len();
        message.encode(&mut client.outbox);
        let after = client.outbox.len();
        if after > limits::RELAY_QUEUE_BYTES {
            client.outbox.truncate(before);
            self.stats.count(DropReason::SlowClient, 1);
            self.slow.push(client.conn);
            return;
        }
        self.queued += after - before;
        if before == 0 {
            self.outputs.push_back(Output::Wake(client.conn));
        }
    }

    /// Closes the clients whose queue overflowed. Not done in [`Self::send`], as it tells their peers, whose queues
    /// may overflow in turn.
    fn settle(&mut self) {
        while let Some(conn) = self.slow.pop() {
            if let Some(&slot) = self.by_conn.get(&conn) {
                self.close(slot, CloseReason::Slow);
            }
        }
    }

    fn close(&mut self, slot: usize, reason: CloseReason) {
        if let Some(client) = self.remove(slot) {
            self.outputs.push_back(Output::Close {
                conn: client.conn,
                last: client.outbox,
                reason,
            });
        }
    }

    /// Forgets a client and tells the other ends of its channels.
    fn remove(&mut self, slot: usize) -> Option<Client> {
        self.clients.get(slot)?;
        self.set_deadline(slot, None);
        let client = self.clients.remove(slot);
        self.queued -= client.outbox.len();
        self.by_conn.remove(&client.conn);
        if client.admitted {
            self.by_node.remove(&client.node);
            self.by_address.remove(&(client.address, slot));
        }
        let gone = ServerMessage::PeerGone { peer: client.node };
        for (&target, &end) in &client.channels {
            self.channels.close(end);
            if let Some(other) = self.clients.get_mut(target) {
                other.channels.remove(&slot);
            }
        }
        for &target in client.channels.keys() {
            self.send(target, &gone);
        }
        Some(client)
    }
}

#[cfg(test)]
mod tests;
