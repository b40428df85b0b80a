//! How often idle paths are used so that the NAT before this host keeps their mappings: measured once a day for each
//! gateway and public address, see [`crate::nat::lifetime`].

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::spares::Owner;
use super::{Engine, Event, SocketAction, SocketId};
use crate::limits;
use crate::nat::Filtering;
use crate::nat::lifetime::{Lifetime, Measurement, STEPS};
use crate::nat::profile::StunServer;
use crate::time::Instant;
use crate::wire::stun::TransactionId;

/// How long what was measured holds: routers are replaced and reconfigured seldom.
const VALID: Duration = Duration::from_secs(24 * 3600);
/// How long after the NAT was surveyed: four mappings more are not to come between others that are counted, nor between
/// the attempts to reach the first peers.
const LATER: Duration = Duration::from_secs(60);
/// When a measurement that came to nothing is made again: a relay may have restarted in the middle.
const AGAIN: Duration = Duration::from_secs(3600);

/// Where we are: the router that we leave by, and our address as relays see it.
type Place = (Option<IpAddr>, IpAddr);

/// What was measured, and what is under way.
#[derive(Debug, Default)]
pub(super) struct Lifetimes {
    /// The newest last; at most [`limits::LIFETIMES`].
    known: Vec<(Place, Instant, Option<Lifetime>)>,
    pub(super) gateway: Option<IpAddr>,
    /// When a measurement is to begin.
    due: Option<Instant>,
    running: Option<(Place, Measurement)>,
    /// What holds where we are now.
    here: Option<Lifetime>,
}

impl Lifetimes {
    fn find(&self, place: Place, now: Instant) -> Option<Option<Lifetime>> {
        let (_, at, found) = self.known.iter().find(|(known, ..)| *known == place)?;
        let valid = if found.is_some() { VALID } else { AGAIN };
        (now.since(*at) < valid).then_some(*found)
    }

    fn note(&mut self, place: Place, now: Instant, found: Option<Lifetime>) {
        self.known.retain(|(known, ..)| *known != place);
        if self.known.len() >= limits::LIFETIMES {
            self.known.remove(0);
        }
        self.known.push((place, now, found));
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.running {
            Some((_, measurement)) => measurement.deadline(),
            None => self.due,
        }
    }

    /// What is known of the NAT before us.
    pub(super) fn here(&self) -> Option<Lifetime> {
        self.here
    }
}

impl Engine {
    /// It was found out how the NAT before us behaves: what its mappings live is known, or is found out later.
    pub(super) fn learn_lifetime(&mut self, now: Instant) {
        // Whoever lets in what nobody has asked for has nothing to forget.
        let findings = self.prober.findings();
        let open = findings.profile.filtering == Filtering::EndpointIndependent;
        if self.lifetimes.running.is_some() || findings.translated == Some(false) && open {
            return;
        }
        let known = self.lifetime_server();
        match known.map(|(place, ..)| self.lifetimes.find(place, now)) {
            Some(Some(found)) => self.apply_lifetime(now, found),
            Some(None) => _ = self.lifetimes.due.get_or_insert(now + LATER),
            None => {}
        }
    }

    /// Where we are, and who measures it there, with its round trip time.
    fn lifetime_server(&self) -> Option<(Place, StunServer, Duration)> {
        let (server, rtt) = self.prober.lifetime_server()?;
        let place = (self.lifetimes.gateway, server.observed?);
        Some((place, server, rtt))
    }

    fn measure_lifetime(&mut self, now: Instant) {
        let Some((place, server, rtt)) = self.lifetime_server() else {
            return;
        };
        let sockets = self.open_spares(Owner::Lifetime, SocketAction::Open, STEPS.len());
        if sockets.is_empty() {
            return;
        }
        let measurement = Measurement::new(now, server, rtt, sockets, &mut self.rng);
        self.lifetimes.running = measurement.map(|measurement| (place, measurement));
    }

    pub(super) fn service_lifetime(&mut self, now: Instant) {
        if self.lifetimes.due.take_if(|due| *due <= now).is_some() {
            match self.attempt {
                Some(_) => self.lifetimes.due = Some(now + LATER),
                None => self.measure_lifetime(now),
            }
        }
        let Some((place, measurement)) = &mut self.lifetimes.running else {
            return;
        };
        let place = *place;
        let requests = measurement.poll(now, &mut self.rng);
        let outcome = measurement.outcome();
        self.send_requests(now, requests);
        if let Some(found) = outcome {
            self.abandon_lifetime();
            self.lifetimes.note(place, now, found);
            if let Some(found) = found {
                self.emit(Event::MappingLifetime {
                    at_least: found.at_least(),
                    keepalive: found.keepalive(),
                });
            }
            self.apply_lifetime(now, found);
        }
    }

    pub(super) fn lifetime_opened(&mut self, now: Instant, socket: SocketId, port: Option<u16>) {
        if let Some(measurement) = self.measurement_of_lifetime() {
            measurement.opened(socket, port);
        }
        self.service_lifetime(now);
    }

    /// `true` if it answers a request of the measurement.
    pub(super) fn lifetime_measured(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        txn: &TransactionId,
        mapped: SocketAddr,
    ) -> bool {
        let answered = self
            .measurement_of_lifetime()
            .is_some_and(|measurement| measurement.handle_response(now, socket, from, txn, mapped));
        if answered {
            self.service_lifetime(now);
        }
        answered
    }

    pub(super) fn measurement_of_lifetime(&mut self) -> Option<&mut Measurement> {
        let (_, measurement) = self.lifetimes.running.as_mut()?;
        Some(measurement)
    }

    /// The network changed: what was found out holds elsewhere.
    pub(super) fn forget_lifetime(&mut self, now: Instant) {
        self.lifetimes.due = None;
        self.abandon_lifetime();
        self.apply_lifetime(now, None);
    }

    fn abandon_lifetime(&mut self) {
        let sockets: Vec<SocketId> = match self.lifetimes.running.take() {
            Some((_, measurement)) => measurement.sockets().collect(),
            None => return,
        };
        for socket in sockets {
            self.close_spare(socket);
        }
    }

    fn apply_lifetime(&mut self, now: Instant, found: Option<Lifetime>) {
        if self.lifetimes.here == found {
            return;
        }
        self.lifetimes.here = found;
        for (_, peer) in &mut self.peers {
            peer.paths.set_lifetime(found);
        }
        for relay in self.relays.values_mut() {
            relay.set_keepalive(now, found.map(Lifetime::keepalive));
        }
    }
}
