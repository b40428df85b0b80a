//! Offers metrics where the configuration says so.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_relay::scrape::{self, ScrapeError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Supervisor;
use super::metrics::{self, Configured};
use crate::api::{ApiError, Reply, Request};
use crate::control::Counters;

/// How long the supervisor may take: a change of interfaces and routes may be under way. Whoever asks waits no longer.
const PATIENCE: Duration = Duration::from_secs(8);

/// What metrics are offered, and where.
pub(super) struct Offer {
    requests: mpsc::Sender<Request>,
    control: Arc<Counters>,
    running: Option<Running>,
}

/// Answers at an address until it is dropped.
struct Running {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Offer {
    /// None yet. Questions go to the supervisor by `requests`.
    pub(super) fn new(requests: mpsc::Sender<Request>, control: Arc<Counters>) -> Self {
        Self {
            requests,
            control,
            running: None,
        }
    }

    /// Offers metrics at `address` from now on, and nowhere else; if that is not possible, where it did before.
    ///
    /// # Errors
    ///
    /// When the address cannot be had.
    pub(super) async fn set(&mut self, address: Option<SocketAddr>) -> Result<(), ScrapeError> {
        let before = self.running.as_ref().map(|running| running.address);
        if before == address {
            return Ok(());
        }
        let Some(address) = address else {
            self.end().await;
            return Ok(());
        };
        let mut listener = scrape::listen(address);
        // The same port of all addresses, or of one of them, is taken by ourselves.
        let ours = before.filter(|before| before.port() == address.port());
        if let (Err(error), Some(before)) = (&listener, ours)
            && error.source.kind() == io::ErrorKind::AddrInUse
        {
            self.end().await;
            listener = scrape::listen(address);
            if listener.is_err() {
                // Nobody else was there a moment ago.
                self.start(before, scrape::listen(before)?);
            }
        }
        self.start(address, listener?);
        Ok(())
    }

    /// Stops, and returns when the port is free.
    async fn end(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.task.abort();
            // An error says that it was aborted.
            let _ = (&mut running.task).await;
        }
    }

    fn start(&mut self, address: SocketAddr, listener: tokio::net::TcpListener) {
        let requests = self.requests.clone();
        let task = tokio::spawn(scrape::serve(listener, move || ask(requests.clone())));
        tracing::info!("metrics at http://{address}/metrics");
        self.running = Some(Running { address, task });
    }
}

async fn ask(requests: mpsc::Sender<Request>) -> Option<String> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        requests.send(Request::Metrics { reply }).await.ok()?;
        answer.await.ok()?.ok()
    };
    timeout(PATIENCE, asked).await.ok().flatten()
}

impl Supervisor {
    /// Answers by a task of its own: the data plane is asked.
    pub(super) fn metrics(&self, reply: Reply<String>) {
        let networks = self.networks.iter();
        let networks: Vec<Configured> = networks
            .map(|network| Configured {
                index: network.index,
                name: network.name().to_owned(),
                up: network.interface().is_some(),
            })
            .collect();
        let (data, control) = (self.host.data.clone(), Arc::clone(&self.metrics.control));
        tokio::spawn(async move {
            let report = data.metrics().await;
            let text = report.map(|report| metrics::render(&networks, &report, &control));
            // Whoever asked may be gone.
            let _ = reply.send(text.map_err(|error| ApiError::failed(error.to_string())));
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    fn offer() -> Offer {
        let (requests, mut heard) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(Request::Metrics { reply }) = heard.recv().await {
                let _ = reply.send(Ok("x 1\n".to_owned()));
            }
        });
        Offer::new(requests, Arc::default())
    }

    async fn answers(address: SocketAddr) -> bool {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            return false;
        };
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.ends_with("\r\n\r\nx 1\n")
    }

    fn free() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap()
    }

    #[tokio::test]
    async fn metrics_move_with_the_configuration_and_go_with_it() {
        let mut offer = offer();
        let (one, other) = (free(), free());
        offer.set(Some(one)).await.unwrap();
        assert!(answers(one).await);
        offer.set(Some(other)).await.unwrap();
        assert!(answers(other).await && !answers(one).await);
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, other.port()));
        offer.set(Some(everywhere)).await.unwrap();
        assert!(answers(other).await, "the port was our own");
        offer.set(None).await.unwrap();
        assert!(!answers(other).await);
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_had_leaves_metrics_where_they_were() {
        let mut offer = offer();
        let here = free();
        offer.set(Some(here)).await.unwrap();
        let foreign = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let nowhere = SocketAddr::from(([203, 0, 113, 7], here.port()));
        for wrong in [foreign.local_addr().unwrap(), nowhere] {
            let error = offer.set(Some(wrong)).await.unwrap_err();
            assert!(error.to_string().contains(&wrong.to_string()), "{error}");
            assert!(answers(here).await);
        }
        drop(offer);
        tokio::task::yield_now().await;
        assert!(!answers(here).await);
    }
}
