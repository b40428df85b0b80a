//! TUN devices: super-packets in, bursts out.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use mesh_core::engine::NetworkIndex;
use mesh_core::offload::{SuperPacket, VIRTIO_NET_HDR};
use nix::errno::Errno;
use nix::sys::uio::writev;
use tun_rs::SyncDevice;

use super::coalesce::{Coalescer, Outcome, write_plain};
use super::counters::Counters;
use crate::tuning::Tuning;

/// The kernel's header and its largest super-packet.
const SUPER_PACKET_BYTES: usize = VIRTIO_NET_HDR + 65_536;

/// Bursts that are written packet by packet after the kernel refused a joined one, at first and at most.
const PLAIN_BURSTS: (u32, u32) = (64, 1 << 20);

/// What became of an attempt to read.
#[derive(Debug)]
pub(crate) enum Read<'a> {
    /// This is it.
    Packet(SuperPacket<'a>),
    /// Nothing there now.
    Empty,
    /// What was there could not be used; there may be more.
    Failed,
    /// The interface is gone for good.
    Lost,
}

/// The buffer that super-packets are read into.
pub(crate) struct TunInput(Vec<u8>);

impl TunInput {
    pub(crate) fn new() -> Self {
        Self(vec![0; SUPER_PACKET_BYTES])
    }
}

/// The device of one network.
pub(crate) struct TunPort {
    network: NetworkIndex,
    device: SyncDevice,
    joining: Joining,
}

nix::ioctl_write_int!(set_offload, b'T', 208); // TUNSETOFFLOAD, linux/if_tun.h

impl TunPort {
    /// Takes a device over and makes it non-blocking.
    ///
    /// # Errors
    ///
    /// When it was made without offload.
    pub(crate) fn new(
        network: NetworkIndex,
        device: SyncDevice,
        tuning: Tuning,
    ) -> io::Result<Self> {
        if !device.tcp_gso() {
            return Err(io::Error::other("it was made without offload"));
        }
        device.set_nonblocking(true)?;
        if !tuning.tun_segmentation {
            // SAFETY: the descriptor is open, and the argument is a number.
            unsafe { set_offload(device.as_raw_fd(), 0) }?;
        }
        Ok(Self {
            network,
            device,
            joining: Joining::new(tuning.tun_coalescing),
        })
    }

    /// Whose device it is.
    pub(crate) fn network(&self) -> NetworkIndex {
        self.network
    }

    /// One read: a packet, or a super-packet.
    pub(crate) fn read<'a>(&self, input: &'a mut TunInput) -> Read<'a> {
        match nix::unistd::read(&self.device, &mut input.0) {
            Ok(length) => SuperPacket::parse(&input.0[..length]).map_or(Read::Failed, Read::Packet),
            Err(Errno::EAGAIN) => Read::Empty,
            Err(Errno::EBADFD | Errno::EBADF | Errno::EFAULT | Errno::ENODEV | Errno::ENXIO) => {
                Read::Lost
            }
            Err(_) => Read::Failed,
        }
    }

    /// Writes packets that lie in a receive buffer, with room for a header before each; joins those of one flow.
    pub(crate) fn write(
        &mut self,
        coalescer: &mut Coalescer,
        storage: &mut [u8],
        packets: &[Range<usize>],
        counters: &mut Counters,
    ) {
        let device = &self.device;
        let write = |parts: &[IoSlice<'_>]| Ok(writev(device, parts).map(drop)?);
        let outcome = if self.joining.is_off() {
            write_plain(storage, packets, write)
        } else {
            coalescer.write(storage, packets, self.device.udp_gso(), write)
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
#[derive(Debug)]
struct Joining {
    /// The switch.
    wanted: bool,
    off_for: u32,
    last_off: u32,
}

impl Joining {
    const fn new(wanted: bool) -> Self {
        Self {
            wanted,
            off_for: 0,
            last_off: 0,
        }
    }

    /// True if this burst is to be written packet by packet.
    fn is_off(&mut self) -> bool {
        let off = self.off_for > 0;
        self.off_for = self.off_for.saturating_sub(1);
        off || !self.wanted
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
        let mut joining = Joining::new(true);
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
