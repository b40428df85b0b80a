//! Pings every 10 ms and a TCP stream through the tunnel, to see how long connections stand still.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::node::Node;
use super::wait::within;

/// Pause between pings.
const INTERVAL: Duration = Duration::from_millis(10);
const PORT: u16 = 9_001;
/// Bytes of a ping: a size that nothing else has, so that it is recognised on the wire, sealed as it is.
const PING: usize = 912;
/// How long a socket waits, so that every thread sees that it is to end.
const TICK: Duration = Duration::from_millis(50);

/// Traffic between two nodes until it is dropped: pings over UDP, and a TCP stream that is echoed.
#[derive(Debug)]
pub struct Pulse {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    over: AtomicBool,
    /// When each ping that was answered in time had been sent.
    answered: Mutex<Vec<Instant>>,
    /// Bytes that the stream has brought back.
    echoed: AtomicU64,
}

impl Pulse {
    /// Bytes of a ping on a direct path, as UDP payload: behind the headers of IPv6 and UDP, with WireGuard's header and
    /// tag around it. All together is a multiple of 16 already, so nothing is padded.
    pub const WIRE_BYTES: usize = 40 + 8 + PING + 32;

    /// Starts it, from one node to the other. An answer that takes longer than `patience` counts as none: the ping has
    /// waited somewhere for a path.
    ///
    /// # Errors
    ///
    /// When a socket cannot be had, or the stream cannot be opened.
    pub fn start(from: &Node, to: &Node, patience: Duration) -> Result<Self> {
        let shared = Arc::new(Shared {
            over: AtomicBool::new(false),
            answered: Mutex::default(),
            echoed: AtomicU64::new(0),
        });
        let there = SocketAddr::new(to.overlay()?.into(), PORT);
        let server = to.ns.udp(there)?;
        let client = from.ns.udp((Ipv6Addr::UNSPECIFIED, 0).into())?;
        server.set_read_timeout(Some(TICK))?;
        client.set_read_timeout(Some(TICK))?;
        let listener = to.ns.listen(there)?;
        let stream = from.ns.connect(there)?;
        let (peer, _) = listener.accept()?;
        for stream in [&stream, &peer] {
            stream.set_read_timeout(Some(TICK))?;
            // What the socket does not take yet is not waited for: the stream has stalled then.
            stream.set_write_timeout(Some(TICK))?;
            stream.set_nodelay(true)?;
        }
        let receiver = client.try_clone()?;
        let (mut writer, mut reader) = (stream.try_clone()?, stream);
        let (mut echo, mut back) = (peer.try_clone()?, peer);
        let start = Instant::now();
        let mut pulse = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        pulse.run(move |_| {
            let mut buffer = [0; PING];
            if let Ok((length, from)) = server.recv_from(&mut buffer) {
                let _ = server.send_to(&buffer[..length], from);
            }
        });
        let mut next = start;
        pulse.run(move |_| {
            let since = u64::try_from(start.elapsed().as_nanos()).unwrap_or(0);
            let mut ping = [0; PING];
            ping[..8].copy_from_slice(&since.to_le_bytes());
            let _ = client.send_to(&ping, there);
            next += INTERVAL;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        });
        pulse.run(move |shared| {
            let mut buffer = [0; PING];
            if let Ok(PING) = receiver.recv(&mut buffer)
                && let Some(sent) = buffer.first_chunk()
            {
                let sent = start + Duration::from_nanos(u64::from_le_bytes(*sent));
                if sent.elapsed() > patience {
                    return;
                }
                let mut answered = shared
                    .answered
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                answered.push(sent);
            }
        });
        pulse.run(move |_| {
            let _ = writer.write(&[7; 500]);
            std::thread::sleep(INTERVAL);
        });
        pulse.run(move |_| {
            let mut buffer = [0; 4_096];
            if let Ok(length) = back.read(&mut buffer) {
                let _ = echo.write_all(&buffer[..length]);
            }
        });
        pulse.run(move |shared| {
            let mut buffer = [0; 4_096];
            if let Ok(length) = reader.read(&mut buffer) {
                shared.echoed.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        Ok(pulse)
    }

    /// Repeats `step` on a thread of its own until the end.
    fn run(&mut self, mut step: impl FnMut(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::spawn(move || {
            while !shared.over.load(Ordering::Relaxed) {
                step(&shared);
            }
        }));
    }

    /// Waits until a ping that was sent after `since` has been answered; returns how long after `since` that was.
    ///
    /// # Errors
    ///
    /// When none is within `timeout`.
    pub fn wait(&self, since: Instant, timeout: Duration) -> Result<Duration> {
        within("a ping to be answered", timeout, || {
            Ok(self.first(since).is_some())
        })?;
        Ok(self.first(since).unwrap_or(timeout))
    }

    fn first(&self, since: Instant) -> Option<Duration> {
        let answered = self
            .shared
            .answered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let later = answered.iter().filter(|sent| **sent >= since);
        later.min().map(|sent| sent.duration_since(since))
    }

    /// The longest time without a ping that was answered, among those sent between the two instants.
    pub fn stall(&self, from: Instant, to: Instant) -> Duration {
        let answered = self
            .shared
            .answered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut sent: Vec<Instant> = answered
            .iter()
            .filter(|sent| (from..to).contains(*sent))
            .copied()
            .collect();
        sent.sort();
        let (mut longest, mut last) = (Duration::ZERO, from);
        for at in sent.into_iter().chain([to]) {
            longest = longest.max(at.duration_since(last));
            last = at;
        }
        longest
    }

    /// Waits until the stream, the same all along, has brought something back again.
    ///
    /// # Errors
    ///
    /// When it does not within `timeout`.
    pub fn check_stream(&self, timeout: Duration) -> Result<()> {
        let echoed = || self.shared.echoed.load(Ordering::Relaxed);
        let before = echoed();
        within("the TCP stream to go on", timeout, || Ok(echoed() > before))?;
        ensure!(echoed() > before);
        Ok(())
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
