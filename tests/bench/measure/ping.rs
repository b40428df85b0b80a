//! Round trips of ICMP echoes, 1 ms apart, timed in this process.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::within;
use socket2::{Domain, Protocol, Socket, Type};

use crate::topology::Pair;

/// Probes of one measurement: ten of them lie above the 99th percentile.
const PROBES: usize = 1_000;
/// From one probe to the next, or to its answer if that takes longer.
const INTERVAL: Duration = Duration::from_millis(1);
/// An answer that takes longer is lost, and counts as a round trip of this length.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Data in a probe, as in those of ping(8).
const PAYLOAD: usize = 56;
/// The stream of the load runs when this much has arrived.
const RUNNING: u64 = 1 << 20;
/// Longest time that it may take to get there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes handed to the stream at a time, as iperf3 does.
const CHUNK: usize = 128 << 10;

/// Round trips in microseconds through an idle tunnel.
pub(crate) fn idle(pair: &Pair, to: Ipv4Addr) -> Result<Vec<f64>> {
    probe(pair, to, PATIENCE)
}

/// Round trips in microseconds while one TCP stream fills the tunnel, for at most so many seconds.
pub(crate) fn loaded(pair: &Pair, to: Ipv4Addr, seconds: u32) -> Result<Vec<f64>> {
    let listener = pair.b.listen(SocketAddr::from(([0, 0, 0, 0], 0)))?;
    let stream = pair
        .a
        .connect(SocketAddr::from((to, listener.local_addr()?.port())))?;
    let (sink, _) = listener.accept()?;
    let arrived = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| fill(&stream));
        scope.spawn(|| drain(&sink, &arrived));
        let probed = (|| {
            within("the load to flow", PATIENCE, || {
                Ok(arrived.load(Ordering::Relaxed) >= RUNNING)
            })?;
            let before = arrived.load(Ordering::Relaxed);
            let micros = probe(pair, to, Duration::from_secs(seconds.into()))?;
            let during = arrived.load(Ordering::Relaxed) - before;
            ensure!(
                during >= RUNNING,
                "the load stood still while probes were sent"
            );
            Ok(micros)
        })();
        // Ends both threads, whatever they wait for.
        let _ = stream.shutdown(Shutdown::Both);
        let _ = sink.shutdown(Shutdown::Both);
        probed
    })
}

fn fill(mut stream: &TcpStream) {
    let chunk = vec![0x5a; CHUNK];
    while stream.write_all(&chunk).is_ok() {}
}

fn drain(mut sink: &TcpStream, arrived: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(count @ 1..) = sink.read(&mut chunk) {
        arrived.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Sends [`PROBES`], or as many as `limit` allows.
fn probe(pair: &Pair, to: Ipv4Addr, limit: Duration) -> Result<Vec<f64>> {
    // Sends and receives echoes alone; the kernel takes care of identifier and checksum.
    let mut socket = pair
        .a
        .inside(|| Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)))
        .context("a socket for echoes")?;
    socket.connect(&SocketAddr::from((to, 0)).into())?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    // The slack of 50 µs that timers otherwise have would let the pace drift.
    let _ = nix::sys::prctl::set_timerslack(1);
    let (started, mut micros) = (Instant::now(), Vec::with_capacity(PROBES));
    let mut lost = 0;
    while micros.len() < PROBES && started.elapsed() < limit {
        let sent = Instant::now();
        socket
            .write_all(&echo(micros.len() as u16))
            .context("send an echo")?;
        let trip = if answered(&mut socket, micros.len() as u16, sent)? {
            sent.elapsed()
        } else {
            lost += 1;
            TIMEOUT
        };
        micros.push(trip.as_secs_f64() * 1e6);
        std::thread::sleep(INTERVAL.saturating_sub(sent.elapsed()));
    }
    ensure!(lost < micros.len(), "none of {lost} echoes was answered");
    Ok(micros)
}

/// Waits for the answer with this sequence number.
fn answered(socket: &mut Socket, sequence: u16, sent: Instant) -> Result<bool> {
    const REPLY: u8 = 0;
    let mut buffer = [0; 256];
    while sent.elapsed() < TIMEOUT {
        match socket.read(&mut buffer) {
            Ok(count) => {
                // A late answer to an earlier probe is passed over.
                let header = &buffer[..count.min(8)];
                if header.len() == 8 && header[0] == REPLY && header[6..] == sequence.to_be_bytes()
                {
                    return Ok(true);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("wait for an echo"),
        }
    }
    Ok(false)
}

/// An ICMP echo request; the kernel fills in checksum and identifier.
fn echo(sequence: u16) -> [u8; 8 + PAYLOAD] {
    const REQUEST: u8 = 8;
    let mut packet = [0x5a; 8 + PAYLOAD];
    packet[..8].fill(0);
    packet[0] = REQUEST;
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet
}
