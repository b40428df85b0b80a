//! Which peer an overlay address belongs to: one table per network, used in both directions.
//!
//! A packet from TUN goes to the peer with the longest matching prefix; a packet from a peer is taken only if that
//! same lookup on its *source* gives the peer that sent it (WireGuard's cryptokey routing).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::peer::PeerIndex;

/// Longest-prefix-match table of one network.
#[derive(Default)]
pub(crate) struct RoutingTable {
    /// Prefixes of one address, which most are and which no other can be longer than: a walk down the trie to the last of
    /// 128 bits takes three times as long.
    hosts: HashMap<IpAddr, PeerIndex, BuildHasherDefault<Mixed>>,
    v4: PrefixMap<Ipv4Net, PeerIndex>,
    v6: PrefixMap<Ipv6Net, PeerIndex>,
    /// The last answer: traffic comes in flows, and a walk of the trie costs ten times a comparison.
    last: Option<(IpAddr, PeerIndex)>,
}

impl RoutingTable {
    /// Gives `prefix` to `peer`; the previous owner is returned.
    pub(crate) fn insert(&mut self, prefix: IpNet, peer: PeerIndex) -> Option<PeerIndex> {
        self.last = None;
        if prefix.prefix_len() == prefix.max_prefix_len() {
            return self.hosts.insert(prefix.addr(), peer);
        }
        match prefix {
            IpNet::V4(prefix) => self.v4.insert(prefix.trunc(), peer),
            IpNet::V6(prefix) => self.v6.insert(prefix.trunc(), peer),
        }
    }

    /// The peer that `address` belongs to.
    #[inline]
    pub(crate) fn lookup(&mut self, address: IpAddr) -> Option<PeerIndex> {
        if let Some((last, peer)) = self.last
            && last == address
        {
            return Some(peer);
        }
        let peer = self.lookup_uncached(address)?;
        self.last = Some((address, peer));
        Some(peer)
    }

    /// As [`Self::lookup`], leaving the cache alone.
    pub(crate) fn lookup_uncached(&self, address: IpAddr) -> Option<PeerIndex> {
        if let Some(peer) = self.hosts.get(&address) {
            return Some(*peer);
        }
        match address {
            IpAddr::V4(address) => self
                .v4
                .get_lpm(&Ipv4Net::from(address))
                .map(|(_, peer)| *peer),
            IpAddr::V6(address) => self
                .v6
                .get_lpm(&Ipv6Net::from(address))
                .map(|(_, peer)| *peer),
        }
    }
}

/// Multiplies and folds, eight bytes at a time. The keys are the administrator's own, so nobody is kept from choosing
/// those that collide who could not do worse.
#[derive(Debug, Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            // The odd number is 2^64 divided by the golden ratio.
            let product = u128::from(self.0 ^ u64::from_ne_bytes(word)) * 0x9e37_79b9_7f4a_7c15;
            self.0 = product as u64 ^ (product >> 64) as u64;
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut table = RoutingTable::default();
        table.insert(net("192.168.0.0/16"), PeerIndex(1));
        table.insert(net("192.168.5.0/24"), PeerIndex(2));
        table.insert(net("fd00::/64"), PeerIndex(3));
        assert_eq!(table.lookup(ip("192.168.5.9")), Some(PeerIndex(2)));
        assert_eq!(table.lookup(ip("192.168.6.9")), Some(PeerIndex(1)));
        assert_eq!(table.lookup(ip("fd00::1")), Some(PeerIndex(3)));
        assert_eq!(table.lookup(ip("10.0.0.1")), None);
        table.insert(net("192.168.5.9/32"), PeerIndex(4));
        table.insert(net("fd00::9/128"), PeerIndex(5));
        assert_eq!(table.lookup(ip("192.168.5.9")), Some(PeerIndex(4)));
        assert_eq!(table.lookup(ip("192.168.5.8")), Some(PeerIndex(2)));
        assert_eq!(table.lookup(ip("fd00::9")), Some(PeerIndex(5)));
        assert_eq!(table.lookup(ip("fd00::8")), Some(PeerIndex(3)));
    }
}
