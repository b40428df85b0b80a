//! Which addresses of this host peers may try.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use mesh_core::engine::{HostAddress, LanAddress};

use super::links::{Link, LinkAddress, LinkKind};

/// Addresses that are offered at most, the real ones first; a container host may have hundreds.
const MAX_ADDRESSES: usize = 64;

/// Picks the addresses that a peer could reach us at.
///
/// `uplinks` are the interfaces that a default route leads to: a bridge or a veth among them is how this host reaches
/// the world, and no mere virtual interface. `overlay` are our own networks' prefixes.
pub fn select(
    links: &[Link],
    addresses: &[LinkAddress],
    uplinks: &BTreeSet<u32>,
    overlay: &[IpNet],
) -> Vec<HostAddress> {
    let mut selected: Vec<HostAddress> = addresses
        .iter()
        .filter_map(|address| {
            let ip = address.net.addr();
            let link = links.iter().find(|link| link.index == address.link)?;
            let wanted = link.running
                && matches!(link.kind, LinkKind::Real | LinkKind::Virtual)
                && address.global
                && address.usable
                && is_unicast(ip)
                && !duplicates_stable(address, addresses)
                && !overlay.iter().any(|net| net.contains(&ip));
            wanted.then_some(HostAddress {
                ip,
                virtual_interface: link.kind == LinkKind::Virtual && !uplinks.contains(&link.index),
                mtu: link.mtu,
            })
        })
        .collect();
    selected.sort_by_key(|address| (address.virtual_interface, *address));
    // The same address on two interfaces is one address; the real interface came first.
    let mut seen = BTreeSet::new();
    selected.retain(|address| seen.insert(address.ip));
    selected.truncate(MAX_ADDRESSES);
    selected
}

/// The offered addresses on links that we share with others, where peers may be found by multicast.
pub fn on_links(
    links: &[Link],
    addresses: &[LinkAddress],
    offered: &[HostAddress],
) -> Vec<LanAddress> {
    let shared = |address: &&LinkAddress| {
        let multicast = |link: &Link| link.index == address.link && link.multicast;
        let real = |offer: &HostAddress| offer.ip == address.net.addr() && !offer.virtual_interface;
        // Nobody else fits into the prefix of a single address.
        address.net.prefix_len() < address.net.max_prefix_len()
            && links.iter().any(multicast)
            && offered.iter().any(real)
    };
    let lan = |address: &LinkAddress| LanAddress {
        interface: address.link,
        net: address.net,
    };
    addresses.iter().filter(shared).map(lan).collect()
}

/// True for a privacy address beside a stable one of the same prefix: it leads to the same place and changes every day.
fn duplicates_stable(address: &LinkAddress, all: &[LinkAddress]) -> bool {
    address.temporary
        && all.iter().any(|other| {
            !other.temporary
                && other.usable
                && other.link == address.link
                && other.net.trunc() == address.net.trunc()
        })
}

fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast())
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local(ip))
        }
    }
}

