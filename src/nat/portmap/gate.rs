//! One mapping at one router.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::epoch::Epoch;
use super::upnp::{self, Upnp};
use super::{Actions, Gateway, PortMapAction, PortMapProtocol};
use crate::time::Instant;
use crate::wire::{natpmp, pcp};

/// How long a mapping is asked for, in seconds; RFC 6886 recommends this.
pub(super) const LEASE: u32 = 7_200;
/// Longer ones are not believed (RFC 6887, section 15).
const MAX_LEASE: Duration = Duration::from_secs(86_400);
/// Whatever a router says, it is not asked more often than this.
const MIN_RENEWAL: Duration = Duration::from_secs(30);
/// When a request goes out, counted from the first time (RFC 6886, section 3.1, with fewer repetitions: a router that
/// has not answered in a second does not speak the protocol).
const TRANSMISSIONS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_millis(750),
];
/// How long an answer to any of them is waited for.
const PATIENCE: Duration = Duration::from_millis(1_750);
/// The same for the end of a mapping: meshd's own end waits for it.
const LAST_TRANSMISSIONS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(150)];
const LAST_PATIENCE: Duration = Duration::from_millis(400);
/// PCP may answer this long before NAT-PMP is chosen.
const PCP_FIRST: Duration = TRANSMISSIONS[1];
/// PCP and NAT-PMP may answer this long before UPnP is chosen.
const UDP_FIRST: Duration = TRANSMISSIONS[2];
/// When the search for protocols is over.
const SEARCH: Duration = Duration::from_secs(6);
/// When a router that offered nothing, or refused, is asked again.
const RETRY: Duration = Duration::from_secs(600);
/// A router whose clock jumps with every answer is asked no more often than this.
const RECOVERY: Duration = Duration::from_secs(5);

/// What a router has granted.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    protocol: PortMapProtocol,
    external: SocketAddr,
    expires: Instant,
}

#[derive(Debug, Clone)]
enum Phase {
    /// Not wanted.
    Off,
    /// Looking for protocols.
    Searching { sent: usize },
    /// Asking for a mapping, or for more time of the one that there is.
    Asking {
        protocol: PortMapProtocol,
        started: Instant,
        sent: usize,
    },
    /// Nothing to do until then.
    Resting { until: Instant },
    /// Giving back.
    Releasing {
        started: Instant,
        sent: usize,
        pending: BTreeSet<PortMapProtocol>,
    },
}

/// How long a protocol may take for a mapping.
fn patience(protocol: PortMapProtocol) -> Duration {
    match protocol {
        PortMapProtocol::Upnp => upnp::PATIENCE,
        PortMapProtocol::Pcp | PortMapProtocol::NatPmp => PATIENCE,
    }
}

/// See the module.
pub(super) struct Gate {
    pub(super) gateway: Gateway,
    pub(super) port: u16,
    nonce: pcp::Nonce,
    phase: Phase,
    search_started: Instant,
    offers: BTreeSet<PortMapProtocol>,
    /// Tried in vain since the search began.
    failed: BTreeSet<PortMapProtocol>,
    mapping: Option<Mapping>,
    /// Where there may be a mapping of ours, granted or only asked for.
    asked: BTreeSet<PortMapProtocol>,
    pcp_epoch: Option<Epoch>,
    natpmp_epoch: Option<Epoch>,
    last_recovery: Option<Instant>,
    /// NAT-PMP tells address and port in two answers.
    natpmp_address: Option<Ipv4Addr>,
    natpmp_port: Option<(u16, u32)>,
    pub(super) upnp: Upnp,
}

