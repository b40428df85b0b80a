//! What the control interface asks for.

use std::time::Duration;

use mesh_bus::{Answer, Explanation, Netcheck, Pong, Status};
use mesh_core::engine::{NetworkIndex, PeerKey};

use super::network::Network;
use super::{Supervisor, explain, names, status, wireguard};
use crate::api::{ApiError, Reply, Request};
use crate::sockets::Family;

impl Supervisor {
    /// Answers a request. What takes as long as the network does is done by a task of its own.
    pub(super) async fn handle(&mut self, request: Request) {
        match request {
            Request::Status { reply } => answer(reply, Ok(self.status().await)),
            Request::Up { network, reply } => answer(reply, self.up(network.as_deref()).await),
            Request::Down { network, reply } => answer(reply, self.down(network.as_deref()).await),
            Request::Ping {
                network,
                peer,
                timeout,
                reply,
            } => self.ping(network.as_deref(), &peer, timeout, reply),
            Request::Explain {
                network,
                peer,
                reply,
            } => self.explain(network.as_deref(), &peer, reply),
            Request::Netcheck { network, reply } => self.netcheck(network.as_deref(), reply),
            Request::Metrics { reply } => self.metrics(reply),
            Request::WireguardConfig { network, reply } => {
                answer(reply, self.wireguard_config(network.as_deref()).await);
            }
            Request::Reload { reply } => answer(reply, self.reload().await),
        }
    }

    async fn status(&self) -> Status {
        let own = self.port_note.iter().chain(&self.file_note);
        let mut notes: Vec<String> = own.cloned().collect();
        let report = match self.host.data.status().await {
            Ok(report) => Some(report),
            Err(error) => {
                notes.push(format!("{error}; run: systemctl restart meshd"));
                None
            }
        };
        let running = |index: NetworkIndex| {
            let networks = report.as_ref().map(|report| report.networks.as_slice());
            networks?.iter().find(|network| network.index == index)
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: self.config_file.path().display().to_string(),
            networks: self
                .networks
                .iter()
                .map(|network| status::network(network, running(network.index), &notes))
                .collect(),
            drops: report.as_ref().map(status::drops).unwrap_or_default(),
        }
    }

    async fn up(&mut self, name: Option<&str>) -> Result<Vec<String>, ApiError> {
        let chosen = self.choose(name, |network| network.interface().is_none())?;
        let mut done = Vec::new();
        let mut failures = Vec::new();
        for index in chosen {
            match self.set_wanted(index, true).await {
                Ok(name) => done.push(name),
                Err(reason) => failures.push(reason),
            }
        }
        finish(done, &failures)
    }

    async fn down(&mut self, name: Option<&str>) -> Result<Vec<String>, ApiError> {
        let chosen = self.choose(name, |network| {
            network.wanted || network.interface().is_some()
        })?;
        let mut done = Vec::new();
        let mut failures = Vec::new();
        for index in chosen {
            match self.set_wanted(index, false).await {
                Ok(name) => done.push(name),
                Err(reason) => failures.push(reason),
            }
        }
        finish(done, &failures)
    }

    /// Positions of the named network, or else of all that `applies` to.
    fn choose(
        &self,
        name: Option<&str>,
        applies: impl Fn(&Network) -> bool,
    ) -> Result<Vec<usize>, ApiError> {
        if let Some(name) = name {
            let chosen = names::network(&self.networks, Some(name))?.index;
            let position = self
                .networks
                .iter()
                .position(|network| network.index == chosen);
            return Ok(position.into_iter().collect());
        }
        if self.networks.is_empty() {
            // The error says what to do.
            names::network(&self.networks, None)?;
        }
        let positions = self.networks.iter().enumerate();
        Ok(positions
            .filter(|(_, network)| applies(network))
            .map(|(position, _)| position)
            .collect())
    }

    /// Brings a network up or down as somebody wishes, and remembers the wish first.
    async fn set_wanted(&mut self, position: usize, wanted: bool) -> Result<String, String> {
        let Some(network) = self.networks.get_mut(position) else {
            return Err("there is no such network".to_owned());
        };
        let name = network.name().to_owned();
        let remembered = self.host.state.remember_up(&name, wanted);
        network.wanted = wanted;
        let result = if wanted {
            network.bring_up(&self.host).await
        } else {
            network.take_down(&self.host, false).await;
            Ok(())
        };
        if !wanted {
            self.wait_for_router().await;
        }
        self.publish_overlay();
        self.report_state();
        result.map_err(|reason| format!("{name}: {reason}"))?;
        remembered.map_err(|error| {
            format!("{name} is as you wish, but not after the next start: {error}")
        })?;
        Ok(name)
    }

