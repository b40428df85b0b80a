//! The D-Bus object: turns calls into requests, once the caller may make them.

use std::collections::HashMap;
use std::time::Duration;

use mesh_bus::{Error, ErrorKind, NetworkState};
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, fdo};

use super::access::{Credentials, Verb};
use super::backend::{Backend, NetworkSummary};
use super::polkit::Polkit;
use crate::api::{ApiError, Notice};

/// Bytes of a name that a client may ask for; longer ones exist nowhere.
const MAX_NAME: usize = 256;
/// How long a ping may be waited for.
const MAX_PING: Duration = Duration::from_secs(60);

/// Who decides whether a caller may.
#[derive(Debug, Clone)]
pub(super) enum Gatekeeper {
    /// The one caller there is, known since it connected.
    Known(Credentials),
    /// The system bus and polkit, for each call.
    Bus(Polkit),
}

impl Gatekeeper {
    async fn check(
        &self,
        verb: Verb,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<(), Error> {
        let may = match self {
            Self::Known(credentials) => credentials.may(verb.access()).await,
            Self::Bus(polkit) => polkit.may(verb, header, connection).await,
        };
        if may { Ok(()) } else { Err(verb.refusal()) }
    }
}

/// `net.meshd.Mesh1`, for all networks or for one.
#[derive(Debug, Clone)]
pub(super) struct Mesh {
    backend: Backend,
    gatekeeper: Gatekeeper,
    scope: Option<String>,
}

impl Mesh {
    /// The object of all networks.
    pub(super) fn new(backend: Backend, gatekeeper: Gatekeeper) -> Self {
        Self {
            backend,
            gatekeeper,
            scope: None,
        }
    }

    /// The object of one network.
    pub(super) fn child(&self, network: &str) -> Self {
        Self {
            scope: Some(network.to_owned()),
            ..self.clone()
        }
    }

    /// Which network a call is about.
    fn network(&self, asked: &str) -> Result<Option<String>, Error> {
        bounded(asked)?;
        match &self.scope {
            None if asked.is_empty() => Ok(None),
            None => Ok(Some(asked.to_owned())),
            Some(own) if asked.is_empty() || asked == own => Ok(Some(own.clone())),
            Some(own) => Err(Error::Usage(format!(
                "this object stands for network {own}, not {asked}; call {}",
                mesh_bus::OBJECT_PATH
            ))),
        }
    }

    /// What `pick` finds in each network of this object.
    async fn summary<T>(
        &self,
        header: Option<Header<'_>>,
        connection: &Connection,
        pick: impl Fn(&NetworkSummary) -> T,
    ) -> fdo::Result<Vec<T>> {
        if let Some(header) = header {
            let checked = self
                .gatekeeper
                .check(Verb::Status, &header, connection)
                .await;
            checked.map_err(|error| fdo::Error::AccessDenied(error.to_string()))?;
        }
        let summary = self.backend.summary().await;
        let summary = summary.map_err(|error| fdo::Error::Failed(error.message))?;
        let own = |network: &&NetworkSummary| {
            self.scope
                .as_ref()
                .is_none_or(|scope| *scope == network.name)
        };
        Ok(summary.networks.iter().filter(own).map(pick).collect())
    }
}

/// Passes on what the supervisor noticed, from the object of all networks and from that of the network.
pub(super) async fn emit(connection: &Connection, notice: &Notice) -> zbus::Result<()> {
    let network = match notice {
        Notice::PeerChanged { network, .. }
        | Notice::NetworkChanged { network }
        | Notice::Health { network } => network,
    };
    for path in [
        mesh_bus::OBJECT_PATH.to_owned(),
        mesh_bus::network_path(network),
    ] {
        let emitter = SignalEmitter::new(connection, path)?;
        let invalidated: &[&str] = match notice {
            Notice::PeerChanged { peer, .. } => {
                emitter.peer_changed(network, peer).await?;
                &["Peers"]
            }
            Notice::NetworkChanged { .. } => {
                emitter.network_changed(network).await?;
                &["Networks", "State", "Peers"]
            }
            Notice::Health { .. } => {
                emitter.health(network).await?;
                continue;
            }
        };
        let interface = zbus::names::InterfaceName::from_static_str(mesh_bus::INTERFACE)?;
        fdo::Properties::properties_changed(
            &emitter,
            interface,
            HashMap::new(),
            invalidated.into(),
        )
        .await?;
    }
    Ok(())
}

fn bounded(name: &str) -> Result<(), Error> {
    if name.len() > MAX_NAME {
        return Err(Error::Usage(format!(
            "a name has at most {MAX_NAME} bytes; check it"
        )));
    }
    Ok(())
}

fn json(document: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(document)
        .map_err(|error| Error::Failed(format!("cannot write the answer: {error}")))
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        Self::new(error.kind, error.message)
    }
}