impl Gate {
    pub(super) fn new(gateway: Gateway, port: u16, nonce: pcp::Nonce) -> Self {
        Self {
            gateway,
            port,
            nonce,
            phase: Phase::Off,
            search_started: Instant::default(),
            offers: BTreeSet::new(),
            failed: BTreeSet::new(),
            mapping: None,
            asked: BTreeSet::new(),
            pcp_epoch: None,
            natpmp_epoch: None,
            last_recovery: None,
            natpmp_address: None,
            natpmp_port: None,
            upnp: Upnp::new(nonce.first_chunk().map_or(0, |id| u64::from_be_bytes(*id))),
        }
    }

    pub(super) fn is(&self, gateway: &Gateway, port: u16) -> bool {
        self.gateway == *gateway && self.port == port
    }

    pub(super) fn is_ipv4(&self) -> bool {
        self.gateway.address.is_ipv4()
    }

    pub(super) fn offers(&self) -> &BTreeSet<PortMapProtocol> {
        &self.offers
    }

    pub(super) fn mapped(&self) -> Option<SocketAddr> {
        self.mapping.map(|mapping| mapping.external)
    }

    pub(super) fn is_held(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Looks for protocols, and asks the best one for a mapping.
    pub(super) fn start(&mut self, now: Instant, out: &mut Actions) {
        self.search_started = now;
        self.offers.clear();
        self.failed.clear();
        self.upnp.reset();
        self.phase = Phase::Searching { sent: 0 };
        self.search(now, out);
    }

    pub(super) fn refresh(&mut self, now: Instant, out: &mut Actions) {
        if self.mapping.is_none() && matches!(self.phase, Phase::Resting { .. }) {
            self.start(now, out);
        }
    }

    /// Gives back what there is; true if that was a mapping.
    pub(super) fn release(&mut self, now: Instant, out: &mut Actions) -> bool {
        let mapped = self.mapping.take().is_some();
        self.phase = Phase::Releasing {
            started: now,
            sent: 0,
            pending: self.asked.clone(),
        };
        self.handle_timeout(now, out);
        mapped
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let after = |started: Instant, times: &[Duration], sent: usize, end: Duration| {
            started + times.get(sent).copied().unwrap_or(end)
        };
        match &self.phase {
            Phase::Off => None,
            Phase::Searching { sent } => {
                Some(after(self.search_started, &TRANSMISSIONS, *sent, SEARCH))
            }
            Phase::Asking {
                protocol,
                started,
                sent,
            } => Some(after(*started, &TRANSMISSIONS, *sent, patience(*protocol))),
            Phase::Resting { until } => Some(*until),
            Phase::Releasing { started, sent, .. } => {
                Some(after(*started, &LAST_TRANSMISSIONS, *sent, LAST_PATIENCE))
            }
        }
    }

    /// Does what is due; true if the mapping has changed.
    pub(super) fn handle_timeout(&mut self, now: Instant, out: &mut Actions) -> bool {
        match self.phase {
            Phase::Off => false,
            Phase::Searching { .. } => {
                self.search(now, out);
                false
            }
            Phase::Asking {
                protocol, started, ..
            } => {
                if now >= started + patience(protocol) {
                    return self.fail(now, protocol, true, out);
                }
                self.transmit(now, out);
                false
            }
            Phase::Resting { until } => now >= until && self.wake(now, out),
            Phase::Releasing { .. } => {
                self.give_back(now, out);
                false
            }
        }
    }

    fn send(&self, payload: Vec<u8>, out: &mut Actions) {
        out.push_back(PortMapAction::Exchange {
            from: self.gateway.local.addr(),
            to: self.gateway.at(pcp::PORT),
            payload,
        });
    }

    /// Nothing that is sent here changes anything at the router.
    fn search(&mut self, now: Instant, out: &mut Actions) {
        let Phase::Searching { mut sent } = self.phase else {
            return;
        };
        while TRANSMISSIONS
            .get(sent)
            .is_some_and(|at| now >= self.search_started + *at)
        {
            sent += 1;
            if !self.offers.contains(&PortMapProtocol::Pcp) {
                self.send(pcp::announce_request(self.gateway.local.addr()), out);
            }
            if self.is_ipv4() && !self.offers.contains(&PortMapProtocol::NatPmp) {
                self.send(natpmp::external_address_request(), out);
            }
            if !self.offers.contains(&PortMapProtocol::Upnp) {
                self.search_devices(out);
            }
        }
        self.phase = Phase::Searching { sent };
        self.choose(now, out);
        if matches!(self.phase, Phase::Searching { .. }) && now >= self.search_started + SEARCH {
            self.phase = Phase::Resting { until: now + RETRY };
        }
    }

    /// True if nothing new is wanted of the router.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Off | Phase::Releasing { .. })
    }

