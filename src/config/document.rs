//! The file as a whole and its `[network.NAME]` tables.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml::de::{DeTable, DeValue};

use super::check;
use super::error::ConfigErrors;
use super::peer::{self, PEER, PeerDraft};
use super::section::{At, Key, Keys, Report, Section, describe, quoted};
use super::value;
use super::{Config, DEFAULT_PORT, Network, Origin};
use crate::identity::{NetworkId, RelayUrl};
use crate::limits;

pub(super) static TOP: Keys = Keys {
    header: "the first table, at the top of the file",
    known: &[
        Key {
            name: "listen_port",
            example: "41820",
        },
        Key {
            name: "lan_discovery",
            example: "true",
        },
        Key {
            name: "metrics",
            example: "\"127.0.0.1:9586\"",
        },
        Key {
            name: "network",
            example: "{ home = {} }",
        },
    ],
    later: &["relay"],
};

pub(super) static NETWORK: Keys = Keys {
    header: "[network.NAME]",
    known: &[
        Key {
            name: "interface",
            example: "\"mesh-home\"",
        },
        Key {
            name: "id",
            example: "\"<network id>\"",
        },
        Key {
            name: "autostart",
            example: "true",
        },
        Key {
            name: "mtu",
            example: "9000",
        },
        Key {
            name: "relays",
            example: "[\"mesh://<relay-id>@relay.example.org:443\"]",
        },
        Key {
            name: "address",
            example: "[\"10.77.0.1/32\"]",
        },
        Key {
            name: "identity_file",
            example: "\"/run/credentials/meshd.service/home.key\"",
        },
        Key {
            name: "peer",
            example: "[{ id = \"<node id>\" }]",
        },
    ],
    later: &[],
};

/// A network with the places of what may clash with something else.
pub(super) struct NetworkDraft {
    pub(super) name: String,
    pub(super) interface: Option<At<String>>,
    pub(super) id: Option<At<NetworkId>>,
    pub(super) relays: Vec<At<RelayUrl>>,
    pub(super) addresses: Vec<At<IpNet>>,
    pub(super) identity_file: Option<At<PathBuf>>,
    pub(super) peers: Vec<PeerDraft>,
    autostart: bool,
    mtu: u16,
}

impl NetworkDraft {
    /// The full name of a key of this network.
    pub(super) fn key(&self, name: &str) -> String {
        format!("network.{}.{name}", quoted(&self.name))
    }

    /// `None` only if something in it was reported.
    fn finish(self, report: &Report<'_>) -> Option<Network> {
        let peers = self.peers.into_iter();
        Some(Network {
            name: self.name,
            interface: self.interface?.value,
            id: self.id?.value,
            autostart: self.autostart,
            mtu: self.mtu,
            relays: values(self.relays),
            addresses: values(self.addresses),
            identity_file: self.identity_file.map(|at| at.value),
            peers: peers
                .map(|peer| peer.finish(report))
                .collect::<Option<_>>()?,
            file: Origin(report.file().to_owned()),
        })
    }
}

/// Strips the places.
pub(super) fn values<T>(located: Vec<At<T>>) -> Vec<T> {
    located.into_iter().map(|at| at.value).collect()
}

/// See [`Config::parse`].
pub(super) fn parse(text: &str, file: &Path) -> Result<Config, ConfigErrors> {
    let mut report = Report::new(text, file);
    let (root, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        return Err(syntax_errors(syntax, report));
    }
    let others = [&NETWORK, &PEER];
    let top = Section::enter(root.get_ref(), String::new(), 0, &TOP, &others, &mut report);
    let listen_port = match top.raw("listen_port") {
        Some(_) => top
            .get("listen_port", &mut report, value::port)
            .map(|port| port.value),
        None => Some(DEFAULT_PORT),
    };
    let lan_discovery = top
        .get("lan_discovery", &mut report, value::boolean)
        .is_none_or(|at| at.value);
    let metrics = top
        .get("metrics", &mut report, value::metrics_address)
        .map(|at| at.value);
    let drafts = parse_networks(&top, &mut report);
    check::check(&drafts, listen_port, &mut report);
    let networks: Option<Vec<_>> = drafts
        .into_iter()
        .map(|draft| draft.finish(&report))
        .collect();
    let errors = report.into_errors();
    match (listen_port, networks) {
        (Some(listen_port), Some(networks)) if errors.is_empty() => Ok(Config {
            listen_port,
            lan_discovery,
            metrics,
            networks,
        }),
        _ => Err(ConfigErrors::new(errors)),
    }
}

