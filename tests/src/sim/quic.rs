//! The QUIC connection between relay and client, as a model.
//!
//! What matters to the core is kept: one ordered, reliable byte stream each way and datagrams beside it, carried by datagrams of the mesh socket
//! through the same NATs; the handshake's round trip and the proof of both keys; keep-alives, the idle timeout, the
//! stateless reset of a relay that restarted, and a client that may change its address at any time. Encryption,
//! congestion control and loss detection are left out, because nothing above can see them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use mesh_core::identity::NodeId;
use mesh_core::time::Instant;

/// A client that has sent nothing for this long pings.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A connection that has heard nothing for this long is gone.
const IDLE: Duration = Duration::from_secs(30);
/// A handshake that takes longer has failed.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// First retransmission; doubles up to [`MAX_RETRANSMIT`].
const RETRANSMIT: Duration = Duration::from_millis(300);
/// See [`RETRANSMIT`].
const MAX_RETRANSMIT: Duration = Duration::from_secs(3);
/// Bytes that short-header packets cost beside their content.
const OVERHEAD: usize = 40;
/// Bytes of a datagram that carries a client's first message (RFC 9000, section 14.1).
const INITIAL: usize = 1_200;
/// Stream bytes in one packet.
const CHUNK: usize = 1_100;

/// A packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which connection: its client chose the number.
    pub connection: u64,
    /// What the packet says.
    pub content: Content,
}

/// What a packet says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The client's first flight.
    Connect {
        /// Whose key the client proves.
        client: NodeId,
        /// Whose key it wants to see proved.
        relay: NodeId,
    },
    /// The relay's first flight.
    Accept {
        /// Whose key the relay proves.
        relay: NodeId,
    },
    /// Bytes of the control stream.
    Stream {
        /// Counts packets with stream bytes from 0.
        sequence: u64,
        /// The bytes; the first packet of a client has none and completes the handshake.
        bytes: Vec<u8>,
    },
    /// A datagram, which nobody acknowledges or repeats.
    Datagram(Vec<u8>),
    /// All stream packets below `next` have arrived.
    Ack {
        /// See the variant.
        next: u64,
    },
    /// Asks for an [`Content::Ack`].
    Ping,
    /// The relay does not know the connection.
    Reset,
    /// The sender is done with the connection.
    Close {
        /// Why, for people.
        reason: String,
    },
}

impl Frame {
    /// Bytes of the UDP payload.
    pub fn len(&self) -> usize {
        match &self.content {
            Content::Connect { .. } | Content::Accept { .. } => INITIAL,
            Content::Stream { bytes, .. } | Content::Datagram(bytes) => OVERHEAD + bytes.len(),
            Content::Close { reason } => OVERHEAD + reason.len(),
            Content::Ack { .. } | Content::Ping | Content::Reset => OVERHEAD,
        }
    }

    /// Never; for clippy's sake.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Something that came of a packet or of time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Both keys are proved. At the relay: this client's.
    Established(NodeId),
    /// Bytes of the control stream, in order.
    Bytes(Vec<u8>),
    /// A datagram.
    Datagram(Vec<u8>),
    /// The connection is over.
    Closed(String),
}

/// Where a connection stands.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Connecting {
        client: NodeId,
        since: Instant,
    },
    /// At the relay: the client's keys are not proved before it answers.
    Accepted {
        client: NodeId,
    },
    Established,
    Closed,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    id: u64,
    relay: NodeId,
    is_client: bool,
    state: State,
    next_out: u64,
    unacked: VecDeque<(u64, Vec<u8>)>,
    next_in: u64,
    early: BTreeMap<u64, Vec<u8>>,
    heard: Instant,
    /// First packet that wants an answer since something was heard.
    asked: Option<Instant>,
    sent: Instant,
    retransmit: Option<Instant>,
    pause: Duration,
    /// The last packet that was sent again because later ones had arrived.
    repaired: Option<u64>,
    out: Vec<Frame>,
}

