//! What must hold between the parts of a configuration.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use ipnet::IpNet;

use super::document::NetworkDraft;
use super::peer::PeerDraft;
use super::prefix::{Claim, Owner, find_overlaps};
use super::section::Report;
use crate::engine::PeerKey;
use crate::identity::{overlay_address, overlay_prefix};

/// Reports every clash between networks, and within each of them.
pub(super) fn check(networks: &[NetworkDraft], listen_port: Option<u16>, report: &mut Report<'_>) {
    check_interfaces(networks, report);
    check_identity_files(networks, report);
    check_network_ids(networks, report);
    for (index, network) in networks.iter().enumerate() {
        check_relays(network, report);
        check_peer_keys(network, report);
        check_peer_names(network, report);
        check_derived_addresses(network, report);
        check_wireguard_peers(network, listen_port, report);
        check_prefixes(networks, index, report);
    }
    check_prefixes_across(networks, report);
}

fn check_interfaces(networks: &[NetworkDraft], report: &mut Report<'_>) {
    let mut seen: BTreeMap<&str, &NetworkDraft> = BTreeMap::new();
    for network in networks {
        let Some(interface) = &network.interface else {
            continue;
        };
        match seen.entry(&interface.value) {
            Entry::Vacant(entry) => {
                entry.insert(network);
            }
            Entry::Occupied(entry) => {
                let message = format!(
                    "{} is already the interface of network {}; set interface to another name",
                    interface.value,
                    entry.get().name
                );
                report.add(interface.offset, network.key("interface"), message);
            }
        }
    }
}

fn check_identity_files(networks: &[NetworkDraft], report: &mut Report<'_>) {
    let mut seen: BTreeMap<&Path, &NetworkDraft> = BTreeMap::new();
    for network in networks {
        let Some(file) = &network.identity_file else {
            continue;
        };
        match seen.entry(&file.value) {
            Entry::Vacant(entry) => {
                entry.insert(network);
            }
            Entry::Occupied(entry) => {
                let message = format!(
                    "network {} has the same; each network needs a key of its own",
                    entry.get().name
                );
                report.add(file.offset, network.key("identity_file"), message);
            }
        }
    }
}

/// Networks whose derived addresses lie in one prefix cannot be told apart.
fn check_network_ids(networks: &[NetworkDraft], report: &mut Report<'_>) {
    let mut seen: BTreeMap<_, &NetworkDraft> = BTreeMap::new();
    for network in networks {
        let Some(id) = &network.id else { continue };
        match seen.entry(overlay_prefix(&id.value)) {
            Entry::Vacant(entry) => {
                entry.insert(network);
            }
            Entry::Occupied(entry) => {
                let message = format!(
                    "network {} has the same ID, or one with the same addresses; give one of the two another",
                    entry.get().name
                );
                report.add(id.offset, network.key("id"), message);
            }
        }
    }
}

/// Two connections with one key to one relay would replace each other for ever.
fn check_relays(network: &NetworkDraft, report: &mut Report<'_>) {
    for (index, relay) in network.relays.iter().enumerate() {
        let mut earlier = network.relays[..index].iter();
        if let Some(other) = earlier.find(|other| other.value.id == relay.value.id) {
            let message = if other.value == relay.value {
                format!("{} is given twice; remove one of the two", relay.value)
            } else {
                format!(
                    "{} and {} are one relay, because they have one ID; remove one of the two",
                    other.value, relay.value
                )
            };
            report.add(relay.offset, network.key("relays"), message);
        }
    }
}

fn check_peer_keys(network: &NetworkDraft, report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    for peer in &network.peers {
        let Some(key) = &peer.key else { continue };
        match seen.entry(key.value.to_wireguard()) {
            Entry::Vacant(entry) => {
                entry.insert((key, peer));
            }
            Entry::Occupied(entry) => {
                let (other, other_peer) = entry.get();
                let what = if other.value == key.value {
                    "is also the id of"
                } else {
                    "has the same WireGuard key as the id of"
                };
                let message = format!(
                    "{what} {} (line {}); remove one of the two peers",
                    label(other_peer),
                    report.line(other.offset)
                );
                report.add(key.offset, network.key("peer.id"), message);
            }
        }
    }
}

/// Names differ in more than case, as DNS names have to.
fn check_peer_names(network: &NetworkDraft, report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    for peer in &network.peers {
        let Some(name) = &peer.name else { continue };
        match seen.entry(name.value.to_ascii_lowercase()) {
            Entry::Vacant(entry) => {
                entry.insert(name);
            }
            Entry::Occupied(entry) => {
                let line = report.line(entry.get().offset);
                let message = format!(
                    "{} is also the name of the peer on line {line}; rename one of the two",
                    name.value
                );
                report.add(name.offset, network.key("peer.name"), message);
            }
        }
    }
}

fn check_derived_addresses(network: &NetworkDraft, report: &mut Report<'_>) {
    let Some(id) = &network.id else { return };
    let mut seen: BTreeMap<_, &PeerDraft> = BTreeMap::new();
    for peer in &network.peers {
        let Some(key) = &peer.key else { continue };
        let PeerKey::Mesh(node) = key.value else {
            continue;
        };
        match seen.entry(overlay_address(&id.value, &node)) {
            Entry::Vacant(entry) => {
                entry.insert(peer);
            }
            Entry::Occupied(entry) => {
                let other = entry.get();
                // One key given twice is reported as that.
                if other.key.is_some_and(|other| other.value != key.value) {
                    let message = format!(
                        "its derived address {} is also that of {}; give one of the two a new key",
                        entry.key(),
                        label(other)
                    );
                    report.add(key.offset, network.key("peer.id"), message);
                }
            }
        }
    }
}

