//! Every bound of the core in one place: what can be sent to us, and what we keep, never grows past these.

use std::time::Duration;

/// Largest datagram that we send: room for a 9,000-byte inner packet with its headers.
pub const MAX_DATAGRAM: usize = 9_216;
/// Bytes sealed before they are handed to the kernel; one UDP GSO burst is at most 64 KiB, so this holds several.
pub const SEND_BATCH_BYTES: usize = 256 * 1024;
/// Segments in one UDP GSO send. Linux takes 64 up to 6.8 and 128 since; 64 works everywhere.
pub const MAX_GSO_SEGMENTS: usize = 64;
/// Bytes in one UDP GSO send: 65,535 less the IPv6 and UDP headers.
pub const MAX_GSO_BYTES: usize = 65_487;
/// Inner packets collected before they are written to TUN.
pub const TUN_BATCH_PACKETS: usize = 128;
/// Spare bytes before each inner packet: the kernel's 10-byte `virtio_net_hdr`, rounded up.
pub const TUN_HEADROOM: usize = 16;
/// Capacity of each TUN buffer: coalescing needs room for a 64 KiB super-packet.
pub const TUN_BUFFER_BYTES: usize = 65_536 + TUN_HEADROOM;

/// Inner MTU: carried by every link that IPv6 allows (1,280) with no knowledge of the path.
pub const INNER_MTU: u16 = 1_280;

/// Networks in one daemon.
pub const MAX_NETWORKS: usize = 64;
/// Peers in one network.
pub const MAX_PEERS: usize = 16_384;
/// Relays in one network; each costs a warm connection.
pub const MAX_RELAYS: usize = 8;

/// How long an answer to anything inside the tunnel is waited for at most.
pub const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of one message on a relay's control stream: a WireGuard packet of the smallest MTU fits, a large one need not.
pub const MAX_RELAY_MESSAGE: usize = 2_048;