    /// The router speaks this protocol.
    pub(super) fn offer(&mut self, now: Instant, protocol: PortMapProtocol, out: &mut Actions) {
        self.offers.insert(protocol);
        self.choose(now, out);
    }

    /// Takes the best protocol that has answered, once better ones have had their time.
    fn choose(&mut self, now: Instant, out: &mut Actions) {
        if !matches!(self.phase, Phase::Searching { .. }) {
            return;
        }
        let waited = now.since(self.search_started);
        let ready = |protocol| match protocol {
            PortMapProtocol::Pcp => true,
            PortMapProtocol::NatPmp => {
                waited >= PCP_FIRST || self.failed.contains(&PortMapProtocol::Pcp)
            }
            PortMapProtocol::Upnp => waited >= UDP_FIRST,
        };
        let best = self
            .offers
            .iter()
            .copied()
            .find(|protocol| !self.failed.contains(protocol) && ready(*protocol));
        if let Some(protocol) = best {
            self.ask(now, protocol, out);
        }
    }

    fn ask(&mut self, now: Instant, protocol: PortMapProtocol, out: &mut Actions) {
        self.asked.insert(protocol);
        self.natpmp_port = None;
        self.phase = Phase::Asking {
            protocol,
            started: now,
            sent: 0,
        };
        self.transmit(now, out);
    }

    fn transmit(&mut self, now: Instant, out: &mut Actions) {
        let Phase::Asking {
            protocol,
            started,
            mut sent,
        } = self.phase
        else {
            return;
        };
        while TRANSMISSIONS
            .get(sent)
            .is_some_and(|at| now >= started + *at)
        {
            sent += 1;
            // The same place again, so that peers need not be told a new one. A firewall has no other; miniupnpd names none
            // by itself when it is asked a second time.
            let firewall = (!self.is_ipv4()).then(|| self.internal());
            let suggested = self.mapped().or(firewall);
            match protocol {
                PortMapProtocol::Pcp => {
                    self.send(
                        pcp::map_request(&self.nonce, self.internal(), suggested, LEASE),
                        out,
                    );
                }
                PortMapProtocol::NatPmp => {
                    self.send(natpmp::external_address_request(), out);
                    let external = suggested.map_or(self.port, |address| address.port());
                    self.send(natpmp::map_request(self.port, external, LEASE), out);
                }
                PortMapProtocol::Upnp => {
                    // TCP repeats what gets lost.
                    sent = TRANSMISSIONS.len();
                    self.ask_device(out);
                }
            }
        }
        self.phase = Phase::Asking {
            protocol,
            started,
            sent,
        };
    }

    pub(super) fn internal(&self) -> SocketAddr {
        SocketAddr::new(self.gateway.local.addr(), self.port)
    }

    /// Time for a renewal, or for another try; true if the mapping is over.
    fn wake(&mut self, now: Instant, out: &mut Actions) -> bool {
        match self.mapping {
            Some(mapping) if now < mapping.expires => {
                self.ask(now, mapping.protocol, out);
                false
            }
            mapping => {
                self.mapping = None;
                self.start(now, out);
                mapping.is_some()
            }
        }
    }

