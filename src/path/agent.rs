//! All paths of one peer: probes them, and chooses the one that carries data.

use super::mtu::{MtuBounds, MtuProbe};
use super::scoring::is_better;
use super::{Path, PathKey, Route};
use crate::engine::SocketId;
use crate::limits;
use crate::rng::Random;
use crate::time::Instant;

/// How a peer is used just now, as far as probing depends on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    /// Traffic lately: its paths are watched.
    pub(crate) active: bool,
    /// It answers probes: it completed our hello.
    pub(crate) probes: bool,
}

/// A probe to be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProbeOrder {
    pub(crate) key: PathKey,
    pub(crate) transaction: u64,
}

/// The current path became another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) to: Option<PathKey>,
    pub(crate) reason: &'static str,
}

/// The paths of one peer.
#[derive(Debug, Default)]
pub(crate) struct PathSet {
    paths: Vec<Path>,
    current: Option<PathKey>,
    since: Instant,
    /// Why the current path is the current one.
    reason: &'static str,
}

impl PathSet {
    /// What all paths of a peer take at most.
    pub(crate) const MOST_BYTES: usize = limits::MAX_PATHS * size_of::<Path>();

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter()
    }

    pub(crate) fn get(&self, key: PathKey) -> Option<&Path> {
        self.paths.iter().find(|path| path.key == key)
    }

    pub(crate) fn get_mut(&mut self, key: PathKey) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.key == key)
    }

    /// The path, added if it is new. A new one takes the place of the oldest that proved nothing; `None` if all did.
    pub(crate) fn get_or_add(&mut self, key: PathKey, now: Instant) -> Option<&mut Path> {
        if self.get(key).is_none() {
            if self.paths.len() >= limits::MAX_PATHS {
                let current = self.current;
                let oldest = (0..self.paths.len())
                    .filter(|at| {
                        let path = &self.paths[*at];
                        Some(path.key) != current && !path.is_proven(now) && !path.has_channel()
                    })
                    .min_by_key(|at| self.paths[*at].created)?;
                self.paths.remove(oldest);
            }
            self.paths.push(Path::new(key, now));
        }
        self.get_mut(key)
    }

    /// Forgets paths from a spare socket that lead nowhere any more; `false` if none is left, so that it can be closed.
    pub(crate) fn retain_socket(&mut self, socket: SocketId, now: Instant) -> bool {
        let current = self.current;
        let own = |path: &Path| matches!(path.key, PathKey::Direct(own, _) if own == socket);
        let alive = |path: &Path| Some(path.key) == current || path.is_proven(now);
        let any = self.paths.iter().any(|path| own(path) && alive(path));
        if !any {
            self.paths.retain(|path| !own(path));
        }
        any
    }

    pub(crate) fn current(&self) -> Option<&Path> {
        self.get(self.current?)
    }

    /// Since when the current path is the current one.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Why the current path is the current one, in words.
    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }

    /// Where data goes.
    #[inline]
    pub(crate) fn route(&self) -> Option<Route> {
        self.current()?.route()
    }

    /// Data was sent on the current path.
    #[inline]
    pub(crate) fn sent_data(&mut self, now: Instant) {
        if let Some(key) = self.current
            && let Some(path) = self.get_mut(key)
        {
            path.sent_data(now);
        }
    }

    pub(crate) fn has_usable_direct(&self, now: Instant) -> bool {
        self.paths
            .iter()
            .any(|path| matches!(path.key, PathKey::Direct(..)) && path.is_usable(now))
    }

    /// True when some relay carries packets to the peer.
    pub(crate) fn has_relay(&self) -> bool {
        self.paths.iter().any(Path::has_channel)
    }

    /// Takes the answer to a probe that arrived by `arrival`; it proves the path that the probe was sent on, which is
    /// returned.
    ///
    /// The answer to a direct probe need not come from where the probe was sent: between two NATs whose mappings depend
    /// on the destination, each direction keeps ports of its own. But an answer through a relay shows nothing about the
    /// direct way back.
    pub(crate) fn probe_answered(
        &mut self,
        arrival: PathKey,
        transaction: u64,
        now: Instant,
    ) -> Option<PathKey> {
        let may_be_of = |path: &Path| match arrival {
            PathKey::Relay(_) => path.key == arrival,
            PathKey::Direct(..) => matches!(path.key, PathKey::Direct(..)),
        };
        self.paths
            .iter_mut()
            .filter(|path| may_be_of(path))
            .find_map(|path| path.probe_answered(transaction, now).then_some(path.key))
    }

    /// The network changed: the path in use may lead nowhere now.
    pub(crate) fn suspect_current(&mut self) {
        if let Some(key) = self.current
            && let Some(path) = self.get_mut(key)
        {
            path.suspect();
        }
    }

    /// The peer restarted, as it said by way of `arrival`: what it once answered elsewhere shows nothing any more.
    pub(crate) fn forget_proofs(&mut self, arrival: PathKey) {
        for path in self.paths.iter_mut().filter(|path| path.key != arrival) {
            path.forget_proof();
        }
    }

    /// The path in use does not answer, and nothing better is there.
    pub(crate) fn current_failed(&self) -> bool {
        self.current().is_some_and(Path::has_failed)
    }

    /// Keepalives are for peers in use, for the last path of a peer that no relay reaches, and for a path that was won with
    /// a spare socket: to find it again would cost far more than two datagrams each 15 s.
    fn keeps_alive(&self, using: Use) -> bool {
        let costly = |key| matches!(key, PathKey::Direct(socket, _) if socket != SocketId::MESH);
        using.probes && (using.active || !self.has_relay() || self.current.is_some_and(costly))
    }

    /// When [`Self::handle_timeout`] has to run.
    pub(crate) fn deadline(&self, using: Use) -> Option<Instant> {
        let keepalive = self.keeps_alive(using);
        let due = |path: &Path| {
            let current = self.current == Some(path.key);
            let probe = if using.probes && (using.active || keepalive && current) {
                path.next_probe(current, keepalive && current)
            } else {
                None
            };
            [path.probe_deadline(), probe].into_iter().flatten().min()
        };
        self.paths.iter().filter_map(due).min()
    }

    /// Gives up overdue probes and orders those that are due.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        using: Use,
        rng: &mut Random,
    ) -> Vec<ProbeOrder> {
        let keepalive = self.keeps_alive(using);
        let mut orders = Vec::new();
        for path in &mut self.paths {
            path.expire_probes(now);
            let current = self.current == Some(path.key);
            if !using.probes || !(using.active || keepalive && current) {
                continue;
            }
            if path
                .next_probe(current, keepalive && current)
                .is_some_and(|due| due <= now)
            {
                if current && path.is_suspicious(now) {
                    path.mtu.doubt(now);
                }
                orders.push(ProbeOrder {
                    key: path.key,
                    transaction: rng.u64(),
                });
            }
        }
        orders
    }

    /// When [`Self::mtu_probes`] has to run.
    pub(crate) fn mtu_deadline(&self, now: Instant, using: Use) -> Option<Instant> {
        let searched = self.paths.iter().filter(|_| using.active && using.probes);
        searched.filter_map(|path| path.mtu_deadline(now)).min()
    }

    /// Padded probes that are due, on every path that may be used.
    pub(crate) fn mtu_probes(
        &mut self,
        now: Instant,
        using: Use,
        bounds: MtuBounds,
        rng: &mut Random,
    ) -> Vec<(PathKey, MtuProbe)> {
        let mut probes = Vec::new();
        let searched = self
            .paths
            .iter_mut()
            .filter(|_| using.active && using.probes);
        for path in searched {
            let due = path.mtu_probes(now, bounds, rng);
            probes.extend(due.into_iter().map(|probe| (path.key, probe)));
        }
        probes
    }

    /// Chooses the current path anew.
    ///
    /// A current path that is no longer usable stays when there is nothing better: what is sent on it may arrive.
    pub(crate) fn choose(&mut self, now: Instant) -> Option<Change> {
        let usable = |path: &&Path| path.is_usable(now);
        let best = self
            .paths
            .iter()
            .filter(usable)
            .reduce(|best, path| if is_better(path, best) { path } else { best });
        let current = self.current();
        let (to, reason) = match (current, best) {
            (None, None) => return None,
            (None, Some(best)) => (Some(best.key), "first path that answers"),
            (Some(current), None) if current.route().is_some() => return None,
            (Some(_), None) => (None, "the relay cannot reach it"),
            (Some(current), Some(best)) if current.is_usable(now) => {
                if current.key == best.key || !is_better(best, current) {
                    return None;
                }
                (Some(best.key), "a better path answered")
            }
            (Some(current), Some(best)) => {
                let failed = current.has_failed();
                let reason = if failed {
                    "the path stopped answering"
                } else {
                    "the path was not confirmed lately"
                };
                (Some(best.key), reason)
            }
        };
        self.set_current(to, reason, now);
        Some(Change { to, reason })
    }

    /// Makes a path the current one without a choice: a peer that has just one path moved.
    pub(crate) fn set_current(&mut self, to: Option<PathKey>, reason: &'static str, now: Instant) {
        if self.current != to {
            self.since = now;
            self.reason = reason;
            let before = self.current().map(|path| path.mtu.effective());
            if let (Some(before), Some(path)) = (before, to.and_then(|to| self.get_mut(to))) {
                path.mtu.inherit(before);
            }
        }
        self.current = to;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::RelayHandle;

    const USED: Use = Use {
        active: true,
        probes: true,
    };

    fn at(milliseconds: u64) -> Instant {
        Instant::from_boot(Duration::from_millis(1_000_000 + milliseconds))
    }

    fn direct(last: u8) -> PathKey {
        PathKey::direct(std::net::SocketAddr::from(([192, 0, 2, last], 41_820)))
    }

    fn relay() -> PathKey {
        PathKey::Relay(RelayHandle(1))
    }

    fn relayed() -> PathSet {
        let mut set = PathSet::default();
        let path = set.get_or_add(relay(), at(0)).unwrap();
        path.set_channel(Some((
            std::net::SocketAddr::from(([203, 0, 113, 1], 443)),
            7,
        )));
        path.measured(Duration::from_millis(20));
        set.choose(at(0));
        set
    }

    fn prove(set: &mut PathSet, key: PathKey, rtt: u64, now: Instant) {
        let path = set.get_or_add(key, now).unwrap();
        path.probe_sent(42, now - Duration::from_millis(rtt));
        assert_eq!(set.probe_answered(key, 42, now), Some(key));
    }

    #[test]
    fn a_direct_path_counts_only_when_our_own_probe_was_answered_on_it() {
        let mut set = relayed();
        set.get_or_add(direct(1), at(5))
            .unwrap()
            .received(at(5), 100);
        assert_eq!(set.choose(at(5)), None);
        assert_eq!(set.probe_answered(direct(1), 1, at(6)), None, "never sent");
        prove(&mut set, direct(1), 1, at(10));
        assert_eq!(set.choose(at(10)).unwrap().to, Some(direct(1)));
    }

    #[test]
    fn an_answer_proves_the_path_of_its_probe_but_not_when_it_comes_through_a_relay() {
        let mut set = relayed();
        set.get_or_add(direct(1), at(0))
            .unwrap()
            .probe_sent(42, at(0));
        set.get_or_add(direct(2), at(0)).unwrap();
        assert_eq!(set.probe_answered(relay(), 42, at(1)), None);
        assert!(!set.has_usable_direct(at(1)));
        assert_eq!(set.probe_answered(direct(2), 42, at(1)), Some(direct(1)));
        assert!(set.get(direct(1)).unwrap().is_usable(at(1)));
        assert!(!set.get(direct(2)).unwrap().is_usable(at(1)));
    }

    #[test]
    fn near_equal_paths_do_not_flap_and_a_clearly_faster_one_wins() {
        let mut set = relayed();
        prove(&mut set, direct(1), 20, at(10));
        set.choose(at(10));
        prove(&mut set, direct(2), 17, at(20));
        assert_eq!(set.choose(at(20)), None);
        prove(&mut set, direct(3), 5, at(30));
        assert_eq!(set.choose(at(30)).unwrap().to, Some(direct(3)));
    }

    #[test]
    fn data_that_nothing_answers_is_probed_and_then_leaves_the_path() {
        let mut set = relayed();
        let mut rng = Random::from_seed([0; 32]);
        prove(&mut set, direct(1), 10, at(0));
        set.choose(at(0));
        set.sent_data(at(1_000));
        let mut now = at(1_000);
        let mut probes = 0;
        let change = loop {
            now = set.deadline(USED).unwrap().max(now);
            for order in set.handle_timeout(now, USED, &mut rng) {
                assert_eq!(order.key, direct(1));
                set.get_mut(order.key)
                    .unwrap()
                    .probe_sent(order.transaction, now);
                probes += 1;
            }
            if let Some(change) = set.choose(now) {
                break change;
            }
        };
        assert_eq!(change.to, Some(relay()));
        assert_eq!(probes, 3);
        assert!(
            now.since(at(1_000)) < Duration::from_secs(1),
            "{:?}",
            now.since(at(1_000))
        );
    }

    #[test]
    fn an_idle_peer_is_not_probed_and_falls_back_to_the_relay() {
        let mut set = relayed();
        prove(&mut set, direct(1), 10, at(0));
        set.choose(at(0));
        let idle = Use {
            active: false,
            ..USED
        };
        assert_eq!(set.deadline(idle), None);
        assert_eq!(set.choose(at(60_000)).unwrap().to, Some(relay()));
    }

    #[test]
    fn the_last_path_of_a_peer_without_a_relay_is_kept_alive_when_idle() {
        let mut set = PathSet::default();
        prove(&mut set, direct(1), 10, at(0));
        set.choose(at(0));
        let idle = Use {
            active: false,
            ..USED
        };
        assert_eq!(set.deadline(idle), Some(at(15_000)));
        assert_eq!(set.choose(at(60_000)), None, "nothing better: it stays");
    }

    #[test]
    fn the_number_of_paths_is_bounded_and_proven_ones_stay() {
        let mut set = relayed();
        prove(&mut set, direct(1), 10, at(0));
        for port in 1..500 {
            set.get_or_add(
                PathKey::direct(std::net::SocketAddr::from(([198, 51, 100, 1], port))),
                at(1),
            );
        }
        assert_eq!(set.iter().count(), limits::MAX_PATHS);
        assert!(set.get(direct(1)).is_some() && set.get(relay()).is_some());
    }

    #[test]
    fn an_unproven_address_gets_at_most_three_times_what_it_sent() {
        let mut set = PathSet::default();
        let path = set.get_or_add(direct(1), at(0)).unwrap();
        path.received(at(0), 100);
        assert!(path.may_answer(at(0), 200));
        assert!(path.may_answer(at(0), 100));
        assert!(!path.may_answer(at(0), 1));
    }
}
