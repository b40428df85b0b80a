//! Buffers that packets are sealed into and opened into, in the shape that the kernel's offloads want.
//!
//! [`SendBatch`] holds datagrams back to back, grouped into [`Run`]s that one `sendmsg` with UDP GSO can carry.
//! [`TunBatch`] holds inner packets, one buffer each, with room before and behind for the kernel's coalescing.

use std::net::SocketAddr;
use std::ops::Range;

use crate::engine::NetworkIndex;
use crate::limits;

/// Consecutive datagrams of one size to one destination; the last of them may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Where the datagrams go.
    pub remote: SocketAddr,
    /// Size of each datagram but the last, in bytes.
    pub segment: usize,
    /// Where they lie in [`SendBatch::bytes`].
    pub range: Range<usize>,
}

/// Datagrams to be sent from the mesh socket.
#[derive(Debug)]
pub struct SendBatch {
    buffer: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
}

impl Default for SendBatch {
    fn default() -> Self {
        Self {
            buffer: vec![0; limits::SEND_BATCH_BYTES],
            used: 0,
            runs: Vec::with_capacity(limits::MAX_GSO_SEGMENTS),
        }
    }
}

impl SendBatch {
    /// True when another datagram of the largest size might not fit: flush first.
    pub fn is_full(&self) -> bool {
        self.buffer.len() - self.used < limits::MAX_DATAGRAM
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The unused rest of the buffer, at least [`limits::MAX_DATAGRAM`] bytes unless [`Self::is_full`].
    pub fn spare(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    /// Takes the first `len` bytes of [`Self::spare`] as one datagram to `remote`.
    pub fn commit(&mut self, remote: SocketAddr, len: usize) {
        let start = self.used;
        self.used += len;
        if let Some(run) = self.runs.last_mut() {
            let total = run.range.len();
            let whole = total % run.segment == 0;
            if run.remote == remote
                && whole
                && len <= run.segment
                && total + len <= limits::MAX_GSO_BYTES
                && total / run.segment < limits::MAX_GSO_SEGMENTS
            {
                run.range.end = self.used;
                return;
            }
        }
        self.runs.push(Run {
            remote,
            segment: len,
            range: start..self.used,
        });
    }

    /// The runs in the order in which they were committed, each with its bytes.
    pub fn runs(&self) -> impl Iterator<Item = (&Run, &[u8])> {
        self.runs
            .iter()
            .map(|run| (run, &self.buffer[run.range.clone()]))
    }

    /// Forgets everything that was committed.
    pub fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
    }
}

/// Inner packets on their way to TUN devices.
///
/// Each buffer starts with [`limits::TUN_HEADROOM`] spare bytes for the kernel's `virtio_net_hdr`.
#[derive(Debug)]
pub struct TunBatch {
    buffers: Vec<Vec<u8>>,
    networks: Vec<NetworkIndex>,
}

impl Default for TunBatch {
    fn default() -> Self {
        let buffers = (0..limits::TUN_BATCH_PACKETS)
            .map(|_| Vec::with_capacity(limits::TUN_BUFFER_BYTES))
            .collect();
        Self {
            buffers,
            networks: Vec::with_capacity(limits::TUN_BATCH_PACKETS),
        }
    }
}

impl TunBatch {
    /// True when the packets of one more GRO buffer might not fit: flush first.
    pub fn is_full(&self) -> bool {
        self.buffers.len() - self.networks.len() < limits::MAX_GSO_SEGMENTS
    }

    /// True when there is no packet.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// Room for one packet of up to `len` bytes, or `None` when full.
    pub fn spare(&mut self, len: usize) -> Option<&mut [u8]> {
        let buffer = self.buffers.get_mut(self.networks.len())?;
        buffer.resize(limits::TUN_HEADROOM + len, 0);
        Some(&mut buffer[limits::TUN_HEADROOM..])
    }

    /// Takes the first `len` bytes of the last [`Self::spare`] as a packet for `network`.
    pub fn commit(&mut self, network: NetworkIndex, len: usize) {
        if let Some(buffer) = self.buffers.get_mut(self.networks.len()) {
            buffer.truncate(limits::TUN_HEADROOM + len);
            self.networks.push(network);
        }
    }

    /// The packets in order as groups for one network each: buffers with headroom, to be written in one go.
    pub fn groups(&mut self) -> impl Iterator<Item = (NetworkIndex, &mut [Vec<u8>])> {
        let used = self.networks.len();
        let networks = &self.networks;
        let mut rest = &mut self.buffers[..used];
        let mut at = 0;
        std::iter::from_fn(move || {
            let network = *networks.get(at)?;
            let count = networks[at..].iter().take_while(|n| **n == network).count();
            at += count;
            let (group, tail) = std::mem::take(&mut rest).split_at_mut(count);
            rest = tail;
            Some((network, group))
        })
    }

    /// Forgets every packet.
    pub fn clear(&mut self) {
        self.networks.clear();
    }
}

/// What one call of the engine produced for the data path.
#[derive(Debug, Default)]
pub struct Batches {
    /// Datagrams for the mesh socket.
    pub send: SendBatch,
    /// Inner packets for TUN devices.
    pub tun: TunBatch,
    /// QUIC datagrams with their senders, for the relay client's endpoint.
    pub quic: Vec<(SocketAddr, Vec<u8>)>,
}