// The texts below are shown by `busctl introspect`.
#[zbus::interface(name = "net.meshd.Mesh1")]
impl Mesh {
    /// All networks, or that of the object, as a JSON document.
    async fn status(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        self.gatekeeper
            .check(Verb::Status, &header, connection)
            .await?;
        let mut status = self.backend.status().await?;
        if let Some(own) = &self.scope {
            status.networks.retain(|network| network.name == *own);
            if status.networks.is_empty() {
                return Err(Error::new(
                    ErrorKind::NoSuch,
                    format!("there is no network {own} any more"),
                ));
            }
        }
        json(&status)
    }

    /// Brings a network up, or all; returns which.
    async fn up(
        &self,
        network: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<String>, Error> {
        let network = self.network(network)?;
        self.gatekeeper.check(Verb::Up, &header, connection).await?;
        Ok(self.backend.up(network).await?)
    }

    /// Takes a network down, or all; returns which.
    async fn down(
        &self,
        network: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<String>, Error> {
        let network = self.network(network)?;
        self.gatekeeper
            .check(Verb::Down, &header, connection)
            .await?;
        Ok(self.backend.down(network).await?)
    }

    /// One overlay ping, as a JSON document.
    async fn ping(
        &self,
        network: &str,
        peer: &str,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let network = self.network(network)?;
        bounded(peer)?;
        let wait = Duration::from_millis(timeout_ms.into());
        if wait.is_zero() || wait > MAX_PING {
            return Err(Error::Usage(format!(
                "a ping waits between 1 ms and {} s; choose another time",
                MAX_PING.as_secs()
            )));
        }
        self.gatekeeper
            .check(Verb::Ping, &header, connection)
            .await?;
        json(&self.backend.ping(network, peer.to_owned(), wait).await?)
    }

    /// Why a peer is reached as it is, and what was tried, as a JSON document.
    async fn explain(
        &self,
        network: &str,
        peer: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let network = self.network(network)?;
        bounded(peer)?;
        self.gatekeeper
            .check(Verb::Explain, &header, connection)
            .await?;
        json(&self.backend.explain(network, peer.to_owned()).await?)
    }

    /// What lies between this host and its relays, as a JSON document.
    async fn netcheck(
        &self,
        network: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let network = self.network(network)?;
        self.gatekeeper
            .check(Verb::Netcheck, &header, connection)
            .await?;
        json(&self.backend.netcheck(network).await?)
    }

    /// What to configure on a stock WireGuard device.
    async fn wireguard_config(
        &self,
        network: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        let network = self.network(network)?;
        self.gatekeeper
            .check(Verb::WireguardConfig, &header, connection)
            .await?;
        Ok(self.backend.wireguard_config(network).await?)
    }

    /// Reads the configuration again; what changed, as a JSON document.
    async fn reload(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String, Error> {
        self.gatekeeper
            .check(Verb::Reload, &header, connection)
            .await?;
        json(&self.backend.reload().await?)
    }

    /// Names of the networks.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn networks(
        &self,
        #[zbus(header)] header: Option<Header<'_>>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<Vec<String>> {
        self.summary(header, connection, |network| network.name.clone())
            .await
    }

    /// `up`, `starting` or `down`.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn state(
        &self,
        #[zbus(header)] header: Option<Header<'_>>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        let states = self
            .summary(header, connection, |network| network.state)
            .await?;
        let best = states.into_iter().max().unwrap_or(NetworkState::Down);
        Ok(best.to_string())
    }

    /// ID, name and state of each peer.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn peers(
        &self,
        #[zbus(header)] header: Option<Header<'_>>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<Vec<(String, String, String)>> {
        let peers = self
            .summary(header, connection, |network| network.peers.clone())
            .await?;
        Ok(peers.into_iter().flatten().collect())
    }

    /// The path or the state of a peer changed.
    #[zbus(signal)]
    async fn peer_changed(
        emitter: &SignalEmitter<'_>,
        network: &str,
        peer: &str,
    ) -> zbus::Result<()>;

    /// A network came, went, or changed its state.
    #[zbus(signal)]
    async fn network_changed(emitter: &SignalEmitter<'_>, network: &str) -> zbus::Result<()>;

    /// The health lines of a network changed.
    #[zbus(signal)]
    async fn health(emitter: &SignalEmitter<'_>, network: &str) -> zbus::Result<()>;
}
