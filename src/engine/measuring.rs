//! What is found out about the network around us: STUN to the relays, and the survey of the NAT.

use std::net::SocketAddr;

use super::spares::Owner;
use super::{Engine, NetworkIndex, Output, SocketAction, SocketId};
use crate::nat::NatProfile;
use crate::nat::profile::{Plan, Progress, StunServer};
use crate::nat::survey::{self, Request, Survey};
use crate::relay::client::RelayClient;
use crate::time::Instant;
use crate::wire::relay::ClientMessage;
use crate::wire::stun;

impl Engine {
    pub(super) fn service_prober(&mut self, now: Instant) {
        if self.relays.is_empty() {
            self.answer_netchecks();
            return;
        }
        let relays = self.relays.values();
        let (requests, progress) = self
            .prober
            .handle_timeout(now, &mut self.rng, || stun_servers(relays));
        self.send_requests(now, requests);
        match progress {
            Progress::Nothing => return,
            Progress::Round => {
                let networks: Vec<NetworkIndex> = self.networks.keys().copied().collect();
                for network in networks {
                    self.choose_home(network);
                }
                self.begin_surveys(now);
            }
            Progress::Survey => self.end_surveys(now),
        }
        if !self.prober.is_busy(now) {
            self.answer_netchecks();
        }
    }

    fn answer_netchecks(&mut self) {
        while let Some((network, token)) = self.netchecks.pop_front() {
            self.report_netcheck(network, token);
        }
    }

    pub(super) fn send_requests(&mut self, now: Instant, requests: Vec<Request>) {
        for request in requests {
            match request {
                Request::Datagram {
                    socket,
                    remote,
                    payload,
                } => self.outputs.push_back(Output::Datagram {
                    socket,
                    remote,
                    ttl: None,
                    payload,
                }),
                Request::Knock { relay, port, txn } => {
                    self.tell_relay(now, relay, ClientMessage::Knock { port, txn });
                }
                Request::Ping { relay, nonce } => {
                    self.tell_relay(now, relay, ClientMessage::Ping { nonce });
                }
            }
        }
    }

    fn begin_surveys(&mut self, now: Instant) {
        for plan in self.prober.survey_plans(now) {
            let Plan {
                server,
                rtt,
                others,
            } = plan;
            let (action, count) = if server.main.is_ipv6() {
                (SocketAction::OpenV6, survey::FEW_SOCKETS)
            } else {
                (SocketAction::Open, survey::SOCKETS)
            };
            let sockets = self.open_spares(Owner::Survey, action, count);
            if !sockets.is_empty() {
                let survey = Survey::new(now, server, others, rtt, sockets);
                self.prober.begin_survey(survey);
            }
        }
    }

    fn end_surveys(&mut self, now: Instant) {
        let (host, prober) = (&self.host, &mut self.prober);
        let own = |address: SocketAddr| host.iter().any(|own| own.ip == address.ip());
        for socket in prober.end_surveys(own) {
            self.close_spare(socket);
        }
        self.learn_lifetime(now);
        self.update_offer(now);
    }

    pub(super) fn reset_prober(&mut self, now: Instant) {
        for socket in self.prober.reset(now) {
            self.close_spare(socket);
        }
    }

    pub(super) fn survey_opened(&mut self, now: Instant, socket: SocketId, port: Option<u16>) {
        for survey in self.prober.surveys_mut() {
            survey.opened(socket, port);
        }
        self.service_prober(now);
    }

    /// A relay has answered a ping; what it was asked before that, it has done.
    pub(super) fn relay_answered(&mut self, now: Instant, nonce: u64) {
        for survey in self.prober.surveys_mut() {
            survey.handle_pong(nonce);
        }
        if let Some(measurement) = self.measurement_of_lifetime() {
            measurement.handle_pong(now, nonce);
        }
        self.service_prober(now);
        self.service_lifetime(now);
    }

    /// A STUN message; only what answers a request of ours is of any use.
    pub(super) fn handle_stun(
        &mut self,
        now: Instant,
        socket: SocketId,
        remote: SocketAddr,
        datagram: &[u8],
    ) {
        let answered = match stun::parse(datagram) {
            Ok(stun::Message::Response { txn, mapped }) if socket == SocketId::MESH => {
                self.prober.handle_response(now, remote, &txn, mapped)
            }
            Ok(stun::Message::Response { txn, mapped }) => {
                let mut surveys = self.prober.surveys_mut().iter_mut();
                surveys.any(|survey| survey.handle_response(now, remote, &txn, mapped))
                    || self.lifetime_measured(now, socket, remote, &txn, mapped)
                    || self.attempt_measured(now, remote, &txn, mapped)
            }
            Ok(stun::Message::Request { txn, .. }) => {
                let mut surveys = self.prober.surveys_mut().iter_mut();
                surveys.any(|survey| survey.handle_request(&txn))
            }
            Err(_) => false,
        };
        if answered {
            // What comes next may be due at once; a round or a survey waits for its answers.
            self.service_prober(now);
            // And our address as relays see it may be another one than peers were told.
            self.update_offer(now);
        } else {
            self.drops.unknown_protocol += 1;
        }
    }

    pub(super) fn nat_profile(&self) -> NatProfile {
        self.prober.findings().profile
    }
}

/// The relays that can be asked by STUN; one that serves several networks is asked once.
fn stun_servers<'a>(relays: impl Iterator<Item = &'a RelayClient>) -> Vec<StunServer> {
    let mut servers: Vec<StunServer> = Vec::new();
    for relay in relays {
        let Some(main) = relay.ready() else { continue };
        if !servers.iter().any(|server| server.main == main) {
            servers.push(StunServer {
                main,
                alternative: relay.alternative(),
                elsewhere: relay.elsewhere(),
                relay: relay.handle,
                observed: relay.observed.map(|observed| observed.ip()),
            });
        }
    }
    servers
}
