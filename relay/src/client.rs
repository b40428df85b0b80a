//! A client's connection to a relay: dialling, and the control stream.
//!
//! ```no_run
//! # async fn example(endpoint: quinn::Endpoint, identity: mesh_core::identity::Identity,
//! #                  relay: mesh_core::identity::NodeId, address: std::net::SocketAddr) {
//! # use mesh_core::wire::relay::{ClientMessage, PROTOCOL_VERSION};
//! let client = mesh_relay::client::connect(&endpoint, &identity, &relay, address).await.unwrap();
//! let (to_relay, outgoing) = tokio::sync::mpsc::channel(64);
//! let (incoming, mut from_relay) = tokio::sync::mpsc::channel(64);
//! let pump = tokio::spawn(client.run(outgoing, incoming));
//! to_relay.send(ClientMessage::Hello { version: PROTOCOL_VERSION }).await.unwrap();
//! while let Some(message) = from_relay.recv().await {
//!     println!("{message:?}");
//! }
//! println!("closed: {}", pump.await.unwrap());
//! # }
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::{Identity, NodeId};
use mesh_core::wire::relay::{ClientMessage, Framer, ServerMessage};
use quinn::{ConnectionError, VarInt};
use tokio::sync::mpsc;

use crate::tls::{self, RelayVerifier, SERVER_NAME, TlsError};

/// How long a handshake may take: QUIC repeats lost packets after 1, 2 and 4 seconds before it has measured the path.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the last messages may take to be acknowledged after we hang up.
const HANGUP_TIMEOUT: Duration = Duration::from_millis(250);
/// Bytes read from the control stream at once.
const READ_BYTES: usize = 4096;

/// Why there is no connection to a relay.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// QUIC did not even try.
    #[error("cannot connect to the relay: {0}")]
    Connect(#[from] quinn::ConnectError),
    /// Nobody answered.
    #[error("the relay does not answer: check its address, and that UDP to it is not blocked")]
    NoAnswer,
    /// Another relay answered.
    #[error("the relay there is {found}, not {expected}: correct its address in `relays`")]
    WrongRelay {
        /// The relay that was asked for.
        expected: NodeId,
        /// The relay that is there.
        found: NodeId,
    },
    /// The handshake failed otherwise.
    #[error("{0}")]
    Failed(Closed),
}

/// Why a connection ended, in words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// One clause without a full stop.
    pub reason: String,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Closed {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

impl From<ConnectionError> for Closed {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) if !close.reason.is_empty() => {
                Self::new(String::from_utf8_lossy(&close.reason))
            }
            ConnectionError::ApplicationClosed(_) => Self::new("the relay closed the connection"),
            ConnectionError::Reset => Self::new("the relay restarted"),
            ConnectionError::TimedOut => Self::new("the relay does not answer any more"),
            ConnectionError::LocallyClosed => Self::new("we hung up"),
            other => Self::new(format!("the connection to the relay failed: {other}")),
        }
    }
}

/// A connection to a relay after its TLS handshake; nothing was said on the control stream yet.
///
/// Dropping it closes the connection.
#[derive(Debug)]
pub struct Client {
    sender: Sender,
    receiver: Receiver,
}

/// The half of a control stream that speaks.
#[derive(Debug)]
pub struct Sender {
    connection: quinn::Connection,
    stream: quinn::SendStream,
    buffer: Vec<u8>,
}

/// The half of a control stream that listens.
#[derive(Debug)]
pub struct Receiver {
    connection: quinn::Connection,
    stream: quinn::RecvStream,
    framer: Framer,
    buffer: Box<[u8; READ_BYTES]>,
    /// The bytes of `buffer` that were read and not yet given to `framer`.
    unread: std::ops::Range<usize>,
}

/// Connects to the relay with the key `relay` at `remote`, proving `identity`.
///
/// Takes [`CONNECT_TIMEOUT`] at most. Dropping the future gives up.
///
/// # Errors
/// If nobody answers, if the one who answers has another key, or if QUIC fails.
pub async fn connect(
    endpoint: &quinn::Endpoint,
    identity: &Identity,
    relay: &NodeId,
    remote: SocketAddr,
) -> Result<Client, ClientError> {
    let verifier = Arc::new(RelayVerifier::new(*relay));
    let config = tls::client_config_with(identity, Arc::clone(&verifier))?;
    let connecting = endpoint.connect_with(config, remote, SERVER_NAME)?;
    let handshake = async {
        let connection = connecting.await?;
        let streams = connection.open_bi().await?;
        Ok((connection, streams))
    };
    let (connection, (send, recv)) = match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(ConnectionError::TimedOut)) | Err(_) => return Err(ClientError::NoAnswer),
        Ok(Err(error)) => {
            return Err(match verifier.impostor() {
                Some(found) => ClientError::WrongRelay {
                    expected: *relay,
                    found,
                },
                None => ClientError::Failed(error.into()),
            });
        }
    };
    Ok(Client {
        sender: Sender {
            connection: connection.clone(),
            stream: send,
            buffer: Vec::new(),
        },
        receiver: Receiver {
            connection,
            stream: recv,
            framer: Framer::default(),
            buffer: Box::new([0; READ_BYTES]),
            unread: 0..0,
        },
    })
}

