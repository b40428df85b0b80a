//! How large a packet a path carries: found out with padded probes, as RFC 8899 (datagram packetization layer path MTU
//! discovery) describes it, never from ICMP, which anyone can forge and many firewalls drop.
//!
//! A search sends a bare probe and padded ones of the likeliest sizes at once, so that an ordinary path is known after one
//! round trip. Only if the size of Ethernet is lost are those between tried. A size that was lost while the bare probe
//! was answered does not fit.

use std::time::Duration;

use crate::limits::INNER_MTU;
use crate::rng::Random;
use crate::time::Instant;

/// Sizes of outer IP packets that links of the world have, beside those of the host's own: other tunnels and PPPoE
/// below Ethernet's 1,500.
const OUTER: [u16; 6] = [1_380, 1_420, 1_450, 1_480, ETHERNET - 8, ETHERNET];
const ETHERNET: u16 = 1_500;
/// A size is lost when so many probes of it were; one or two may be chance.
const TRIES: u8 = 3;
/// A path is not doubted more often: the padded probes would be a load of their own on a slow line.
const DOUBT_INTERVAL: Duration = Duration::from_secs(5);
/// How long a result holds before larger sizes are tried again (RFC 8899, section 5.1.1, PMTU_RAISE_TIMER). The first time
/// it is less: a line that was full then loses large packets first.
const RAISE: [Duration; 3] = [
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];
/// When a search that nothing answered is repeated: it said nothing about sizes.
const RETRY: Duration = Duration::from_secs(5);

/// Places in the list of trials: a probe without padding, the floor, [`OUTER`], and the host's own links.
const BARE: usize = 0;
const FLOOR: usize = 1;
const FIRST_OUTER: usize = 2;
const FULL: usize = FIRST_OUTER + OUTER.len() - 1;
const LINK: usize = FULL + 1;
const TRIALS: usize = LINK + 1;

/// What bounds the sizes that are worth trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MtuBounds {
    /// Largest MTU of this host's links, in bytes of an outer packet.
    pub(crate) link: u16,
    /// Largest inner packet that the network's device takes.
    pub(crate) cap: u16,
}

/// A probe to be sent: an inner packet of `size` bytes, or one without padding for 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MtuProbe {
    pub(crate) transaction: u64,
    pub(crate) size: u16,
}

#[derive(Debug, Clone, Copy, Default)]
struct Trial {
    size: u16,
    tries: u8,
    answered: bool,
    /// The same for each try: an answer that comes late is an answer.
    transaction: Option<u64>,
    /// Until when the answer to the last try is waited for.
    pending: Option<Instant>,
}

impl Trial {
    fn is_waiting(&self, now: Instant) -> bool {
        self.pending.is_some_and(|until| now < until)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing to do until then.
    Waiting(Instant),
    /// Looking for the largest size.
    Searching,
    /// Something is wrong with the path: does it still carry what it did?
    Doubting { then: Instant },
}

/// What is known of a path's MTU, in bytes of an inner packet.
#[derive(Debug)]
pub(crate) struct PathMtu {
    /// Largest size that was answered; 0 for none.
    proven: u16,
    /// What the path used before this one carried: the best guess until the first search ends.
    inherited: u16,
    settled: bool,
    bare_answered: bool,
    doubted: Option<Instant>,
    /// Searches in a row that found nothing new.
    searches: usize,
    phase: Phase,
    trials: [Trial; TRIALS],
}

impl Default for PathMtu {
    fn default() -> Self {
        Self {
            proven: 0,
            inherited: 0,
            settled: false,
            bare_answered: false,
            doubted: None,
            searches: 0,
            phase: Phase::Waiting(Instant::default()),
            trials: [Trial::default(); TRIALS],
        }
    }
}

impl PathMtu {
    /// Largest inner packet to be sent on the path. Never below [`INNER_MTU`], which IPv6 demands of every link: where the
    /// path carries less, see [`Self::needs_fragments`].
    #[inline]
    pub(crate) fn effective(&self) -> u16 {
        let guess = if self.settled { 0 } else { self.inherited };
        self.proven.max(guess).max(INNER_MTU)
    }

    /// True when datagrams with the smallest allowed MTU have to be cut up on their way.
    #[inline]
    pub(crate) fn needs_fragments(&self) -> bool {
        self.settled && self.proven < INNER_MTU
    }

    /// The path takes the place of one that carried this much.
    pub(crate) fn inherit(&mut self, mtu: u16) {
        // A large link is the host's own and says nothing about another way.
        self.inherited = mtu.min(ETHERNET - smallest_overhead());
    }

    /// What was sent is not acknowledged: perhaps only the large packets get lost.
    pub(crate) fn doubt(&mut self, now: Instant) {
        let lately = self
            .doubted
            .is_some_and(|at| now.since(at) < DOUBT_INTERVAL);
        if let (Phase::Waiting(then), true, false) = (self.phase, self.proven > 0, lately) {
            self.doubted = Some(now);
            self.begin(Phase::Doubting { then });
        }
    }

