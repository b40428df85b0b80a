//! Finds the network and the peer that somebody means.

use std::net::IpAddr;

use mesh_core::config::Peer;
use mesh_core::engine::PeerKey;
use mesh_core::identity::{format_wireguard_key, overlay_address};

use super::network::Network;
use crate::api::ApiError;

/// A peer that was meant, and where it is.
pub(super) struct Found<'a> {
    pub(super) network: &'a Network,
    pub(super) peer: &'a Peer,
    /// The overlay address that was meant, or the one that people know it by.
    pub(super) address: IpAddr,
}

/// The network called `name`; the only one if no name is given.
///
/// # Errors
///
/// If there is none, or if one of several has to be named.
pub(super) fn network<'a>(
    networks: &'a [Network],
    name: Option<&str>,
) -> Result<&'a Network, ApiError> {
    match (name, networks) {
        (Some(name), _) => networks
            .iter()
            .find(|network| network.name() == name)
            .ok_or_else(|| no_network(networks, name)),
        (None, [only]) => Ok(only),
        (None, []) => Err(ApiError::no_such(
            "there is no network; add one to the configuration, then run: meshctl reload",
        )),
        (None, _) => Err(ApiError::usage(format!(
            "there are several networks; say which with --network: {}",
            names(networks)
        ))),
    }
}

/// The peer that `meant` (a name, an ID, or an overlay address) stands for.
///
/// # Errors
///
/// If there is none, or one in each of several networks.
pub(super) fn peer<'a>(
    networks: &'a [Network],
    network: Option<&str>,
    meant: &str,
) -> Result<Found<'a>, ApiError> {
    let searched = match network {
        Some(name) => std::slice::from_ref(self::network(networks, Some(name))?),
        None => networks,
    };
    let mut found: Vec<Found<'a>> = searched
        .iter()
        .filter_map(|network| find_in(network, meant))
        .collect();
    if found.len() > 1 {
        let places: Vec<&str> = found.iter().map(|found| found.network.name()).collect();
        return Err(ApiError::usage(format!(
            "{meant} is a peer in several networks; say which with --network: {}",
            places.join(", ")
        )));
    }
    found.pop().ok_or_else(|| {
        ApiError::no_such(format!(
            "there is no peer {meant}{}; see: meshctl status",
            network
                .map(|name| format!(" in network {name}"))
                .unwrap_or_default()
        ))
    })
}

/// What a peer is called on the outside: its node ID, or its WireGuard public key in base64.
pub(super) fn key_text(key: &PeerKey) -> String {
    match key {
        PeerKey::Mesh(id) => id.to_string(),
        PeerKey::WireGuard(key) => format_wireguard_key(key),
    }
}

/// All overlay addresses of a peer, the derived one first.
pub(super) fn addresses(network: &Network, peer: &Peer) -> Vec<IpAddr> {
    let derived = match peer.key {
        PeerKey::Mesh(id) => Some(IpAddr::from(overlay_address(&network.config.id, &id))),
        PeerKey::WireGuard(_) => None,
    };
    derived
        .into_iter()
        .chain(peer.addresses.iter().copied())
        .collect()
}

fn find_in<'a>(network: &'a Network, meant: &str) -> Option<Found<'a>> {
    let address: Option<IpAddr> = meant.parse().ok();
    let peer = network.config.peers.iter().find(|peer| {
        peer.name == meant
            || key_text(&peer.key) == meant
            || address.is_some_and(|address| addresses(network, peer).contains(&address))
    })?;
    // People know the address that they gave it, if they did.
    let all = addresses(network, peer);
    let known = peer.addresses.first().or(all.first()).copied();
    Some(Found {
        network,
        peer,
        address: address.or(known)?,
    })
}

fn no_network(networks: &[Network], name: &str) -> ApiError {
    let others = if networks.is_empty() {
        "there is none".to_owned()
    } else {
        format!("there is: {}", names(networks))
    };
    ApiError::no_such(format!("there is no network {name}; {others}"))
}

fn names(networks: &[Network]) -> String {
    let names: Vec<&str> = networks.iter().map(Network::name).collect();
    names.join(", ")
}
