//! Datagrams on their way in.

use std::net::SocketAddr;
use std::ops::Range;

use crate::engine::{NetworkIndex, SocketId};
use crate::limits;

/// Datagrams of one size from one sender, as the kernel coalesced them; the last may be shorter.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) remote: SocketAddr,
    pub(crate) range: Range<usize>,
    pub(crate) stride: usize,
}

/// What one receive brought, and the packets that were in it.
///
/// Each packet has at least [`crate::session::HEADER`] bytes before it that nobody needs any more: room for the kernel's
/// `virtio_net_hdr`.
#[derive(Debug)]
pub struct ReceiveBatch {
    socket: SocketId,
    storage: Vec<u8>,
    messages: Vec<Message>,
    packets: Packets,
}

/// Inner packets that were opened where they lie; as many as there are datagrams at most.
#[derive(Debug, Default)]
struct Packets {
    ranges: Vec<Range<usize>>,
    /// Whose they are, and how many in a row.
    networks: Vec<(NetworkIndex, usize)>,
}

impl Packets {
    fn clear(&mut self) {
        self.ranges.clear();
        self.networks.clear();
    }
}

/// Where the engine leaves the packets of a batch.
pub(crate) struct Inbox<'a> {
    pub(crate) storage: &'a mut [u8],
    packets: &'a mut Packets,
}

impl Inbox<'_> {
    /// Takes the bytes at `range` as a packet for `network`.
    #[inline]
    pub(crate) fn push(&mut self, network: NetworkIndex, range: Range<usize>) {
        self.packets.ranges.push(range);
        match self.packets.networks.last_mut() {
            Some((last, count)) if *last == network => *count += 1,
            _ => self.packets.networks.push((network, 1)),
        }
    }
}

impl ReceiveBatch {
    /// Room for `messages` messages of [`limits::MESSAGE_BYTES`].
    pub fn new(messages: usize) -> Self {
        Self {
            socket: SocketId::MESH,
            storage: vec![0; messages * limits::MESSAGE_BYTES],
            messages: Vec::with_capacity(messages),
            packets: Packets::default(),
        }
    }

    /// One message that was received elsewhere: `stride` bytes for each datagram, the last may be shorter.
    pub fn of(socket: SocketId, remote: SocketAddr, data: &[u8], stride: usize) -> Self {
        let mut batch = Self {
            socket,
            storage: data.to_vec(),
            messages: Vec::new(),
            packets: Packets::default(),
        };
        batch.messages.push(Message {
            remote,
            range: 0..data.len(),
            stride,
        });
        batch
    }

    /// The buffers to receive into from `socket`, [`limits::MESSAGE_BYTES`] each. What was received before is forgotten.
    pub fn buffers(&mut self, socket: SocketId) -> impl Iterator<Item = &mut [u8]> {
        self.socket = socket;
        self.messages.clear();
        self.packets.clear();
        self.storage.chunks_mut(limits::MESSAGE_BYTES)
    }

    /// Says that buffer number `index` has `length` bytes from `remote`, `stride` for each datagram.
    pub fn filled(&mut self, index: usize, remote: SocketAddr, length: usize, stride: usize) {
        let start = index * limits::MESSAGE_BYTES;
        let end = start + length.min(limits::MESSAGE_BYTES);
        if end <= self.storage.len() {
            let range = start..end;
            self.messages.push(Message {
                remote,
                range,
                stride,
            });
        }
    }

    /// Which of our sockets it was received by.
    pub(crate) fn socket(&self) -> SocketId {
        self.socket
    }

    /// How many datagrams were received.
    pub fn datagrams(&self) -> usize {
        let count = |message: &Message| message.range.len().div_ceil(message.stride.max(1));
        self.messages.iter().map(count).sum()
    }

    /// The messages, and the place for what they hold.
    pub(crate) fn split(&mut self) -> (&[Message], Inbox<'_>) {
        let inbox = Inbox {
            storage: &mut self.storage,
            packets: &mut self.packets,
        };
        (&self.messages, inbox)
    }

    /// Hands the packets of each network in turn to `write`, in the order in which they came: the batch's storage, and
    /// where in it they lie.
    pub fn write(&mut self, mut write: impl FnMut(NetworkIndex, &mut [u8], &[Range<usize>])) {
        let mut rest = &self.packets.ranges[..];
        for (network, count) in &self.packets.networks {
            let (ranges, later) = rest.split_at(*count);
            write(*network, &mut self.storage, ranges);
            rest = later;
        }
        self.packets.clear();
    }
}
