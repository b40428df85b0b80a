//! The control socket as zbus reads and writes it, with the bounds that zbus does not set: how long a message may be, how
//! many calls may be unanswered, how long a client may leave its answers unread.
//!
//! A client only ever calls methods and waits for the answers, so anything else it sends ends the connection.

use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::Notify;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;

use super::counters::Counters;

/// Bytes of one message from a client: a call carries a few names.
const MAX_MESSAGE: usize = 16 * 1_024;
/// Calls of one connection that may wait for their answers; the next one is not read before.
const MAX_CALLS: usize = 16;
/// How long a client may leave its answers unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The fixed part of a message's header (D-Bus Specification, "Message Format").
const FIXED_HEADER: usize = 16;
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const NO_REPLY_EXPECTED: u8 = 1;

/// Bytes in a message that starts with `header`, which has to be a method call that waits for its answer.
fn message_length(header: &[u8; FIXED_HEADER]) -> Option<usize> {
    let [endian, kind, flags, _version, rest @ ..] = header;
    let word = |at: usize| {
        let bytes = [rest[at], rest[at + 1], rest[at + 2], rest[at + 3]];
        match endian {
            b'l' => Some(u32::from_le_bytes(bytes)),
            b'B' => Some(u32::from_be_bytes(bytes)),
            _ => None,
        }
    };
    if *kind != METHOD_CALL || flags & NO_REPLY_EXPECTED != 0 {
        return None;
    }
    let body = usize::try_from(word(0)?).ok()?;
    let fields = usize::try_from(word(8)?).ok()?;
    if body > MAX_MESSAGE || fields > MAX_MESSAGE {
        return None;
    }
    let length = FIXED_HEADER + fields.next_multiple_of(8) + body;
    (length <= MAX_MESSAGE).then_some(length)
}

/// Counts the calls that wait for their answers.
#[derive(Debug, Default)]
struct Gate {
    waiting: AtomicUsize,
    answered: Notify,
}

impl Gate {
    async fn wait(&self) {
        loop {
            let answered = self.answered.notified();
            if self.waiting.load(Ordering::Acquire) < MAX_CALLS {
                return;
            }
            answered.await;
        }
    }

    fn call(&self) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
    }

    fn answer(&self) {
        let _ = self
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
                waiting.checked_sub(1)
            });
        self.answered.notify_one();
    }
}

/// An authenticated client's connection.
#[derive(Debug)]
pub(super) struct Transport {
    read: Reader,
    write: Writer,
}

impl Transport {
    /// `received` is what came behind the authentication already.
    pub(super) fn new(stream: Arc<UnixStream>, received: Vec<u8>, counters: Arc<Counters>) -> Self {
        let gate = Arc::new(Gate::default());
        let read = Reader {
            stream: stream.clone(),
            received,
            place: Place::Header(0),
            header: [0; FIXED_HEADER],
            gate: gate.clone(),
            counters,
            ended: false,
        };
        let write = Writer {
            stream,
            gate,
            kind: None,
        };
        Self { read, write }
    }
}

impl Socket for Transport {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        Split::new(self.read, self.write)
    }
}

/// Where in a message the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// So many bytes of the fixed header are there.
    Header(usize),
    /// So many bytes behind it are missing.
    Rest(usize),
}

/// What zbus reads from.
#[derive(Debug)]
pub(super) struct Reader {
    stream: Arc<UnixStream>,
    received: Vec<u8>,
    place: Place,
    header: [u8; FIXED_HEADER],
    gate: Arc<Gate>,
    counters: Arc<Counters>,
    /// The client has gone, or was sent away and counted: nothing is wrong with what zbus got.
    ended: bool,
}

