//! An attempt to get through hard NATs, until both sides begin to send: sockets, the port that is foretold, and the call.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::CALL_TIMEOUT;
use super::attempt::{ASK_AGAIN, Attempt, Sample, Stage};
use crate::engine::spares::Owner;
use crate::engine::{Engine, Output, PeerIndex, SocketAction, SocketId};
use crate::limits;
use crate::nat::punch::retry_after;
use crate::nat::salvo::{self, Salvo};
use crate::nat::strategy::{Kit, Plan};
use crate::nat::{Pooling, predicted};
use crate::time::Instant;
use crate::wire::control::CallMe;
use crate::wire::stun::{self, TransactionId};

/// How long sockets may take to be opened and measured.
const PREPARATION: Duration = Duration::from_millis(900);
/// Steps from the last port that we saw to the one that we foretell: the middle of our row if others take none, less what
/// the row can lose to others.
const STEPS_AHEAD: u16 = 20;
/// Ports that others may have taken meanwhile, at most, as far as we believe our own measurement.
const MOST_FOREIGN: f64 = 200.0;
/// Another attempt is under way: this one is put off.
const BUSY_PAUSE: Duration = Duration::from_secs(2);

/// Which sockets a plan wants measured: its own only one, or one beside them.
fn sampled(plan: Plan) -> Option<bool> {
    match plan {
        Plan::Meet(Kit::Measured)
        | Plan::Search {
            announced: true, ..
        } => Some(true),
        Plan::Meet(Kit::Row { .. }) => Some(false),
        _ => None,
    }
}

