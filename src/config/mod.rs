//! The configuration of meshd, parsed into types that cannot be wrong.
//!
//! [`Config::parse`] takes the text of a file and either returns a [`Config`] that the rest of the program can use
//! without checking anything again, or every problem that it found, each with file, line, key, what is wrong and what
//! to do. Two things need more than the text: whether a network lists its own node as a peer
//! ([`Network::check_identity`]), and what the files hold that it names.
//!
//! The parser walks TOML's own tree rather than deriving `Deserialize`: that keeps the place of every key and value,
//! and lets it go on after a mistake.

mod check;
mod document;
mod error;
mod peer;
mod prefix;
mod section;
mod value;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::engine::PeerKey;
use crate::identity::{NetworkId, NodeId, RelayUrl, overlay_address};

pub use error::{ConfigError, ConfigErrors};

/// The value of the key `metrics`, which the relay's configuration has as well.
///
/// # Errors
///
/// What is wrong with it, and what to do.
pub fn parse_metrics_address(text: &str) -> Result<SocketAddr, String> {
    value::parse_metrics_address(text)
}

/// UDP port of the mesh socket unless the configuration says otherwise.
pub const DEFAULT_PORT: u16 = 41_820;

/// Everything that a configuration file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// UDP port of the mesh socket; 0 for any free one.
    pub listen_port: u16,
    /// Look for peers on the links of this host, and answer those who look for us.
    pub lan_discovery: bool,
    /// Where Prometheus may fetch metrics, over TCP; not at all without it.
    pub metrics: Option<SocketAddr>,
    /// The networks in the order of the file; at most [`crate::limits::MAX_NETWORKS`].
    pub networks: Vec<Network>,
}

impl Default for Config {
    /// What holds without any file.
    fn default() -> Self {
        Self {
            listen_port: DEFAULT_PORT,
            lan_discovery: true,
            metrics: None,
            networks: Vec::new(),
        }
    }
}

impl Config {
    /// Parses `text`; `file` is only named in messages.
    ///
    /// # Errors
    ///
    /// All problems that were found, in the order of their lines.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigErrors> {
        document::parse(text, file)
    }
}

/// A network of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Name of its table: 1 to 63 characters `a`–`z`, `0`–`9`, `-`, `_`, fit for a file name.
    pub name: String,
    /// Name of its TUN device: 1 to 15 characters.
    pub interface: String,
    /// Its ID.
    pub id: NetworkId,
    /// Bring it up when meshd starts.
    pub autostart: bool,
    /// Largest inner packet in bytes: a cap, [`crate::limits::INNER_MTU`] to [`crate::limits::MAX_INNER_MTU`].
    pub mtu: u16,
    /// Its relays, at most [`crate::limits::MAX_RELAYS`], each with another key.
    pub relays: Vec<RelayUrl>,
    /// Our overlay addresses beside the derived one, with the prefix lengths to give to the interface.
    pub addresses: Vec<IpNet>,
    /// Absolute path of our key, if it is not in the state directory.
    pub identity_file: Option<PathBuf>,
    /// The peers that the file vouches for, in its order; at most [`crate::limits::MAX_PEERS`].
    pub peers: Vec<Peer>,
    /// File that the network was read from, for messages.
    file: Origin<PathBuf>,
}

/// A peer that the configuration vouches for.
///
/// Within a network, WireGuard keys, names, addresses and routes of different peers do not clash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its key.
    pub key: PeerKey,
    /// Its name; the first ten characters of its ID unless the file gives one.
    pub name: String,
    /// Overlay addresses beside the derived one.
    pub addresses: Vec<IpAddr>,
    /// Prefixes behind it.
    pub routes: Vec<IpNet>,
    /// Absolute path of the WireGuard preshared key.
    pub psk_file: Option<PathBuf>,
    /// Where it can be reached without any relay.
    pub endpoints: Vec<SocketAddr>,
    /// Line of its `id`, for messages.
    line: Origin<usize>,
}

impl Peer {
    /// The peer's X25519 public key.
    pub fn wireguard_key(&self) -> [u8; 32] {
        self.key.to_wireguard()
    }
}

impl Network {
    /// Checks what cannot be seen from the file alone: that none of the peers is this host itself.
    ///
    /// # Errors
    ///
    /// If a peer has the ID, the WireGuard key or the derived address of `own`.
    pub fn check_identity(&self, own: &NodeId) -> Result<(), ConfigError> {
        let own_key = own.to_wireguard();
        let own_address = overlay_address(&self.id, own);
        for peer in &self.peers {
            let message = if peer.wireguard_key() == own_key {
                "this is the key of this host itself; remove this peer from this host's file"
            } else if matches!(peer.key, PeerKey::Mesh(id) if overlay_address(&self.id, &id) == own_address)
            {
                "this peer's derived address is the same as this host's; give one of the two a new key"
            } else {
                continue;
            };
            return Err(ConfigError {
                file: self.file.0.clone(),
                line: peer.line.0,
                key: Some(format!("network.{}.peer.id", self.name)),
                message: message.to_owned(),
            });
        }
        Ok(())
    }
}

/// Where something stood in the file. All origins are equal, so that moving a line changes no network.
#[derive(Debug, Clone, Copy)]
struct Origin<T>(T);

impl<T> PartialEq for Origin<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Origin<T> {}

#[cfg(test)]
mod tests;
