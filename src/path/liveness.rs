//! Liveness that follows the data, for each path and direction on its own.
//!
//! Whoever receives users' packets on a path owes an *alive* that says how far they came: for each path, by the number
//! that its sender gave it, the highest counter received and how many packets. So the sender knows of each path whether
//! *its* packets arrive *there*; what it hears elsewhere, or on that path in the other direction, shows nothing about
//! that. An alive may travel on any path, which keeps a dead way back from hiding a live way there.
//!
//! Nothing is sent for a peer without traffic, and nothing is done for a packet but to note its counter.

use std::time::Duration;

use crate::limits;
use crate::time::Instant;
use crate::wire::control::Received;

/// Packets that a measurement of loss takes at least: one of them is 2 %.
const LOSS_SAMPLE: u32 = 50;
/// Packets that a path has to swallow, and probes that it has to answer meanwhile, to count as one that carries probes
/// and no data. On a line that loses a third of everything, a live path comes to that once in years.
const SWALLOWED: (u64, u32) = (10, 3);

/// How long the receiver of data may wait with its alive.
pub(crate) fn alive_delay(rtt: Duration) -> Duration {
    (rtt / 2).max(limits::ALIVE_DELAY)
}

/// The last of some packets that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// The receiver's number of the session.
    session: u32,
    counter: u64,
    at: Instant,
}

impl Mark {
    fn is_covered_by(&self, received: &Received) -> bool {
        self.session == received.session && received.highest >= self.counter
    }
}

/// What became of the data that we sent on a path.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// The newest packet.
    last: Option<Mark>,
    /// The packet whose arrival is waited for: all before it have arrived, or it is the oldest of its burst.
    waiting: Option<Mark>,
    /// When the peer last told of packets that it had not told of before, whichever they were.
    progress: Option<Instant>,
    /// Packets sent, and received as the peer says.
    sent: u32,
    received: u32,
    /// Both as they were when the present measurement of loss began.
    since: (u32, u32),
    /// Share of packets that were lost, smoothed, once measured.
    loss: Option<f32>,
    /// Packets sent, and probes answered, since data was last acknowledged.
    unacknowledged: u64,
    answered: u32,
}

impl Outgoing {
    /// Data with counters up to this one was sent.
    #[inline]
    pub(crate) fn sent(&mut self, now: Instant, session: u32, counter: u64, count: u32) {
        let mark = Mark {
            session,
            counter,
            at: now,
        };
        self.last = Some(mark);
        self.sent = self.sent.wrapping_add(count);
        self.unacknowledged += u64::from(count);
        if self.waiting.is_none() {
            self.waiting = Some(mark);
        }
    }

