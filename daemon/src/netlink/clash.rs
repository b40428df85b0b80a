//! Does what we are about to install hide something of the host, or the other way round?
//!
//! Looked for before anything is changed: an overlay that takes over the route to the printer, or an office network that
//! swallows half of the overlay, is worse than a network that does not come up and says why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use super::links::{Link, LinkAddress};
use super::routes::{Action, PROTOCOL, Route};
use super::{Netlink, NetlinkError};

/// Clashes that are looked for at most: the first few say what is wrong.
const MAX_REPORTED: usize = 4;

/// What the host has.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Its interfaces.
    pub links: Vec<Link>,
    /// Their addresses.
    pub addresses: Vec<LinkAddress>,
    /// Its routes.
    pub routes: Vec<Route>,
}

/// Something of the host that overlaps something of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// The address or prefix that we want.
    pub wanted: IpNet,
    /// What is there.
    pub existing: Existing,
    /// On which interface, by name; empty for a route that leads nowhere.
    pub interface: String,
}

/// What stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// An address of this host.
    Address(IpNet),
    /// A route to somewhere else.
    Route(IpNet),
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            wanted, interface, ..
        } = self;
        match self.existing {
            Existing::Address(net) => write!(
                f,
                "{wanted} of the overlay clashes with the address {net} of this host's interface {interface}"
            ),
            Existing::Route(net) if interface.is_empty() => {
                write!(
                    f,
                    "{wanted} of the overlay clashes with the route to {net} that refuses packets"
                )
            }
            Existing::Route(net) => write!(
                f,
                "{wanted} of the overlay clashes with the route to {net} on interface {interface}"
            ),
        }
    }
}

impl Netlink {
    /// Everything that [`find`] looks at.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer.
    pub async fn host(&self) -> Result<Host, NetlinkError> {
        Ok(Host {
            links: self.links().await?,
            addresses: self.addresses().await?,
            routes: self.routes().await?,
        })
    }
}

/// The first few clashes of `wanted`, our addresses and destinations, with what `host` has. `own` are the interfaces
/// that do not count because they are the network's own, or about to go; guard routes never clash.
pub fn find(wanted: &[IpNet], host: &Host, own: &BTreeSet<u32>) -> Vec<Clash> {
    let wanted: BTreeSet<IpNet> = wanted.iter().map(IpNet::trunc).collect();
    let names: BTreeMap<u32, &str> = host
        .links
        .iter()
        .map(|link| (link.index, link.name.as_str()))
        .collect();
    let name = |index: u32| names.get(&index).copied().unwrap_or("?").to_owned();
    let addresses = host
        .addresses
        .iter()
        .filter(|address| !own.contains(&address.link))
        .filter_map(|address| {
            let host_net = IpNet::from(address.net.addr());
            Some(Clash {
                wanted: covering(&wanted, host_net)?,
                existing: Existing::Address(address.net),
                interface: name(address.link),
            })
        });
    let vrf_tables: BTreeSet<u32> = host
        .links
        .iter()
        .filter_map(|link| link.vrf_table)
        .collect();
    let routes = host
        .routes
        .iter()
        .filter(|route| !vrf_tables.contains(&route.table))
        .filter(|route| {
            route.links.is_empty() || !route.links.iter().all(|link| own.contains(link))
        })
        .filter_map(|route| {
            Some(Clash {
                wanted: conflicting(&wanted, route)?,
                existing: Existing::Route(route.destination),
                interface: if route.action == Action::Refuse {
                    String::new()
                } else {
                    route.links.first().copied().map(name).unwrap_or_default()
                },
            })
        });
    addresses.chain(routes).take(MAX_REPORTED).collect()
}

/// Which of `wanted` the route is in conflict with.
fn conflicting(wanted: &BTreeSet<IpNet>, route: &Route) -> Option<IpNet> {
    let destination = route.destination.trunc();
    match route.action {
        // Everything more specific goes before it.
        _ if destination.prefix_len() == 0 => None,
        Action::Other => None,
        Action::Refuse if route.protocol == PROTOCOL => None,
        // A refused super-net (all private addresses, on a router) hides nothing and is hidden by nothing.
        Action::Refuse => wanted.get(&destination).copied(),
        Action::Forward => covering(wanted, destination).or_else(|| covered(wanted, destination)),
    }
}

/// One of `wanted` that contains `net` or equals it.
fn covering(wanted: &BTreeSet<IpNet>, net: IpNet) -> Option<IpNet> {
    std::iter::successors(Some(net), IpNet::supernet).find(|candidate| wanted.contains(candidate))
}

