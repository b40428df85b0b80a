//! Which addresses we offer to peers, and which of theirs we are willing to try.

use std::net::{IpAddr, SocketAddr};

use crate::engine::HostAddress;
use crate::limits;

/// Our own addresses in the order in which a peer should try them: on the host, mapped by our router, as relays see us,
/// virtual bridges.
pub(crate) fn own_candidates(
    host: &[HostAddress],
    ports: (Option<u16>, Option<u16>),
    mapped: impl IntoIterator<Item = SocketAddr>,
    reflexive: impl IntoIterator<Item = SocketAddr>,
) -> Vec<SocketAddr> {
    let on_host = |is_virtual: bool| {
        host.iter()
            .filter(move |address| address.virtual_interface == is_virtual)
            .filter_map(|address| {
                let port = if address.ip.is_ipv4() {
                    ports.0
                } else {
                    ports.1
                };
                Some(SocketAddr::new(address.ip, port?))
            })
    };
    let mut candidates = Vec::new();
    let outside = mapped.into_iter().chain(reflexive);
    for candidate in on_host(false).chain(outside).chain(on_host(true)) {
        if candidates.len() < limits::MAX_CANDIDATES && !candidates.contains(&candidate) {
            candidates.push(candidate);
        }
    }
    candidates
}

/// True for an address that a peer may make us send to: one host, on a network.
///
/// Loopback, multicast, broadcast and the unspecified address would turn a peer's list into a way to make us talk to
/// services of this host, or to many hosts at once.
pub(crate) fn is_acceptable(candidate: SocketAddr) -> bool {
    if candidate.port() == 0 {
        return false;
    }
    match candidate.ip() {
        IpAddr::V4(ip) => {
            !(ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_link_local()
                || ip.octets()[0] == 0
                || ip.octets()[0] >= 240)
        }
        IpAddr::V6(ip) => {
            !(ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_cannot_make_us_send_to_ourselves_or_to_many() {
        for bad in [
            "127.0.0.1:53",
            "0.0.0.0:1",
            "224.0.0.251:5353",
            "255.255.255.255:1",
            "169.254.169.254:80",
            "240.0.0.1:1",
            "1.2.3.4:0",
            "[::1]:53",
            "[::]:1",
            "[ff02::1]:1",
            "[fe80::1]:1",
            "[::ffff:127.0.0.1]:53",
        ] {
            assert!(!is_acceptable(addr(bad)), "{bad}");
        }
        for good in ["192.168.1.2:41820", "8.8.8.8:1", "[2001:db8::1]:41820"] {
            assert!(is_acceptable(addr(good)), "{good}");
        }
    }

    #[test]
    fn virtual_bridges_are_offered_last_and_the_list_is_bounded() {
        let host: Vec<HostAddress> = (0..40)
            .map(|last| HostAddress {
                ip: IpAddr::from([10, 0, 0, last]),
                virtual_interface: last < 5,
                mtu: 1_500,
            })
            .collect();
        let (mapped, reflexive) = (addr("203.0.113.7:8"), addr("203.0.113.7:9"));
        let ports = (Some(1), None);
        let all = own_candidates(&host[..8], ports, [mapped], [reflexive, reflexive]);
        assert_eq!(all.len(), 10);
        assert_eq!(all[3..5], [mapped, reflexive]);
        assert_eq!(all[5], addr("10.0.0.0:1"));
        assert_eq!(
            own_candidates(&host, ports, [], []).len(),
            limits::MAX_CANDIDATES
        );
    }
}
