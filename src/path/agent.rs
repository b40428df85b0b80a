//! All paths of one peer: probes them, and chooses the one that carries data.

use std::net::IpAddr;
use std::time::Duration;

use super::liveness::{Duplication, alive_delay};
use super::mtu::{MtuBounds, MtuProbe};
use super::reason::PathReason;
use super::scoring::{self, is_better};
use super::{KEEPALIVE, Path, PathKey, Place, Route, SHORT_KEEPALIVE};
use crate::engine::{PathKind, SocketId};
use crate::limits;
use crate::nat::lifetime::Lifetime;
use crate::rng::Random;
use crate::time::Instant;
use crate::wire::control::Received;

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

/// A second way for data while the path in use is in doubt.
#[derive(Debug)]
pub(crate) struct Copies {
    pub(crate) route: Route,
    pub(crate) budget: Duplication,
}

/// The current path became another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) from: Option<PathKind>,
    pub(crate) to: Option<PathKey>,
    pub(crate) reason: PathReason,
}

/// The paths of one peer.
#[derive(Debug, Default)]
pub(crate) struct PathSet {
    paths: Vec<Path>,
    current: Option<PathKey>,
    since: Instant,
    /// Why the current path is the current one.
    reason: Option<PathReason>,
    /// How long one of each kind was the current path, up to [`Self::since`].
    times: [Duration; PathKind::ALL.len()],
    /// The number that the last path got.
    last_id: u8,
    /// By which path data came last.
    arrival: Option<PathKey>,
    /// When the peer has to be told what arrived.
    alive_due: Option<Instant>,
    /// Present while the path in use is in doubt and another one can carry copies.
    pub(crate) copies: Option<Copies>,
    /// An idle path was lost: its NAT forgets soon.
    short_lived: bool,
    /// What is known of the NAT before us.
    lifetime: Option<Lifetime>,
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
            let id = self.free_id();
            let mut path = Path::new(key, id, now);
            path.set_lifetime(self.lifetime);
            self.paths.push(path);
            self.share_distrust(key, now);
        }
        self.get_mut(key)
    }

    /// What swallows data swallows it whatever port of the peer's it goes to: all direct paths to one address are distrusted
    /// together, so that another port, won by punching, is not the next to be tried.
    fn share_distrust(&mut self, key: PathKey, now: Instant) {
        let PathKey::Direct(_, remote) = key else {
            return;
        };
        let there = |path: &Path| matches!(path.key, PathKey::Direct(_, other) if other.ip() == remote.ip());
        let known = self.paths.iter().filter(|path| there(path));
        let distrusted = known.filter(|path| path.is_distrusted(now));
        let worst = distrusted.map(|path| (path.distrusted, path.swallowed));
        let Some((until, swallowed)) = worst.max() else {
            return;
        };
        for path in self.paths.iter_mut().filter(|path| there(path)) {
            (path.distrusted, path.swallowed) = (until, swallowed);
        }
    }

    /// Until when a direct path that answers probes is not used because it loses data. Another one would do no better.
    pub(crate) fn distrusted_until(&self, now: Instant) -> Option<Instant> {
        let direct = |path: &&Path| matches!(path.key, PathKey::Direct(..));
        let proven = self.paths.iter().filter(direct);
        let proven = proven.filter(|path| path.is_proven(now) && path.is_distrusted(now));
        proven.filter_map(|path| path.distrusted).max()
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

    fn free_id(&mut self) -> u8 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.paths.iter().any(|path| path.id == self.last_id) {
                return self.last_id;
            }
        }
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
        self.reason.map_or("", PathReason::as_str)
    }

    /// How long a path of this kind has been the current one, in all.
    pub(crate) fn time_by(&self, kind: PathKind, now: Instant) -> Duration {
        let present = self.current.filter(|key| key.kind() == kind);
        let present = present.map_or(Duration::ZERO, |_| now.since(self.since));
        self.times[kind as usize] + present
    }

    /// Where data goes.
    #[inline]
    pub(crate) fn route(&self) -> Option<Route> {
        self.current()?.route()
    }

    /// The path that data goes on, and the second one for as long as it is sent twice.
    #[inline]
    pub(crate) fn current_mut(&mut self) -> Option<(&mut Path, Option<&mut Copies>)> {
        let key = self.current?;
        let path = self.paths.iter_mut().find(|path| path.key == key)?;
        Some((path, self.copies.as_mut()))
    }

    /// Data arrived on a path: the peer is to be told.
    #[inline]
    pub(crate) fn received_data(
        &mut self,
        arrival: PathKey,
        now: Instant,
        session: u32,
        highest: u64,
        count: u32,
    ) {
        if let Some(path) = self.get_mut(arrival) {
            path.incoming.received(now, session, highest, count);
        }
        self.arrival = Some(arrival);
        if self.alive_due.is_none() {
            let rtt = self.current().and_then(Path::rtt).unwrap_or_default();
            self.alive_due = Some(now + alive_delay(rtt));
        }
    }

    /// What to tell the peer about its data, if that is due.
    pub(crate) fn poll_alive(&mut self, now: Instant) -> Option<Vec<Received>> {
        self.alive_due.take_if(|due| *due <= now)?;
        let reports = self
            .paths
            .iter()
            .filter_map(|path| path.incoming.report(now));
        let reports: Vec<Received> = reports.take(limits::MAX_PATHS).collect();
        (!reports.is_empty()).then_some(reports)
    }

    /// Where the peer is told by, beside the path in use: by a spare one while that is in doubt, and by the one that its data
    /// comes by. Ours may have died, and the peer must not take its own for one that swallows data because of that.
    pub(crate) fn alive_ways(&self, now: Instant) -> [Option<PathKey>; 2] {
        let spare = self.spare(now);
        let arrival = self.arrival.filter(|key| {
            let other = Some(*key) != self.current && Some(*key) != spare;
            other && self.get(*key).is_some_and(|path| path.answers(now))
        });
        [spare, arrival]
    }

    /// The peer tells about our data.
    pub(crate) fn acknowledged(&mut self, now: Instant, reports: &[Received]) {
        for received in reports {
            let named = |path: &&mut Path| path.id == received.path;
            if let Some(path) = self.paths.iter_mut().find(named) {
                path.acknowledged(now, received);
            }
        }
    }

    /// The peer's probe names the path that it came by; 0 names none.
    pub(crate) fn named(&mut self, arrival: PathKey, id: u8) {
        if id == 0 {
            return; // sent by way of trial, before there was a path
        }
        for path in &mut self.paths {
            if path.key == arrival {
                path.incoming.set_path(Some(id));
            } else if path.incoming.path() == Some(id) {
                path.incoming.set_path(None); // it comes by another way now
            }
        }
    }

    /// True if a direct path works as far as is known.
    pub(crate) fn has_usable_direct(&self, now: Instant) -> bool {
        self.paths.iter().any(|path| {
            matches!(path.key, PathKey::Direct(..)) && path.is_usable(now) && !path.is_doubted()
        })
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
        let mut asked = self.paths.iter_mut().filter(|path| may_be_of(path));
        let proven =
            asked.find_map(|path| path.probe_answered(transaction, now).then_some(path.key));
        if let Some(key) = proven {
            self.share_distrust(key, now);
        }
        proven
    }

    /// The network changed: every path may lead nowhere now. Those for which there is no address of ours any more do.
    pub(crate) fn doubt_all(&mut self, now: Instant, reachable: impl Fn(IpAddr) -> bool) {
        for path in &mut self.paths {
            match path.key {
                PathKey::Direct(_, remote) if !reachable(remote.ip()) => path.cut_off(),
                PathKey::Direct(..) if path.proven.is_none() => {}
                _ => path.doubt(now),
            }
            // That was found out somewhere else.
            path.distrusted = None;
            path.swallowed = 0;
        }
        self.short_lived = false;
    }

    /// The peer has moved, as it seems: the direct paths to where it was may lead nowhere now.
    pub(crate) fn doubt_direct(&mut self, now: Instant) {
        for path in &mut self.paths {
            if matches!(path.key, PathKey::Direct(..)) && path.is_usable(now) && !path.is_doubted()
            {
                path.doubt(now);
            }
        }
    }

    /// Something was sent on the path in use of which the peer will not tell: ask the path itself.
    pub(crate) fn check_current(&mut self, now: Instant) {
        if let Some(key) = self.current
            && let Some(path) = self.get_mut(key)
        {
            path.check_at = Some(now);
        }
    }

    /// The best path beside the one in use, if that is in doubt. What may have broken one direct path may have broken
    /// them all: then it is a relay.
    pub(crate) fn spare(&self, now: Instant) -> Option<PathKey> {
        let current = self.current().filter(|path| path.is_in_doubt())?;
        let spare = |path: &&Path| {
            let relayed = matches!(path.key, PathKey::Relay(_));
            let other_way = relayed || matches!(current.key, PathKey::Relay(_));
            path.key != current.key && other_way && path.is_usable(now)
        };
        let spares = self.paths.iter().filter(spare);
        let best = spares.reduce(better);
        best.map(|path| path.key)
    }

    /// Begins and ends sending data twice.
    pub(crate) fn update_copies(&mut self, now: Instant) {
        if !self.current().is_some_and(Path::is_in_doubt) {
            self.copies = None;
            return;
        }
        let spare = self.spare(now).and_then(|key| self.get(key)?.route());
        match (spare, &mut self.copies) {
            (Some(route), Some(copies)) => copies.route = route,
            (Some(route), copies) => {
                let budget = Duplication::new(now);
                *copies = Some(Copies { route, budget });
            }
            // What is used up of the budget stays used up.
            (None, _) => {}
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

    /// It is known now what the NAT before us does, or not any more.
    pub(crate) fn set_lifetime(&mut self, lifetime: Option<Lifetime>) {
        self.lifetime = lifetime;
        for path in &mut self.paths {
            path.set_lifetime(lifetime);
        }
    }

    fn place(&self, path: &Path, keeps_alive: bool) -> Place {
        let lifetime = self.lifetime.filter(|_| path.is_mapped());
        let measured = lifetime.map(Lifetime::keepalive);
        let interval = match measured {
            // It may be the peer's NAT.
            _ if self.short_lived => SHORT_KEEPALIVE,
            Some(measured) => measured,
            None => KEEPALIVE,
        };
        Place {
            current: self.current == Some(path.key),
            keepalive: keeps_alive.then_some(interval),
            data: self.current().and_then(|path| path.out.last_sent()),
        }
    }

    /// When the path is to be probed next, if it is to be probed at all.
    fn probe_due(&self, path: &Path, using: Use) -> Option<Instant> {
        let keepalive = self.keeps_alive(using);
        let place = self.place(path, keepalive);
        if !using.probes || !(using.active || keepalive && place.current) {
            return None;
        }
        path.next_probe(place)
    }

    /// When [`Self::handle_timeout`] has to run.
    pub(crate) fn deadline(&self, using: Use) -> Option<Instant> {
        let due = |path: &Path| {
            let probe = self.probe_due(path, using);
            [path.probe_deadline(), probe].into_iter().flatten().min()
        };
        let alive = self.alive_due.filter(|_| using.probes);
        self.paths.iter().filter_map(due).chain(alive).min()
    }

    /// Gives up overdue probes and orders those that are due.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        using: Use,
        rng: &mut Random,
    ) -> Vec<ProbeOrder> {
        for path in &mut self.paths {
            path.expire_probes(now);
            if self.current == Some(path.key) && path.is_suspicious(now) {
                path.mtu.doubt(now);
            }
        }
        let current_fails = self
            .current()
            .is_some_and(|path| path.unanswered == 1 && path.is_in_doubt());
        let mut orders = Vec::new();
        for path in &self.paths {
            let due = self.probe_due(path, using).is_some_and(|due| due <= now);
            // Somewhere the data has to go: find out where it can.
            let spare = current_fails && using.probes && path.is_spare(now);
            if due || spare {
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
        let sure = |path: &&Path| path.is_usable(now) && !path.is_doubted();
        let sure = self.paths.iter().filter(sure);
        let best = sure.reduce(better);
        // What something may have broken is better than nothing.
        let best = best
            .or_else(|| self.least_doubtful(now))
            .or_else(|| self.last_resort(now));
        let current = self.current();
        let (to, reason) = match (current, best) {
            (None, None) => return None,
            (None, Some(best)) => (Some(best.key), PathReason::First),
            (Some(current), None) if current.route().is_some() => return None,
            (Some(_), None) => (None, PathReason::Unreachable),
            (Some(current), Some(best))
                if current.is_doubted()
                    && !best.is_doubted()
                    && best.key.kind() <= current.key.kind() =>
            {
                (Some(best.key), PathReason::FirstAfterChange)
            }
            (Some(current), Some(best)) if current.is_usable(now) => {
                if current.key == best.key || !is_better(best, current) {
                    return None;
                }
                // Both may lead over the line that has just filled up, and the relay was measured before.
                if best.key.kind() > current.key.kind() {
                    let key = best.key;
                    let sample = best.fresh_sample(now);
                    if sample.is_none_or(|sample| !scoring::is_wide_gain(sample, current)) {
                        let check = sample.is_none().then_some(now);
                        if let Some(best) = self.get_mut(key) {
                            best.check_at = check.or(best.check_at);
                        }
                        return None;
                    }
                }
                (Some(best.key), scoring::advantage(best, current))
            }
            (Some(current), Some(best)) => (Some(best.key), current.fault(now)),
        };
        self.learn_lifetime(now);
        self.set_current(to, reason, now)
    }

    /// The best of the paths that something may have broken, when there is no other: a relay, to which we connect again by
    /// ourselves, rather than a direct path that was not even in use, which takes the peer and its NAT as well.
    fn least_doubtful(&self, now: Instant) -> Option<&Path> {
        let usable = self.paths.iter().filter(|path| path.is_usable(now));
        usable.reduce(|best, path| {
            let relayed = |path: &Path| matches!(path.key, PathKey::Relay(_));
            match (relayed(path), relayed(best)) {
                (true, false) => path,
                (false, true) => best,
                _ => better(best, path),
            }
        })
    }

    /// A path that seems to lose data, when the one in use carries nothing at all any more.
    fn last_resort(&self, now: Instant) -> Option<&Path> {
        let useless = |path: &Path| path.route().is_none() || path.has_failed();
        if !self.current().is_none_or(useless) {
            return None;
        }
        let other = |path: &&Path| Some(path.key) != self.current && path.answers(now);
        let others = self.paths.iter().filter(other);
        others.reduce(better)
    }

    /// A direct path that fails after a pause was forgotten by a NAT, most likely.
    fn learn_lifetime(&mut self, now: Instant) {
        let silent = |path: &Path| {
            let heard = path.last_rx.max(path.proven).unwrap_or(path.created);
            now.since(heard) >= SHORT_KEEPALIVE && !path.is_doubted()
        };
        if let Some(current) = self.current()
            && matches!(current.key, PathKey::Direct(..))
            && current.has_failed()
            && silent(current)
        {
            self.short_lived = true;
        }
    }

    /// Makes a path the current one without a choice: a peer that has just one path moved. `None` if it was that before.
    pub(crate) fn set_current(
        &mut self,
        to: Option<PathKey>,
        reason: PathReason,
        now: Instant,
    ) -> Option<Change> {
        if self.current == to {
            return None;
        }
        let before = self.current().map(|path| path.mtu.effective());
        let from = self.current.map(PathKey::kind);
        if let Some(kind) = from {
            self.times[kind as usize] += now.since(self.since);
        }
        self.since = now;
        self.reason = Some(reason);
        self.current = to;
        self.copies = None;
        if let Some(path) = to.and_then(|key| self.get_mut(key)) {
            // What the new one lost when it was last in use is no news.
            path.out.forget();
            path.mtu.inherit(before.unwrap_or_default());
        }
        Some(Change { from, to, reason })
    }
}

/// The better of two paths; the first one if they are about equal.
fn better<'a>(best: &'a Path, path: &'a Path) -> &'a Path {
    if is_better(path, best) { path } else { best }
}

#[cfg(test)]
mod tests;