    /// The network changed: the way may carry less now, or more.
    pub(crate) fn restart(&mut self) {
        let then = Instant::default();
        if self.proven > 0 {
            self.begin(Phase::Doubting { then });
        } else {
            self.phase = Phase::Waiting(then);
        }
    }

    fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.bare_answered = false;
        self.trials = [Trial::default(); TRIALS];
    }

    /// When [`Self::poll`] has something to do.
    pub(crate) fn deadline(&self) -> Instant {
        match self.phase {
            Phase::Waiting(until) => until,
            Phase::Searching | Phase::Doubting { .. } => {
                let pending = self.trials.iter().filter_map(|trial| trial.pending);
                pending.min().unwrap_or_default()
            }
        }
    }

    /// The probes that are due. `timeout` is how long an answer on this path may take, `overhead` what the path adds to an
    /// inner packet.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        timeout: Duration,
        overhead: u16,
        bounds: MtuBounds,
        rng: &mut Random,
    ) -> Vec<MtuProbe> {
        if let Phase::Waiting(until) = self.phase {
            if now < until {
                return Vec::new();
            }
            self.begin(Phase::Searching);
        }
        let mut probes = Vec::new();
        let mut waiting = false;
        for at in 0..TRIALS {
            let Some(size) = self.wanted(at, now, overhead, bounds) else {
                self.trials[at].pending = None;
                continue;
            };
            let trial = &mut self.trials[at];
            trial.size = size;
            if trial.is_waiting(now) {
                waiting = true;
            } else if trial.tries < TRIES {
                let transaction = *trial.transaction.get_or_insert_with(|| rng.u64());
                // Each try waits longer, for a line that has just filled up.
                trial.pending = Some(now + timeout * (1 << trial.tries));
                trial.tries += 1;
                probes.push(MtuProbe { transaction, size });
            } else {
                trial.pending = None;
            }
        }
        if probes.is_empty() && !waiting {
            self.conclude(now);
        }
        probes
    }

    /// The size to try in place `at`, if it is to be tried now.
    fn wanted(&self, at: usize, now: Instant, overhead: u16, bounds: MtuBounds) -> Option<u16> {
        if at == BARE {
            return (!self.bare_answered).then_some(0);
        }
        if matches!(self.phase, Phase::Doubting { .. }) {
            let doubted = at == FLOOR && !self.trials[at].answered;
            return doubted.then_some(self.proven);
        }
        let inner = |outer: u16| outer.saturating_sub(overhead).min(bounds.cap);
        let size = match at {
            FLOOR => INNER_MTU,
            LINK if bounds.link <= ETHERNET => return None,
            LINK => inner(bounds.link),
            _ => inner(OUTER[at - FIRST_OUTER]),
        };
        let full = self.trials[FULL];
        let full_lost = full.tries > 1 || full.tries == 1 && !full.is_waiting(now);
        let likely = matches!(at, FLOOR | FULL | LINK);
        (size > self.proven.max(INNER_MTU - 1) && (likely || full_lost)).then_some(size)
    }

    /// Takes the answer to a probe; true if it was one of ours.
    pub(crate) fn answered(&mut self, transaction: u64) -> bool {
        let ours = |trial: &&mut Trial| trial.transaction == Some(transaction);
        let Some(trial) = self.trials.iter_mut().find(ours) else {
            return false;
        };
        trial.pending = None;
        trial.answered = true;
        let size = trial.size;
        // What fits a large packet fits a small one.
        self.bare_answered = true;
        self.proven = self.proven.max(size);
        true
    }

    /// Every size has been answered or given up.
    fn conclude(&mut self, now: Instant) {
        match self.phase {
            Phase::Waiting(_) => {}
            // Nothing came back at all: the path is silent, which is not for us to judge.
            _ if !self.bare_answered => self.phase = Phase::Waiting(now + RETRY),
            Phase::Searching => {
                self.settled = true;
                let raise = RAISE[self.searches.min(RAISE.len() - 1)];
                self.searches += 1;
                self.phase = Phase::Waiting(now + raise);
            }
            Phase::Doubting { then } => {
                if self.trials[FLOOR].answered {
                    self.phase = Phase::Waiting(then);
                } else {
                    self.proven = 0;
                    self.settled = true;
                    self.searches = 0;
                    self.begin(Phase::Searching);
                }
            }
        }
    }
}

/// The least that a path adds to a packet: IPv4, UDP, and WireGuard.
const fn smallest_overhead() -> u16 {
    overhead(false, false)
}

