//! Datagrams of one size as they reach a host, seen on the wire: which way pings came, and when.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::netns::Namespace;

/// How long the end is waited for.
const TICK: i64 = 50;
const UDP: u8 = 17;

/// A datagram that reached the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When it was seen.
    pub at: Instant,
    /// Where it came from.
    pub from: SocketAddr,
    /// Where it went to.
    pub to: IpAddr,
}

/// Watches a host until it is dropped.
#[derive(Debug)]
pub struct Arrivals {
    seen: Arc<Mutex<Vec<Arrival>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Arrivals {
    /// Notes every datagram with this many bytes of UDP payload that reaches a host from now on.
    ///
    /// # Errors
    ///
    /// When there is no packet socket.
    pub fn watch(ns: &Namespace, bytes: usize) -> Result<Self> {
        let fd = ns
            .inside(|| {
                socket(
                    AddressFamily::Packet,
                    SockType::Datagram,
                    SockFlag::SOCK_CLOEXEC,
                    SockProtocol::EthAll,
                )
            })
            .context("a packet socket")?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(TICK))?;
        let (seen, over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (seen, over) = (Arc::clone(&seen), Arc::clone(&over));
            move || note(&fd, bytes, &seen, &over)
        });
        Ok(Self {
            seen,
            over,
            thread: Some(thread),
        })
    }

    /// The last one until `until`.
    pub fn last(&self, until: Instant) -> Option<Arrival> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter()
            .rev()
            .find(|arrival| arrival.at <= until)
            .copied()
    }

    /// How many came that are as asked for.
    pub fn count(&self, wanted: impl Fn(&Arrival) -> bool) -> usize {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|arrival| wanted(arrival)).count()
    }

    /// How long after `since` the first one came that is as asked for.
    pub fn first(&self, since: Instant, wanted: impl Fn(&Arrival) -> bool) -> Option<Duration> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut later = seen.iter().filter(|arrival| arrival.at >= since);
        let first = later.find(|arrival| wanted(arrival))?;
        Some(first.at.duration_since(since))
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn note(fd: &OwnedFd, bytes: usize, seen: &Mutex<Vec<Arrival>>, over: &AtomicBool) {
    // Headers are all that is looked at.
    let mut buffer = [0; 128];
    while !over.load(Ordering::Relaxed) {
        let Ok((length, link)) = recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer) else {
            continue;
        };
        let arrived = link.is_some_and(|link| link.pkttype() == libc::PACKET_HOST);
        if !arrived {
            continue;
        }
        if let Some((from, to)) = datagram(&buffer[..length.min(buffer.len())], bytes) {
            let at = Instant::now();
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(Arrival { at, from, to });
        }
    }
}

/// Source and destination of an IP packet, if it is a datagram of this size.
fn datagram(packet: &[u8], bytes: usize) -> Option<(SocketAddr, IpAddr)> {
    let (from, to, udp): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&UDP) => {
            let header = usize::from(packet[0] & 15) * 4;
            let ip = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<4>()?));
            (ip(12)?, ip(16)?, packet.get(header..)?)
        }
        6 if packet.get(6) == Some(&UDP) => {
            let ip = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<16>()?));
            (ip(8)?, ip(24)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let port = u16::from_be_bytes(*udp.first_chunk()?);
    let length = u16::from_be_bytes(*udp.get(4..)?.first_chunk()?);
    (usize::from(length) == bytes + 8).then_some((SocketAddr::new(from, port), to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_known_by_its_size() {
        let mut packet = vec![
            0x45, 0, 0, 48, 0, 0, 0, 0, 64, UDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
        ];
        packet.extend([0x12, 0x34, 0, 9, 0, 28, 0, 0]);
        packet.resize(48, 0);
        let expected = ("192.0.2.1:4660".parse().unwrap(), [192, 0, 2, 2].into());
        assert_eq!(datagram(&packet, 20), Some(expected));
        assert_eq!(datagram(&packet, 21), None);
        assert_eq!(datagram(&packet[..20], 20), None);
    }
}