impl Engine {
    pub(super) fn is_attempting(&self, index: PeerIndex) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_some_and(|attempt| attempt.peer == index)
    }

    pub(super) fn awaits_answer(&self, index: PeerIndex, round: u32) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_some_and(|attempt| {
            let called = matches!(attempt.stage, Stage::Called) && attempt.answering.is_none();
            called && attempt.peer == index && attempt.round == round
        })
    }

    /// Our next plan for the peer is due.
    pub(super) fn call_with_plan(&mut self, now: Instant, index: PeerIndex) {
        let busy = self.attempt.is_some();
        let plans = self.prospects(index).map_or(0, |found| found.plans.len());
        let jitter = BUSY_PAUSE.mul_f64(0.5 + self.rng.fraction());
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        if busy {
            peer.punching.next = Some(now + jitter);
            return;
        }
        let plan = usize::from(peer.punching.plan) % plans.max(1);
        let plan = u8::try_from(plan).unwrap_or(0);
        peer.punching.round = peer.punching.round.wrapping_add(1);
        let round = peer.punching.round;
        if !self.prepare(now, index, plan, round, None) {
            self.put_off_plans(now, index);
        }
    }

    /// The peer wants to try a plan: do the same, or decline.
    pub(super) fn called_with_plan(
        &mut self,
        now: Instant,
        index: PeerIndex,
        call: &CallMe,
        plan: u8,
    ) {
        let measured = Duration::from_millis(u64::from(call.rtt));
        let rtt = self.rtt_to(index).unwrap_or(measured);
        let polite = self.is_polite(index);
        // Both called at once: the polite side gives way.
        let gives_way = self.attempt.as_ref().is_some_and(|attempt| {
            let begun = matches!(attempt.stage, Stage::Running(_)) || attempt.answering.is_some();
            attempt.peer == index && !begun && polite
        });
        if gives_way {
            self.leave_attempt(now, index);
        }
        let wanted = self
            .peer(index)
            .is_some_and(|peer| !peer.paths.has_usable_direct(now));
        let prepared = wanted && self.prepare(now, index, plan, call.round, Some(rtt));
        if !prepared {
            self.send_call(now, index, call.round, true, None);
            if gives_way {
                self.put_off_plans(now, index);
            }
            return;
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.aim_at(call.port);
        }
        self.continue_preparing(now);
    }

    /// The peer answers our call with a plan.
    pub(super) fn attempt_answered(&mut self, now: Instant, index: PeerIndex, call: &CallMe) {
        let agreed = self.attempt.as_ref().is_some_and(|attempt| {
            // The answer's profile may be news, and the plan another one by it.
            call.plan == Some(attempt.index)
                && self.plan(index, attempt.index) == Some(attempt.plan)
        });
        if !agreed {
            self.leave_attempt(now, index);
            self.put_off_plans(now, index);
            return;
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.aim_at(call.port);
        }
        self.begin_attempt(now, now);
    }

    /// No plan can be tried now: wait as after any failed round.
    pub(super) fn put_off_plans(&mut self, now: Instant, index: PeerIndex) {
        let extra = self.politeness(index);
        if let Some(peer) = self.peer_mut(index) {
            peer.punching.plan_due = false;
            peer.punching.plan = peer.punching.plan.wrapping_add(1);
            let pause = retry_after(peer.punching.failed.saturating_sub(1));
            peer.punching.next = Some(now + pause + extra);
        }
    }

    fn plan(&self, index: PeerIndex, plan: u8) -> Option<Plan> {
        let prospects = self.prospects(index)?;
        prospects.plans.get(usize::from(plan)).copied()
    }

    /// Opens the sockets of a plan. `false` if it may not, or cannot, be tried now.
    fn prepare(
        &mut self,
        now: Instant,
        index: PeerIndex,
        number: u8,
        round: u32,
        answering: Option<Duration>,
    ) -> bool {
        let plan = self.plan(index, number);
        let peer = self.peer(index);
        // Only where a relay itself has seen the peer: an address that a peer names may be anybody's.
        let target = peer.and_then(|peer| Some((peer.punching.observed?, peer.key.to_wireguard())));
        let (Some(plan), Some((target, key)), Some(own)) = (plan, target, self.own_public_ip())
        else {
            return false;
        };
        let acceptable = target.is_ipv4() && self.may_send_to(target) && target.ip() != own;
        if self.attempt.is_some() || !acceptable || !self.ledger.allows(now, &key, own, target.ip())
        {
            return false;
        }
        let relay = self.prober.nearest();
        let pooled = self.nat_profile().pooling == Pooling::Arbitrary;
        let own_sample = sampled(plan) == Some(true);
        let count = match salvo::sockets(plan) {
            1 if own_sample && pooled => limits::POOL_SOCKETS,
            count => count,
        };
        let beside = usize::from(sampled(plan) == Some(false));
        if sampled(plan).is_some() && relay.is_none() {
            return false;
        }
        let mut sockets = self.open_spares(Owner::Attempt, SocketAction::Open, count + beside);
        if sockets.is_empty() {
            return false;
        }
        let asking = if own_sample { count } else { beside };
        let sample = |(socket, relay): (&SocketId, SocketAddr)| Sample {
            socket: *socket,
            relay,
            id: self.rng.bytes(),
            asked: None,
            done: false,
        };
        let relay = relay
            .into_iter()
            .flat_map(|(relay, _)| std::iter::repeat(relay));
        let samples = sockets[..asking].iter().zip(relay).map(sample).collect();
        let mut others = self.other_addresses(index, plan, target);
        others.retain(|ip| self.ledger.allows(now, &key, own, *ip));
        let unopened = sockets.len();
        sockets.drain(..beside);
        if let Some(peer) = self.peer_mut(index) {
            // An answer to an earlier call comes too late now. A plain round that runs goes on beside.
            peer.punching.called = None;
        }
        self.attempt = Some(Box::new(Attempt {
            peer: index,
            index: number,
            plan,
            round,
            answering,
            began: now,
            until: now + PREPARATION,
            stage: Stage::Preparing,
            sockets,
            unopened,
            samples,
            port: None,
            own,
            target,
            others,
            shots: Vec::new(),
            mappings: 0,
            answered: None,
            winner: None,
            icmp_errors: 0,
        }));
        true
    }

    /// Where else relays see the peer, if its NAT has several addresses and its ports are to be searched.
    fn other_addresses(&self, index: PeerIndex, plan: Plan, target: SocketAddr) -> Vec<IpAddr> {
        let Some(peer) = self.peer(index) else {
            return Vec::new();
        };
        let profile = peer.punching.profile.unwrap_or_default();
        if !matches!(plan, Plan::Search { .. }) || profile.pooling != Pooling::Arbitrary {
            return Vec::new();
        }
        let seen = peer.punching.seen.values().copied();
        let mut others: Vec<IpAddr> = seen
            .filter(|seen| seen.is_ipv4() && self.may_send_to(*seen))
            .map(|seen| seen.ip())
            .filter(|ip| *ip != target.ip())
            .collect();
        others.sort();
        others.dedup();
        others.truncate(limits::SEARCHED_ADDRESSES - 1);
        others
    }

    /// A socket of the attempt has its port, or there is none for it.
    pub(in crate::engine) fn attempt_opened(
        &mut self,
        now: Instant,
        socket: SocketId,
        port: Option<u16>,
    ) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        attempt.unopened = attempt.unopened.saturating_sub(1);
        match port {
            None => attempt.sockets.retain(|other| *other != socket),
            Some(_) if matches!(attempt.plan, Plan::Meet(Kit::Virgin)) => attempt.port = port,
            Some(_) => {}
        }
        if attempt.unopened == 0 {
            self.continue_preparing(now);
        }
    }

    /// A STUN response on a spare socket; `true` if it tells the attempt its external port.
    pub(in crate::engine) fn attempt_measured(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: &TransactionId,
        mapped: SocketAddr,
    ) -> bool {
        let foreign = self.prober.findings().foreign;
        let relay = self.prober.nearest().map_or(Duration::ZERO, |(_, rtt)| rtt);
        let caller = self.attempt.as_ref().map(|attempt| attempt.peer);
        let rtt = caller.and_then(|index| self.rtt_to(index)).unwrap_or(relay);
        let Some(attempt) = &mut self.attempt else {
            return false;
        };
        let asked = |sample: &&mut Sample| sample.id == *id && sample.relay == from && !sample.done;
        let Some(sample) = attempt.samples.iter_mut().find(asked) else {
            return false;
        };
        sample.done = true;
        let socket = sample.socket;
        if attempt.samples.len() > 1 {
            // The peer sends to, or lets in, the address that relays see the mesh socket at.
            if mapped.ip() != attempt.own || attempt.port.is_some() {
                self.continue_preparing(now);
                return true;
            }
            self.keep_only(socket);
        }
        let Some(attempt) = &mut self.attempt else {
            return true;
        };
        attempt.port = Some(match attempt.plan {
            Plan::Meet(Kit::Row { delta }) => {
                // Until our row is opened: the answer's way there, or the call's there and back, with the peer's own sample.
                let wait = attempt.answering.map_or(rtt + relay, |rtt| rtt / 2);
                let taken = (foreign * wait.as_secs_f64()).clamp(0.0, MOST_FOREIGN);
                predicted(mapped.port(), delta, STEPS_AHEAD + taken.round() as u16)
            }
            _ => mapped.port(),
        });
        self.continue_preparing(now);
        true
    }

    /// The attempt goes on with this one of its sockets.
    fn keep_only(&mut self, socket: SocketId) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        attempt.samples.retain(|sample| sample.socket == socket);
        let (kept, closed): (Vec<_>, Vec<_>) =
            attempt.sockets.iter().partition(|own| **own == socket);
        attempt.sockets = kept;
        for socket in closed {
            self.close_spare(socket);
        }
    }

    /// Asks for our external port, and calls or answers the peer when all is there.
    pub(super) fn continue_preparing(&mut self, now: Instant) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let index = attempt.peer;
        if !matches!(attempt.stage, Stage::Preparing) || attempt.unopened > 0 {
            return;
        }
        let waiting = attempt.samples.iter_mut().filter(|sample| !sample.done);
        let waiting: Vec<&mut Sample> = waiting.collect();
        let measured = attempt.port.is_some() || sampled(attempt.plan).is_none();
        if attempt.sockets.is_empty() || waiting.is_empty() && !measured {
            self.fail_preparation(now);
            return;
        }
        if !measured {
            for sample in waiting {
                if sample.asked.is_none_or(|at| now.since(at) >= ASK_AGAIN) {
                    sample.asked = Some(now);
                    self.outputs.push_back(Output::Datagram {
                        socket: sample.socket,
                        remote: sample.relay,
                        ttl: None,
                        payload: stun::binding_request(&sample.id, stun::Change::Nothing),
                    });
                }
            }
            self.arm(now, index, None);
            return;
        }
        let plan = Some((attempt.index, attempt.port));
        let (round, answering) = (attempt.round, attempt.answering);
        attempt.stage = Stage::Called;
        attempt.until = now + CALL_TIMEOUT;
        if !self.send_call(now, index, round, answering.is_some(), plan) {
            self.fail_preparation(now);
            return;
        }
        match answering {
            Some(rtt) => self.begin_attempt(now, now + rtt / 2),
            None => self.arm(now, index, None),
        }
    }

    /// Sockets, relay or peer did not answer in time.
    pub(super) fn fail_preparation(&mut self, now: Instant) {
        let Some(attempt) = &self.attempt else { return };
        let (index, round) = (attempt.peer, attempt.round);
        let declined = attempt.answering.is_some();
        self.leave_attempt(now, index);
        if declined {
            self.send_call(now, index, round, true, None);
        }
        self.put_off_plans(now, index);
        self.arm(now, index, None);
    }

    /// Both sides are ready: sending begins at `start`.
    fn begin_attempt(&mut self, now: Instant, start: Instant) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let samples = std::mem::take(&mut attempt.samples);
        let (count, addresses) = (attempt.sockets.len(), attempt.others.len() + 1);
        let salvo = Salvo::new(start, attempt.plan, count, addresses, &mut self.rng);
        attempt.stage = Stage::Running(salvo);
        attempt.began = now;
        let (index, own, target) = (attempt.peer, attempt.own, attempt.target);
        let others = attempt.others.clone();
        let sockets = attempt.sockets.clone();
        let spray = attempt.is_spray();
        for sample in samples {
            if !sockets.contains(&sample.socket) {
                self.close_spare(sample.socket);
            }
        }
        self.traversal.attempts += 1;
        let Some(key) = self.peer(index).map(|peer| peer.key.to_wireguard()) else {
            return;
        };
        if spray {
            for ip in std::iter::once(target.ip()).chain(others) {
                self.ledger.note(now, key, own, ip);
            }
        }
        self.arm(now, index, None);
    }

    /// Ends the attempt: what did not win is closed.
    pub(super) fn end_attempt(&mut self, now: Instant) {
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        let index = attempt.peer;
        for socket in &attempt.sockets {
            self.spares.give(*socket, Owner::Peer(index));
        }
        let opened = attempt.answered.is_some();
        self.traversal.opened += u64::from(opened);
        self.traversal.ended(attempt.strategy(), opened);
        let row = attempt.sockets.len() > 1;
        let tried = attempt.tried(Some(now), |socket| self.local_port(socket, true));
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        let key = peer.key.to_wireguard();
        peer.punching.record.push(tried);
        peer.punching.mappings += u64::from(attempt.mappings);
        if peer.paths.has_usable_direct(now) {
            peer.punching.plan_due = false;
            peer.punching.next = None;
        } else {
            self.put_off_plans(now, index);
            if row && !attempt.is_spray() {
                // As many mappings as that, for nothing: not too often.
                let (own, target) = (attempt.own, attempt.target.ip());
                self.ledger.note(now, key, own, target);
            }
        }
        self.service_spares(now, index);
    }

    /// Ends an attempt that has become pointless. What it has won nevertheless stays: data may be on its way there.
    pub(super) fn leave_attempt(&mut self, now: Instant, index: PeerIndex) {
        let Some(mut attempt) = self.attempt.take_if(|attempt| attempt.peer == index) else {
            return;
        };
        for socket in &attempt.sockets {
            self.spares.give(*socket, Owner::Peer(index));
        }
        for sample in std::mem::take(&mut attempt.samples) {
            if !attempt.sockets.contains(&sample.socket) {
                self.close_spare(sample.socket);
            }
        }
        let tried = attempt.tried(Some(now), |socket| self.local_port(socket, true));
        if let Some(peer) = self.peer_mut(index)
            && tried.probes > 0
        {
            peer.punching.record.push(tried);
        }
        self.service_spares(now, index);
    }

    /// Ends the attempt for a peer that is no more.
    pub(in crate::engine) fn forget_attempt(&mut self, index: PeerIndex) {
        let Some(attempt) = self.attempt.take_if(|attempt| attempt.peer == index) else {
            return;
        };
        if let Some(peer) = self.peer_mut(index) {
            peer.punching.mappings += u64::from(attempt.mappings);
        }
        let samples = attempt.samples.iter().map(|sample| sample.socket);
        let sockets: Vec<SocketId> = attempt.sockets.iter().copied().chain(samples).collect();
        for socket in sockets {
            self.close_spare(socket);
        }
    }

    /// The network changed: ports that were foretold are others now.
    pub(in crate::engine) fn abandon_attempt(&mut self, now: Instant) {
        if let Some(attempt) = &self.attempt {
            let index = attempt.peer;
            self.leave_attempt(now, index);
            self.arm(now, index, None);
        }
    }
}

const _: () = assert!(limits::SPRAY_SOCKETS + limits::ROW_SOCKETS < limits::SPARE_SOCKETS / 2);
