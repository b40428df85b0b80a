//! A hash-checked stream: what is sent is made from a seed, what arrives is hashed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use blake2::{Blake2s256, Digest};

/// Bytes handed to the socket at a time.
const CHUNK: usize = 64 * 1024;
/// A stream that stands still for longer is dead.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pseudo-random bytes with the lab's marker at the start of every chunk, so that a log of payload would be found.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
    marker: String,
}

impl Pattern {
    /// The pattern of `seed`.
    pub fn new(seed: u64, marker: &str) -> Self {
        Self {
            // Zero is the one state that xorshift never leaves.
            state: seed | 1,
            marker: marker.to_owned(),
        }
    }

    fn fill(&mut self, chunk: &mut [u8]) {
        for word in chunk.chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes()[..word.len()]);
        }
        let len = self.marker.len().min(chunk.len());
        chunk[..len].copy_from_slice(&self.marker.as_bytes()[..len]);
    }
}

/// What a stream brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// How much.
    pub bytes: u64,
    /// BLAKE2s of it.
    pub hash: Vec<u8>,
    /// Longest time between two reads.
    pub stall: Duration,
}

/// Sends `bytes` of the pattern and closes the stream. `pace` is asked before every chunk of 64 KiB, with the bytes sent so far,
/// how long to wait. Gives the hash of what was sent.
///
/// # Errors
///
/// When the connection breaks or stands still.
pub fn send(
    stream: &mut TcpStream,
    mut pattern: Pattern,
    bytes: u64,
    mut pace: impl FnMut(u64) -> Duration,
) -> Result<Vec<u8>> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut hash = Blake2s256::new();
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    while sent < bytes {
        let wait = pace(sent);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        let len = usize::try_from(bytes - sent).unwrap_or(CHUNK).min(CHUNK);
        pattern.fill(&mut chunk[..len]);
        hash.update(&chunk[..len]);
        stream
            .write_all(&chunk[..len])
            .with_context(|| format!("after {sent} bytes"))?;
        sent += len as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    // The other end closes when it has everything: an early close here could still lose a reset.
    stream.set_read_timeout(Some(PATIENCE))?;
    if stream
        .read(&mut [0])
        .context("waiting for the receiver to close")?
        != 0
    {
        bail!("the receiver is not supposed to send");
    }
    Ok(hash.finalize().to_vec())
}

/// Accepts one connection and reads it to its end.
///
/// # Errors
///
/// When the connection breaks or stands still.
pub fn receive(listener: &TcpListener) -> Result<Received> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut hash = Blake2s256::new();
    let mut buffer = vec![0; CHUNK];
    let (mut bytes, mut stall, mut last) = (0, Duration::ZERO, Instant::now());
    loop {
        let len = stream
            .read(&mut buffer)
            .with_context(|| format!("after {bytes} bytes"))?;
        stall = stall.max(last.elapsed());
        last = Instant::now();
        if len == 0 {
            break;
        }
        hash.update(&buffer[..len]);
        bytes += len as u64;
    }
    Ok(Received {
        bytes,
        hash: hash.finalize().to_vec(),
        stall,
    })
}
