//! Owns the life of the networks: starts everything, does what the control interface asks for, and leaves the host as
//! it found it.
//!
//! All of it runs on one Tokio thread. What takes as long as the network does (pings, dialling relays) is done by tasks;
//! everything that changes a network is done here, one after the other.

mod cleanup;
mod config_file;
mod explain;
mod metrics;
mod mtu;
mod names;
mod network;
mod plan;
mod reload;
mod requests;
mod scrape;
mod secrets;
mod serve;
mod start;
mod status;
mod stop;
mod systemd;
#[cfg(test)]
mod tests;
mod update;
mod wireguard;

use std::io;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::engine::HostAddress;
use mesh_relay::scrape::ScrapeError;
use sd_notify::NotifyState;
use thiserror::Error;
use tokio::sync::watch;

use crate::args::Args;
use crate::control::ListenError;
use crate::netlink::NetlinkError;
use crate::sockets::{BindError, Sockets};
use crate::state::{Locked, StateDir, StateError};
use crate::tuning::TuningError;

pub use cleanup::cleanup;
pub use config_file::{ConfigFailure, ConfigFile};
use network::{Host, Network};

/// The network that a host without any configuration gets a key for, so that there is an ID to hand out.
pub const FIRST_NETWORK: &str = "home";

/// Why meshd cannot start, or cannot go on.
#[derive(Debug, Error)]
pub enum Failure {
    /// The configuration is unusable.
    #[error(transparent)]
    Config(#[from] ConfigFailure),
    /// The state directory is unusable.
    #[error(transparent)]
    State(#[from] StateError),
    /// The mesh port is taken.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The address for metrics cannot be had.
    #[error(transparent)]
    Metrics(#[from] ScrapeError),
    /// The control socket is taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A switch in the environment is misspelt.
    #[error(transparent)]
    Tuning(#[from] TuningError),
    /// The kernel refuses.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Something else that the system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried, a verb with its object.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The data thread has ended without being told to.
    #[error("the data plane has stopped; start meshd again, and please report what the log says")]
    DataPlane,
}

impl Failure {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// See the module.
struct Supervisor {
    host: Host,
    config_file: ConfigFile,
    /// The port that the sockets were bound with, as configured.
    listen_port: u16,
    sockets: Arc<Sockets>,
    metrics: scrape::Offer,
    networks: Vec<Network>,
    /// Health line: the configured port is not the one in use.
    port_note: Option<String>,
    /// Health line: the configuration file is not what runs.
    file_note: Option<String>,
    /// Addresses of this host, as last told to the data plane.
    addresses: watch::Receiver<Vec<HostAddress>>,
    /// Stay off the system bus.
    no_bus: bool,
    _lock: Locked,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
///
/// If it cannot start, or has to stop. What it changed on the host has been undone.
pub async fn run(args: &Args) -> Result<(), Failure> {
    let signals = serve::Signals::new().map_err(Failure::system("handle signals"))?;
    let (supervisor, running) = start::start(args).await?;
    serve::serve(supervisor, running, signals).await
}

/// Prints nothing and starts nothing: the ID of this host in network `name`, whose key is made if there is none.
///
/// # Errors
///
/// If the configuration or the key cannot be used.
pub fn node_id(args: &Args, name: &str) -> Result<String, Failure> {
    // Where the key is kept is for the configuration to say; a missing or unfinished one says nothing.
    let file = ConfigFile::new(args.config.as_deref());
    let networks = file
        .read()
        .map(|config| config.networks)
        .unwrap_or_default();
    let deployed = networks
        .into_iter()
        .find(|network| network.name == name)
        .and_then(|network| network.identity_file);
    let identity = match deployed {
        Some(path) => crate::state::load_identity_file(&path)?,
        None => StateDir::open(&args.state_dir)?.identity(name)?,
    };
    Ok(identity.id().to_string())
}

impl Supervisor {
    /// Tells the monitor which addresses are not the host's own.
    fn publish_overlay(&self) {
        let overlay: Vec<IpNet> = self
            .networks
            .iter()
            .filter_map(Network::interface)
            .flat_map(|interface| interface.plan.overlay.iter().copied())
            .collect();
        self.host.overlay.send_if_modified(|current| {
            let changed = *current != overlay;
            *current = overlay;
            changed
        });
    }

    /// Tells the service manager that all is ready.
    fn report_ready(&self) {
        systemd::notify(&[NotifyState::Ready, NotifyState::Status(&self.summary())]);
    }

    /// Tells the service manager how things are.
    fn report_state(&self) {
        systemd::notify(&[NotifyState::Status(&self.summary())]);
    }

    /// One line for `systemctl status`.
    fn summary(&self) -> String {
        if self.networks.is_empty() {
            return format!(
                "No network; add one to {}",
                self.config_file.path().display()
            );
        }
        let states: Vec<String> = self
            .networks
            .iter()
            .map(|network| {
                let state = match &network.phase {
                    network::Phase::Up(_) => "up",
                    network::Phase::Down => "down",
                    network::Phase::Failed(_) => "failed",
                };
                format!("{} {state}", network.name())
            })
            .collect();
        states.join(", ")
    }
}