/// What a path adds to an inner packet, in bytes.
pub(crate) const fn overhead(ipv6: bool, relayed: bool) -> u16 {
    const UDP: u16 = 8;
    let ip = if ipv6 { 40 } else { 20 };
    let frame = if relayed {
        crate::wire::relay::FRAME_HEADER as u16
    } else {
        0
    };
    ip + UDP + frame + crate::session::OVERHEAD as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(100);
    const ETHERNET_HOST: MtuBounds = MtuBounds {
        link: 1_500,
        cap: 9_000,
    };
    const JUMBO_HOST: MtuBounds = MtuBounds {
        link: 9_000,
        cap: 9_000,
    };

    /// A path over IPv4 that takes `rtt` and carries outer packets of up to `outer` bytes, or loses everything.
    struct World {
        mtu: PathMtu,
        now: Instant,
        rng: Random,
        bounds: MtuBounds,
        outer: u16,
        probes: usize,
    }

    impl World {
        fn new(bounds: MtuBounds, outer: u16) -> Self {
            Self {
                mtu: PathMtu::default(),
                now: Instant::from_boot(Duration::from_secs(1_000)),
                rng: Random::from_seed([3; 32]),
                bounds,
                outer,
                probes: 0,
            }
        }

        /// Until nothing is to be done for a second; how long it took.
        fn settle(&mut self) -> Duration {
            let start = self.now;
            loop {
                let overhead = overhead(false, false);
                let probes = self
                    .mtu
                    .poll(self.now, TIMEOUT, overhead, self.bounds, &mut self.rng);
                self.probes += probes.len();
                for probe in probes {
                    if probe.size + overhead <= self.outer {
                        assert!(self.mtu.answered(probe.transaction));
                    }
                }
                let next = self.mtu.deadline();
                if next.since(self.now) > Duration::from_secs(1) {
                    return self.now.since(start);
                }
                self.now = self.now.max(next);
            }
        }
    }

    #[test]
    fn an_ethernet_path_is_known_after_one_round_trip_and_three_probes() {
        let mut world = World::new(ETHERNET_HOST, 1_500);
        assert_eq!(world.mtu.effective(), INNER_MTU);
        assert_eq!(world.settle(), Duration::ZERO);
        assert_eq!(world.mtu.effective(), 1_440);
        assert_eq!(world.probes, 3);
    }

    #[test]
    fn every_smaller_link_is_found_and_never_exceeded() {
        for outer in 1_340..1_500 {
            let mut world = World::new(ETHERNET_HOST, outer);
            assert!(world.settle() <= TIMEOUT * 8);
            let found = world.mtu.effective() + 60;
            assert!(found <= outer && !world.mtu.needs_fragments(), "{outer}");
            let next = OUTER.iter().copied().filter(|size| *size <= outer).max();
            assert_eq!(found, next.unwrap_or(1_340));
        }
    }

    #[test]
    fn a_large_lan_is_used_and_a_host_without_one_does_not_try() {
        let mut world = World::new(JUMBO_HOST, 9_000);
        world.settle();
        assert_eq!(world.mtu.effective(), 8_940);
        let mut world = World::new(JUMBO_HOST, 1_500);
        world.settle();
        assert_eq!(world.mtu.effective(), 1_440);
        let mut world = World::new(ETHERNET_HOST, 9_000);
        world.settle();
        assert_eq!(world.mtu.effective(), 1_440);
    }

    #[test]
    fn the_cap_is_never_exceeded() {
        let bounds = MtuBounds {
            link: 9_000,
            cap: 1_300,
        };
        let mut world = World::new(bounds, 9_000);
        world.settle();
        assert_eq!(world.mtu.effective(), 1_300);
    }

    #[test]
    fn a_path_below_the_floor_needs_fragments() {
        let mut world = World::new(ETHERNET_HOST, 1_280);
        world.settle();
        assert!(world.mtu.needs_fragments());
        assert_eq!(world.mtu.effective(), INNER_MTU);
    }

    #[test]
    fn a_silent_path_says_nothing_about_sizes() {
        let mut world = World::new(ETHERNET_HOST, 0);
        world.settle();
        assert!(!world.mtu.needs_fragments() && !world.mtu.settled);
        world.outer = 1_500;
        world.now = world.now + RETRY;
        world.settle();
        assert_eq!(world.mtu.effective(), 1_440);
    }

    #[test]
    fn a_path_that_shrinks_is_found_out_when_it_is_doubted() {
        let mut world = World::new(ETHERNET_HOST, 1_500);
        world.settle();
        world.mtu.doubt(world.now);
        world.settle();
        assert_eq!(world.mtu.effective(), 1_440, "nothing was wrong");
        world.outer = 1_400;
        world.now = world.now + DOUBT_INTERVAL;
        world.mtu.doubt(world.now);
        let took = world.settle();
        assert_eq!(world.mtu.effective(), 1_380 - 60);
        assert!(took <= TIMEOUT * 15, "{took:?}");
    }

    #[test]
    fn a_path_that_grows_is_found_out_before_long() {
        let mut world = World::new(ETHERNET_HOST, 1_400);
        world.settle();
        world.outer = 1_500;
        world.now = world.now + RAISE[0];
        world.settle();
        assert_eq!(world.mtu.effective(), 1_440);
    }

    #[test]
    fn until_it_is_known_a_path_carries_what_the_one_before_did() {
        let mut mtu = PathMtu::default();
        mtu.inherit(1_432);
        assert_eq!(mtu.effective(), 1_432);
        mtu.inherit(8_940);
        assert_eq!(mtu.effective(), 1_440);
    }
}
