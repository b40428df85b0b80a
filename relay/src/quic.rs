//! QUIC on a port that it shares: quinn gets its datagrams from a bounded queue and sends on the common socket.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;

use crate::sockets::Listener;

/// A QUIC datagram on its way to quinn.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: Option<IpAddr>,
    pub(crate) ecn: Option<quinn_udp::EcnCodepoint>,
    pub(crate) bytes: Vec<u8>,
}

/// The main port of a listener as quinn sees it.
#[derive(Debug)]
pub(crate) struct QuicSocket {
    listener: Arc<Listener>,
    incoming: Mutex<mpsc::Receiver<Datagram>>,
}

impl QuicSocket {
    pub(crate) const fn new(listener: Arc<Listener>, incoming: mpsc::Receiver<Datagram>) -> Self {
        Self {
            listener,
            incoming: Mutex::new(incoming),
        }
    }
}

impl AsyncUdpSocket for QuicSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        let ecn = transmit
            .ecn
            .and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8));
        // What the kernel does not take is lost like any datagram; QUIC sends it again.
        self.listener.main.send(
            transmit.destination,
            transmit.src_ip,
            ecn,
            transmit.contents,
            segment,
        );
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let mut received = 0;
        while received < buffers.len().min(meta.len()) {
            match incoming.poll_recv(cx) {
                Poll::Ready(Some(datagram)) => {
                    let len = datagram.bytes.len();
                    // QUIC never sends more than what it told its peer that it takes.
                    let Some(buffer) = buffers[received].get_mut(..len) else {
                        continue;
                    };
                    buffer.copy_from_slice(&datagram.bytes);
                    meta[received] = RecvMeta {
                        addr: datagram.from,
                        len,
                        stride: len,
                        ecn: datagram
                            .ecn
                            .and_then(|ecn| EcnCodepoint::from_bits(ecn as u8)),
                        dst_ip: datagram.to,
                    };
                    received += 1;
                }
                // The relay is stopping: nothing more will come, which is no error.
                Poll::Ready(None) if received == 0 => return Poll::Pending,
                Poll::Pending if received == 0 => return Poll::Pending,
                _ => break,
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.listener.main.local)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Sending never waits.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
