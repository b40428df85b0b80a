//! What the control interface asks of the supervisor, and what the supervisor tells it.
//!
//! Requests cross a bounded queue; each carries where its answer goes. Whoever asked may have gone away, so a reply that
//! nobody takes is no error.

use std::time::Duration;

use mesh_bus::{Explanation, Netcheck, Pong, Reloaded, Status};
use tokio::sync::oneshot;

pub use mesh_bus::ErrorKind;

/// Where the answer to a [`Request`] goes.
pub type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// A command from whoever may give it: authorisation has been checked.
#[derive(Debug)]
pub enum Request {
    /// Everything that there is to see.
    Status {
        /// Where to.
        reply: Reply<Status>,
    },
    /// Bring interface, addresses and routes up, and remember it across restarts.
    Up {
        /// Which; all that are down if `None`.
        network: Option<String>,
        /// Names of those brought up; a network that was up is one of them if it was named.
        reply: Reply<Vec<String>>,
    },
    /// Take interface, addresses and routes down, and remember it across restarts.
    Down {
        /// Which; all that are up if `None`.
        network: Option<String>,
        /// Names of those taken down; a network that was down is one of them if it was named.
        reply: Reply<Vec<String>>,
    },
    /// One overlay ping.
    Ping {
        /// Which; all are searched for the peer if `None`.
        network: Option<String>,
        /// A name, a node ID, or an overlay address.
        peer: String,
        /// How long to wait for the answer.
        timeout: Duration,
        /// Where to; no answer in time is no error, but [`Pong::answer`] of `None`.
        reply: Reply<Pong>,
    },
    /// Why a peer is reached as it is.
    Explain {
        /// Which; all are searched for the peer if `None`.
        network: Option<String>,
        /// A name, a node ID, or an overlay address.
        peer: String,
        /// Where to.
        reply: Reply<Explanation>,
    },
    /// What there is to monitor, in the format of Prometheus.
    Metrics {
        /// Where to.
        reply: Reply<String>,
    },
    /// Measure what lies between this host and its relays.
    Netcheck {
        /// Which; the only one if `None`.
        network: Option<String>,
        /// Where to.
        reply: Reply<Netcheck>,
    },
    /// The stanza for a stock WireGuard device that is to be a peer of this host.
    WireguardConfig {
        /// Which; the only one if `None`.
        network: Option<String>,
        /// Where to.
        reply: Reply<String>,
    },
    /// Read the configuration file again.
    Reload {
        /// Where to; a bad file changes nothing and is [`ErrorKind::Failed`].
        reply: Reply<Reloaded>,
    },
}

/// Why a request was not fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure: decides the D-Bus error name and meshctl's exit code.
    pub kind: ErrorKind,
    /// One line: what failed, on what, and what to do.
    pub message: String,
}

impl ApiError {
    /// An error of any kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// It was tried and failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// The request makes no sense as it stands.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// No such network or peer.
    pub fn no_such(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NoSuch, message)
    }
}

/// Something changed: becomes a D-Bus signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The path or the state of a peer.
    PeerChanged {
        /// Its network.
        network: String,
        /// ID of the peer.
        peer: String,
    },
    /// A network came, went, or changed its state.
    NetworkChanged {
        /// Which.
        network: String,
    },
    /// The health lines of a network.
    Health {
        /// Which.
        network: String,
    },
}
