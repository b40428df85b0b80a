//! The way to the supervisor: requests with a bound on how many and on how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_bus::{Explanation, Netcheck, NetworkState, Pong, Reloaded, Status};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::counters::Counters;
use crate::api::{ApiError, Reply, Request};

/// Requests of everyone together that only read; whoever may change something never queues behind them here.
const MAX_READS: usize = 64;
/// How long a request waits for a place.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the supervisor may take to look something up.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a measurement of the network may take.
const NETCHECK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a change of interfaces and routes may take: a busy system with thousands of routes needs seconds.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How old a [`Summary`] may be.
const SUMMARY_AGE: Duration = Duration::from_millis(500);

/// What the D-Bus properties show.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) networks: Vec<NetworkSummary>,
}

#[derive(Debug)]
pub(super) struct NetworkSummary {
    pub(super) name: String,
    pub(super) state: NetworkState,
    /// ID, name, state.
    pub(super) peers: Vec<(String, String, String)>,
}

impl From<&Status> for Summary {
    fn from(status: &Status) -> Self {
        let networks = status.networks.iter().map(|network| NetworkSummary {
            name: network.name.clone(),
            state: network.state,
            peers: network
                .peers
                .iter()
                .map(|peer| (peer.id.clone(), peer.name.clone(), peer.state.to_string()))
                .collect(),
        });
        Self {
            networks: networks.collect(),
        }
    }
}

#[derive(Debug)]
struct Kept {
    taken: Instant,
    summary: Arc<Summary>,
}

/// A way to the supervisor; clones share the bounds.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    requests: mpsc::Sender<Request>,
    reads: Arc<Semaphore>,
    summary: Arc<Mutex<Option<Kept>>>,
    counters: Arc<Counters>,
}

impl Backend {
    pub(super) fn new(requests: mpsc::Sender<Request>, counters: Arc<Counters>) -> Self {
        Self {
            requests,
            reads: Arc::new(Semaphore::new(MAX_READS)),
            summary: Arc::default(),
            counters,
        }
    }

    async fn ask<T>(
        &self,
        limit: Duration,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send_timeout(request(reply), QUEUE_TIMEOUT)
            .await
            .map_err(|error| match error {
                mpsc::error::SendTimeoutError::Timeout(_) => busy(),
                mpsc::error::SendTimeoutError::Closed(_) => stopping(),
            })?;
        match timeout(limit, answer).await {
            Err(_) => Err(busy()),
            Ok(Err(_)) => Err(stopping()),
            Ok(Ok(result)) => result,
        }
    }

    async fn read<T>(
        &self,
        limit: Duration,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, ApiError> {
        let place = timeout(QUEUE_TIMEOUT, self.reads.acquire())
            .await
            .map_err(|_| busy())?;
        let result = self.ask(limit, request).await;
        drop(place);
        result
    }

    pub(super) async fn status(&self) -> Result<Status, ApiError> {
        let mut status = self
            .read(LOOK_TIMEOUT, |reply| Request::Status { reply })
            .await?;
        self.counters.report(&mut status.drops);
        Ok(status)
    }

    /// What the properties show; many readers at once cost the supervisor one request.
    pub(super) async fn summary(&self) -> Result<Arc<Summary>, ApiError> {
        let mut kept = self.summary.lock().await;
        match &*kept {
            Some(kept) if kept.taken.elapsed() < SUMMARY_AGE => Ok(kept.summary.clone()),
            _ => self.renew(&mut kept).await,
        }
    }

    /// The same, when it is known that something has changed.
    pub(super) async fn fresh_summary(&self) -> Result<Arc<Summary>, ApiError> {
        let mut kept = self.summary.lock().await;
        self.renew(&mut kept).await
    }

    async fn renew(&self, kept: &mut Option<Kept>) -> Result<Arc<Summary>, ApiError> {
        let summary = Arc::new(Summary::from(&self.status().await?));
        *kept = Some(Kept {
            taken: Instant::now(),
            summary: summary.clone(),
        });
        Ok(summary)
    }

    pub(super) async fn up(&self, network: Option<String>) -> Result<Vec<String>, ApiError> {
        self.ask(CHANGE_TIMEOUT, |reply| Request::Up { network, reply })
            .await
    }

    pub(super) async fn down(&self, network: Option<String>) -> Result<Vec<String>, ApiError> {
        self.ask(CHANGE_TIMEOUT, |reply| Request::Down { network, reply })
            .await
    }

    pub(super) async fn reload(&self) -> Result<Reloaded, ApiError> {
        self.ask(CHANGE_TIMEOUT, |reply| Request::Reload { reply })
            .await
    }

    pub(super) async fn ping(
        &self,
        network: Option<String>,
        peer: String,
        wait: Duration,
    ) -> Result<Pong, ApiError> {
        self.read(wait + LOOK_TIMEOUT, |reply| Request::Ping {
            network,
            peer,
            timeout: wait,
            reply,
        })
        .await
    }

    pub(super) async fn explain(
        &self,
        network: Option<String>,
        peer: String,
    ) -> Result<Explanation, ApiError> {
        self.read(LOOK_TIMEOUT, |reply| Request::Explain {
            network,
            peer,
            reply,
        })
        .await
    }

    pub(super) async fn netcheck(&self, network: Option<String>) -> Result<Netcheck, ApiError> {
        self.read(NETCHECK_TIMEOUT, |reply| Request::Netcheck {
            network,
            reply,
        })
        .await
    }

    pub(super) async fn wireguard_config(
        &self,
        network: Option<String>,
    ) -> Result<String, ApiError> {
        self.read(LOOK_TIMEOUT, |reply| Request::WireguardConfig {
            network,
            reply,
        })
        .await
    }
}

fn busy() -> ApiError {
    ApiError::failed("meshd is busy; try again in a moment")
}

fn stopping() -> ApiError {
    ApiError::failed("meshd is stopping; start it again with: systemctl start meshd")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_bus::ErrorKind;

    fn backend(depth: usize) -> (Backend, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(depth);
        (Backend::new(sender, Arc::default()), receiver)
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_does_not_answer_is_busy() {
        let (backend, _requests) = backend(1);
        let error = backend.reload().await.unwrap_err();
        assert_eq!(
            (error.kind, error.message.contains("busy")),
            (ErrorKind::Failed, true)
        );
        // The first one still fills the queue.
        let error = backend.reload().await.unwrap_err();
        assert!(error.message.contains("busy"), "{error}");
    }

    #[tokio::test]
    async fn a_supervisor_that_is_gone_is_stopping() {
        let (backend, requests) = backend(1);
        drop(requests);
        let error = backend.status().await.unwrap_err();
        assert!(error.message.contains("stopping"), "{error}");
    }

    #[tokio::test]
    async fn many_readers_of_a_property_cost_one_request() {
        let (backend, mut requests) = backend(8);
        let supervisor = tokio::spawn(async move {
            let mut count = 0;
            while let Some(Request::Status { reply }) = requests.recv().await {
                count += 1;
                let _ = reply.send(Ok(Status {
                    version: String::new(),
                    config: String::new(),
                    networks: Vec::new(),
                    drops: Default::default(),
                }));
            }
            count
        });
        for _ in 0..10 {
            assert!(backend.summary().await.unwrap().networks.is_empty());
        }
        drop(backend);
        assert_eq!(supervisor.await.unwrap(), 1);
    }
}
