//! Datagrams on their way out.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use crate::engine::SocketId;
use crate::limits;
use crate::path::Route;
use crate::session::cipher::{self, Job, Key};
use crate::session::{HEADER, Kernel, OVERHEAD, Sealing, padded, write_header};
use crate::wire::relay::{FRAME_HEADER, write_data_header};

/// Consecutive datagrams of one size to one destination; the last of them may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Which of our sockets the datagrams leave from.
    pub socket: SocketId,
    /// Where the datagrams go.
    pub remote: SocketAddr,
    /// Routers on the way may cut the datagrams up: they have the smallest allowed MTU, and the path carries less.
    pub fragments: bool,
    /// Size of each datagram but the last, in bytes.
    pub segment: usize,
    /// Where they lie in the batch.
    range: Range<usize>,
    /// How many they are.
    count: usize,
    /// Nothing can follow: the last one is shorter.
    closed: bool,
}

/// A packet that lies in the buffer as it is and is yet to be sealed.
#[derive(Debug)]
struct Pending {
    /// The packet with its padding and room for the tag.
    range: Range<usize>,
    counter: u64,
    /// Which of the batch's keys.
    key: usize,
}

/// So many packets are sealed at once: as many as the widest kernel takes side by side, and few enough to be still in the
/// CPU's first cache from when they were written.
const AT_ONCE: usize = 16;

/// Datagrams to be sent from the mesh socket.
///
/// Packets are put in as they are and sealed in batches, because sealing sixteen costs little more than sealing four.
/// There is no way to get at them before.
#[derive(Debug)]
pub struct SendBatch {
    buffer: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
    pending: Vec<Pending>,
    /// Where the last message lies: header, packet, tag.
    last: Range<usize>,
    /// Messages that are to be copied once they are sealed, and where to.
    copies: Vec<(Range<usize>, usize)>,
    /// Shared with the sessions, which may be gone by the time of sealing.
    keys: Vec<Arc<Key>>,
    kernel: Kernel,
}

impl SendBatch {
    /// An empty batch whose packets will be sealed by `kernel`.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            buffer: vec![0; limits::SEND_BATCH_BYTES + limits::SUPER_PACKET_ROOM],
            used: 0,
            runs: Vec::with_capacity(limits::MAX_GSO_SEGMENTS),
            pending: Vec::with_capacity(AT_ONCE),
            last: 0..0,
            copies: Vec::new(),
            keys: Vec::new(),
            kernel,
        }
    }

    /// True when it is time to send; one more super-packet fits in any case.
    pub fn is_full(&self) -> bool {
        self.used >= limits::SEND_BATCH_BYTES
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Takes a packet of `length` bytes that `write` puts into its place, as number `at` of those that `sealing` is for.
    /// `false` if there is no room.
    #[inline]
    pub(crate) fn push(
        &mut self,
        route: &Route,
        sealing: &Sealing<'_>,
        at: u64,
        length: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> bool {
        let frame = if route.channel.is_some() {
            FRAME_HEADER
        } else {
            0
        };
        let inner = padded(length, usize::from(route.mtu));
        let size = frame + inner + OVERHEAD;
        let Some(datagram) = self.buffer[self.used..].get_mut(..size) else {
            return false;
        };
        let (header, message) = datagram.split_at_mut(frame);
        if let Some(channel) = route.channel {
            write_data_header(header, channel);
        }
        let counter = sealing.counter + at;
        write_header(message, sealing.receiver, counter);
        let (packet, padding) = message[HEADER..HEADER + inner].split_at_mut(length);
        write(packet);
        padding.fill(0);
        let key = self.key(sealing.key);
        let start = self.used + frame + HEADER;
        self.pending.push(Pending {
            range: start..self.used + size,
            counter,
            key,
        });
        self.last = self.used + frame..self.used + size;
        self.commit(route, size);
        if self.pending.len() >= AT_ONCE {
            self.seal();
        }
        true
    }

    /// Sends the last packet on another way as well: the very same message, so that the peer takes it once. Without room
    /// it is left at one.
    pub(crate) fn repeat(&mut self, route: &Route) {
        let frame = if route.channel.is_some() {
            FRAME_HEADER
        } else {
            0
        };
        let size = frame + self.last.len();
        let Some(datagram) = self.buffer[self.used..].get_mut(..size) else {
            return;
        };
        if let Some(channel) = route.channel {
            write_data_header(&mut datagram[..frame], channel);
        }
        self.copies.push((self.last.clone(), self.used + frame));
        self.commit(route, size);
    }

    fn key(&mut self, key: &Arc<Key>) -> usize {
        if !self.keys.last().is_some_and(|last| Arc::ptr_eq(last, key)) {
            self.keys.push(Arc::clone(key));
        }
        self.keys.len() - 1
    }

    /// Enters the next `len` bytes as one datagram.
    #[inline]
    fn commit(&mut self, route: &Route, len: usize) {
        let start = self.used;
        self.used += len;
        if let Some(run) = self.runs.last_mut()
            && !run.closed
            && len <= run.segment
            && run.count < limits::MAX_GSO_SEGMENTS
            && self.used - run.range.start <= limits::MAX_GSO_BYTES
            && run.remote == route.remote
            && run.socket == route.socket
            && run.fragments == route.fragments
        {
            run.range.end = self.used;
            run.count += 1;
            run.closed = len < run.segment;
            return;
        }
        self.runs.push(Run {
            socket: route.socket,
            remote: route.remote,
            fragments: route.fragments,
            segment: len,
            range: start..self.used,
            count: 1,
            closed: false,
        });
    }

    /// Seals what is not sealed yet.
    fn seal(&mut self) {
        let mut pending = self.pending.as_slice();
        let mut rest = self.buffer.as_mut_slice();
        let mut offset = 0;
        while let Some(first) = pending.first() {
            let mut jobs: [Job<'_>; AT_ONCE] = std::array::from_fn(|_| Job::default());
            let mut count = 0;
            let same_key = pending.iter().take_while(|packet| packet.key == first.key);
            for (job, packet) in jobs.iter_mut().zip(same_key) {
                let (_, from) = std::mem::take(&mut rest).split_at_mut(packet.range.start - offset);
                let (data, behind) = from.split_at_mut(packet.range.len());
                (rest, offset) = (behind, packet.range.end);
                *job = Job {
                    counter: packet.counter,
                    data,
                };
                count += 1;
            }
            cipher::seal(self.kernel, &self.keys[first.key], &mut jobs[..count]);
            pending = &pending[count..];
        }
        self.pending.clear();
        self.keys.clear();
        for (message, to) in self.copies.drain(..) {
            self.buffer.copy_within(message, to);
        }
    }

    /// The runs in the order in which they were put in, sealed, each with its bytes.
    pub fn runs(&mut self) -> impl Iterator<Item = (&Run, &[u8])> {
        self.seal();
        self.runs
            .iter()
            .map(|run| (run, &self.buffer[run.range.clone()]))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
        self.last = 0..0;
        self.copies.clear();
        self.pending.clear();
        self.keys.clear();
    }
}