impl Connection {
    /// A client's end, which starts to connect.
    pub(super) fn connect(now: Instant, id: u64, client: NodeId, relay: NodeId) -> Self {
        let mut connection = Self::new(
            now,
            id,
            relay,
            true,
            State::Connecting { client, since: now },
        );
        connection.push(now, Content::Connect { client, relay });
        connection.retransmit = Some(now + RETRANSMIT);
        connection
    }

    /// A relay's end, made by a client's first packet.
    pub(super) fn accept(now: Instant, id: u64, client: NodeId, relay: NodeId) -> Self {
        let mut connection = Self::new(now, id, relay, false, State::Accepted { client });
        connection.push(now, Content::Accept { relay });
        connection
    }

    fn new(now: Instant, id: u64, relay: NodeId, is_client: bool, state: State) -> Self {
        Self {
            id,
            relay,
            is_client,
            state,
            next_out: 0,
            unacked: VecDeque::new(),
            next_in: 0,
            early: BTreeMap::new(),
            heard: now,
            asked: None,
            sent: now,
            retransmit: None,
            pause: RETRANSMIT,
            repaired: None,
            out: Vec::new(),
        }
    }

    /// The number that its packets carry.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// True once it is over.
    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Packets to send now.
    pub(super) fn take_frames(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.out)
    }

    /// Appends to the control stream.
    pub(super) fn send(&mut self, now: Instant, bytes: &[u8]) {
        for chunk in bytes.chunks(CHUNK) {
            self.send_chunk(now, chunk.to_vec());
        }
    }

    fn send_chunk(&mut self, now: Instant, bytes: Vec<u8>) {
        let sequence = self.next_out;
        self.next_out += 1;
        self.unacked.push_back((sequence, bytes.clone()));
        if self.state == State::Established {
            self.push(now, Content::Stream { sequence, bytes });
            self.retransmit.get_or_insert(now + self.pause);
        }
    }

    /// Sends a datagram, once.
    pub(super) fn send_datagram(&mut self, now: Instant, bytes: Vec<u8>) {
        if self.state == State::Established {
            self.push(now, Content::Datagram(bytes));
        }
    }

    /// Ends it and tells the other side.
    pub(super) fn close(&mut self, now: Instant, reason: &str) {
        if !self.is_closed() {
            let reason = reason.to_owned();
            self.push(now, Content::Close { reason });
            self.state = State::Closed;
        }
    }

    fn push(&mut self, now: Instant, content: Content) {
        if !matches!(content, Content::Ack { .. }) {
            self.asked.get_or_insert(now);
            self.sent = now;
        }
        let connection = self.id;
        self.out.push(Frame {
            connection,
            content,
        });
    }

    /// A packet of this connection arrived.
    pub(super) fn receive(&mut self, now: Instant, content: Content) -> Vec<Notice> {
        if self.is_closed() {
            return Vec::new();
        }
        self.heard = now;
        self.asked = None;
        match content {
            Content::Connect { .. } => {
                if let State::Accepted { .. } = self.state {
                    self.push(now, Content::Accept { relay: self.relay });
                }
                Vec::new()
            }
            Content::Accept { relay } => self.accepted(now, relay),
            Content::Stream { sequence, bytes } => self.stream(now, sequence, bytes),
            Content::Datagram(bytes) => {
                let established = self.state == State::Established;
                established
                    .then_some(Notice::Datagram(bytes))
                    .into_iter()
                    .collect()
            }
            Content::Ack { next } => {
                self.acknowledged(now, next);
                Vec::new()
            }
            Content::Ping => {
                self.push(now, Content::Ack { next: self.next_in });
                Vec::new()
            }
            Content::Reset => self.over("the relay has restarted"),
            Content::Close { reason } => self.over(&reason),
        }
    }

    fn accepted(&mut self, now: Instant, relay: NodeId) -> Vec<Notice> {
        if !matches!(self.state, State::Connecting { .. }) {
            return Vec::new();
        }
        if relay != self.relay {
            self.close(now, "the relay has another key");
            return vec![Notice::Closed("the relay has another key".to_owned())];
        }
        self.state = State::Established;
        self.pause = RETRANSMIT;
        self.retransmit = None;
        self.send_chunk(now, Vec::new());
        vec![Notice::Established(relay)]
    }

    fn stream(&mut self, now: Instant, sequence: u64, bytes: Vec<u8>) -> Vec<Notice> {
        let mut notices = Vec::new();
        if let State::Accepted { client } = self.state {
            self.state = State::Established;
            notices.push(Notice::Established(client));
            for (sequence, bytes) in self.unacked.clone() {
                self.push(now, Content::Stream { sequence, bytes });
            }
        }
        if sequence >= self.next_in {
            self.early.insert(sequence, bytes);
        }
        while let Some(bytes) = self.early.remove(&self.next_in) {
            self.next_in += 1;
            if !bytes.is_empty() {
                notices.push(Notice::Bytes(bytes));
            }
        }
        self.push(now, Content::Ack { next: self.next_in });
        notices
    }

    fn acknowledged(&mut self, now: Instant, next: u64) {
        let mut advances = false;
        while self
            .unacked
            .front()
            .is_some_and(|(sequence, _)| *sequence < next)
        {
            self.unacked.pop_front();
            advances = true;
        }
        if advances || self.unacked.is_empty() {
            self.pause = RETRANSMIT;
            self.retransmit = (!self.unacked.is_empty()).then(|| now + self.pause);
        } else if let Some((sequence, bytes)) = self.unacked.front().cloned()
            && self.repaired != Some(sequence)
        {
            // Something later has arrived, and this has not (RFC 9002, section 6.1).
            self.repaired = Some(sequence);
            self.push(now, Content::Stream { sequence, bytes });
        }
    }

    fn over(&mut self, reason: &str) -> Vec<Notice> {
        self.state = State::Closed;
        vec![Notice::Closed(reason.to_owned())]
    }

    /// When [`Self::handle_timeout`] has to run; `None` once it is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let base = match self.state {
            State::Closed => return None,
            State::Connecting { since, .. } => since + HANDSHAKE,
            State::Accepted { .. } | State::Established => self.idle_deadline(),
        };
        let keep_alive =
            (self.is_client && self.state == State::Established).then(|| self.sent + KEEP_ALIVE);
        [Some(base), keep_alive, self.retransmit]
            .into_iter()
            .flatten()
            .min()
    }

    /// RFC 9000, section 10.1: what is received restarts the timer, and so does the first packet that wants an answer.
    fn idle_deadline(&self) -> Instant {
        self.asked.unwrap_or(self.heard).max(self.heard) + IDLE
    }

    /// Retransmits, keeps alive and gives up.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<Notice> {
        match self.state {
            State::Closed => return Vec::new(),
            State::Connecting { since, .. } if now >= since + HANDSHAKE => {
                return self.over("no answer from the relay");
            }
            State::Accepted { .. } | State::Established if now >= self.idle_deadline() => {
                return self.over("the relay has not answered for 30 seconds");
            }
            _ => {}
        }
        if self.retransmit.is_some_and(|at| now >= at) {
            self.pause = (self.pause * 2).min(MAX_RETRANSMIT);
            self.retransmit = Some(now + self.pause);
            if let State::Connecting { client, .. } = self.state {
                self.push(
                    now,
                    Content::Connect {
                        client,
                        relay: self.relay,
                    },
                );
            } else {
                for (sequence, bytes) in self.unacked.clone() {
                    self.push(now, Content::Stream { sequence, bytes });
                }
            }
        }
        if self.is_client && self.state == State::Established && now >= self.sent + KEEP_ALIVE {
            self.push(now, Content::Ping);
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::identity::Identity;
    use zeroize::Zeroizing;

    use super::*;

    fn id(seed: u8) -> NodeId {
        Identity::from_seed(Zeroizing::new([seed; 32])).id()
    }

    fn at(milliseconds: u64) -> Instant {
        Instant::from_boot(Duration::from_millis(1_000_000 + milliseconds))
    }

    /// Carries packets between the ends until there are none; `lose` says which to forget.
    fn exchange(
        now: Instant,
        client: &mut Connection,
        relay: &mut Connection,
        mut lose: impl FnMut() -> bool,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        loop {
            let (up, down) = (client.take_frames(), relay.take_frames());
            if up.is_empty() && down.is_empty() {
                return notices;
            }
            for frame in up {
                if !lose() {
                    notices.extend(relay.receive(now, frame.content));
                }
            }
            for frame in down {
                if !lose() {
                    notices.extend(client.receive(now, frame.content));
                }
            }
        }
    }

    fn connected() -> (Connection, Connection) {
        let mut client = Connection::connect(at(0), 1, id(1), id(2));
        client.take_frames();
        let mut relay = Connection::accept(at(0), 1, id(1), id(2));
        let notices = exchange(at(0), &mut client, &mut relay, || false);
        assert_eq!(
            notices,
            [Notice::Established(id(2)), Notice::Established(id(1))]
        );
        (client, relay)
    }

    #[test]
    fn both_ends_learn_whom_they_talk_to_and_bytes_arrive_in_order() {
        let (mut client, mut relay) = connected();
        client.send(at(1), b"one");
        client.send(at(1), b"two");
        relay.send(at(1), b"three");
        let notices = exchange(at(1), &mut client, &mut relay, || false);
        let bytes = |text: &[u8]| Notice::Bytes(text.to_vec());
        assert_eq!(notices, [bytes(b"one"), bytes(b"two"), bytes(b"three")]);
        assert!(client.retransmit.is_none() && relay.retransmit.is_none());
    }

    #[test]
    fn what_is_lost_arrives_later_and_once() {
        let (mut client, mut relay) = connected();
        client.send(at(1), b"one");
        client.send(at(1), b"two");
        let mut first = true;
        let notices = exchange(at(1), &mut client, &mut relay, || {
            std::mem::take(&mut first)
        });
        assert_eq!(notices, []);
        let later = client.deadline().unwrap();
        assert_eq!(later, at(301));
        assert_eq!(client.handle_timeout(later), []);
        let notices = exchange(later, &mut client, &mut relay, || false);
        assert_eq!(
            notices,
            [
                Notice::Bytes(b"one".to_vec()),
                Notice::Bytes(b"two".to_vec())
            ]
        );
    }

    #[test]
    fn an_idle_connection_is_kept_alive_and_a_dead_one_is_noticed() {
        let (mut client, mut relay) = connected();
        for round in 1..10 {
            let now = client.deadline().unwrap();
            assert_eq!(now, at(round * 15_000));
            assert_eq!(client.handle_timeout(now), []);
            assert_eq!(exchange(now, &mut client, &mut relay, || false), []);
        }
        let mut notices = Vec::new();
        while notices.is_empty() {
            let now = client.deadline().unwrap();
            notices = client.handle_timeout(now);
            client.take_frames();
        }
        assert!(client.is_closed() && client.deadline().is_none());
    }

    #[test]
    fn nobody_answers_a_dial_for_ten_seconds_at_most() {
        let mut client = Connection::connect(at(0), 1, id(1), id(2));
        let mut now = at(0);
        while !client.is_closed() {
            now = client.deadline().unwrap();
            client.handle_timeout(now);
        }
        assert_eq!(now, at(10_000));
    }

    #[test]
    fn a_relay_with_another_key_is_not_talked_to() {
        let mut client = Connection::connect(at(0), 1, id(1), id(2));
        let notices = client.receive(at(1), Content::Accept { relay: id(3) });
        assert_eq!(
            notices,
            [Notice::Closed("the relay has another key".to_owned())]
        );
    }
}
