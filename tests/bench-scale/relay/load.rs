//! Frames as fast as the relay forwards them, with a window, so that what is measured is forwarding and not dropping.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mesh_core::wire::relay::write_data_header;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};
use quinn_udp::{Transmit, UdpSocketState};

use super::clients::Arrived;

/// Most receivers of one load.
pub(super) const RECEIVERS: usize = 2;
/// UDP payload of a full packet.
pub(super) const FULL: usize = 1_350;
/// Frames in one burst: as many full ones as UDP carries at once.
const BURST: usize = 44;
/// Bursts on their way: half a megabyte of full packets, as a TCP connection of 3 Gbit/s over 1.3 ms has.
const WINDOW: u64 = 8 * BURST as u64;
/// How long one run sends.
const TIME: Duration = Duration::from_secs(2);
/// What has not arrived by then is lost.
const LOST: Duration = Duration::from_millis(200);
/// After sending, what is on its way arrives within much less.
const SETTLE: Duration = Duration::from_secs(1);

/// How frames are sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// UDP payload of each.
    pub(super) frame: usize,
    /// A burst in one piece (GSO), or one datagram for each frame.
    segmented: bool,
    /// To so many receivers, by turns.
    receivers: usize,
}

/// What is measured.
pub(super) const KINDS: [Load; 4] = [
    Load {
        frame: FULL,
        segmented: true,
        receivers: 1,
    },
    Load {
        frame: FULL,
        segmented: false,
        receivers: 1,
    },
    Load {
        frame: FULL,
        segmented: false,
        receivers: RECEIVERS,
    },
    Load {
        frame: 64,
        segmented: true,
        receivers: 1,
    },
];

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.segmented { "bursts" } else { "singly" };
        write!(f, "{} B {how}", self.frame)?;
        match self.receivers {
            1 => Ok(()),
            receivers => write!(f, " to {receivers} by turns"),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) frames: u64,
    pub(super) received: u64,
    pub(super) received_bytes: u64,
    pub(super) time: Duration,
}

/// Sends for [`TIME`].
pub(super) fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    channels: &[u32],
    load: Load,
    arrived: &[&Arrived],
) -> Result<Sent> {
    let mut bursts = Bursts::new(socket, to, &channels[..load.receivers], load)?;
    let frames = || {
        let all = arrived.iter();
        all.map(|arrived| arrived.frames.load(Ordering::Acquire))
            .sum::<u64>()
    };
    let bytes = || {
        let all = arrived.iter();
        all.map(|arrived| arrived.bytes.load(Ordering::Relaxed))
            .sum::<u64>()
    };
    let (frames_before, bytes_before) = (frames(), bytes());
    let received = || frames() - frames_before;
    let started = Instant::now();
    let (mut sent, mut lost) = (0, 0);
    let (mut seen, mut progress) = (0, started);
    while started.elapsed() < TIME {
        let now = received();
        if now != seen {
            (seen, progress) = (now, Instant::now());
        }
        if sent - lost - now.min(sent - lost) < WINDOW {
            sent += bursts.send()?;
        } else if progress.elapsed() > LOST {
            lost = sent - now;
        } else {
            std::thread::yield_now();
        }
    }
    let time = started.elapsed();
    let settle = Instant::now();
    while received() < sent && settle.elapsed() < SETTLE {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Sent {
        frames: sent,
        received: received(),
        received_bytes: bytes() - bytes_before,
        time,
    })
}

/// A burst that is sent again and again.
struct Bursts<'a> {
    socket: &'a UdpSocket,
    state: UdpSocketState,
    to: SocketAddr,
    load: Load,
    frames: Vec<u8>,
}

impl<'a> Bursts<'a> {
    fn new(socket: &'a UdpSocket, to: SocketAddr, channels: &[u32], load: Load) -> Result<Self> {
        let mut frames = vec![0; load.frame * BURST];
        for (frame, channel) in frames.chunks_mut(load.frame).zip(channels.iter().cycle()) {
            write_data_header(frame, *channel);
        }
        Ok(Self {
            socket,
            state: UdpSocketState::new(socket.into())?,
            to,
            load,
            frames,
        })
    }

    /// Gives how many frames the kernel took.
    fn send(&mut self) -> Result<u64> {
        if !self.load.segmented {
            return self.send_singly();
        }
        let transmit = Transmit {
            destination: self.to,
            ecn: None,
            contents: &self.frames,
            segment_size: Some(self.load.frame),
            src_ip: None,
        };
        match self.state.try_send(self.socket.into(), &transmit) {
            Ok(()) => Ok(BURST as u64),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => bail!("send to the relay: {error}"),
        }
    }

    fn send_singly(&self) -> Result<u64> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(self.socket);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BURST, None);
        let messages: Vec<_> = self
            .frames
            .chunks(self.load.frame)
            .map(|frame| [io::IoSlice::new(frame)])
            .collect();
        let to = vec![Some(SockaddrStorage::from(self.to)); BURST];
        match sendmmsg(fd, &mut headers, &messages, to, [], MsgFlags::empty()) {
            Ok(sent) => Ok(sent.count() as u64),
            Err(nix::errno::Errno::EAGAIN) => Ok(0),
            Err(error) => bail!("send to the relay: {error}"),
        }
    }
}

/// Waits until there is something to receive, or the time is over.
pub(super) fn wait_readable(socket: &UdpSocket, timeout: Duration) -> io::Result<()> {
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(timeout).map_err(io::Error::other)?;
    match poll(&mut polled, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