fn check_wireguard_peers(
    network: &NetworkDraft,
    listen_port: Option<u16>,
    report: &mut Report<'_>,
) {
    for peer in &network.peers {
        let Some(key) = &peer.key else { continue };
        if !matches!(key.value, PeerKey::WireGuard(_)) {
            continue;
        }
        if listen_port == Some(0) && !peer.has_endpoints {
            let message = "neither side would know where the other is, as listen_port is 0; \
                           give the device's endpoints, or a fixed listen_port";
            report.add(key.offset, network.key("peer.endpoints"), message);
        }
        if !peer.has_place {
            let message =
                "a WireGuard device has no derived address; give the address that is set on it";
            report.add(key.offset, network.key("peer.address"), message);
        }
    }
}

/// Addresses and routes of one network: those of different nodes must not overlap, and none is given twice.
fn check_prefixes(networks: &[NetworkDraft], index: usize, report: &mut Report<'_>) {
    let network = &networks[index];
    let mut claims: Vec<_> = peer_claims(index, network).collect();
    // Only the address itself is ours within the network; the rest of its prefix is where peers are.
    claims.extend(network.addresses.iter().map(|address| Claim {
        net: IpNet::from(address.value.addr()),
        network: index,
        owner: Owner::Host,
        offset: address.offset,
    }));
    claims.extend(derived_claim(index, network));
    let is_clash = |a: &Claim, b: &Claim| !a.owner.same_node(b.owner) || a.net == b.net;
    find_overlaps(claims, is_clash, |claim, other| {
        let (claim, other) = derived_last(claim, other);
        let message = if claim.owner.same_node(other.owner) {
            format!("{} is given twice; remove one of the two", show(&claim.net))
        } else {
            clash_message(networks, claim, other, report)
        };
        report.add(claim.offset, claim_key(network, claim), message);
    });
}

/// Addresses and routes of different networks: the host has one routing table for all.
fn check_prefixes_across(networks: &[NetworkDraft], report: &mut Report<'_>) {
    let mut claims = Vec::new();
    for (index, network) in networks.iter().enumerate() {
        claims.extend(peer_claims(index, network));
        claims.extend(network.addresses.iter().map(|address| Claim {
            net: address.value.trunc(),
            network: index,
            owner: Owner::Host,
            offset: address.offset,
        }));
        claims.extend(derived_claim(index, network));
    }
    // Two equal derived prefixes are reported as equal network IDs.
    let is_clash = |a: &Claim, b: &Claim| {
        a.network != b.network && !(a.owner == Owner::Derived && b.owner == Owner::Derived)
    };
    find_overlaps(claims, is_clash, |claim, other| {
        let (claim, other) = derived_last(claim, other);
        let message = clash_message(networks, claim, other, report);
        report.add(
            claim.offset,
            claim_key(&networks[claim.network], claim),
            message,
        );
    });
}

fn peer_claims(index: usize, network: &NetworkDraft) -> impl Iterator<Item = Claim> {
    network
        .peers
        .iter()
        .enumerate()
        .flat_map(move |(at, peer)| {
            let addresses = peer.addresses.iter().map(move |address| Claim {
                net: IpNet::from(address.value),
                network: index,
                owner: Owner::Address(at),
                offset: address.offset,
            });
            let routes = peer.routes.iter().map(move |route| Claim {
                net: route.value,
                network: index,
                owner: Owner::Route(at),
                offset: route.offset,
            });
            addresses.chain(routes)
        })
}

fn derived_claim(index: usize, network: &NetworkDraft) -> Option<Claim> {
    let id = network.id.as_ref()?;
    Some(Claim {
        net: IpNet::V6(overlay_prefix(&id.value)),
        network: index,
        owner: Owner::Derived,
        offset: id.offset,
    })
}

/// Derived addresses cannot be changed: what can be is named first, wherever it stands.
fn derived_last<'c>(claim: &'c Claim, other: &'c Claim) -> (&'c Claim, &'c Claim) {
    if claim.owner == Owner::Derived {
        (other, claim)
    } else {
        (claim, other)
    }
}

fn clash_message(
    networks: &[NetworkDraft],
    claim: &Claim,
    other: &Claim,
    report: &Report<'_>,
) -> String {
    let network = &networks[other.network];
    let net = show(&other.net);
    let verb = if claim.net == other.net {
        "is also"
    } else {
        "overlaps"
    };
    let across = if claim.network == other.network {
        String::new()
    } else {
        format!(" in network {}", network.name)
    };
    let line = report.line(other.offset);
    let whose = |index: usize| label(&network.peers[index]);
    let what = match other.owner {
        Owner::Host => format!("this host's address {net}{across} (line {line})"),
        Owner::Address(peer) => {
            format!("the address {net} of {}{across} (line {line})", whose(peer))
        }
        Owner::Route(peer) => format!("the route {net} of {}{across} (line {line})", whose(peer)),
        Owner::Derived => {
            let net = &other.net;
            return format!(
                "{} {verb} {net}, where the derived addresses of network {} are; choose another",
                show(&claim.net),
                network.name
            );
        }
    };
    format!("{} {verb} {what}; change one of the two", show(&claim.net))
}

fn claim_key(network: &NetworkDraft, claim: &Claim) -> String {
    network.key(match claim.owner {
        Owner::Host => "address",
        Owner::Derived => "id",
        Owner::Address(_) => "peer.address",
        Owner::Route(_) => "peer.routes",
    })
}

fn label(peer: &PeerDraft) -> String {
    match &peer.name {
        Some(name) => format!("peer {}", name.value),
        None => "another peer".to_owned(),
    }
}

/// A prefix as people write it: the length only where it says something.
fn show(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}