/// RFC 4291, section 2.5.6.
fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: LinkKind) -> Link {
        Link {
            index,
            name: format!("if{index}"),
            kind,
            up: true,
            running: true,
            mtu: 1_500,
            multicast: true,
            vrf_table: None,
        }
    }

    fn address(link: u32, net: &str) -> LinkAddress {
        LinkAddress {
            link,
            net: net.parse().unwrap(),
            global: true,
            usable: true,
            temporary: false,
        }
    }

    fn shown(selected: &[HostAddress]) -> Vec<String> {
        selected
            .iter()
            .map(|address| {
                let mark = if address.virtual_interface {
                    " virtual"
                } else {
                    ""
                };
                format!("{}{mark}", address.ip)
            })
            .collect()
    }

    #[test]
    fn only_what_a_peer_could_reach_is_offered() {
        let links = [
            link(1, LinkKind::Loopback),
            link(2, LinkKind::Real),
            link(3, LinkKind::Tunnel),
            link(4, LinkKind::Virtual),
            Link {
                running: false,
                ..link(5, LinkKind::Real)
            },
        ];
        let addresses = [
            address(1, "127.0.0.1/8"),
            address(1, "192.0.2.77/32"),
            address(4, "172.17.0.1/16"),
            address(2, "192.168.1.2/24"),
            address(2, "169.254.7.7/16"),
            address(2, "fe80::1/64"),
            address(2, "2001:db8::1/64"),
            address(3, "100.64.0.9/32"),
            address(5, "198.51.100.1/24"),
            address(9, "198.51.100.9/24"),
            LinkAddress {
                usable: false,
                ..address(2, "2001:db8::bad/64")
            },
            LinkAddress {
                global: false,
                ..address(2, "10.9.9.9/32")
            },
        ];
        let selected = select(&links, &addresses, &BTreeSet::new(), &[]);
        assert_eq!(
            shown(&selected),
            ["192.168.1.2", "2001:db8::1", "172.17.0.1 virtual"]
        );
    }

    #[test]
    fn peers_are_looked_for_where_others_can_be() {
        let links = [
            link(2, LinkKind::Real),
            link(3, LinkKind::Tunnel),
            link(4, LinkKind::Virtual),
            Link {
                multicast: false,
                ..link(5, LinkKind::Real)
            },
        ];
        let addresses = [
            address(2, "192.168.1.2/24"),
            address(2, "192.0.2.7/32"),
            address(2, "2001:db8::1/64"),
            address(2, "fe80::1/64"),
            address(3, "10.9.0.1/24"),
            address(4, "172.17.0.1/16"),
            address(5, "198.51.100.1/24"),
        ];
        let shown = |uplinks: &BTreeSet<u32>| -> Vec<String> {
            let offered = select(&links, &addresses, uplinks, &[]);
            let found = on_links(&links, &addresses, &offered).into_iter();
            found
                .map(|lan| format!("{} {}", lan.interface, lan.net))
                .collect()
        };
        let real = ["2 192.168.1.2/24", "2 2001:db8::1/64"];
        assert_eq!(shown(&BTreeSet::new()), real);
        let bridge = BTreeSet::from([4]);
        assert_eq!(shown(&bridge), [&real[..], &["4 172.17.0.1/16"]].concat());
    }

    #[test]
    fn bridge_with_the_default_route_is_real() {
        let links = [link(4, LinkKind::Virtual)];
        let addresses = [address(4, "192.168.1.2/24")];
        let selected = select(&links, &addresses, &BTreeSet::from([4]), &[]);
        assert_eq!(shown(&selected), ["192.168.1.2"]);
    }

    #[test]
    fn privacy_address_counts_only_without_a_stable_one() {
        let links = [link(2, LinkKind::Real)];
        let temporary = LinkAddress {
            temporary: true,
            ..address(2, "2001:db8::a/64")
        };
        let stable = address(2, "2001:db8::1/64");
        let elsewhere = address(2, "2001:db8:0:1::1/64");
        let none = BTreeSet::new();
        assert_eq!(
            shown(&select(&links, &[temporary.clone(), stable], &none, &[])),
            ["2001:db8::1"]
        );
        assert_eq!(select(&links, &[temporary, elsewhere], &none, &[]).len(), 2);
    }

    #[test]
    fn overlay_addresses_are_never_offered() {
        let links = [link(2, LinkKind::Real)];
        let addresses = [address(2, "fd12::1/64"), address(2, "10.77.0.1/24")];
        let overlay = [
            "fd12::/64".parse().unwrap(),
            "10.77.0.0/24".parse().unwrap(),
        ];
        assert!(select(&links, &addresses, &BTreeSet::new(), &overlay).is_empty());
    }

    #[test]
    fn a_container_host_offers_its_real_addresses_first_and_a_bounded_number() {
        let links = [link(2, LinkKind::Real), link(4, LinkKind::Virtual)];
        let mut addresses: Vec<_> = (0..200)
            .map(|n| address(4, &format!("10.0.{n}.1/24")))
            .collect();
        addresses.push(address(2, "192.168.1.2/24"));
        let selected = select(&links, &addresses, &BTreeSet::new(), &[]);
        assert_eq!(selected.len(), MAX_ADDRESSES);
        assert_eq!(shown(&selected[..1]), ["192.168.1.2"]);
    }
}
