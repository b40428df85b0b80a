//! Opens direct paths: when to call a peer, and what both sides agree to try.
//!
//! A call names our addresses and what our NAT does; the answer names the peer's. Both then punch ([`plain`]). Where that
//! failed, or cannot work, the next call names a plan for hard NATs, which both sides derive from the two profiles
//! ([`attempt`], [`prepare`], [`volley`]).

mod attempt;
mod plain;
mod prepare;
mod volley;

use std::net::SocketAddr;
use std::time::Duration;

pub(super) use self::attempt::Attempt;
use super::{Engine, PeerIndex, Strategy};
use crate::nat::punch::{FIRST_OPENER, retry_after};
use crate::nat::strategy::{Prospects, prospects};
use crate::nat::{Mapping, NatProfile};
use crate::path::Path;
use crate::path::PathKey;
use crate::path::candidates::is_acceptable;
use crate::time::Instant;
use crate::wire::control::{CallMe, Control};

/// A call is repeated if it is not answered within this.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The side with the higher ID waits this long for the other one's call, so that the two do not call at once.
const POLITENESS: Duration = Duration::from_millis(300);
/// A peer that calls more often than this is not followed: rounds send to addresses that it names.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// After the first path has opened, other candidates get this long to show a better one (the LAN, IPv6).
const SETTLE: Duration = Duration::from_millis(300);
/// Plain rounds that have to fail before a port of our own is taken to be poisoned, where plain punching should work.
const POISONED_AFTER: u32 = 2;

impl Engine {
    /// A direct path is wanted: now, or a little later on the side that lets the other one begin.
    pub(super) fn schedule_punch(&mut self, now: Instant, index: PeerIndex) {
        let politeness = self.politeness(index);
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        peer.punching.failed = 0;
        peer.punching.plan = 0;
        peer.punching.plan_due = false;
        peer.punching.next = Some(now + politeness);
    }

    /// True on the side with the higher key, which lets the other one begin.
    fn is_polite(&self, index: PeerIndex) -> bool {
        self.peer(index).is_some_and(|peer| {
            let network = self.networks.get(&peer.network);
            network.is_some_and(|network| network.local.public() > peer.key.to_wireguard())
        })
    }

    fn politeness(&self, index: PeerIndex) -> Duration {
        if self.is_polite(index) {
            POLITENESS
        } else {
            Duration::ZERO
        }
    }

    /// Calls the peer when a round is due; continues what is under way.
    pub(super) fn service_punch(&mut self, now: Instant, index: PeerIndex) {
        if self.is_attempting(index) {
            self.run_attempt(now, index);
            self.run_punch(now, index);
            return;
        }
        let Some(peer) = self.peer(index) else { return };
        if peer.punching.running.is_some() {
            self.run_punch(now, index);
            return;
        }
        let due = peer.punching.next.is_some_and(|next| next <= now);
        if !due || !peer.uses(now).active || !peer.uses(now).probes {
            return;
        }
        if peer.paths.has_usable_direct(now) {
            if let Some(peer) = self.peer_mut(index) {
                peer.punching.next = None;
            }
            return;
        }
        if let Some(until) = peer.paths.distrusted_until(now) {
            if let Some(peer) = self.peer_mut(index) {
                peer.punching.next = Some(until);
            }
            return;
        }
        if peer.punching.plan_due {
            self.call_with_plan(now, index);
            if self.is_attempting(index) {
                self.run_attempt(now, index);
            }
        } else {
            self.call(now, index);
        }
    }

    fn call(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        peer.punching.round = peer.punching.round.wrapping_add(1);
        peer.punching.called = Some(now);
        peer.punching.next = Some(now + CALL_TIMEOUT);
        let round = peer.punching.round;
        // The peer may still be where it was, and its first probe is here before its answer: it is to find us open.
        let known = peer.candidates.clone();
        self.open_nat(now, index, &known, FIRST_OPENER);
        self.send_call(now, index, round, false, None);
    }

    /// Tells the peer where we are. `plan`: what we agree to try, and the port that our packets will come from.
    pub(super) fn send_call(
        &mut self,
        now: Instant,
        index: PeerIndex,
        round: u32,
        reply: bool,
        plan: Option<(u8, Option<u16>)>,
    ) -> bool {
        let rtt = self.rtt_to(index).map(|rtt| rtt.as_millis());
        let call = CallMe {
            round,
            reply,
            candidates: self.own_candidates(self.shares_nat(index)),
            profile: self.nat_profile(),
            rtt: rtt.map_or(0, |rtt| u16::try_from(rtt.max(1)).unwrap_or(u16::MAX)),
            plan: plan.map(|(plan, _)| plan),
            port: plan.and_then(|(_, port)| port),
        };
        self.send_anyhow(now, index, &Control::CallMe(call))
    }

    /// Round trip time on the current path, if it was measured.
    fn rtt_to(&self, index: PeerIndex) -> Option<Duration> {
        self.peer(index)?.paths.current().and_then(Path::rtt)
    }

    /// The peer wants to punch, or answers our call.
    pub(super) fn handle_call(&mut self, now: Instant, index: PeerIndex, mut call: CallMe) {
        call.candidates
            .retain(|candidate| self.may_send_to(*candidate));
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        peer.candidates.clone_from(&call.candidates);
        let news = peer.punching.profile.replace(call.profile) != Some(call.profile);
        if news {
            self.reconsider(now, index);
        }
        if call.reply {
            if self.awaits_answer(index, call.round) {
                self.attempt_answered(now, index, &call);
                return;
            }
            let Some(peer) = self.peer_mut(index) else {
                return;
            };
            if peer.punching.round == call.round && peer.punching.called.take().is_some() {
                self.start_punch(now, index, now);
            }
            return;
        }
        self.peer_may_have_moved(now, index);
        match call.plan {
            Some(plan) => self.called_with_plan(now, index, &call, plan),
            None => self.called(now, index, &call),
        }
    }