/// The first error of each line: those that follow are mostly the parser's attempts to go on.
fn syntax_errors(syntax: Vec<toml::de::Error>, mut report: Report<'_>) -> ConfigErrors {
    let mut lines = BTreeSet::new();
    for error in syntax {
        let offset = error.span().map_or(0, |span| span.start);
        if lines.insert(report.line(offset)) {
            let message = format!("not TOML: {}; correct this line", error.message());
            report.add(offset, None, message);
        }
    }
    ConfigErrors::new(report.into_errors())
}

fn parse_networks(top: &Section<'_, '_>, report: &mut Report<'_>) -> Vec<NetworkDraft> {
    let Some(value) = top.raw("network") else {
        return Vec::new();
    };
    let DeValue::Table(tables) = value.get_ref() else {
        let found = describe(value.get_ref());
        let message = format!("must be a table, not {found}; write [network.home]");
        report.add(value.span().start, top.key("network"), message);
        return Vec::new();
    };
    let mut tables: Vec<_> = tables.iter().collect();
    tables.sort_by_key(|(name, _)| name.span().start);
    if let Some((name, _)) = tables.get(limits::MAX_NETWORKS) {
        let (count, max) = (tables.len(), limits::MAX_NETWORKS);
        let message = format!("{count} networks are too many; leave at most {max}");
        report.add(name.span().start, top.key("network"), message);
        tables.truncate(max);
    }
    let mut drafts = Vec::new();
    for (name, value) in tables {
        let offset = name.span().start;
        let name: &str = name.get_ref();
        let path = format!("network.{}", quoted(name));
        if let Err(message) = value::check_network_name(name) {
            report.add(offset, path.clone(), message);
        }
        match value.get_ref() {
            DeValue::Table(table) => {
                let others = [&TOP, &PEER];
                let section = Section::enter(table, path, offset, &NETWORK, &others, report);
                drafts.push(parse_network(name, &section, report));
            }
            other => {
                let found = describe(other);
                let message = format!("must be a table, not {found}; write [{path}]");
                report.add(value.span().start, path, message);
            }
        }
    }
    drafts
}

fn parse_network(name: &str, section: &Section<'_, '_>, report: &mut Report<'_>) -> NetworkDraft {
    let default = |value| At {
        value,
        offset: section.offset,
    };
    let interface = match section.raw("interface") {
        Some(_) => section.get("interface", report, value::interface),
        None => Some(default(default_interface(name))),
    };
    let id = match section.raw("id") {
        Some(_) => section.get("id", report, value::network_id),
        None => Some(At {
            value: NetworkId::from_name(name),
            offset: section.offset,
        }),
    };
    NetworkDraft {
        name: name.to_owned(),
        interface,
        id,
        relays: section.list("relays", limits::MAX_RELAYS, report, value::relay),
        addresses: section.list("address", limits::MAX_ADDRESSES, report, value::own_address),
        identity_file: section.get("identity_file", report, value::path),
        autostart: section
            .get("autostart", report, value::boolean)
            .is_none_or(|at| at.value),
        mtu: section
            .get("mtu", report, value::mtu)
            .map_or(limits::MAX_INNER_MTU, |at| at.value),
        peers: parse_peers(section, report),
    }
}

/// `mesh-` and the network's name, cut to the length that Linux takes.
fn default_interface(network: &str) -> String {
    "mesh-"
        .chars()
        .chain(network.chars())
        .take(value::MAX_INTERFACE)
        .collect()
}

fn parse_peers(section: &Section<'_, '_>, report: &mut Report<'_>) -> Vec<PeerDraft> {
    let Some(value) = section.raw("peer") else {
        return Vec::new();
    };
    let path = section.key("peer");
    let DeValue::Array(items) = value.get_ref() else {
        let found = describe(value.get_ref());
        let message = format!("must be a list of tables, not {found}; write [[{path}]]");
        report.add(value.span().start, path, message);
        return Vec::new();
    };
    if let Some(item) = items.get(limits::MAX_PEERS) {
        let (count, max) = (items.len(), limits::MAX_PEERS);
        let message = format!("{count} peers are too many; leave at most {max}");
        report.add(item.span().start, path.clone(), message);
    }
    let mut drafts = Vec::new();
    for item in items.iter().take(limits::MAX_PEERS) {
        let offset = item.span().start;
        match item.get_ref() {
            DeValue::Table(table) => {
                let others = [&NETWORK, &TOP];
                let section = Section::enter(table, path.clone(), offset, &PEER, &others, report);
                drafts.push(peer::parse(&section, report));
            }
            other => {
                let found = describe(other);
                let message = format!("must be a table, not {found}; write [[{path}]]");
                report.add(offset, path.clone(), message);
            }
        }
    }
    drafts
}
