//! TUN devices: super-packets in, bursts out.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

use mesh_core::engine::NetworkIndex;
use mesh_core::limits;
use nix::sys::uio::writev;
use tun_rs::{SyncDevice, VIRTIO_NET_HDR_LEN};

use super::coalesce::{Coalescer, Outcome, write_plain};
use super::counters::Counters;

/// Largest packet that is not segmented: one of the largest MTU that we give an interface.
const PACKET_BYTES: usize = limits::MAX_DATAGRAM;
/// Packets that one read can yield: 64 KiB of payload at the smallest TCP segment size that Linux accepts, 48 bytes.
/// A super-packet of more segments would be lost again with each retransmission.
const MAX_SEGMENTS: usize = 65_536 / 48;
/// The kernel's header and its largest super-packet.
const SUPER_PACKET_BYTES: usize = VIRTIO_NET_HDR_LEN + 65_536;

/// Bursts that are written packet by packet after the kernel refused a joined one, at first and at most.
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
    /// One after the other, [`PACKET_BYTES`] each.
    packets: Vec<u8>,
    sizes: Vec<usize>,
}

impl TunInput {
    pub(crate) fn new() -> Self {
        Self {
            super_packet: vec![0; SUPER_PACKET_BYTES],
            packets: vec![0; PACKET_BYTES * MAX_SEGMENTS],
            sizes: vec![0; MAX_SEGMENTS],
        }
    }

    /// The first `count` packets of the last read, with correct checksums.
    pub(crate) fn packets(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        let (packets, _) = self.packets.as_chunks::<PACKET_BYTES>();
        packets
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
    joining: Joining,
}

impl TunPort {
    /// Takes a device over and makes it non-blocking.
    ///
    /// # Errors
    ///
    /// When it was made without offload.
    pub(crate) fn new(network: NetworkIndex, device: SyncDevice) -> io::Result<Self> {
        if !device.tcp_gso() {
            return Err(io::Error::other("it was made without offload"));
        }
        device.set_nonblocking(true)?;
        Ok(Self {
            network,
            device,
            joining: Joining::default(),
        })
    }

    /// Whose device it is.
    pub(crate) fn network(&self) -> NetworkIndex {
        self.network
    }

    /// One read: a packet, or a super-packet split up.
    pub(crate) fn read(&self, input: &mut TunInput) -> Read {
        let (packets, _) = input.packets.as_chunks_mut::<PACKET_BYTES>();
        let result =
            self.device
                .recv_multiple(&mut input.super_packet, packets, &mut input.sizes, 0);
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

    /// Writes packets that start after [`limits::TUN_HEADROOM`] bytes; joins those of one flow.
    pub(crate) fn write(
        &mut self,
        coalescer: &mut Coalescer,
        packets: &mut [Vec<u8>],
        counters: &mut Counters,
    ) {
        let device = &self.device;
        let write = |parts: &[IoSlice<'_>]| Ok(writev(device, parts).map(drop)?);
        let outcome = if self.joining.is_off() {
            write_plain(packets, write)
        } else {
            coalescer.write(packets, self.device.udp_gso(), write)
        };
        self.joining.learn(outcome);
        counters.packets_to_tun += packets.len() as u64 - outcome.lost;
        counters.tun_write_errors += outcome.lost;
    }
}

impl AsFd for TunPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Some kernels answer `EINVAL` to joined packets. Each attempt costs a system call then, so attempts get rarer; they
/// never end, because a peer could provoke the refusal with odd packets.
#[derive(Debug, Default)]
struct Joining {
    off_for: u32,
    last_off: u32,
}

impl Joining {
    /// True if this burst is to be written packet by packet.
    fn is_off(&mut self) -> bool {
        let off = self.off_for > 0;
        self.off_for = self.off_for.saturating_sub(1);
        off
    }

    fn learn(&mut self, outcome: Outcome) {
        if outcome.refused {
            let (first, most) = PLAIN_BURSTS;
            self.last_off = self.last_off.saturating_mul(2).clamp(first, most);
            self.off_for = self.last_off;
        } else if outcome.joined > 0 {
            self.last_off = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_is_tried_again_ever_more_rarely() {
        let mut joining = Joining::default();
        let refused = Outcome {
            refused: true,
            ..Outcome::default()
        };
        let mut gaps = Vec::new();
        for _ in 0..4 {
            assert!(!joining.is_off());
            joining.learn(refused);
            let mut gap = 0;
            while joining.off_for > 0 {
                assert!(joining.is_off());
                joining.learn(Outcome::default());
                gap += 1;
            }
            gaps.push(gap);
        }
        assert_eq!(gaps, [64, 128, 256, 512]);
        let joined = Outcome {
            joined: 1,
            ..Outcome::default()
        };
        joining.learn(joined);
        joining.learn(refused);
        assert_eq!(joining.off_for, 64);
        joining.last_off = u32::MAX / 2;
        joining.learn(refused);
        assert_eq!(joining.off_for, 1 << 20);
    }
}
