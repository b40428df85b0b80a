//! Inner packets that wait for a session: the newest few, because the oldest are the first that TCP sends again.

use std::collections::VecDeque;

use crate::limits;

/// A bounded queue of packets for one peer.
#[derive(Debug, Default)]
pub(crate) struct PacketQueue(VecDeque<Vec<u8>>);

impl PacketQueue {
    /// Keeps `packet`; `false` if an older one had to go for it.
    pub(crate) fn push(&mut self, packet: Vec<u8>) -> bool {
        let room = self.0.len() < limits::QUEUED_PACKETS;
        if !room {
            self.0.pop_front();
        }
        self.0.push_back(packet);
        room
    }

    /// Takes everything, oldest first.
    pub(crate) fn take(&mut self) -> VecDeque<Vec<u8>> {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_keeps_the_newest_packets() {
        let mut queue = PacketQueue::default();
        for number in 0..=limits::QUEUED_PACKETS {
            let expected = number < limits::QUEUED_PACKETS;
            assert_eq!(queue.push(vec![u8::try_from(number).unwrap()]), expected);
        }
        let kept = queue.take();
        assert_eq!(kept.len(), limits::QUEUED_PACKETS);
        assert_eq!(kept[0], [1]);
        assert!(queue.is_empty());
    }
}
