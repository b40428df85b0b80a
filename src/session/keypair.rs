//! The transport keys of one finished handshake (WireGuard paper, section 5.4.5).

use std::sync::Arc;
use std::time::Duration;

use super::cipher::Key;
use super::noise::Transport;
use super::replay::ReplayWindow;
use crate::rng::Random;
use crate::time::Instant;

/// The initiator makes new keys when it sends with keys of this age.
pub(super) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// A thousand sessions that began together are not to be renewed together. WireGuard's own 120 s stay the earliest.
const REKEY_JITTER: Duration = Duration::from_secs(5);
/// When both sides began at once, each takes the other for the initiator of the session that it uses; so the responder
/// makes new keys as well, if the initiator has not by then.
const RESPONDER_DELAY: Duration = Duration::from_secs(30);
/// Keys of this age are gone.
pub(super) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// New keys after so many packets, and no packet after so many.
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// Keys for both directions, under the number by which each side names them.
pub(crate) struct Keypair {
    pub(super) local: u32,
    remote: u32,
    created: Instant,
    rekey_at: Instant,
    seal: Arc<Key>,
    open: Arc<Key>,
    /// Counter of the next packet.
    next: u64,
    received: ReplayWindow,
}

/// What the next packets are sealed with.
pub(crate) struct Sealing<'a> {
    /// The other side's number of the session.
    pub(crate) receiver: u32,
    pub(crate) key: &'a Arc<Key>,
    /// Counter of the first of them.
    pub(crate) counter: u64,
}

impl Keypair {
    /// With its two keys and the largest window.
    pub(super) const MOST_BYTES: usize =
        size_of::<Self>() + 2 * (size_of::<Key>() + 16) + ReplayWindow::MOST_BYTES;

    pub(super) fn new(
        local: u32,
        remote: u32,
        keys: &Transport,
        initiator: bool,
        now: Instant,
        rng: &mut Random,
    ) -> Self {
        let delay = if initiator {
            Duration::ZERO
        } else {
            RESPONDER_DELAY
        };
        Self {
            local,
            remote,
            created: now,
            rekey_at: now + REKEY_AFTER_TIME + delay + REKEY_JITTER.mul_f64(rng.fraction()),
            seal: Arc::new(Key::new(&keys.seal)),
            open: Arc::new(Key::new(&keys.open)),
            next: 0,
            received: ReplayWindow::new(),
        }
    }

    pub(super) fn expires(&self) -> Instant {
        self.created + REJECT_AFTER_TIME
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        now >= self.expires()
    }

    pub(super) fn wants_rekey(&self, now: Instant) -> bool {
        now >= self.rekey_at || self.next >= REKEY_AFTER_MESSAGES
    }

    /// Counters for `count` packets, each to be used once; `None` when the keys are used up.
    #[inline]
    pub(super) fn reserve(&mut self, count: u64) -> Option<Sealing<'_>> {
        let counter = self.next;
        let next = counter.checked_add(count)?;
        if next > REJECT_AFTER_MESSAGES {
            return None;
        }
        self.next = next;
        Some(Sealing {
            receiver: self.remote,
            key: &self.seal,
            counter,
        })
    }

    pub(super) fn opening(&self) -> &Arc<Key> {
        &self.open
    }

    /// True if the packet with this counter, which has just been opened, is no copy of an earlier one.
    #[inline]
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        counter < REJECT_AFTER_MESSAGES && self.received.accept(counter)
    }
}
