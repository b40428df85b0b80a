//! What the data thread and the asynchronous tasks share: the server's state, the sockets, and the connections.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_core::relay::server::{CloseReason, ConnId, Local, Output, Server};
use mesh_core::time::Instant;
use tokio::sync::{Notify, oneshot};

use crate::sockets::Listener;

/// Time passes from here on: an [`Instant`] must not lie before a deadline that was put before it.
const ORIGIN: Duration = Duration::from_secs(60);

/// Clients that are looked after while the server is locked once.
const ADDRESSES_AT_ONCE: usize = 128;

/// Tells a connection's task to end: what to send last, and why.
pub(crate) type Closing = (Vec<u8>, CloseReason);

/// The way to a connection's task.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) connection: quinn::Connection,
    pub(crate) listener: u16,
    /// Messages wait.
    pub(crate) wake: Arc<Notify>,
    pub(crate) close: oneshot::Sender<Closing>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    server: Mutex<Server>,
    pub(crate) listeners: Vec<Arc<Listener>>,
    /// The relay's second address, and the listener that sends from there.
    pub(crate) elsewhere: Option<(usize, SocketAddrV4)>,
    handles: Mutex<HashMap<ConnId, Handle>>,
    next: AtomicU64,
    start: std::time::Instant,
    /// The server's next deadline has changed.
    pub(crate) deadline_changed: Notify,
}

impl Shared {
    pub(crate) fn new(
        server: Server,
        listeners: Vec<Arc<Listener>>,
        elsewhere: Option<(usize, SocketAddrV4)>,
    ) -> Self {
        Self {
            server: Mutex::new(server),
            listeners,
            elsewhere,
            handles: Mutex::default(),
            next: AtomicU64::new(0),
            start: std::time::Instant::now(),
            deadline_changed: Notify::new(),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::from_boot(ORIGIN + self.start.elapsed())
    }

    /// The server, for reading and for datagrams; all else goes through [`Self::with`].
    pub(crate) fn lock(&self) -> MutexGuard<'_, Server> {
        // A panic of another thread has ended the process, except in tests.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds the server something, then does what it wants done.
    pub(crate) fn with(&self, input: impl FnOnce(&mut Server, Instant)) {
        let mut outputs = Vec::new();
        let mut server = self.lock();
        let before = server.poll_timeout();
        input(&mut server, self.now());
        while let Some(output) = server.poll_output() {
            outputs.push(output);
        }
        let changed = server.poll_timeout() != before;
        drop(server);
        if changed {
            self.deadline_changed.notify_one();
        }
        outputs.into_iter().for_each(|output| self.act(output));
    }

    fn act(&self, output: Output) {
        match output {
            Output::Wake(conn) => {
                if let Some(handle) = self.handles().get(&conn) {
                    handle.wake.notify_one();
                }
            }
            Output::Close { conn, last, reason } => {
                if let Some(handle) = self.handles().remove(&conn) {
                    // The task may have ended by itself.
                    let _ = handle.close.send((last, reason));
                }
            }
            Output::Datagram { to, local, payload } => {
                if let Some(listener) = self.listeners.get(usize::from(local.listener)) {
                    listener
                        .main
                        .send(to, local.ip, None, &payload, payload.len());
                }
            }
        }
    }

    /// Makes a connection known, under a new name.
    pub(crate) fn register(&self, handle: Handle) -> ConnId {
        let conn = ConnId(self.next.fetch_add(1, Ordering::Relaxed));
        self.handles().insert(conn, handle);
        conn
    }

    /// The connection is gone.
    pub(crate) fn unregister(&self, conn: ConnId) {
        self.handles().remove(&conn);
        self.with(|server, _| server.handle_closed(conn));
    }

    /// Tells the server where each client is now.
    pub(crate) fn report_addresses(&self) {
        let known: Vec<_> = self
            .handles()
            .iter()
            .map(|(conn, handle)| (*conn, location(handle.listener, &handle.connection)))
            .collect();
        // The data thread waits while the server is locked.
        for some in known.chunks(ADDRESSES_AT_ONCE) {
            self.with(|server, now| {
                for &(conn, (remote, local)) in some {
                    server.set_local(conn, local);
                    server.handle_address(now, conn, remote);
                }
            });
        }
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<ConnId, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a client is, and what it talks to.
pub(crate) fn location(
    listener: u16,
    connection: &quinn::Connection,
) -> (std::net::SocketAddr, Local) {
    let local = Local {
        listener,
        ip: connection.local_ip(),
    };
    (connection.remote_address(), local)
}
