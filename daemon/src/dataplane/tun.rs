//! TUN devices: super-packets in, bursts out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use mesh_core::engine::NetworkIndex;
use mesh_core::limits;
use tun_rs::{GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};

use super::counters::Counters;

/// Largest packet that is not segmented: one of the largest MTU that we give an interface.
const PACKET_BYTES: usize = limits::MAX_DATAGRAM;
/// Packets that one read can yield: 64 KiB of payload at the smallest TCP segment size that Linux accepts, 48 bytes.
/// A super-packet of more segments would be lost again with each retransmission.
const MAX_SEGMENTS: usize = 65_536 / 48;
/// The kernel's header and its largest super-packet.
const SUPER_PACKET_BYTES: usize = VIRTIO_NET_HDR_LEN + 65_536;

/// Bursts that are written packet by packet after the kernel refused a coalesced one, at first and at most.
const PLAIN_BURSTS: (u32, u32) = (64, 1 << 20);

/// What became of an attempt to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many packets are in the [`TunInput`].
    Packets(usize),
    /// Nothing there now.
    Empty,
    /// What was there could not be used; there may be more.
    Failed,
    /// The interface is gone for good.
    Lost,
}

/// Buffers that a super-packet is read into and split into. Pages that are never written take no memory.
pub(crate) struct TunInput {
    super_packet: Vec<u8>,
    packets: Vec<[u8; PACKET_BYTES]>,
    sizes: Vec<usize>,
}

impl TunInput {
    pub(crate) fn new() -> Self {
        Self {
            super_packet: vec![0; SUPER_PACKET_BYTES],
            packets: vec![[0; PACKET_BYTES]; MAX_SEGMENTS],
            sizes: vec![0; MAX_SEGMENTS],
        }
    }

    /// The first `count` packets of the last read, with correct checksums.
    pub(crate) fn packets(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        self.packets
            .iter()
            .zip(&self.sizes)
            .take(count)
            .map(|(packet, size)| &packet[..*size])
    }
}

/// The device of one network.
pub(crate) struct TunPort {
    network: NetworkIndex,
    device: SyncDevice,
    coalescing: Coalescing,
}

impl TunPort {
    /// Takes a device over and makes it non-blocking.
    pub(crate) fn new(network: NetworkIndex, device: SyncDevice) -> io::Result<Self> {
        device.set_nonblocking(true)?;
        Ok(Self {
            network,
            device,
            coalescing: Coalescing::default(),
        })
    }

    /// Whose device it is.
    pub(crate) fn network(&self) -> NetworkIndex {
        self.network
    }

    /// One read: a packet, or a super-packet split up.
    pub(crate) fn read(&self, input: &mut TunInput) -> Read {
        let result = self.device.recv_multiple(
            &mut input.super_packet,
            &mut input.packets,
            &mut input.sizes,
            0,
        );
        match result {
            Ok(count) => Read::Packets(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::Empty,
            Err(error) => match error.raw_os_error() {
                Some(libc::EBADFD | libc::EBADF | libc::EFAULT | libc::ENODEV | libc::ENXIO) => {
                    Read::Lost
                }
                // Or a super-packet of a kind that cannot be split.
                _ => Read::Failed,
            },
        }
    }

    /// Writes packets that start after [`limits::TUN_HEADROOM`] bytes; coalesces those of one flow.
    pub(crate) fn write(
        &mut self,
        table: &mut GROTable,
        packets: &mut [Vec<u8>],
        counters: &mut Counters,
    ) {
        counters.packets_to_tun += packets.len() as u64;
        if packets.len() > 1 && !self.coalescing.is_off() {
            let result = self
                .device
                .send_multiple(table, packets, limits::TUN_HEADROOM);
            counters.tun_write_errors += u64::from(result.is_err());
            self.coalescing.learn(&result);
            return;
        }
        for packet in packets {
            let alone = std::slice::from_mut(packet);
            if self
                .device
                .send_multiple(table, alone, limits::TUN_HEADROOM)
                .is_err()
            {
                counters.tun_write_errors += 1;
            }
        }
    }
}

impl AsFd for TunPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Some kernels answer `EINVAL` to coalesced packets. A burst is lost for each attempt, so attempts get rarer; they never
/// end, because a peer could provoke the refusal with odd packets.
#[derive(Debug, Default)]
struct Coalescing {
    off_for: u32,
    last_off: u32,
}

impl Coalescing {
    /// True if this burst is to be written packet by packet.
    fn is_off(&mut self) -> bool {
        let off = self.off_for > 0;
        self.off_for = self.off_for.saturating_sub(1);
        off
    }

    fn learn(&mut self, result: &io::Result<usize>) {
        match result {
            Ok(_) => self.last_off = 0,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let (first, most) = PLAIN_BURSTS;
                self.last_off = (self.last_off * 2).clamp(first, most);
                self.off_for = self.last_off;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coalescing_is_tried_again_ever_more_rarely() {
        let mut coalescing = Coalescing::default();
        let refused = Err(io::Error::from_raw_os_error(libc::EINVAL));
        let mut gaps = Vec::new();
        for _ in 0..4 {
            assert!(!coalescing.is_off());
            coalescing.learn(&refused);
            let mut gap = 0;
            while coalescing.off_for > 0 {
                assert!(coalescing.is_off());
                gap += 1;
            }
            gaps.push(gap);
        }
        assert_eq!(gaps, [64, 128, 256, 512]);
        coalescing.learn(&Ok(1));
        coalescing.learn(&refused);
        assert_eq!(coalescing.off_for, 64);
        coalescing.last_off = u32::MAX / 2;
        coalescing.learn(&refused);
        assert_eq!(coalescing.off_for, 1 << 20);
    }

    #[test]
    fn other_errors_leave_coalescing_on() {
        let mut coalescing = Coalescing::default();
        coalescing.learn(&Err(io::Error::from_raw_os_error(libc::EIO)));
        assert!(!coalescing.is_off());
    }
}
