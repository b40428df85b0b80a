//! The client's side of the interface.

// The macro makes items that it does not document.
#![allow(missing_docs)]

use crate::error::Error;

/// `net.meshd.Mesh1`, on the object of all networks or on that of one (see [`crate::network_path`]).
///
/// Wherever `network` is asked for, an empty one means the object's own, or the only one there is.
#[zbus::proxy(
    interface = "net.meshd.Mesh1",
    default_service = "net.meshd.Mesh1",
    default_path = "/net/meshd/Mesh1"
)]
pub trait Mesh {
    /// All networks, or that of the object: a [`crate::Status`] as JSON.
    fn status(&self) -> Result<String, Error>;

    /// Brings a network up, or all that are down when there are several and none is named; returns which.
    #[zbus(allow_interactive_auth)]
    fn up(&self, network: &str) -> Result<Vec<String>, Error>;

    /// Takes a network down, or all that are up when there are several and none is named; returns which.
    #[zbus(allow_interactive_auth)]
    fn down(&self, network: &str) -> Result<Vec<String>, Error>;

    /// Sends one overlay ping to a peer, named by name, ID or overlay address: a [`crate::Pong`] as JSON.
    fn ping(&self, network: &str, peer: &str, timeout_ms: u32) -> Result<String, Error>;

    /// Why a peer is reached as it is, and what was tried: a [`crate::Explanation`] as JSON.
    fn explain(&self, network: &str, peer: &str) -> Result<String, Error>;

    /// Measures what lies between this host and the internet: a [`crate::Netcheck`] as JSON.
    fn netcheck(&self, network: &str) -> Result<String, Error>;

    /// What to configure on a stock WireGuard device that is to be a peer of this host.
    fn wireguard_config(&self, network: &str) -> Result<String, Error>;

    /// Reads the configuration again: a [`crate::Reloaded`] as JSON.
    #[zbus(allow_interactive_auth)]
    fn reload(&self) -> Result<String, Error>;

    /// Names of the networks.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn networks(&self) -> zbus::fdo::Result<Vec<String>>;

    /// `up`, `starting` or `down`; of all networks, the furthest up.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn state(&self) -> zbus::fdo::Result<String>;

    /// ID, name and state (`active`, `idle`, `offline`) of each peer.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn peers(&self) -> zbus::fdo::Result<Vec<(String, String, String)>>;

    /// The path or the state of a peer changed.
    #[zbus(signal)]
    fn peer_changed(&self, network: &str, peer: &str) -> zbus::Result<()>;

    /// A network came, went, or changed its state.
    #[zbus(signal)]
    fn network_changed(&self, network: &str) -> zbus::Result<()>;

    /// The health lines of a network changed.
    #[zbus(signal)]
    fn health(&self, network: &str) -> zbus::Result<()>;
}
