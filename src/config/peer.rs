//! The `[[network.NAME.peer]]` tables.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::document::values;
use super::section::{At, Key, Keys, Report, Section};
use super::{Origin, Peer, value};
use crate::engine::PeerKey;
use crate::identity::{NodeId, format_wireguard_key, parse_wireguard_key};
use crate::limits;

pub(super) static PEER: Keys = Keys {
    header: "[[network.NAME.peer]]",
    known: &[
        Key {
            name: "id",
            example: "\"<node id>\"",
        },
        Key {
            name: "name",
            example: "\"bob\"",
        },
        Key {
            name: "address",
            example: "[\"10.77.0.2\"]",
        },
        Key {
            name: "routes",
            example: "[\"192.168.50.0/24\"]",
        },
        Key {
            name: "psk_file",
            example: "\"/run/credentials/meshd.service/bob.psk\"",
        },
        Key {
            name: "wireguard",
            example: "true",
        },
        Key {
            name: "endpoints",
            example: "[\"203.0.113.7:41820\"]",
        },
    ],
    later: &[],
};

/// A peer with the places of what may clash with something else.
pub(super) struct PeerDraft {
    pub(super) key: Option<At<PeerKey>>,
    pub(super) name: Option<At<String>>,
    pub(super) addresses: Vec<At<IpAddr>>,
    pub(super) routes: Vec<At<IpNet>>,
    /// True if the file says `endpoints = […]` with anything in it, even if that was wrong.
    pub(super) has_endpoints: bool,
    /// True if the file says where the peer is in the overlay, even if that was wrong.
    pub(super) has_place: bool,
    endpoints: Vec<At<SocketAddr>>,
    psk_file: Option<At<PathBuf>>,
}

impl PeerDraft {
    /// `None` only if something in it was reported.
    pub(super) fn finish(self, report: &Report<'_>) -> Option<Peer> {
        let key = self.key?;
        Some(Peer {
            key: key.value,
            name: self.name?.value,
            addresses: values(self.addresses),
            routes: values(self.routes),
            psk_file: self.psk_file.map(|at| at.value),
            endpoints: values(self.endpoints),
            line: Origin(report.line(key.offset)),
        })
    }
}

pub(super) fn parse(section: &Section<'_, '_>, report: &mut Report<'_>) -> PeerDraft {
    let key = parse_key(section, report);
    let name = match section.raw("name") {
        Some(_) => section.get("name", report, value::peer_name),
        None => key.map(|key| At {
            value: default_name(&key.value),
            offset: key.offset,
        }),
    };
    let filled = |key| {
        section
            .raw(key)
            .and_then(|value| value.get_ref().as_array())
            .is_some_and(|items| !items.is_empty())
    };
    PeerDraft {
        key,
        name,
        addresses: section.list(
            "address",
            limits::MAX_ADDRESSES,
            report,
            value::peer_address,
        ),
        routes: section.list("routes", limits::MAX_ROUTES, report, value::route),
        has_endpoints: filled("endpoints"),
        has_place: filled("address") || filled("routes"),
        endpoints: parse_endpoints(section, report),
        psk_file: section.get("psk_file", report, value::path),
    }
}

/// The first ten characters of the ID; of a WireGuard key, in the alphabet that names may use (RFC 4648, section 5).
fn default_name(key: &PeerKey) -> String {
    match key {
        PeerKey::Mesh(id) => id.short(),
        PeerKey::WireGuard(key) => {
            let mut text = format_wireguard_key(key)
                .replace('+', "-")
                .replace('/', "_");
            text.truncate(10);
            // A name starts with a letter or digit, so that no program takes it for an option.
            if text.starts_with(['-', '_']) {
                text.replace_range(..1, "x");
            }
            text
        }
    }
}

fn parse_key(section: &Section<'_, '_>, report: &mut Report<'_>) -> Option<At<PeerKey>> {
    let wireguard = match section.raw("wireguard") {
        Some(_) => section.get("wireguard", report, value::boolean)?.value,
        None => false,
    };
    if section.raw("id").is_none() {
        let message = "is missing; write id = \"<node id>\"";
        report.add(section.offset, section.key("id"), message);
        return None;
    }
    section.get("id", report, |id, correct| {
        let text = value::text(id, correct)?;
        if wireguard {
            parse_wireguard_key(text)
                .map(PeerKey::WireGuard)
                .map_err(|error| match text.parse::<NodeId>() {
                    Ok(_) => "is the ID of a node that runs meshd; remove wireguard = true".to_owned(),
                    Err(_) => error.to_string(),
                })
        } else {
            text.parse()
                .map(PeerKey::Mesh)
                .map_err(|error| match parse_wireguard_key(text) {
                    Ok(_) => "is a WireGuard key, not a node's ID; add wireguard = true for a stock WireGuard device"
                        .to_owned(),
                    Err(_) => error.to_string(),
                })
        }
    })
}

fn parse_endpoints(section: &Section<'_, '_>, report: &mut Report<'_>) -> Vec<At<SocketAddr>> {
    let endpoints = section.list("endpoints", limits::MAX_ENDPOINTS, report, value::endpoint);
    for (index, endpoint) in endpoints.iter().enumerate() {
        let earlier = endpoints[..index].iter();
        if earlier
            .into_iter()
            .any(|other| other.value == endpoint.value)
        {
            let message = format!("{} is given twice; remove one of the two", endpoint.value);
            report.add(endpoint.offset, section.key("endpoints"), message);
        }
    }
    endpoints
}
