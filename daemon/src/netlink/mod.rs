//! The kernel's interfaces, addresses and routes, over rtnetlink.
//!
//! What we change: the addresses and flags of our own TUN interfaces, and routes that carry our own protocol number
//! ([`routes::PROTOCOL`]), by which they can be told from everybody else's. What we only look at: the rest, for clashes
//! ([`clash`]) and for the addresses that peers may reach us at ([`hosts`]).

pub mod clash;
pub mod guard;
pub mod hosts;
pub mod interface;
pub mod links;
pub mod monitor;
pub mod routes;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use thiserror::Error;
use tokio::sync::Mutex;

/// How long the kernel may take for one request or dump; it takes microseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the kernel did not do what we asked.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The right is missing.
    #[error(
        "cannot {0}: no permission; run meshd as root or give it the capability CAP_NET_ADMIN (AmbientCapabilities= in a \
         unit, `setcap cap_net_admin+ep` for a program)"
    )]
    Permission(String),
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Refused {
        /// What was tried, a verb with its object.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NetlinkError {
    pub(crate) fn new(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        if matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
            return Self::Permission(what);
        }
        Self::Refused { what, source }
    }

    fn from_rtnetlink(what: &str, error: rtnetlink::Error) -> Self {
        Self::new(what, to_io(error))
    }
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

/// A connection to the kernel in the network namespace of the thread that opened it.
#[derive(Clone)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// Held during a dump: the kernel refuses a second one on the same socket.
    dumping: Arc<Mutex<()>>,
}

impl Netlink {
    /// Connects; the connection is served by a task of the current runtime, which must have I/O and timers enabled.
    ///
    /// # Errors
    ///
    /// If the kernel gives no socket.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _unsolicited) = rtnetlink::new_connection()
            .map_err(|error| NetlinkError::new("open a netlink socket", error))?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            dumping: Arc::default(),
        })
    }

    /// Waits for a request, with a bound.
    async fn bounded<T>(
        what: &str,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetlinkError> {
        match tokio::time::timeout(TIMEOUT, request).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(NetlinkError::from_rtnetlink(what, error)),
            Err(_) => Err(NetlinkError::new(what, io::ErrorKind::TimedOut.into())),
        }
    }

    /// Collects what `convert` makes of a dump, which `start` asks for.
    async fn dump<M, T, D>(
        &self,
        what: &str,
        start: impl FnOnce(&rtnetlink::Handle) -> D,
        convert: impl Fn(M) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError>
    where
        D: Stream<Item = Result<M, rtnetlink::Error>>,
    {
        let _one_at_a_time = self.dumping.lock().await;
        let dump = start(&self.handle);
        let collected = dump.try_fold(Vec::new(), |mut all, message| {
            all.extend(convert(message));
            std::future::ready(Ok(all))
        });
        Self::bounded(what, collected).await
    }
}
