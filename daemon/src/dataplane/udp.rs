//! The receiving side of the mesh sockets.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;

use mesh_core::limits;
use quinn_udp::{BATCH_SIZE, RecvMeta};

use crate::sockets::{Family, Sockets};

/// Room for one message: the kernel coalesces up to 64 KiB of datagrams of one flow (GRO).
const MESSAGE_BYTES: usize = 65_536;

/// Buffers for one `recvmmsg`.
pub(crate) struct UdpInput {
    storage: Vec<u8>,
    meta: [RecvMeta; BATCH_SIZE],
    received: usize,
}

/// Datagrams of one size from one sender; the last may be shorter.
pub(crate) struct Received<'a> {
    pub(crate) remote: SocketAddr,
    pub(crate) data: &'a [u8],
    /// Size of each datagram but the last.
    pub(crate) stride: usize,
}

impl Received<'_> {
    /// How many datagrams.
    pub(crate) fn count(&self) -> usize {
        self.data.len().div_ceil(self.stride)
    }
}

impl UdpInput {
    pub(crate) fn new() -> Self {
        Self {
            storage: vec![0; BATCH_SIZE * MESSAGE_BYTES],
            meta: [RecvMeta::default(); BATCH_SIZE],
            received: 0,
        }
    }

    /// Receives what there is; false if there may be more.
    ///
    /// # Errors
    ///
    /// See [`Sockets::recv`]. Nothing has been received then.
    pub(crate) fn receive(&mut self, sockets: &Sockets, family: Family) -> io::Result<bool> {
        self.received = 0;
        let mut chunks = self.storage.chunks_mut(MESSAGE_BYTES);
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        self.received = sockets.recv(family, &mut buffers, &mut self.meta)?;
        Ok(self.received < BATCH_SIZE)
    }

    /// What the last [`Self::receive`] got, at most [`limits::MAX_GSO_SEGMENTS`] datagrams at a time.
    pub(crate) fn batches(&self) -> impl Iterator<Item = Received<'_>> {
        self.meta[..self.received]
            .iter()
            .zip(self.storage.chunks(MESSAGE_BYTES))
            .flat_map(|(meta, buffer)| {
                split(
                    meta.addr,
                    &buffer[..meta.len.min(buffer.len())],
                    meta.stride,
                )
            })
    }
}

/// Newer kernels coalesce more datagrams into one message than the engine takes at once.
fn split(remote: SocketAddr, data: &[u8], stride: usize) -> impl Iterator<Item = Received<'_>> {
    // An empty datagram has a stride of 0, and no chunk.
    let stride = stride.max(1);
    data.chunks(stride.saturating_mul(limits::MAX_GSO_SEGMENTS))
        .map(move |data| Received {
            remote,
            data,
            stride,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_at_datagram_borders() {
        let remote = SocketAddr::from(([192, 0, 2, 1], 9));
        let data = vec![0; 100 * 128 - 1];
        let counts: Vec<_> = split(remote, &data, 100).map(|part| part.count()).collect();
        assert_eq!(counts, [64, 64]);
        let counts: Vec<_> = split(remote, &data[..250], 100)
            .map(|part| part.count())
            .collect();
        assert_eq!(counts, [3]);
    }

    #[test]
    fn an_empty_datagram_is_nothing() {
        assert_eq!(
            split(SocketAddr::from(([192, 0, 2, 1], 9)), &[], 0).count(),
            0
        );
    }

    #[test]
    fn what_was_sent_comes_out_and_emptiness_is_noticed() {
        let (sender, receiver) = (Sockets::bind(0).unwrap(), Sockets::bind(0).unwrap());
        let port = receiver.port(Family::V4).unwrap();
        sender.send(([127, 0, 0, 1], port).into(), &[7; 950], 100);
        let mut input = UdpInput::new();
        let mut lens = Vec::new();
        while lens.len() < 10 {
            if let Ok(drained) = input.receive(&receiver, Family::V4) {
                assert!(drained);
                lens.extend(input.batches().flat_map(|part| {
                    part.data
                        .chunks(part.stride)
                        .map(<[u8]>::len)
                        .collect::<Vec<_>>()
                }));
            }
        }
        assert_eq!(lens, [100, 100, 100, 100, 100, 100, 100, 100, 100, 50]);
        assert_eq!(
            input.receive(&receiver, Family::V4).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(input.batches().count(), 0);
    }
}
