//! The control interface: `net.meshd.Mesh1` on the system bus and on the control socket.
//!
//! Both are the same object ([`service`]); they differ in how it is known who asks. A call is checked against the table
//! in [`access`], becomes a [`Request`] to the supervisor, and its answer goes back. What the supervisor notices becomes
//! a signal on every connection.
//!
//! The socket is open to every local process, and zbus trusts whom it talks to more than that: [`handshake`] and
//! [`transport`] stand before it with bounds of their own.

mod access;
mod backend;
mod bus;
mod counters;
mod handshake;
mod listen;
mod objects;
mod polkit;
mod service;
mod socket;
#[cfg(test)]
mod tests;
mod transport;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::api::{Notice, Request};
use backend::Backend;
use listen::SocketFile;

pub use counters::Counters;
pub use listen::ListenError;

/// How long the start waits for the bus: it then goes on by itself, so that a bus that hangs does not keep us down.
const BUS_PATIENCE: Duration = Duration::from_secs(3);

/// The running control interface. Dropping it closes every connection and removes the socket.
#[derive(Debug)]
pub struct Control {
    tasks: JoinSet<()>,
    counters: Arc<Counters>,
    _socket: SocketFile,
}

/// Serves the control interface: on the socket `path` from the moment that this returns, and with `bus` on the system
/// bus, as soon as there is one and for as long as no other meshd has the name.
///
/// Requests go to the supervisor through `requests`; a queue of 64 is enough. What is sent to `notices` becomes signals.
///
/// # Errors
///
/// If the socket cannot be had, which includes that another meshd answers on it. The bus is no error: what is wrong with
/// it is logged.
pub async fn start(
    path: &Path,
    bus: bool,
    requests: mpsc::Sender<Request>,
    notices: broadcast::Sender<Notice>,
) -> Result<Control, ListenError> {
    let (listener, socket) = listen::listen(path)?;
    let listener = UnixListener::from_std(listener).map_err(|source| ListenError::Io {
        path: path.to_owned(),
        source,
    })?;
    let counters = Arc::new(Counters::default());
    let backend = Backend::new(requests, counters.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(socket::run(
        listener,
        backend.clone(),
        notices.clone(),
        Arc::clone(&counters),
    ));
    tracing::info!("listening on {}", path.display());
    if bus {
        let (first, settled) = oneshot::channel();
        tasks.spawn(bus::run(backend, notices, first));
        let _ = timeout(BUS_PATIENCE, settled).await;
    }
    Ok(Control {
        tasks,
        counters,
        _socket: socket,
    })
}

impl Control {
    /// What it has to refuse.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Closes every connection, gives the bus name back and removes the socket.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}