    /// Answers a call for a plain punch.
    fn called(&mut self, now: Instant, index: PeerIndex, call: &CallMe) {
        let attempting = self.is_attempting(index);
        // Our answer travels for half a round trip; the caller starts when it arrives, and so do we. The caller has
        // measured it if we have not: whoever starts early is taken for an intruder by a router that is not open yet.
        let measured = Duration::from_millis(u64::from(call.rtt));
        let rtt = self.rtt_to(index).unwrap_or(measured);
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        match &mut peer.punching.running {
            Some(punch) if !peer.paths.has_usable_direct(now) => {
                let mut news = false;
                for candidate in &peer.candidates {
                    news |= punch.add_target(*candidate);
                }
                if news {
                    punch.repeat(now);
                }
            }
            _ if !attempting
                && peer
                    .punching
                    .started
                    .is_none_or(|at| now.since(at) >= ROUND_INTERVAL) =>
            {
                self.start_punch(now, index, now + rtt / 2);
            }
            _ => {}
        }
        self.send_call(now, index, call.round, true, None);
    }

    /// True for an address of a peer that we are willing to send to.
    fn may_send_to(&self, address: SocketAddr) -> bool {
        let mut networks = self.networks.values();
        is_acceptable(address)
            && !self.is_own_address(address)
            && !networks.any(|network| network.covers(address.ip()))
    }

    /// What can be done for the peer, from what both NATs do.
    fn prospects(&self, index: PeerIndex) -> Option<Prospects> {
        let theirs = self.peer(index)?.punching.profile?;
        let own = self.nat_profile();
        if own == NatProfile::default() || theirs == NatProfile::default() || self.shares_nat(index)
        {
            return None;
        }
        Some(prospects(&own, &theirs, !self.is_polite(index)))
    }

    /// Both of us have one public address: our ways to each other do not lead through both NATs.
    pub(super) fn shares_nat(&self, index: PeerIndex) -> bool {
        let theirs = self.peer(index).and_then(|peer| peer.punching.observed);
        let own = self.own_public_ip();
        theirs.is_some_and(|theirs| own == Some(theirs.ip()))
    }

    /// Our public IPv4 address, as the nearest relay sees it.
    fn own_public_ip(&self) -> Option<std::net::IpAddr> {
        let mut seen = self.prober.reflexive().filter(SocketAddr::is_ipv4);
        seen.next().map(|address| address.ip())
    }

    /// What one of the two NATs does has become known: a round that cannot work need not run to its end, nor its pause.
    pub(super) fn reconsider(&mut self, now: Instant, index: PeerIndex) {
        let planned = self
            .prospects(index)
            .is_some_and(|prospects| !prospects.plain && !prospects.plans.is_empty());
        let politeness = self.politeness(index);
        let Some(peer) = self.peer_mut(index).filter(|_| planned) else {
            return;
        };
        match &mut peer.punching.running {
            Some(punch) => punch.give_up_hope(),
            None if peer.punching.failed > 0 && !peer.punching.plan_due => {
                peer.punching.plan_due = true;
                peer.punching.next = Some(now + politeness);
            }
            None => {}
        }
        self.arm(now, index, None);
    }

    /// A plain round ended without a path: try what may work, or wait.
    fn punch_failed(&mut self, now: Instant, index: PeerIndex) {
        let extra = self.politeness(index);
        let unknown = |profile: Option<NatProfile>| {
            profile.is_none_or(|profile| profile.mapping == Mapping::Unknown)
        };
        let blurred = unknown(Some(self.nat_profile()));
        let prospects = self.prospects(index);
        let shared = self.own_public_ip().filter(|_| self.shares_nat(index));
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        peer.punching.running = None;
        let opened = peer.paths.has_usable_direct(now);
        if opened {
            peer.punching.next = None;
        }
        self.traversal.ended(Strategy::Plain, opened);
        if let Some(public) = shared.filter(|_| !opened) {
            self.hairpins.failed(public);
        }
        let Some(peer) = self.peer_mut(index).filter(|_| !opened) else {
            return;
        };
        let pause = retry_after(peer.punching.failed);
        peer.punching.failed = peer.punching.failed.saturating_add(1);
        let sure = !blurred && !unknown(peer.punching.profile);
        let due = prospects.is_some_and(|prospects| {
            let expected = prospects.plain && sure;
            let failed = peer.punching.failed;
            !prospects.plans.is_empty() && (!expected || failed >= POISONED_AFTER)
        });
        peer.punching.plan_due = due;
        peer.punching.next = Some(now + extra + if due { Duration::ZERO } else { pause });
    }

    /// The answer to a probe arrived.
    pub(super) fn probe_answered(
        &mut self,
        now: Instant,
        arrival: PathKey,
        index: PeerIndex,
        transaction: u64,
    ) {
        let direct = matches!(arrival, PathKey::Direct(..));
        if direct && self.shot_answered(now, index, transaction) {
            return;
        }
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        let proven = peer.paths.probe_answered(arrival, transaction, now);
        if let Some(PathKey::Direct(_, remote)) = proven {
            peer.punching.record.answered(now, remote);
            if self.shares_nat(index) && self.own_public_ip() == Some(remote.ip()) {
                self.hairpins.worked(remote.ip());
            }
        }
    }
}