impl Reader {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.received.is_empty() {
            let count = buffer.len().min(self.received.len());
            buffer[..count].copy_from_slice(&self.received[..count]);
            self.received.drain(..count);
            return Ok(count);
        }
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Follows the bytes of the messages.
    fn advance(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.place {
            Place::Header(have) => {
                let have = have + bytes.len();
                self.header[have - bytes.len()..have].copy_from_slice(bytes);
                if have < FIXED_HEADER {
                    self.place = Place::Header(have);
                    return Ok(());
                }
                let length = message_length(&self.header).ok_or(io::ErrorKind::InvalidData)?;
                self.gate.call();
                self.place = Place::Rest(length - FIXED_HEADER);
            }
            Place::Rest(missing) => self.place = Place::Rest(missing - bytes.len()),
        }
        if self.place == Place::Rest(0) {
            self.place = Place::Header(0);
        }
        Ok(())
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let most = match self.place {
            Place::Header(have) => {
                if have == 0 {
                    self.gate.wait().await;
                }
                FIXED_HEADER - have
            }
            Place::Rest(missing) => missing,
        };
        let most = most.min(buffer.len());
        let count = match self.read(&mut buffer[..most]).await {
            Ok(count) => count,
            Err(error) => {
                self.ended = true;
                return Err(error);
            }
        };
        if count == 0 {
            self.ended = self.place == Place::Header(0);
        } else {
            self.advance(&buffer[..count])?;
        }
        Ok((count, Vec::new()))
    }
}

impl Drop for Reader {
    /// zbus stops reading when the client has gone or when it cannot make sense of a message.
    fn drop(&mut self) {
        if !self.ended {
            self.counters.malformed();
        }
        let _ = socket2::SockRef::from(&*self.stream).shutdown(Shutdown::Both);
    }
}

/// What zbus writes to.
#[derive(Debug)]
pub(super) struct Writer {
    stream: Arc<UnixStream>,
    gate: Arc<Gate>,
    /// Type of the message that is being written.
    kind: Option<u8>,
}

impl Writer {
    async fn write(&self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            self.stream.writable().await?;
            match self.stream.try_write(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        if self.kind.is_none() {
            self.kind = buffer.get(1).copied();
        }
        match tokio::time::timeout(WRITE_TIMEOUT, self.write(buffer)).await {
            Ok(result) => result,
            Err(_) => {
                self.close().await?;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        if let Some(METHOD_RETURN | ERROR) = self.kind.take() {
            self.gate.answer();
        }
        Ok(())
    }

    /// The reader sees the end of the stream, and with it the connection ends.
    async fn close(&mut self) -> io::Result<()> {
        socket2::SockRef::from(&*self.stream).shutdown(Shutdown::Both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(endian: u8, kind: u8, flags: u8, body: u32, fields: u32) -> [u8; FIXED_HEADER] {
        let word = |value: u32| {
            if endian == b'B' {
                value.to_be_bytes()
            } else {
                value.to_le_bytes()
            }
        };
        let mut header = [endian, kind, flags, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&word(body));
        header[12..].copy_from_slice(&word(fields));
        header
    }

    #[test]
    fn a_call_is_as_long_as_its_header_says() {
        assert_eq!(message_length(&header(b'l', 1, 0, 5, 9)), Some(16 + 16 + 5));
        assert_eq!(message_length(&header(b'B', 1, 4, 0, 8)), Some(16 + 8));
    }

    #[test]
    fn what_is_no_call_or_too_long_is_refused() {
        for bad in [
            header(b'l', 2, 0, 0, 8),
            header(b'l', 4, 0, 0, 8),
            header(b'l', 1, 1, 0, 8),
            header(b'x', 1, 0, 0, 8),
            header(b'l', 1, 0, u32::MAX, u32::MAX),
            header(b'l', 1, 0, MAX_MESSAGE as u32, 8),
            [0; FIXED_HEADER],
        ] {
            assert_eq!(message_length(&bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn the_gate_closes_until_a_call_is_answered() {
        let gate = Gate::default();
        for _ in 0..MAX_CALLS {
            gate.wait().await;
            gate.call();
        }
        let closed = tokio::time::timeout(Duration::from_millis(20), gate.wait()).await;
        assert!(closed.is_err());
        gate.answer();
        gate.wait().await;
    }

    #[test]
    fn more_answers_than_calls_do_not_open_the_gate_wider() {
        let gate = Gate::default();
        gate.answer();
        gate.answer();
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    }
}
