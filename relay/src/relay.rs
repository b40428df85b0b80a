//! The running relay: binds the sockets, starts the data thread and the QUIC endpoints, and takes them down again.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_core::identity::{Identity, NodeId};
use mesh_core::relay::server::{Load, Server, Settings, Stats};
use mesh_core::wire::relay::Alternatives;
use nix::sys::eventfd::{EfdFlags, EventFd};
use quinn::{Endpoint, Incoming, TokioRuntime, VarInt};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};

use crate::config::Config;
use crate::connection;
use crate::pump::Pump;
use crate::quic::{Datagram, QuicSocket};
use crate::shared::Shared;
use crate::sockets::{self, BindError};
use crate::{keys, tls};

/// QUIC datagrams that wait for the endpoint of a listener: 1.5 MB at most.
const QUIC_QUEUE: usize = 1_024;
/// Handshakes at a time. What exceeds it is not answered; QUIC clients try again.
const MAX_HANDSHAKES: usize = 1_024;
/// With so many handshakes under way, a client must first show by a Retry that it receives at its address.
const RETRY_FROM: usize = 128;
/// What a connection attempt may send before its handshake is looked at, and all of them together.
const INCOMING_BYTES: u64 = 16 * 1024;
const INCOMING_TOTAL_BYTES: u64 = 4 * 1024 * 1024;

/// How often the server is told where its clients are, besides whenever they say something.
const ADDRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How often the counters are logged at most.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(60);
/// How long clients may take to be told that the relay stops, and then the last packets of each endpoint to leave.
const STOP_TIMEOUT: Duration = Duration::from_millis(600);
const FLUSH_TIMEOUT: Duration = Duration::from_millis(20);

/// A relay whose sockets are open.
#[derive(Debug)]
pub struct Relay {
    id: NodeId,
    shared: Arc<Shared>,
    endpoints: Vec<Endpoint>,
    quic: Vec<mpsc::Sender<Datagram>>,
}

/// Looks at a relay while it runs.
#[derive(Debug, Clone)]
pub struct Observer {
    shared: Arc<Shared>,
}

impl Observer {
    /// What the relay did so far.
    pub fn stats(&self) -> Stats {
        *self.shared.lock().stats()
    }

    /// How many clients it has.
    pub fn clients(&self) -> usize {
        self.shared.lock().clients()
    }

    /// What it bears just now.
    pub fn load(&self) -> Load {
        self.shared.lock().load()
    }
}

impl Relay {
    /// Opens the sockets of `config`; `identity` is the key that clients will expect. To be called in a Tokio runtime.
    ///
    /// # Errors
    /// If a socket cannot be opened, or if there is no randomness.
    pub fn bind(config: &Config, identity: &Identity) -> Result<Self, BindError> {
        let mut listeners = Vec::new();
        let (mut quic, mut endpoints) = (Vec::new(), Vec::new());
        let mut server_config = tls::server_config(identity)?;
        server_config
            .max_incoming(MAX_HANDSHAKES)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_TOTAL_BYTES);
        let bound = sockets::bind(config)?;
        let elsewhere = config.alt_address.and_then(|address| {
            let listener = sockets::covering(address, &bound)?;
            let port = bound[listener].main.local.port();
            Some((listener, SocketAddrV4::new(address, port)))
        });
        for listener in bound {
            let listener = Arc::new(listener);
            let (sender, receiver) = mpsc::channel(QUIC_QUEUE);
            let endpoint = Endpoint::new_with_abstract_socket(
                keys::endpoint_config(identity),
                Some(server_config.clone()),
                Arc::new(QuicSocket::new(Arc::clone(&listener), receiver)),
                Arc::new(TokioRuntime),
            )
            .map_err(|source| BindError::Io {
                what: "start QUIC",
                source,
            })?;
            listeners.push(listener);
            quic.push(sender);
            endpoints.push(endpoint);
        }
        let settings = Settings {
            access: config.access.clone(),
            alternatives: Alternatives {
                port: listeners
                    .iter()
                    .find_map(|l| Some(l.alt.as_ref()?.local.port())),
                address: elsewhere.map(|(_, address)| address),
            },
            rate_limit: config.rate_limit,
        };
        let server = Server::new(settings, seed()?);
        Ok(Self {
            id: identity.id(),
            shared: Arc::new(Shared::new(server, listeners, elsewhere)),
            endpoints,
            quic,
        })
    }

    /// The relay's ID.
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// The addresses that it listens on, with the ports that the kernel chose.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.shared
            .listeners
            .iter()
            .map(|listener| listener.main.local)
            .collect()
    }

    /// The second STUN port, if there is one.
    pub fn alt_port(&self) -> Option<u16> {
        let mut alts = self
            .shared
            .listeners
            .iter()
            .filter_map(|listener| listener.alt.as_ref());
        alts.next().map(|alt| alt.local.port())
    }

    /// To watch it while it runs.
    pub fn observer(&self) -> Observer {
        Observer {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Serves until `shutdown` completes, then tells the clients and stops within a second.
    ///
    /// # Errors
    /// If the data thread cannot be started or fails.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let (pump, mut failed) = self.start_pump()?;
        // Each task has a clone; when all of them are gone, every client is.
        let (busy, mut idle) = mpsc::channel::<()>(1);
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let mut acceptors = JoinSet::new();
        for (listener, endpoint) in self.endpoints.iter().enumerate() {
            let acceptor = Acceptor {
                shared: Arc::clone(&self.shared),
                listener: listener as u16,
                handshakes: Arc::clone(&handshakes),
                busy: busy.clone(),
            };
            acceptors.spawn(acceptor.run(endpoint.clone()));
        }
        drop(busy);
        tokio::select! {
            () = shutdown => {}
            () = upkeep(&self.shared) => {}
            result = &mut failed => return result.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())),
        }
        acceptors.shutdown().await;
        self.shared.with(|server, _| server.stop());
        let _ = timeout(STOP_TIMEOUT, idle.recv()).await;
        for endpoint in &self.endpoints {
            endpoint.close(VarInt::from_u32(0), b"the relay stops");
            let _ = timeout(FLUSH_TIMEOUT, endpoint.wait_idle()).await;
        }
        drop(pump);
        failed.await.unwrap_or(Ok(()))
    }

    /// Starts the data thread. The receiver tells its result when it ends.
    fn start_pump(&self) -> io::Result<(PumpThread, oneshot::Receiver<io::Result<()>>)> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (done, failed) = oneshot::channel();
        let pump = Pump::new(
            Arc::clone(&self.shared),
            self.quic.clone(),
            Arc::clone(&stop),
        );
        let thread = std::thread::Builder::new()
            .name("data".into())
            .spawn(move || {
                // Whoever waited for the result may be gone.
                let _ = done.send(pump.run());
            })?;
        Ok((
            PumpThread {
                thread: Some(thread),
                stop,
            },
            failed,
        ))
    }
}

