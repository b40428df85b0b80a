//! A long cable: every packet that crosses the internet is held for a while.
//!
//! There is no netem on many kernels, so a thread does it. Whatever the middle forwards is routed into a TUN device, waits there in a
//! queue and is written back, and then takes its ordinary way.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::netns::Namespace;

/// Packets in flight at most; more are lost, as in a router's buffer.
const MAX_PACKETS: usize = 16_384;
/// How long an idle cable takes to notice that it should end.
const IDLE: Duration = Duration::from_millis(50);

/// A running delay; ends when dropped.
#[derive(Debug)]
pub(super) struct Delay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Delay {
    /// Holds everything that `ns` forwards for `one_way`.
    pub(super) fn start(ns: &Namespace, one_way: Duration) -> Result<Self> {
        let device = ns.inside(|| open_tun("cable"))?;
        for interface in ["all", "default", "cable"] {
            ns.sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")?;
        }
        ns.ip("link set cable up txqueuelen 10000")?;
        // What comes out of the cable, and what the router says itself, goes on as usual; all else goes in.
        let rules = "route add default dev cable table 100
                     rule add pref 10 iif cable lookup main
                     rule add pref 11 iif lo lookup main
                     rule add pref 12 lookup 100";
        ns.ip(rules)?;
        ns.ip6(rules)?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || carry(device, one_way, &stop)
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(mut device: File, one_way: Duration, stop: &AtomicBool) {
    let mut queue: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let wait = queue.front().map_or(IDLE, |(due, _)| {
            due.saturating_duration_since(Instant::now())
        });
        let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        let _ = ppoll(
            &mut fds,
            Some(TimeSpec::from_duration(wait.min(IDLE))),
            None,
        );
        while let Ok(len) = device.read(&mut buffer) {
            if queue.len() < MAX_PACKETS {
                queue.push_back((Instant::now() + one_way, buffer[..len].to_vec()));
            }
        }
        while queue.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            if let Some((_, packet)) = queue.pop_front() {
                // A packet that the kernel refuses is a lost one.
                let _ = device.write(&packet);
            }
        }
    }
}

/// Makes a TUN device in the namespace of the calling thread.
fn open_tun(name: &str) -> Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = flags.try_into().context("interface flags")?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives across the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) } != 0 {
        bail!("make a TUN device: {}", std::io::Error::last_os_error());
    }
    Ok(device)
}
