//! Configurations with many peers.

use std::net::Ipv4Addr;

use mesh_core::identity::Identity;
use mesh_tests::lab::PeerConfig;
use zeroize::Zeroizing;

/// The overlay address of a host, far from those of [`absent`] peers.
pub(crate) fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host)
}

/// Peers that are only configured: nobody has their keys.
pub(crate) fn absent(count: u32) -> impl Iterator<Item = PeerConfig> {
    (0..count).map(|number| {
        let mut seed = Zeroizing::new([0xab; 32]);
        seed[..4].copy_from_slice(&number.to_le_bytes());
        PeerConfig {
            id: Identity::from_seed(seed).id().to_string(),
            name: format!("absent-{number}"),
            address: Some(Ipv4Addr::from_bits(0x0a50_0001 + number).to_string()),
            ..PeerConfig::default()
        }
    })
}
