//! One client: its handshake, and its control stream.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::NodeId;
use mesh_core::limits;
use mesh_core::relay::server::ConnId;
use mesh_core::wire::relay::{ClientMessage, Framer};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout};

use crate::shared::{Closing, Handle, Shared, location};
use crate::tls;

/// How long a handshake may take; then the stream must be opened within as much again.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the last words to a client may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes read from a control stream at once.
const READ_BYTES: usize = 2048;

/// Serves a connection attempt until the client is gone.
///
/// `permit` is given back as soon as the handshake is over.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: u16,
    connecting: quinn::Connecting,
    permit: OwnedSemaphorePermit,
) {
    let handshake = timeout(HANDSHAKE_TIMEOUT, connecting).await;
    drop(permit);
    let Ok(Ok(connection)) = handshake else {
        return;
    };
    // TLS demands a key of every client.
    let Some(node) = tls::peer_id(&connection) else {
        return;
    };
    let wake = Arc::new(Notify::new());
    let (close, closing) = oneshot::channel();
    let conn = shared.register(Handle {
        connection: connection.clone(),
        listener,
        wake: Arc::clone(&wake),
        close,
    });
    let (remote, local) = location(listener, &connection);
    shared.with(|server, now| {
        server.handle_connected(now, conn, node, remote);
        server.set_local(conn, local);
    });
    tracing::debug!(client = %node.short(), %remote, "connected");
    let client = Client {
        shared: &shared,
        conn,
        listener,
        connection,
    };
    client.run(&wake, closing, node).await;
    shared.unregister(conn);
}

struct Client<'a> {
    shared: &'a Shared,
    conn: ConnId,
    listener: u16,
    connection: quinn::Connection,
}

impl Client<'_> {
    async fn run(&self, wake: &Notify, mut closing: oneshot::Receiver<Closing>, node: NodeId) {
        let streams = tokio::select! {
            biased;
            streams = timeout(HANDSHAKE_TIMEOUT, self.connection.accept_bi()) => match streams {
                Ok(Ok(streams)) => Some(streams),
                _ => None,
            },
            // The server's own patience is shorter; there is no stream to say anything on.
            Ok((_, reason)) = &mut closing => return self.close(reason.code(), &reason.to_string()),
        };
        let Some((mut send, recv)) = streams else {
            return self.close(0, "no control stream was opened");
        };
        let ended = {
            let write = self.write(&mut send, wake, &mut closing);
            tokio::select! {
                biased;
                ended = write => Some(ended),
                () = self.read(recv) => None,
                () = self.follow() => None,
            }
        };
        // Reading also ends by what was read: then the server closes the connection, and has told the writer so.
        let closed = match ended {
            Some(Ended::Closing(pending, closing)) => Some((pending, closing)),
            Some(Ended::Broken) => None,
            None => closing.try_recv().ok().map(|closing| (Vec::new(), closing)),
        };
        let Some((mut pending, (last, reason))) = closed else {
            tracing::debug!(client = %node.short(), "gone: {}", self.why());
            return self.close(0, "");
        };
        tracing::debug!(client = %node.short(), "closed: {reason}");
        pending.extend(last);
        let _ = timeout(GOODBYE_TIMEOUT, async {
            send.write_all(&pending).await.ok()?;
            send.finish().ok()?;
            send.stopped().await.ok()
        })
        .await;
        self.close(reason.code(), &reason.to_string());
    }

    /// Writes what the server has to say until it closes the connection or the stream breaks.
    async fn write(
        &self,
        send: &mut SendStream,
        wake: &Notify,
        closing: &mut oneshot::Receiver<Closing>,
    ) -> Ended {
        loop {
            let messages = self.shared.lock().take_messages(self.conn);
            let mut written = 0;
            while written < messages.len() {
                tokio::select! {
                    biased;
                    Ok(closing) = &mut *closing => {
                        return Ended::Closing(messages[written..].to_vec(), closing);
                    }
                    result = send.write(&messages[written..]) => match result {
                        Ok(len) => written += len,
                        Err(_) => return Ended::Broken,
                    },
                }
            }
            tokio::select! {
                biased;
                Ok(closing) = &mut *closing => return Ended::Closing(Vec::new(), closing),
                () = wake.notified() => {}
            }
        }
    }

    /// Tells the server where the client is.
    fn locate(&self) {
        let (remote, local) = location(self.listener, &self.connection);
        self.shared.with(|server, now| {
            server.set_local(self.conn, local);
            server.handle_address(now, self.conn, remote);
        });
    }

    /// Feeds the server what the client does not want to wait for the stream, as after a move. Ends if that is nonsense.
    async fn follow(&self) {
        let mut pace = Pace::default();
        while let Ok(datagram) = self.connection.read_datagram().await {
            pace.wait().await;
            self.locate();
            match ClientMessage::decode(&datagram) {
                Ok(message) if message.may_be_hastened() => self
                    .shared
                    .with(|server, now| server.handle_message(now, self.conn, message)),
                _ => return self.malformed(),
            }
        }
        std::future::pending().await
    }

    fn malformed(&self) {
        self.shared
            .with(|server, _| server.handle_malformed(self.conn));
    }

    /// Feeds the server until the stream ends or carries nonsense.
    async fn read(&self, mut recv: RecvStream) {
        let mut framer = Framer::default();
        let mut pace = Pace::default();
        // Chunks, not a buffer: most clients say nothing most of the time, and a buffer would wait with each of them.
        while let Ok(Some(chunk)) = recv.read_chunk(READ_BYTES, true).await {
            self.locate();
            let mut input = &chunk.bytes[..];
            loop {
                let message = match framer.next(&mut input) {
                    Ok(Some(body)) => {
                        pace.wait().await;
                        ClientMessage::decode(body)
                    }
                    Ok(None) => break,
                    Err(error) => Err(error),
                };
                let Ok(message) = message else {
                    return self.malformed();
                };
                self.shared
                    .with(|server, now| server.handle_message(now, self.conn, message));
            }
        }
    }

    fn close(&self, code: u32, reason: &str) {
        self.connection
            .close(VarInt::from_u32(code), reason.as_bytes());
    }

    fn why(&self) -> String {
        self.connection.close_reason().map_or_else(
            || "it ended the control stream".to_owned(),
            |reason| reason.to_string(),
        )
    }
}

/// Slows down a client that says more than the server listens to. Checking the keys in its messages is what costs; while
/// they are not read, QUIC's flow control makes it wait.
#[derive(Default)]
struct Pace {
    /// When the client may have said all that it has said, at the rate that it is allowed.
    due: Option<Instant>,
}

impl Pace {
    /// Waits until one more message may be read.
    async fn wait(&mut self) {
        let (rate, burst) = limits::RELAY_MESSAGES;
        let now = Instant::now();
        let each = Duration::from_secs(1) / rate as u32;
        let due = self.due.map_or(now, |due| due.max(now)) + each;
        self.due = Some(due);
        if let Some(early) = due.checked_duration_since(now + each * burst as u32) {
            tokio::time::sleep(early).await;
        }
    }
}

/// Why nothing more is written.
enum Ended {
    /// The server closes the connection; what was not written yet comes first.
    Closing(Vec<u8>, Closing),
    /// The stream or the connection broke.
    Broken,
}