    /// Since when data waits to be acknowledged.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.waiting.map(|mark| mark.at)
    }

    /// Since when nothing has been heard of data that waits to be acknowledged. What is told of older packets counts: they
    /// have waited in a queue for longer than the path took before, and what was sent later still does.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        self.waiting_since().max(self.waiting.and(self.progress))
    }

    /// True if the peer told of further packets after this.
    pub(crate) fn has_progressed_since(&self, since: Instant) -> bool {
        self.progress.is_some_and(|at| at > since)
    }

    /// When data was last sent.
    pub(crate) fn last_sent(&self) -> Option<Instant> {
        self.last.map(|mark| mark.at)
    }

    /// The peer says what it got on this path. When the newest data was sent that is known to have arrived; `None` if
    /// that is no news.
    pub(crate) fn acknowledged(&mut self, now: Instant, received: &Received) -> Option<Instant> {
        let progress = received.count != self.received;
        // One that was overtaken on its way tells of fewer.
        if received.count.wrapping_sub(self.received).cast_signed() > 0 {
            self.progress = Some(now);
        }
        self.received = received.count;
        let last = self.last?;
        let waiting = self.waiting;
        if last.is_covered_by(received) {
            self.waiting = None;
            self.measure_loss();
            self.progressed();
            return Some(last.at);
        }
        let waiting = waiting?;
        // An alive that names another session than the packet that is waited for: the keys have changed meanwhile.
        let other_keys = progress && waiting.session != received.session;
        if !waiting.is_covered_by(received) && !other_keys {
            return None;
        }
        self.waiting = Some(last);
        self.progressed();
        Some(waiting.at)
    }

    fn progressed(&mut self) {
        self.unacknowledged = 0;
        self.answered = 0;
    }

    /// All that was sent has arrived, or never will: what is missing is lost.
    fn measure_loss(&mut self) {
        let sent = self.sent.wrapping_sub(self.since.0);
        if sent < LOSS_SAMPLE {
            return;
        }
        let received = self.received.wrapping_sub(self.since.1);
        self.since = (self.sent, self.received);
        // More than was sent: the peer has counted anew, and what it says is the start of the next measurement.
        if received > sent {
            return;
        }
        let sample = 1.0 - received as f32 / sent as f32;
        self.loss = Some(self.loss.map_or(sample, |loss| (loss * 3.0 + sample) / 4.0));
    }

    /// Share of packets that are lost, 0 to 1, once measured.
    pub(crate) fn loss(&self) -> Option<f32> {
        self.loss
    }

    /// A probe that was sent after the data that is waited for has been answered: the path is not dead. True if it
    /// seems to carry nothing but probes.
    pub(crate) fn probe_answered(&mut self, sent: Instant) -> bool {
        if self.waiting.is_none_or(|mark| sent < mark.at) {
            return false;
        }
        self.waiting = None;
        self.answered = self.answered.saturating_add(1);
        self.unacknowledged >= SWALLOWED.0 && self.answered >= SWALLOWED.1
    }

    /// Nothing sent so far will be acknowledged, or need not be.
    pub(crate) fn forget(&mut self) {
        self.waiting = None;
        self.progressed();
    }
}

/// What arrived on a path.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// The sender's number of the path, as its probes say.
    path: Option<u8>,
    session: u32,
    highest: u64,
    count: u32,
    last: Option<Instant>,
}

impl Incoming {
    /// Data arrived: so many packets of a session (our number of it), the highest counter among them.
    #[inline]
    pub(crate) fn received(&mut self, now: Instant, session: u32, highest: u64, count: u32) {
        if self.session == session {
            self.highest = self.highest.max(highest);
        } else {
            (self.session, self.highest) = (session, highest);
        }
        self.count = self.count.wrapping_add(count);
        self.last = Some(now);
    }

    pub(crate) fn path(&self) -> Option<u8> {
        self.path
    }

    pub(crate) fn set_path(&mut self, path: Option<u8>) {
        self.path = path;
    }

    /// What to tell the sender; `None` if nothing came since a while before `now`, or if it has not named the path.
    pub(crate) fn report(&self, now: Instant) -> Option<Received> {
        let last = self.last?;
        (now.since(last) < limits::ALIVE_MEMORY).then_some(Received {
            path: self.path?,
            session: self.session,
            highest: self.highest,
            count: self.count,
        })
    }
}

/// Copies of data onto another path, while the one in use is in doubt: a token bucket.
#[derive(Debug)]
pub(crate) struct Duplication {
    started: Instant,
    tokens: u64,
    refilled: Instant,
}