/// The data thread; dropping this ends it.
struct PumpThread {
    thread: Option<JoinHandle<()>>,
    stop: Arc<EventFd>,
}

impl Drop for PumpThread {
    fn drop(&mut self) {
        // Only a full counter is refused, and then the thread is stopping already.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes the connection attempts of one endpoint.
struct Acceptor {
    shared: Arc<Shared>,
    listener: u16,
    handshakes: Arc<Semaphore>,
    busy: mpsc::Sender<()>,
}

impl Acceptor {
    async fn run(self, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            self.admit(incoming);
        }
    }

    fn admit(&self, incoming: Incoming) {
        let under_way = MAX_HANDSHAKES - self.handshakes.available_permits();
        if under_way >= RETRY_FROM && incoming.may_retry() && !incoming.remote_address_validated() {
            // It fails only where retrying is not allowed, as was just asked.
            let _ = incoming.retry();
            return;
        }
        let Ok(permit) = Arc::clone(&self.handshakes).try_acquire_owned() else {
            incoming.ignore();
            return;
        };
        let Ok(connecting) = incoming.accept() else {
            return;
        };
        let (shared, busy) = (Arc::clone(&self.shared), self.busy.clone());
        let listener = self.listener;
        tokio::spawn(async move {
            connection::serve(shared, listener, connecting, permit).await;
            drop(busy);
        });
    }
}

/// What happens without anybody asking: deadlines, a look at where clients are, a summary in the log.
async fn upkeep(shared: &Shared) {
    let deadlines = async {
        loop {
            let deadline = shared.lock().poll_timeout();
            let passed = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep(deadline.since(shared.now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = passed => shared.with(|server, now| server.handle_timeout(now)),
                () = shared.deadline_changed.notified() => {}
            }
        }
    };
    let addresses = async {
        let mut interval = tokio::time::interval(ADDRESS_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            shared.report_addresses();
        }
    };
    let summary = async {
        let mut interval = tokio::time::interval(SUMMARY_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut logged = Stats::default();
        loop {
            interval.tick().await;
            let stats = *shared.lock().stats();
            if !stats.drops().eq(logged.drops()) {
                let clients = shared.lock().clients();
                tracing::info!("clients={clients} {stats}");
                logged = stats;
            }
        }
    };
    tokio::join!(deadlines, addresses, summary);
}

fn seed() -> Result<[u8; 32], BindError> {
    let mut seed = [0; 32];
    SystemRandom::new()
        .fill(&mut seed)
        .map_err(|_| BindError::Io {
            what: "get randomness",
            source: io::Error::other("the kernel gives none"),
        })?;
    Ok(seed)
}
