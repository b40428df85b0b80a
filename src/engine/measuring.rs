//! What is found out about the network around us: STUN to the relays, and the survey of the NAT.

use std::net::SocketAddr;

use super::spares::Owner;
use super::{Engine, NetworkIndex, Output, SocketId};
use crate::nat::NatProfile;
use crate::nat::profile::{Progress, StunServer};
use crate::nat::survey::{self, Request, Survey};
use crate::relay::client::RelayClient;
use crate::time::Instant;
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
        self.send_requests(requests);
        match progress {
            Progress::Nothing => return,
            Progress::Round => {
                let networks: Vec<NetworkIndex> = self.networks.keys().copied().collect();
                for network in networks {
                    self.choose_home(network);
                }
                self.begin_survey(now);
            }
            Progress::Survey => self.end_survey(now),
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

    fn send_requests(&mut self, requests: Vec<Request>) {
        let datagrams = requests.into_iter().map(|request| Output::Datagram {
            socket: request.socket,
            remote: request.remote,
            ttl: None,
            payload: request.payload,
        });
        self.outputs.extend(datagrams);
    }

    fn begin_survey(&mut self, now: Instant) {
        let Some((server, others, rtt)) = self.prober.survey_plan(now) else {
            return;
        };
        let sockets = self.open_spares(Owner::Survey, survey::SOCKETS);
        if !sockets.is_empty() {
            let survey = Survey::new(now, server, others, rtt, sockets);
            self.prober.begin_survey(survey);
        }
    }

    fn end_survey(&mut self, now: Instant) {
        let (host, prober) = (&self.host, &mut self.prober);
        let own = |address: SocketAddr| host.iter().any(|own| own.ip == address.ip());
        for socket in prober.end_survey(own) {
            self.close_spare(socket);
        }
        self.update_offer(now);
    }

    pub(super) fn reset_prober(&mut self, now: Instant) {
        for socket in self.prober.reset(now) {
            self.close_spare(socket);
        }
    }

    pub(super) fn survey_opened(&mut self, now: Instant, socket: SocketId, port: Option<u16>) {
        if let Some(survey) = self.prober.survey_mut() {
            survey.opened(socket, port);
        }
        self.service_prober(now);
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
                let survey = self.prober.survey_mut();
                survey.is_some_and(|survey| survey.handle_response(now, remote, &txn, mapped))
                    || self.attempt_measured(now, remote, &txn, mapped)
            }
            Ok(stun::Message::Request { txn, .. }) => {
                let survey = self.prober.survey_mut();
                survey.is_some_and(|survey| survey.handle_request(&txn))
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
            });
        }
    }
    servers
}