impl Duplication {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            tokens: limits::DUPLICATE_BURST,
            refilled: now,
        }
    }

    /// When it ends, whatever is known by then.
    pub(crate) fn ends(&self) -> Instant {
        self.started + limits::DUPLICATE_TIME
    }

    /// True if so many more bytes may be sent twice.
    #[inline]
    pub(crate) fn take(&mut self, now: Instant, bytes: u64) -> bool {
        if now >= self.ends() {
            return false;
        }
        let micros = u64::try_from(now.since(self.refilled).as_micros()).unwrap_or(u64::MAX);
        let fresh = micros.saturating_mul(limits::DUPLICATE_RATE) / 1_000_000;
        if fresh > 0 {
            self.tokens = (self.tokens + fresh).min(limits::DUPLICATE_BURST);
            self.refilled = now;
        }
        if self.tokens < bytes {
            return false;
        }
        self.tokens -= bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::from_boot(Duration::from_millis(1_000_000 + milliseconds))
    }

    fn alive(session: u32, highest: u64, count: u32) -> Received {
        Received {
            path: 1,
            session,
            highest,
            count,
        }
    }

    #[test]
    fn the_end_of_a_burst_is_acknowledged_exactly() {
        let mut path = Outgoing::default();
        path.sent(at(0), 7, 4, 5);
        path.sent(at(3), 7, 9, 5);
        assert_eq!(path.waiting_since(), Some(at(0)));
        assert_eq!(path.acknowledged(at(400), &alive(7, 5, 6)), Some(at(0)));
        assert_eq!(path.waiting_since(), Some(at(3)), "the last one is out");
        assert_eq!(path.acknowledged(at(400), &alive(7, 9, 10)), Some(at(3)));
        assert_eq!(path.waiting_since(), None);
    }

    #[test]
    fn a_queue_that_grows_is_no_silence_as_long_as_older_packets_arrive() {
        let mut path = Outgoing::default();
        path.sent(at(0), 7, 0, 1);
        assert!(path.acknowledged(at(50), &alive(7, 0, 1)).is_some());
        path.sent(at(60), 7, 40, 40);
        path.sent(at(160), 7, 50, 10);
        assert_eq!(path.silent_since(), Some(at(60)));
        assert_eq!(path.acknowledged(at(200), &alive(7, 12, 13)), None);
        assert_eq!(path.waiting_since(), Some(at(60)), "that one still waits");
        assert_eq!(path.silent_since(), Some(at(200)));
        assert!(path.has_progressed_since(at(160)) && !path.has_progressed_since(at(200)));
        assert_eq!(path.acknowledged(at(300), &alive(7, 9, 10)), None, "late");
        assert_eq!(path.silent_since(), Some(at(200)));
        assert!(path.acknowledged(at(500), &alive(7, 50, 51)).is_some());
        assert_eq!(path.silent_since(), None);
    }

    #[test]
    fn an_old_alive_clears_nothing_and_new_keys_do_not_confuse() {
        let mut path = Outgoing::default();
        path.sent(at(0), 7, 9, 1);
        assert_eq!(path.acknowledged(at(400), &alive(7, 8, 0)), None);
        path.sent(at(50), 8, 0, 1);
        assert_eq!(path.acknowledged(at(400), &alive(8, 0, 1)), Some(at(50)));
        assert_eq!(path.waiting_since(), None);
    }

    #[test]
    fn loss_is_what_the_peer_did_not_count() {
        let mut path = Outgoing::default();
        path.sent(at(0), 7, 99, 100);
        path.acknowledged(at(400), &alive(7, 99, 90));
        let loss = path.loss().unwrap();
        assert!((loss - 0.1).abs() < 0.001, "{loss}");
    }

    #[test]
    fn a_path_that_answers_probes_and_swallows_data_is_found_out() {
        let mut path = Outgoing::default();
        let mut found = 0;
        for round in 0..5_u64 {
            for packet in 0..4 {
                path.sent(at(round * 300 + packet), 7, round * 4 + packet, 1);
            }
            let before = at(round * 300) - Duration::from_millis(1);
            assert!(!path.probe_answered(before), "sent before the data");
            if path.probe_answered(at(round * 300 + 250)) {
                found = round;
                break;
            }
        }
        assert_eq!(found, 2);
    }

    #[test]
    fn copies_are_limited_in_rate_and_time() {
        let mut copies = Duplication::new(at(0));
        let mut bytes = 0;
        for millisecond in 0..5_000 {
            for _ in 0..10 {
                if copies.take(at(millisecond), 1_000) {
                    bytes += 1_000;
                }
            }
        }
        let most = limits::DUPLICATE_BURST + limits::DUPLICATE_RATE * 2;
        assert!(bytes <= most && bytes >= most * 9 / 10, "{bytes}");
    }

    #[test]
    fn what_came_long_ago_is_not_reported() {
        let mut path = Incoming::default();
        path.received(at(0), 3, 10, 2);
        assert_eq!(
            path.report(at(0)),
            None,
            "the sender has not named the path"
        );
        path.set_path(Some(4));
        assert_eq!(path.report(at(10)).map(|received| received.count), Some(2));
        assert_eq!(path.report(at(60_000)), None);
    }
}
