//! The receiving side of the UDP sockets.

use std::io::{self, IoSliceMut};

use mesh_core::batch::ReceiveBatch;
use mesh_core::engine::SocketId;
use quinn_udp::{BATCH_SIZE, RecvMeta};

use crate::sockets::{Bound, Family, Sockets};

/// Buffers for one `recvmmsg`.
pub(crate) struct UdpInput {
    pub(crate) batch: ReceiveBatch,
    meta: [RecvMeta; BATCH_SIZE],
}

impl UdpInput {
    pub(crate) fn new() -> Self {
        Self {
            batch: ReceiveBatch::new(BATCH_SIZE),
            meta: [RecvMeta::default(); BATCH_SIZE],
        }
    }

    /// Receives what there is into the batch; false if there may be more.
    ///
    /// # Errors
    ///
    /// See [`Sockets::recv`]. Nothing has been received then.
    pub(crate) fn receive(&mut self, sockets: &Sockets, family: Family) -> io::Result<bool> {
        self.receive_by(SocketId::MESH, |buffers, meta| {
            sockets.recv(family, buffers, meta)
        })
    }

    /// The same from a spare socket.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub(crate) fn receive_spare(&mut self, socket: SocketId, bound: &Bound) -> io::Result<bool> {
        self.receive_by(socket, |buffers, meta| bound.recv(buffers, meta))
    }

    fn receive_by(
        &mut self,
        socket: SocketId,
        receive: impl FnOnce(&mut [IoSliceMut<'_>], &mut [RecvMeta]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        let mut chunks = self.batch.buffers(socket);
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let received = receive(&mut buffers, &mut self.meta)?;
        drop(chunks);
        for (index, meta) in self.meta[..received].iter().enumerate() {
            self.batch.filled(index, meta.addr, meta.len, meta.stride);
        }
        Ok(received < BATCH_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn what_was_sent_comes_in_and_emptiness_is_noticed() {
        let (sender, receiver) = (Sockets::bind(0).unwrap(), Sockets::bind(0).unwrap());
        let port = receiver.port(Family::V4).unwrap();
        sender.send(SocketAddr::from(([127, 0, 0, 1], port)), &[7; 950], 100);
        let mut input = UdpInput::new();
        let mut received = 0;
        while received < 10 {
            if let Ok(drained) = input.receive(&receiver, Family::V4) {
                assert!(drained);
                received += input.batch.datagrams();
            }
        }
        assert_eq!(received, 10);
        assert_eq!(
            input.receive(&receiver, Family::V4).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(input.batch.datagrams(), 0);
    }
}