    /// The router did not answer, or refused; true if that is the end of a mapping.
    pub(super) fn fail(
        &mut self,
        now: Instant,
        protocol: PortMapProtocol,
        silent: bool,
        out: &mut Actions,
    ) -> bool {
        if let Some(mapping) = self.mapping
            && silent
        {
            // RFC 6887, section 11.2.1: again and again, as the end draws near.
            let pause = mapping.expires.since(now) / 2;
            let until = now + pause.max(MIN_RENEWAL);
            self.phase = Phase::Resting { until };
            return false;
        }
        self.failed.insert(protocol);
        self.phase = Phase::Searching {
            sent: TRANSMISSIONS.len(),
        };
        self.search(now, out);
        self.mapping.take().is_some()
    }

    /// The router has granted a mapping; true if it is another one than before.
    pub(super) fn granted(
        &mut self,
        now: Instant,
        protocol: PortMapProtocol,
        external: SocketAddr,
        lifetime: u32,
    ) -> bool {
        let lifetime = Duration::from_secs(lifetime.into()).min(MAX_LEASE);
        let before = self.mapped();
        self.mapping = Some(Mapping {
            protocol,
            external,
            expires: now + lifetime,
        });
        self.phase = Phase::Resting {
            until: now + (lifetime / 2).max(MIN_RENEWAL),
        };
        before != Some(external)
    }

    fn give_back(&mut self, now: Instant, out: &mut Actions) {
        let Phase::Releasing {
            started,
            mut sent,
            mut pending,
        } = std::mem::replace(&mut self.phase, Phase::Off)
        else {
            return;
        };
        while LAST_TRANSMISSIONS
            .get(sent)
            .is_some_and(|at| now >= started + *at)
        {
            pending.retain(|protocol| self.end(*protocol, sent, out));
            sent += 1;
        }
        if pending.is_empty() || now >= started + LAST_PATIENCE {
            self.asked.clear();
            return;
        }
        self.phase = Phase::Releasing {
            started,
            sent,
            pending,
        };
    }

    /// Asks the router to end a mapping, for the `sent`th time; false if there is nothing to ask it.
    fn end(&mut self, protocol: PortMapProtocol, sent: usize, out: &mut Actions) -> bool {
        match protocol {
            PortMapProtocol::Pcp => {
                self.send(pcp::map_request(&self.nonce, self.internal(), None, 0), out);
            }
            PortMapProtocol::NatPmp => self.send(natpmp::map_request(self.port, 0, 0), out),
            // TCP repeats what gets lost.
            PortMapProtocol::Upnp => return sent > 0 || self.delete_at_device(out),
        }
        true
    }

    pub(super) fn given_back(
        &mut self,
        now: Instant,
        protocol: PortMapProtocol,
        out: &mut Actions,
    ) {
        if let Phase::Releasing { pending, .. } = &mut self.phase {
            pending.remove(&protocol);
            self.give_back(now, out);
        }
    }

    pub(super) fn is_asking(&self, what: PortMapProtocol) -> bool {
        matches!(self.phase, Phase::Asking { protocol, .. } if protocol == what)
    }

