//! The datagrams beside QUIC: data frames and STUN.

use std::net::SocketAddr;

use super::{DropReason, Output, Reply, Server, Socket, Verdict};
use crate::limits;
use crate::time::Instant;
use crate::wire::relay::{Frame, parse_frame, rebind_frame, write_data_header};
use crate::wire::stun::{Change, TransactionId};
use crate::wire::{Protocol, classify, stun};

impl Server {
    /// A datagram came, or one segment of a GRO buffer. Nothing is allocated here; the bytes change only with
    /// [`Verdict::Forward`].
    pub fn handle_udp(
        &mut self,
        now: Instant,
        socket: Socket,
        from: SocketAddr,
        segment: &mut [u8],
    ) -> Verdict {
        match (classify(segment), socket) {
            (Protocol::RelayFrame, Socket::Main) => self.forward(now, from, segment),
            (Protocol::Quic, Socket::Main) => Verdict::Quic,
            (Protocol::Stun, _) => self.answer_stun(now, socket, from, segment),
            (_, Socket::Main) => self.dropped(DropReason::UnknownProtocol),
            (_, Socket::Alt) => self.dropped(DropReason::WrongPort),
        }
    }

    fn forward(&mut self, now: Instant, from: SocketAddr, segment: &mut [u8]) -> Verdict {
        let Ok(Frame::Data { channel, .. }) = parse_frame(segment) else {
            return self.dropped(DropReason::MalformedFrame);
        };
        let Some((owner, twin)) = self
            .channels
            .find(channel)
            .and_then(|end| Some((end.owner, self.channels.get(end.twin)?)))
        else {
            return self.rebind(now, channel, DropReason::UnknownChannel);
        };
        let sender = &mut self.clients[owner];
        if sender.address != from {
            return self.rebind(now, channel, DropReason::UnprovenAddress);
        }
        let len = segment.len() as u64;
        if !sender
            .bytes
            .take(now, self.byte_rate, len.max(limits::RELAY_MIN_CHARGE))
        {
            return self.dropped(DropReason::RateLimit);
        }
        write_data_header(segment, twin.number);
        self.stats.frames += 1;
        self.stats.bytes += len;
        let receiver = &self.clients[twin.owner];
        Verdict::Forward {
            to: receiver.address,
            local: receiver.local,
        }
    }

    fn rebind(&mut self, now: Instant, channel: u32, reason: DropReason) -> Verdict {
        self.stats.count(reason, 1);
        if !self.rebinds.take(now, self.rebind_rate, 1) {
            return self.dropped(DropReason::RebindLimit);
        }
        let frame = rebind_frame(channel);
        let mut buffer = [0; stun::MAX_RESPONSE];
        buffer[..frame.len()].copy_from_slice(&frame);
        Verdict::Reply(Reply {
            socket: Socket::Main,
            other_address: false,
            buffer,
            len: frame.len(),
        })
    }

    fn answer_stun(
        &mut self,
        now: Instant,
        socket: Socket,
        from: SocketAddr,
        segment: &[u8],
    ) -> Verdict {
        let Ok(stun::Message::Request {
            txn,
            change,
            len: asked,
        }) = stun::parse(segment)
        else {
            return self.dropped(DropReason::MalformedStun);
        };
        let there = self.settings.alternatives;
        let other_address = change == Change::Address;
        let socket = match (socket, change) {
            (socket, Change::Nothing) => socket,
            (_, Change::Address) if there.address.is_some() && from.is_ipv4() => Socket::Main,
            (Socket::Alt, Change::Port) => Socket::Main,
            (Socket::Main, Change::Port) if there.port.is_some() => Socket::Alt,
            (_, Change::Address | Change::Port) => {
                return self.dropped(DropReason::MalformedStun);
            }
        };
        let mut buffer = [0; stun::MAX_RESPONSE];
        let len = stun::write_binding_response(&mut buffer, &txn, from);
        if asked < len {
            return self.dropped(DropReason::SmallStun);
        }
        if change != Change::Nothing
            && let Err(reason) = self.may_knock(now, from)
        {
            return self.dropped(reason);
        }
        self.stats.stun += 1;
        Verdict::Reply(Reply {
            socket,
            other_address,
            buffer,
            len,
        })
    }

    /// Whether an answer may go from a port that was not sent to. Whoever asks for this from a forged address would have
    /// us knock at a stranger's NAT, so it is for addresses that a client has proved, and not often: no larger than what
    /// came, at any port, because clients measure on sockets that they use for nothing else.
    fn may_knock(&mut self, now: Instant, to: SocketAddr) -> Result<(), DropReason> {
        let ip = to.ip();
        let first = (SocketAddr::new(ip, 0), 0);
        let last = (SocketAddr::new(ip, u16::MAX), usize::MAX);
        let clients = self.by_address.range(first..=last);
        let mut here = clients.filter(|(proved, _)| proved.ip() == ip).peekable();
        if here.peek().is_none() {
            return Err(DropReason::UnprovenStun);
        }
        let (rate, clients) = (self.knock_rate, &mut self.clients);
        let mut spare = here.take(limits::RELAY_KNOCKERS);
        if spare.any(|(_, slot)| clients[*slot].knocks.take(now, rate, 1)) {
            Ok(())
        } else {
            Err(DropReason::StunLimit)
        }
    }

    /// Sends a client what its NAT has not been asked for: to the address that it has proved and to no other, as seldom as
    /// [`Self::may_knock`] lets anybody, and no more bytes than its message had.
    pub(super) fn knock(&mut self, now: Instant, slot: usize, port: u16, txn: &TransactionId) {
        let rate = self.knock_rate;
        let client = &mut self.clients[slot];
        if !client.knocks.take(now, rate, 1) {
            self.stats.count(DropReason::StunLimit, 1);
            return;
        }
        let (to, local) = (SocketAddr::new(client.address.ip(), port), client.local);
        let payload = stun::binding_response(txn, to);
        self.stats.stun += 1;
        self.outputs
            .push_back(Output::Datagram { to, local, payload });
    }

    const fn dropped(&mut self, reason: DropReason) -> Verdict {
        self.stats.count(reason, 1);
        Verdict::Dropped(reason)
    }
}
