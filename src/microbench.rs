//! What the benchmarks (`benches/`) and the count of instructions (`tests/instructions`) measure: parts of the core that
//! are not public, and two engines that talk to each other in memory. Everything comes from fixed seeds, so that each run
//! does the same.

mod roster;
mod tunnel;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

pub use roster::{Roster, engine_with};
pub use tunnel::Tunnel;

use crate::engine::RelayHandle;
use crate::path::PathKey;
use crate::path::agent::PathSet;
use crate::peer::PeerIndex;
use crate::rng::Random;
use crate::routing::RoutingTable;
use crate::session::Kernel;
use crate::session::cipher::{self, Job, Key, TAG};
use crate::time::Instant;

const NOW: Instant = Instant::from_boot(Duration::from_secs(10_000));

/// A routing table, and the addresses of its peers in an order without any order.
pub struct Routes {
    table: RoutingTable,
    addresses: Vec<IpAddr>,
    next: usize,
}

impl Routes {
    /// One IPv4 address for each of `peers`, one after the other, as people number their hosts.
    pub fn v4(peers: u32) -> Self {
        Self::of((0..peers).map(|peer| numbered(peer).into()))
    }

    /// One IPv6 address for each of `peers` in one /48, the rest a hash of their keys: as derived addresses are.
    pub fn v6(peers: u32) -> Self {
        let mut rng = Random::from_seed([6; 32]);
        Self::of((0..peers).map(|_| {
            let mut octets = rng.bytes::<16>();
            octets[..6].copy_from_slice(&[0xfd, 1, 2, 3, 4, 5]);
            Ipv6Addr::from(octets).into()
        }))
    }

    fn of(addresses: impl Iterator<Item = IpAddr>) -> Self {
        let mut table = RoutingTable::default();
        let mut rng = Random::from_seed([4; 32]);
        let mut order = Vec::new();
        for (peer, address) in (0..).zip(addresses) {
            table.insert(address.into(), PeerIndex(peer));
            order.push((rng.u64(), address));
        }
        order.sort_unstable();
        Self {
            table,
            addresses: order.into_iter().map(|(_, address)| address).collect(),
            next: 0,
        }
    }

    /// Looks up the same address as the last time; whether it was found.
    pub fn lookup_same(&mut self) -> bool {
        self.table.lookup(self.addresses[0]).is_some()
    }

    /// Looks up another address than the last time; whether it was found.
    pub fn lookup_next(&mut self) -> bool {
        self.next = (self.next + 1) % self.addresses.len();
        self.table.lookup(self.addresses[self.next]).is_some()
    }
}

/// Address number `peer` of an overlay that counts.
fn numbered(peer: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 0, 1)) + peer)
}

/// The paths of one peer, all of them usable.
pub struct Paths(PathSet);

impl Paths {
    /// `count` paths: one through a relay, the others direct, the best of them being neither the first nor the last.
    pub fn new(count: u16) -> Self {
        let mut set = PathSet::default();
        let relay = SocketAddr::from(([203, 0, 113, 1], 443));
        for at in 0..count {
            let key = match at {
                0 => PathKey::Relay(RelayHandle(0)),
                _ => PathKey::direct(([192, 0, 2, 1], at).into()),
            };
            let Some(path) = set.get_or_add(key, NOW) else {
                continue;
            };
            if at == 0 {
                path.set_channel(Some((relay, 7)));
            }
            path.prove(NOW);
            let distance = at.abs_diff(count / 2);
            path.measured(Duration::from_millis(10 + 10 * u64::from(distance)));
        }
        set.choose(NOW);
        Self(set)
    }

    /// Chooses anew, with all being as it was; whether there is a current path.
    pub fn choose(&mut self) -> bool {
        self.0.choose(NOW).is_none() && self.0.current().is_some()
    }
}

/// The cipher alone, for batches of equal packets.
pub struct Cipher {
    key: Key,
    kernel: Kernel,
    /// With the tag.
    size: usize,
}

impl Cipher {
    /// For packets of `length` bytes.
    pub fn new(kernel: Kernel, length: usize) -> Self {
        Self {
            key: Key::new(&[3; 32]),
            kernel,
            size: length + TAG,
        }
    }

    /// Bytes that `packets` packets take with their tags.
    pub fn room(&self, packets: usize) -> usize {
        packets * self.size
    }

    fn jobs<'a>(&self, packets: &'a mut [u8]) -> Vec<Job<'a>> {
        (0..)
            .zip(packets.chunks_exact_mut(self.size))
            .map(|(counter, data)| Job { counter, data })
            .collect()
    }

    /// Seals all of `packets` in place.
    pub fn seal(&self, packets: &mut [u8]) {
        cipher::seal(self.kernel, &self.key, &mut self.jobs(packets));
    }

    /// Opens all of `packets` in place; how many are authentic.
    pub fn open(&self, packets: &mut [u8]) -> u32 {
        cipher::open(self.kernel, &self.key, &mut self.jobs(packets)).count_ones()
    }
}
