//! A changed configuration is applied without touching what did not change.
//!
//! Everything that can be wrong is found before the first change: a bad file, a missing key, a clash with the host.

use std::collections::BTreeSet;

use mesh_bus::Reloaded;
use mesh_core::config::{self, Config};
use mesh_core::engine::NetworkIndex;
use mesh_core::limits;

use super::network::{Network, describe};
use super::plan::Plan;
use super::secrets::Secrets;
use super::{Supervisor, systemd};
use crate::api::ApiError;
use crate::netlink::clash;

/// What becomes of a network that is in the new configuration.
struct Step {
    config: config::Network,
    secrets: Secrets,
    /// Its interface has to go and come again.
    anew: bool,
}

impl Supervisor {
    /// Reads the configuration again and applies the differences.
    ///
    /// # Errors
    ///
    /// With everything that is wrong with it; nothing has changed then.
    pub(super) async fn reload(&mut self) -> Result<Reloaded, ApiError> {
        systemd::notify_reloading();
        let result = self.try_reload().await;
        match &result {
            Ok(reloaded) => tracing::info!(
                added = ?reloaded.added,
                removed = ?reloaded.removed,
                changed = ?reloaded.changed,
                "configuration reloaded"
            ),
            Err(reason) => tracing::error!("configuration not reloaded, nothing changed: {reason}"),
        }
        self.file_note = result.as_ref().err().map(|reason| {
            let first = reason.lines().next().unwrap_or_default();
            format!("the configuration has changed and is not in force: {first}")
        });
        self.publish_overlay();
        self.report_ready();
        result.map_err(|reason| ApiError::failed(format!("nothing changed: {reason}")))
    }

    async fn try_reload(&mut self) -> Result<Reloaded, String> {
        let config = self.config_file.read().map_err(|error| error.to_string())?;
        let steps = self.prepare(&config).await?;
        // The last thing that can be wrong.
        let offered = self.metrics.set(config.metrics).await;
        offered.map_err(|error| error.to_string())?;
        self.note_port(config.listen_port);
        let discovery = self.host.data.lan_discovery(config.lan_discovery).await;
        discovery.map_err(|error| error.to_string())?;
        let mut reloaded = Reloaded {
            removed: self.remove_others(&config).await,
            ..Reloaded::default()
        };
        for step in &steps {
            if step.anew
                && let Some(network) = find(&mut self.networks, &step.config.name)
            {
                network.take_down(&self.host, true).await;
            }
        }
        for step in steps {
            self.apply(step, &mut reloaded).await;
        }
        let order = |name: &str| {
            config
                .networks
                .iter()
                .position(|network| network.name == name)
        };
        self.networks.sort_by_key(|network| order(network.name()));
        Ok(reloaded)
    }

    /// Loads and checks everything that the new configuration needs.
    async fn prepare(&self, config: &Config) -> Result<Vec<Step>, String> {
        let host = self
            .host
            .netlink
            .host()
            .await
            .map_err(|error| error.to_string())?;
        // Between networks of ours the configuration has been checked, and old routes are about to go.
        let ours: BTreeSet<u32> = self
            .networks
            .iter()
            .filter_map(|network| Some(network.interface()?.link))
            .collect();
        let mut steps = Vec::new();
        for network in &config.networks {
            let secrets = Secrets::load(&self.host.state, network)
                .map_err(|reason| format!("network {}: {reason}", network.name))?;
            let id = secrets.identity.id();
            let old = self.networks.iter().find(|old| old.name() == network.name);
            if old.is_some_and(|old| old.interface().is_some()) {
                let clashes = clash::find(&Plan::new(network, &id).claims(), &host, &ours);
                if !clashes.is_empty() {
                    return Err(format!("network {}: {}", network.name, describe(&clashes)));
                }
            }
            steps.push(Step {
                anew: old.is_some_and(|old| {
                    old.id != Some(id)
                        || old.config.id != network.id
                        || old.config.interface != network.interface
                        || old.config.mtu != network.mtu
                }),
                config: network.clone(),
                secrets,
            });
        }
        Ok(steps)
    }

    async fn remove_others(&mut self, config: &Config) -> Vec<String> {
        let mut removed = Vec::new();
        let networks = std::mem::take(&mut self.networks);
        for mut network in networks {
            if config
                .networks
                .iter()
                .any(|kept| kept.name == network.name())
            {
                self.networks.push(network);
            } else {
                network.take_down(&self.host, false).await;
                removed.push(network.name().to_owned());
            }
        }
        removed
    }

    async fn apply(&mut self, step: Step, reloaded: &mut Reloaded) {
        let name = step.config.name.clone();
        let Some(position) = self
            .networks
            .iter()
            .position(|network| network.name() == name)
        else {
            let Some(index) = self.free_index() else {
                // The configuration has a bound of its own.
                return;
            };
            let mut network = Network::new(index, step.config, &self.host);
            if network.wanted {
                // What went wrong is in its health lines, as after a start.
                let _ = network.bring_up(&self.host).await;
            }
            self.networks.push(network);
            reloaded.added.push(name);
            return;
        };
        let network = &mut self.networks[position];
        if network.config == step.config && !step.anew {
            reloaded.unchanged.push(name);
        } else {
            reloaded.changed.push(name);
        }
        network.replace(&self.host, step.config, step.secrets).await;
    }

    /// The lowest index that no network has.
    pub(super) fn free_index(&self) -> Option<NetworkIndex> {
        let used: BTreeSet<NetworkIndex> =
            self.networks.iter().map(|network| network.index).collect();
        (0..limits::MAX_NETWORKS)
            .filter_map(|index| u16::try_from(index).ok())
            .map(NetworkIndex)
            .find(|index| !used.contains(index))
    }

    fn note_port(&mut self, port: u16) {
        self.port_note = (port != self.listen_port).then(|| {
            format!(
                "listen_port is {port} in the configuration and was {} at the start; run: systemctl restart meshd",
                self.listen_port
            )
        });
        if let Some(note) = &self.port_note {
            tracing::warn!("{note}");
        }
    }
}

fn find<'a>(networks: &'a mut [Network], name: &str) -> Option<&'a mut Network> {
    networks.iter_mut().find(|network| network.name() == name)
}
