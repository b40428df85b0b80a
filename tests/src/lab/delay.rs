//! A long cable: every packet that crosses the internet is held for a while.
//!
//! There is no netem on many kernels, so a thread does it. Whatever the middle forwards is routed into a TUN device, waits there in a
//! queue and is written back, and then takes its ordinary way.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
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
const MAX_PACKETS: usize = 32_768;
/// The header that comes before each packet, as the segmentation offload has it (linux/virtio_net.h).
const OFFLOAD_HEADER: usize = 10;
/// How long an idle cable takes to notice that it should end.
const IDLE: Duration = Duration::from_millis(50);

/// A running delay; ends when dropped.
#[derive(Debug)]
pub(super) struct Delay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Delay {
    /// Holds everything that `ns` forwards for `one_way`; what comes from or goes to the address of `far`, for as much
    /// longer as that says.
    pub(super) fn start(
        ns: &Namespace,
        one_way: Duration,
        far: Option<(Ipv4Addr, Duration)>,
    ) -> Result<Self> {
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
            move || carry(device, one_way, far, &stop)
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

/// Packets that wait, each until its time.
type Queue = VecDeque<(Instant, Vec<u8>)>;

fn carry(
    mut device: File,
    one_way: Duration,
    far: Option<(Ipv4Addr, Duration)>,
    stop: &AtomicBool,
) {
    // One for each length of cable: within it packets stay in order.
    let mut queues = [Queue::new(), Queue::new()];
    let mut buffer = vec![0; OFFLOAD_HEADER + 65_536];
    while !stop.load(Ordering::Relaxed) {
        let next = queues.iter().filter_map(Queue::front).map(|(due, _)| *due);
        let wait = next
            .min()
            .map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
        let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        let _ = ppoll(
            &mut fds,
            Some(TimeSpec::from_duration(wait.min(IDLE))),
            None,
        );
        while let Ok(len) = device.read(&mut buffer) {
            let packet = &buffer[..len];
            let (at, delay) = match far {
                Some((address, more)) if concerns(packet, address) => (1, one_way + more),
                _ => (0, one_way),
            };
            if queues[at].len() < MAX_PACKETS {
                queues[at].push_back((Instant::now() + delay, packet.to_vec()));
            }
        }
        for queue in &mut queues {
            while queue.front().is_some_and(|(due, _)| *due <= Instant::now()) {
                if let Some((_, packet)) = queue.pop_front() {
                    // A packet that the kernel refuses is a lost one.
                    let _ = device.write(&packet);
                }
            }
        }
    }
}

/// True for an IPv4 packet, behind its offload header, from or to this address.
fn concerns(packet: &[u8], address: Ipv4Addr) -> bool {
    let ip = packet.get(OFFLOAD_HEADER..).unwrap_or_default();
    let is_v4 = ip.first().is_some_and(|first| first >> 4 == 4);
    let either = [12..16, 16..20].map(|range| ip.get(range) == Some(&address.octets()[..]));
    is_v4 && either.contains(&true)
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
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags.try_into().context("interface flags")?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives across the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) } != 0 {
        bail!("make a TUN device: {}", std::io::Error::last_os_error());
    }
    // What was not cut up on its way here goes on as it is; a kernel that cannot leave UDP whole is asked for TCP alone.
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    for offload in [tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6, tcp] {
        // SAFETY: TUNSETOFFLOAD takes a number and no pointer.
        let rc = unsafe {
            libc::ioctl(
                device.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offload),
            )
        };
        if rc == 0 {
            break;
        }
    }
    Ok(device)
}
