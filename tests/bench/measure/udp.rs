//! UDP packets per second: a paced sender, and a receiver that counts by sequence number.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::search::{Trial, highest};
use crate::topology::Pair;

/// Length of a trial. At the lowest rate of interest, some 1,000 packets/s, 1 % of it is still three packets.
const TRIAL: Duration = Duration::from_millis(300);
/// What arrives later than this after the last packet was sent lay in a queue that a longer trial would have overrun.
const GRACE: Duration = Duration::from_millis(20);
/// A receiver that hears nothing for this long has emptied the queues, so that the next trial starts with empty ones.
const QUIET: Duration = Duration::from_millis(20);
/// Most packets in one system call, and so the largest burst.
const BURST: usize = 64;
/// Packets of this much time go into a burst, if they are fewer than [`BURST`]: sleeping costs some 50 µs.
const INTERVAL: f64 = 100e-6;
/// A sender that was kept from running sends at most this many late, then goes on at its pace: a larger burst
/// would overrun queues that the rate itself does not.
const BACKLOG: u64 = 2 * BURST as u64;
/// Receive buffer. The receiver is part of the bench, and must not be what loses packets.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Rate of the first trial of a contender.
const FIRST: f64 = 16_000.0;

/// The most packets of `bytes` payload per second that arrive at `to` with less than 1 % loss; `hint` is what it was last.
pub(crate) fn highest_rate(
    pair: &Pair,
    to: Ipv4Addr,
    bytes: u16,
    hint: Option<f64>,
) -> Result<f64> {
    let receiver = pair.b.udp(SocketAddr::from(([0, 0, 0, 0], 0)))?;
    receiver.set_read_timeout(Some(QUIET))?;
    setsockopt(&receiver, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
    let sender = pair.a.udp(SocketAddr::from(([0, 0, 0, 0], 0)))?;
    sender.connect((to, receiver.local_addr()?.port()))?;
    let (start, step) = hint.map_or((FIRST, 2.0), |hint| (hint * 0.9, 1.25));
    let mut number = 0;
    highest(start, step, |rate| {
        number += 1;
        trial(&sender, &receiver, usize::from(bytes), rate, number).context("UDP")
    })
}

fn trial(
    sender: &UdpSocket,
    receiver: &UdpSocket,
    bytes: usize,
    rate: f64,
    number: u32,
) -> io::Result<Trial> {
    let end = OnceLock::new();
    std::thread::scope(|scope| {
        let counter = scope.spawn(|| count(receiver, number, &end));
        let started = Instant::now();
        let sent = send(sender, bytes, rate, number);
        let took = started.elapsed();
        // Also when sending failed: the counter waits for it.
        let _ = end.set(Instant::now() + GRACE);
        let arrived = counter.join().expect("the counter does not panic")?;
        Ok(Trial {
            sent: sent?,
            arrived,
            seconds: took.as_secs_f64(),
        })
    })
}

/// Sends at `rate` for [`TRIAL`]; gives how many.
fn send(socket: &UdpSocket, bytes: usize, rate: f64, trial: u32) -> io::Result<u64> {
    // The slack of 50 µs that timers otherwise have is most of the interval.
    let _ = nix::sys::prctl::set_timerslack(1);
    let mut batch = Batch::new(bytes);
    let burst = ((rate * INTERVAL) as u64).clamp(1, BURST as u64);
    let started = Instant::now();
    let (mut since, mut paced, mut sent) = (started, 0, 0);
    while started.elapsed() < TRIAL {
        let due = ((since.elapsed().as_secs_f64() * rate) as u64).saturating_sub(paced);
        if due < burst {
            std::thread::sleep(Duration::from_secs_f64((burst - due) as f64 / rate));
            continue;
        }
        if due > BACKLOG {
            let forgiven = (due - BACKLOG) as f64 / rate;
            since += Duration::from_secs_f64(forgiven);
            continue;
        }
        let accepted = batch.send(socket, trial, sent, due.min(BURST as u64) as usize)? as u64;
        sent += accepted;
        paced += accepted;
    }
    Ok(sent)
}

/// Counts the packets of this trial that arrive before `end`, each once, until it is over and the queues are empty.
fn count(socket: &UdpSocket, trial: u32, end: &OnceLock<Instant>) -> io::Result<u64> {
    let (mut batch, mut seen) = (Batch::new(HEADER), Seen::default());
    loop {
        let received = batch.receive(socket)?;
        let over = end.get().is_some_and(|end| Instant::now() > *end);
        if over && received == 0 {
            return Ok(seen.count);
        }
        if !over {
            for (number, sequence) in batch.headers(received) {
                if number == trial {
                    seen.insert(sequence);
                }
            }
        }
    }
}

/// Sequence numbers that were seen.
#[derive(Debug, Default)]
struct Seen {
    bits: Vec<u64>,
    count: u64,
}

impl Seen {
    fn insert(&mut self, sequence: u32) {
        let (word, bit) = (sequence as usize / 64, 1 << (sequence % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        self.count += u64::from(self.bits[word] & bit == 0);
        self.bits[word] |= bit;
    }
}

/// Every packet begins with the number of the trial and its own.
const HEADER: usize = 8;

/// Buffers for one sendmmsg or recvmmsg.
struct Batch {
    bytes: usize,
    buffers: Vec<u8>,
    lengths: Vec<usize>,
}

impl Batch {
    fn new(bytes: usize) -> Self {
        let bytes = bytes.max(HEADER);
        Self {
            bytes,
            buffers: vec![0x5a; bytes * BURST],
            lengths: vec![0; BURST],
        }
    }

    /// Sends packets `first`, `first` + 1, … of `trial`; gives how many the kernel took.
    fn send(
        &mut self,
        socket: &UdpSocket,
        trial: u32,
        first: u64,
        count: usize,
    ) -> io::Result<usize> {
        for (packet, sequence) in self.buffers.chunks_mut(self.bytes).zip(first..).take(count) {
            packet[..4].copy_from_slice(&trial.to_be_bytes());
            packet[4..HEADER].copy_from_slice(&(sequence as u32).to_be_bytes());
        }
        self.call(count, |messages, count| {
            // SAFETY: `messages` has `count` messages whose vectors point into `self.buffers`, which outlives the call.
            unsafe { libc::sendmmsg(socket.as_raw_fd(), messages, count, 0) }
        })
    }

    /// Waits for packets as long as the socket's timeout says; gives how many came.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let received = self.call(BURST, |messages, count| {
            // SAFETY: as in `send`; the kernel writes no more than each vector's length.
            unsafe {
                let flags = libc::MSG_WAITFORONE;
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    messages,
                    count,
                    flags,
                    std::ptr::null_mut(),
                )
            }
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    fn call(
        &mut self,
        count: usize,
        run: impl FnOnce(*mut libc::mmsghdr, libc::c_uint) -> libc::c_int,
    ) -> io::Result<usize> {
        let mut vectors: Vec<libc::iovec> = self
            .buffers
            .chunks_mut(self.bytes)
            .map(|packet| libc::iovec {
                iov_base: packet.as_mut_ptr().cast(),
                iov_len: packet.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: zeroes are a valid mmsghdr: no name, no vector, no control data.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let done = run(messages.as_mut_ptr(), count.min(BURST) as libc::c_uint);
        let done = usize::try_from(done).map_err(|_| io::Error::last_os_error())?;
        for (length, message) in self.lengths.iter_mut().zip(&messages) {
            *length = message.msg_len as usize;
        }
        Ok(done)
    }

    /// Trial and sequence number of the first `count` packets.
    fn headers(&self, count: usize) -> impl Iterator<Item = (u32, u32)> {
        let packets = self.buffers.chunks(self.bytes).zip(&self.lengths);
        packets.take(count).filter_map(|(packet, length)| {
            let packet = packet.get(..*length)?;
            let trial = packet.first_chunk::<4>()?;
            let sequence = packet.get(4..)?.first_chunk::<4>()?;
            Some((u32::from_be_bytes(*trial), u32::from_be_bytes(*sequence)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_that_arrives_twice_counts_once() {
        let mut seen = Seen::default();
        for sequence in [0, 63, 64, 1_000_000, 64, 0] {
            seen.insert(sequence);
        }
        assert_eq!(seen.count, 4);
    }

    #[test]
    fn on_loopback_the_packets_of_this_trial_arrive_at_about_the_rate_that_was_asked_for() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(QUIET)).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        // Slow enough for a test on a busy machine; a packet of an earlier trial is not counted.
        sender.send(&[0; HEADER]).unwrap();
        let found = trial(&sender, &receiver, 64, 1_000.0, 1).unwrap();
        // Not all, since a busy machine may let the receiver run too late.
        assert!(
            (found.sent / 2..=found.sent).contains(&found.arrived),
            "{found:?}"
        );
        assert!((100..=310).contains(&found.sent), "{found:?}");
    }
}