    fn ping(&self, network: Option<&str>, peer: &str, timeout: Duration, reply: Reply<Pong>) {
        let found = match names::peer(&self.networks, network, peer) {
            Ok(found) => found,
            Err(error) => return answer(reply, Err(error)),
        };
        if let Err(error) = pingable(&found) {
            return answer(reply, Err(error));
        }
        let (index, key) = (found.network.index, found.peer.key);
        let mut pong = Pong {
            network: found.network.name().to_owned(),
            id: names::key_text(&found.peer.key),
            name: found.peer.name.clone(),
            address: found.address,
            answer: None,
        };
        let data = self.host.data.clone();
        tokio::spawn(async move {
            let result = data.ping(index, key, timeout).await;
            let result = result.map_err(|error| ApiError::failed(error.to_string()));
            answer(
                reply,
                result.map(|answer| {
                    pong.answer = answer.map(|answer| Answer {
                        rtt_ms: status::milliseconds(answer.rtt),
                        kind: status::path_kind(answer.kind),
                        via: answer.via,
                    });
                    pong
                }),
            );
        });
    }

    fn explain(&self, network: Option<&str>, peer: &str, reply: Reply<Explanation>) {
        let found = match names::peer(&self.networks, network, peer) {
            Ok(found) => found,
            Err(error) => return answer(reply, Err(error)),
        };
        if let Err(error) = running(found.network) {
            return answer(reply, Err(error));
        }
        let (index, key) = (found.network.index, found.peer.key);
        let name = found.network.name().to_owned();
        let data = self.host.data.clone();
        tokio::spawn(async move {
            let result = data.explain(index, key).await;
            let result = result.map_err(|error| ApiError::failed(error.to_string()));
            answer(
                reply,
                result.map(|found| explain::explanation(name, &key, &found)),
            );
        });
    }

    fn netcheck(&self, network: Option<&str>, reply: Reply<Netcheck>) {
        let network = match names::network(&self.networks, network).and_then(running) {
            Ok(network) => network,
            Err(error) => return answer(reply, Err(error)),
        };
        let (index, name) = (network.index, network.name().to_owned());
        let data = self.host.data.clone();
        tokio::spawn(async move {
            let result = data.netcheck(index).await;
            let result = result.map_err(|error| ApiError::failed(error.to_string()));
            answer(reply, result.map(|report| status::netcheck(&name, &report)));
        });
    }

    async fn wireguard_config(&self, network: Option<&str>) -> Result<String, ApiError> {
        let network = names::network(&self.networks, network)?;
        let Some(id) = network.id else {
            return Err(ApiError::failed(format!(
                "this host has no key in network {}; see: meshctl status",
                network.name()
            )));
        };
        let report = self.host.data.status().await.ok();
        let running = report.as_ref().and_then(|report| {
            report
                .networks
                .iter()
                .find(|status| status.index == network.index)
        });
        let reachable = wireguard::Reachable {
            port_v4: self.sockets.port(Family::V4),
            port_v6: self.sockets.port(Family::V6),
            host: self.addresses.borrow().clone(),
            public: running
                .map(|running| running.endpoints.clone())
                .unwrap_or_default(),
        };
        Ok(wireguard::stanzas(network, &id, &reachable))
    }
}

fn running(network: &Network) -> Result<&Network, ApiError> {
    if network.interface().is_some() {
        return Ok(network);
    }
    let name = network.name();
    Err(ApiError::failed(format!(
        "network {name} is down; run: meshctl up {name}"
    )))
}

fn pingable(found: &names::Found<'_>) -> Result<(), ApiError> {
    running(found.network)?;
    match found.peer.key {
        PeerKey::Mesh(_) => Ok(()),
        PeerKey::WireGuard(_) => Err(ApiError::failed(format!(
            "{} is a stock WireGuard device, which knows no overlay ping; run: ping {}",
            found.peer.name, found.address
        ))),
    }
}

/// What was done; an error if anything failed.
fn finish(done: Vec<String>, failures: &[String]) -> Result<Vec<String>, ApiError> {
    if failures.is_empty() {
        Ok(done)
    } else {
        Err(ApiError::failed(failures.join("; ")))
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, ApiError>) {
    // Whoever asked may be gone.
    let _ = reply.send(result);
}
