//! Links: what may happen to a datagram between two nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_core::time::Instant;

use super::packet::{Body, Packet};
use super::rng::Rng;
use super::world::NodeIndex;

/// How a link treats what crosses it, in each direction alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkConfig {
    /// Time from end to end.
    pub delay: Duration,
    /// Up to this much more, at random; packets stay in order.
    pub jitter: Duration,
    /// Share that is lost, 0.0 to 1.0.
    pub loss: f64,
    /// Share that is held back by [`Self::reorder_by`] and overtaken.
    pub reorder: f64,
    /// See [`Self::reorder`].
    pub reorder_by: Duration,
    /// Share that arrives twice.
    pub duplicate: f64,
    /// Bits per second; `None` for no limit.
    pub rate: Option<u64>,
    /// Longest time that a packet waits for the link; more is dropped.
    pub queue: Duration,
    /// Bytes of the largest IP packet; larger ones are dropped, as nothing of ours may be fragmented.
    pub mtu: usize,
}

impl LinkConfig {
    /// Nothing but this delay.
    pub const fn delay(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            reorder_by: Duration::ZERO,
            duplicate: 0.0,
            rate: None,
            queue: Duration::from_millis(100),
            mtu: 1_500,
        }
    }

    /// A local network: 200 µs.
    pub const fn lan() -> Self {
        Self::delay(Duration::from_micros(200))
    }

    /// A good access line: 10 ms, which makes 40 ms from host to host and back.
    pub const fn access() -> Self {
        Self::delay(Duration::from_millis(10))
    }

    /// A bad mobile line: 40 ms, 15 ms of jitter, 5 % loss, 2 % reordered by 20 ms, 1 % duplicated.
    pub const fn bad() -> Self {
        Self {
            jitter: Duration::from_millis(15),
            loss: 0.05,
            reorder: 0.02,
            reorder_by: Duration::from_millis(20),
            duplicate: 0.01,
            ..Self::delay(Duration::from_millis(40))
        }
    }
}

/// One direction of a link.
#[derive(Debug, Default)]
struct Direction {
    /// When the last bit of the last packet will have left.
    free: Option<Instant>,
    /// When the last packet arrives that kept its place.
    last: Option<Instant>,
}

/// A link or a local network, with the state of each sender.
#[derive(Debug)]
pub struct Link {
    /// How it treats packets; may be changed at any time.
    pub config: LinkConfig,
    directions: BTreeMap<NodeIndex, Direction>,
    rng: Rng,
}

/// Why a link swallowed a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swallowed {
    /// Larger than the MTU.
    TooLarge,
    /// Its queue was full.
    QueueFull,
    /// Bad luck.
    Lost,
}

impl Link {
    /// A link of this kind.
    pub fn new(config: LinkConfig, rng: Rng) -> Self {
        Self {
            config,
            directions: BTreeMap::new(),
            rng,
        }
    }

    /// When a packet that `from` sends now arrives: at no, one or two instants.
    ///
    /// # Errors
    /// Why it never does. The modelled QUIC connection retransmits what is lost, so to lose it would only cost time:
    /// it is exempt from chance, not from delay, rate and size.
    pub fn transmit(
        &mut self,
        now: Instant,
        from: NodeIndex,
        packet: &Packet,
    ) -> Result<Vec<Instant>, Swallowed> {
        let config = self.config;
        if packet.size() > config.mtu {
            return Err(Swallowed::TooLarge);
        }
        let direction = self.directions.entry(from).or_default();
        let mut leaves = now;
        if let Some(rate) = config.rate {
            let start = direction.free.unwrap_or(now).max(now);
            if start.since(now) > config.queue {
                return Err(Swallowed::QueueFull);
            }
            let bits = packet.size() as u64 * 8;
            leaves = start + Duration::from_nanos(bits.saturating_mul(1_000_000_000) / rate.max(1));
            direction.free = Some(leaves);
        }
        let reliable = matches!(packet.body, Body::Quic(_));
        if !reliable && self.rng.chance(config.loss) {
            return Err(Swallowed::Lost);
        }
        let arrives = leaves + config.delay + self.rng.duration(config.jitter);
        if !reliable && self.rng.chance(config.reorder) {
            return Ok(vec![arrives + config.reorder_by]);
        }
        let arrives = direction.last.map_or(arrives, |last| last.max(arrives));
        direction.last = Some(arrives);
        let twice = !reliable && self.rng.chance(config.duplicate);
        Ok(vec![arrives; if twice { 2 } else { 1 }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(len: usize) -> Packet {
        Packet {
            source: "1.1.1.1:1".parse().unwrap(),
            destination: "2.2.2.2:2".parse().unwrap(),
            ttl: 64,
            body: Body::Bytes(vec![0; len]),
        }
    }

    fn at(milliseconds: u64) -> Instant {
        Instant::from_boot(Duration::from_millis(milliseconds))
    }

    #[test]
    fn a_plain_link_delays_and_nothing_else() {
        let mut link = Link::new(LinkConfig::access(), Rng::new(1));
        for ms in 0..100 {
            assert_eq!(
                link.transmit(at(ms), NodeIndex(0), &packet(100)),
                Ok(vec![at(ms + 10)])
            );
        }
        assert_eq!(
            link.transmit(at(0), NodeIndex(0), &packet(1_473)),
            Err(Swallowed::TooLarge)
        );
    }

    #[test]
    fn a_bad_link_loses_duplicates_and_reorders_about_as_often_as_configured() {
        let mut link = Link::new(LinkConfig::bad(), Rng::new(1));
        let (mut lost, mut twice, mut overtaken, mut latest) = (0, 0, 0, at(0));
        for ms in 0..10_000 {
            match link.transmit(at(ms), NodeIndex(0), &packet(100)) {
                Err(_) => lost += 1,
                Ok(times) => {
                    twice += usize::from(times.len() == 2);
                    overtaken += usize::from(times[0] < latest);
                    latest = latest.max(times[0]);
                }
            }
        }
        assert!((400..600).contains(&lost), "{lost}");
        assert!((60..150).contains(&twice), "{twice}");
        assert!(overtaken > 100, "{overtaken}");
    }

    #[test]
    fn a_slow_link_spaces_packets_and_drops_what_would_wait_too_long() {
        let config = LinkConfig {
            rate: Some(8_000_000),
            queue: Duration::from_millis(5),
            ..LinkConfig::delay(Duration::ZERO)
        };
        let mut link = Link::new(config, Rng::new(1));
        let times: Vec<_> = (0..10)
            .map(|_| link.transmit(at(0), NodeIndex(0), &packet(972)))
            .collect();
        assert_eq!(times[0], Ok(vec![at(1)]));
        assert_eq!(times[5], Ok(vec![at(6)]));
        assert_eq!(times[9], Err(Swallowed::QueueFull));
        assert_eq!(
            link.transmit(at(0), NodeIndex(1), &packet(972)),
            Ok(vec![at(1)]),
            "the other way is free"
        );
    }
}