/// One of `wanted` that lies in `net`.
fn covered(wanted: &BTreeSet<IpNet>, net: IpNet) -> Option<IpNet> {
    // They are ordered by address first.
    wanted
        .range(net..=IpNet::from(net.broadcast()))
        .find(|candidate| net.contains(*candidate))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::super::links::LinkKind;
    use super::super::routes::MAIN_TABLE;
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: LinkKind::Real,
            up: true,
            running: true,
            mtu: 1_500,
            multicast: true,
            vrf_table: None,
        }
    }

    fn route(destination: &str, links: &[u32]) -> Route {
        Route {
            destination: net(destination),
            table: MAIN_TABLE,
            protocol: 4,
            action: Action::Forward,
            links: links.to_vec(),
            gateway: None,
            metric: 0,
        }
    }

    fn host(addresses: &[(u32, &str)], routes: Vec<Route>) -> Host {
        Host {
            links: vec![link(1, "lo"), link(2, "eth0"), link(3, "mesh-home")],
            addresses: addresses
                .iter()
                .map(|(link, address)| LinkAddress {
                    link: *link,
                    net: net(address),
                    global: true,
                    usable: true,
                    temporary: false,
                })
                .collect(),
            routes,
        }
    }

    fn texts(wanted: &[&str], host: &Host, own: &[u32]) -> Vec<String> {
        let wanted: Vec<IpNet> = wanted.iter().map(|text| net(text)).collect();
        find(&wanted, host, &own.iter().copied().collect())
            .iter()
            .map(Clash::to_string)
            .collect()
    }

    #[test]
    fn overlap_in_either_direction_is_a_clash_that_names_both() {
        let host = host(&[], vec![route("10.77.0.0/16", &[2])]);
        for wanted in ["10.77.0.0/16", "10.77.3.0/24", "10.77.0.2/32", "10.0.0.0/8"] {
            let texts = texts(&["fd00::/64", wanted], &host, &[]);
            assert_eq!(texts.len(), 1, "{wanted}");
            assert!(texts[0].contains(wanted), "{}", texts[0]);
            assert!(
                texts[0].contains("10.77.0.0/16 on interface eth0"),
                "{}",
                texts[0]
            );
        }
        assert!(texts(&["10.78.0.1/32", "10.76.255.255/32"], &host, &[]).is_empty());
    }

    #[test]
    fn default_routes_are_no_clash() {
        let host = host(&[], vec![route("0.0.0.0/0", &[2]), route("::/0", &[2])]);
        assert!(texts(&["10.77.0.2/32", "fd00::/64"], &host, &[]).is_empty());
    }

    #[test]
    fn addresses_of_the_host_clash_with_peers_and_with_our_own() {
        let host = host(&[(2, "10.77.0.2/24"), (2, "fe80::1/64")], vec![]);
        assert_eq!(
            texts(&["10.77.0.2/32"], &host, &[]),
            [
                "10.77.0.2/32 of the overlay clashes with the address 10.77.0.2/24 of this host's interface eth0"
            ]
        );
        assert!(texts(&["10.77.0.3/32"], &host, &[]).is_empty());
    }

    #[test]
    fn our_own_interface_is_no_clash() {
        let host = host(&[(3, "10.77.0.1/32")], vec![route("10.77.0.2/32", &[3])]);
        let wanted = ["10.77.0.1/32", "10.77.0.2/32"];
        assert!(texts(&wanted, &host, &[3]).is_empty());
        assert_eq!(texts(&wanted, &host, &[]).len(), 2);
    }

    #[test]
    fn guards_and_refused_supernets_are_no_clash() {
        let refused = |destination, protocol| Route {
            action: Action::Refuse,
            protocol,
            ..route(destination, &[1])
        };
        let host = host(
            &[],
            vec![
                refused("10.77.0.2/32", PROTOCOL),
                refused("10.0.0.0/8", 4),
                refused("fc00::/7", 4),
            ],
        );
        assert!(texts(&["10.77.0.2/32", "fd00::/64"], &host, &[]).is_empty());
        let same = texts(&["10.0.0.0/8"], &host, &[]);
        assert_eq!(
            same,
            ["10.0.0.0/8 of the overlay clashes with the route to 10.0.0.0/8 that refuses packets"]
        );
    }

    #[test]
    fn tables_of_virtual_routers_are_their_own_business() {
        let mut host = host(
            &[],
            vec![Route {
                table: 100,
                ..route("10.77.0.0/16", &[2])
            }],
        );
        assert_eq!(texts(&["10.77.0.2/32"], &host, &[]).len(), 1);
        host.links.push(Link {
            vrf_table: Some(100),
            ..link(9, "vrf-blue")
        });
        assert!(texts(&["10.77.0.2/32"], &host, &[]).is_empty());
    }

    #[test]
    fn only_a_few_clashes_are_reported() {
        let routes = (0..100)
            .map(|n| route(&format!("10.77.0.{n}/32"), &[2]))
            .collect();
        assert_eq!(
            texts(&["10.77.0.0/24"], &host(&[], routes), &[]).len(),
            MAX_REPORTED
        );
    }
}