impl Client {
    /// Address of the relay.
    pub fn remote_address(&self) -> SocketAddr {
        self.sender.connection.remote_address()
    }

    /// The two halves, for who wants to move messages himself. Dropping both closes the connection.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Moves messages both ways until the connection ends, and tells why it did.
    ///
    /// Dropping the sender of `outgoing`, or the receiver of `incoming`, hangs up. Both channels push back: while
    /// `incoming` is full nothing is read, and at most 32 KiB wait in the connection.
    pub async fn run(
        self,
        mut outgoing: mpsc::Receiver<ClientMessage>,
        incoming: mpsc::Sender<ServerMessage>,
    ) -> Closed {
        let (mut sender, mut receiver) = self.split();
        let speak = async {
            while let Some(message) = outgoing.recv().await {
                if let Err(closed) = sender.send(&message).await {
                    return closed;
                }
            }
            sender.hang_up().await
        };
        let listen = async {
            loop {
                let message = match receiver.receive().await {
                    Ok(message) => message,
                    Err(closed) => return closed,
                };
                if incoming.send(message).await.is_err() {
                    return Closed::from(ConnectionError::LocallyClosed);
                }
            }
        };
        tokio::select! {
            biased;
            closed = listen => closed,
            closed = speak => closed,
        }
    }
}

impl Sender {
    /// Sends a message, waiting while the relay takes none.
    ///
    /// # Errors
    /// If the connection ended.
    pub async fn send(&mut self, message: &ClientMessage) -> Result<(), Closed> {
        self.buffer.clear();
        message.encode(&mut self.buffer);
        match self.stream.write_all(&self.buffer).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.closed().await),
        }
    }

    /// Sends a message past the stream, which waits for what was lost on it: at once or not at all. For those that
    /// [`ClientMessage::may_be_hastened`].
    pub fn hasten(&self, message: &ClientMessage) {
        // One that does not fit, or that this relay does not take, arrives by the stream.
        let _ = self.connection.send_datagram(message.to_datagram().into());
    }

    /// Closes the connection after what was sent has arrived, or a quarter of a second.
    pub async fn hang_up(&mut self) -> Closed {
        if self.stream.finish().is_ok() {
            let _ = tokio::time::timeout(HANGUP_TIMEOUT, self.stream.stopped()).await;
        }
        self.connection.close(VarInt::from_u32(0), b"");
        Closed::from(ConnectionError::LocallyClosed)
    }

    async fn closed(&self) -> Closed {
        closed(&self.connection).await
    }
}

impl Receiver {
    /// The next message. May be cancelled and called again without losing any.
    ///
    /// # Errors
    /// If the connection ended, or if the relay sent something that is no message.
    pub async fn receive(&mut self) -> Result<ServerMessage, Closed> {
        loop {
            let mut unread = &self.buffer[self.unread.clone()];
            let body = self.framer.next(&mut unread);
            self.unread.start = self.unread.end - unread.len();
            match body {
                Ok(Some(body)) => {
                    return ServerMessage::decode(body).map_err(|error| {
                        Closed::new(format!(
                            "the relay sent a message that we do not understand: {error}"
                        ))
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    return Err(Closed::new(format!(
                        "the relay does not speak our protocol: {error}"
                    )));
                }
            }
            match self.stream.read(&mut self.buffer[..]).await {
                Ok(Some(len)) => self.unread = 0..len,
                Ok(None) | Err(_) => return Err(closed(&self.connection).await),
            }
        }
    }
}

/// Why a connection whose stream ended did so.
async fn closed(connection: &quinn::Connection) -> Closed {
    // The stream ends first, the reason follows at once; but a peer may leave it at that.
    match tokio::time::timeout(HANGUP_TIMEOUT, connection.closed()).await {
        Ok(error) => error.into(),
        Err(_) => Closed::new("the relay ended the control stream"),
    }
}