    /// Takes an answer or an announcement, which counts only from the gateway's own address and port. True if the
    /// mapping has changed.
    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        payload: &[u8],
        out: &mut Actions,
    ) -> bool {
        if from.ip() != self.gateway.address || from.port() != pcp::PORT {
            self.device_found(from, payload, out);
            return false;
        }
        if let Ok(response) = pcp::Response::parse(payload) {
            return self.handle_pcp(now, response, out);
        }
        match natpmp::Response::parse(payload) {
            Ok(response) if self.is_ipv4() => self.handle_natpmp(now, response, out),
            _ => false,
        }
    }

    fn handle_pcp(&mut self, now: Instant, response: pcp::Response, out: &mut Actions) -> bool {
        let protocol = PortMapProtocol::Pcp;
        let ours = match response.kind {
            pcp::Kind::Announce => true,
            pcp::Kind::Map {
                nonce, internal, ..
            } => nonce == self.nonce && internal == self.port,
        };
        if !ours {
            return false;
        }
        let reset = Epoch::note(&mut self.pcp_epoch, now, response.epoch);
        // UNSUPP_VERSION, section 7.4: it speaks another PCP than we.
        let speaks = response.error != Some(pcp::ResultCode(1));
        if speaks && !self.is_over() {
            self.offers.insert(protocol);
        }
        let changed = match (response.kind, response.error) {
            (pcp::Kind::Map { external, .. }, None) if self.is_asking(protocol) => {
                let usable = external.is_ipv4() == self.is_ipv4()
                    && external.port() != 0
                    && response.lifetime > 0;
                if usable {
                    self.granted(now, protocol, external, response.lifetime)
                } else {
                    self.fail(now, protocol, false, out)
                }
            }
            (pcp::Kind::Map { .. }, Some(_)) if self.is_asking(protocol) => {
                self.fail(now, protocol, false, out)
            }
            // A refusal too: it is what a repeated request gets if the answer to the first one was lost.
            (pcp::Kind::Map { .. }, error) if response.lifetime == 0 || error.is_some() => {
                self.given_back(now, protocol, out);
                false
            }
            _ => false,
        };
        self.recover(now, reset, out);
        self.choose(now, out);
        changed
    }

    fn handle_natpmp(
        &mut self,
        now: Instant,
        response: natpmp::Response,
        out: &mut Actions,
    ) -> bool {
        let protocol = PortMapProtocol::NatPmp;
        let answer = match response.result {
            Ok(answer) => answer,
            // "Unsupported version" may be the answer to PCP.
            Err(natpmp::ResultCode(1)) => return false,
            Err(_) if self.is_asking(protocol) => {
                return self.fail(now, protocol, false, out);
            }
            Err(_) => {
                self.given_back(now, protocol, out);
                return false;
            }
        };
        if let natpmp::Answer::Mapped { internal, .. } = answer
            && internal != self.port
        {
            return false;
        }
        let reset = Epoch::note(&mut self.natpmp_epoch, now, response.epoch);
        if !self.is_over() {
            self.offers.insert(protocol);
        }
        let mut changed = false;
        match answer {
            natpmp::Answer::ExternalAddress(address) => {
                self.natpmp_address = Some(address);
                changed = self.moved(address);
            }
            natpmp::Answer::Mapped { lifetime: 0, .. } => self.given_back(now, protocol, out),
            natpmp::Answer::Mapped {
                external, lifetime, ..
            } => self.natpmp_port = (external != 0).then_some((external, lifetime)),
        }
        if self.is_asking(protocol)
            && let (Some(address), Some((port, lifetime))) = (self.natpmp_address, self.natpmp_port)
        {
            let external = SocketAddr::new(IpAddr::V4(address), port);
            changed |= self.granted(now, protocol, external, lifetime);
        }
        self.recover(now, reset, out);
        self.choose(now, out);
        changed
    }

    /// The router has told its external address; true if it is a new one for what it has granted by NAT-PMP.
    fn moved(&mut self, address: Ipv4Addr) -> bool {
        match &mut self.mapping {
            Some(mapping)
                if mapping.protocol == PortMapProtocol::NatPmp
                    && mapping.external.ip() != IpAddr::V4(address) =>
            {
                mapping.external.set_ip(address.into());
                true
            }
            _ => false,
        }
    }

    /// The router has restarted: what it had granted is gone, by whatever protocol that was.
    fn recover(&mut self, now: Instant, reset: bool, out: &mut Actions) {
        let Some(mapping) = self.mapping.filter(|_| reset) else {
            return;
        };
        let often = self
            .last_recovery
            .is_some_and(|last| now.since(last) < RECOVERY);
        if matches!(self.phase, Phase::Resting { .. }) && !often {
            self.last_recovery = Some(now);
            self.ask(now, mapping.protocol, out);
        }
    }
}
