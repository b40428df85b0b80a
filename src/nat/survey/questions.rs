//! What a survey asks of relays and of our own NAT, and how answers are told from what anybody may send.

use std::net::SocketAddr;

use super::{KNOCKERS, KNOCKS, Survey};
use crate::engine::{RelayHandle, SocketId};
use crate::limits;
use crate::rng::Random;
use crate::time::Instant;
use crate::wire::stun::{self, TransactionId};

/// What a request is to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// The external address of this socket, as the relay's main port sees it.
    Address(usize),
    /// Whether an answer from the port that was not sent to gets in.
    OtherPort,
    /// Whether one from the address that was not sent to does.
    OtherAddress,
    /// The external address of this socket for this one of [`Survey::destinations`].
    Elsewhere(usize, usize),
    /// Whether our own packet comes back in.
    Hairpin,
}

impl Question {
    fn change(self) -> stun::Change {
        match self {
            Self::OtherPort => stun::Change::Port,
            Self::OtherAddress => stun::Change::Address,
            _ => stun::Change::Nothing,
        }
    }
}

/// A question that was sent.
#[derive(Debug)]
pub(super) struct Pending {
    question: Question,
    /// Where its answer has to come from.
    from: Option<SocketAddr>,
}

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// A datagram.
    Datagram {
        socket: SocketId,
        remote: SocketAddr,
        payload: Vec<u8>,
    },
    /// A message to a relay that makes it send something to this port of ours.
    Knock {
        relay: RelayHandle,
        port: u16,
        txn: TransactionId,
    },
    /// A message to a relay that it answers.
    Ping { relay: RelayHandle, nonce: u64 },
}

impl Survey {
    pub(super) fn ask(
        &mut self,
        rng: &mut Random,
        at: usize,
        question: Question,
        remote: SocketAddr,
        from: Option<SocketAddr>,
    ) -> Option<Request> {
        let fresh = self.fresh.get_mut(at)?;
        if let Question::Address(_) = question {
            fresh.asked += 1;
        }
        if self.pending.len() >= limits::SURVEY_REQUESTS {
            return None;
        }
        let id = rng.bytes();
        self.pending.insert(id, Pending { question, from });
        Some(Request::Datagram {
            socket: fresh.socket,
            remote,
            payload: stun::binding_request(&id, question.change()),
        })
    }

    /// Makes another relay send to the filter's socket, where that has never sent to, twice, and say that it has. Control
    /// streams repeat what is lost: without its word nobody knows whether it has sent anything yet.
    pub(super) fn knock(&mut self, now: Instant, rng: &mut Random, requests: &mut Vec<Request>) {
        let port = self.fresh.first().and_then(|fresh| fresh.external);
        let Some((_, external)) = port else { return };
        let knockers = self.knockers(external);
        let telling = self.filter_open[0] || self.server.alternative.is_none();
        if self.knocking.is_none() && telling && !knockers.is_empty() {
            self.knocking = Some((now, 0));
        }
        while let Some((since, asked)) = self.knocking
            && let Some(at) = KNOCKS.get(asked)
            && now >= since + *at
            && !self.filter_open[1]
        {
            self.knocking = Some((since, asked + 1));
            self.knock_answers.clear();
            for &(relay, from) in &knockers {
                for _ in 0..2 {
                    let (txn, question) = (rng.bytes(), Question::OtherAddress);
                    if self.pending.len() < limits::SURVEY_REQUESTS {
                        let from = Some(from);
                        self.pending.insert(txn, Pending { question, from });
                    }
                    let port = external.port();
                    requests.push(Request::Knock { relay, port, txn });
                }
                let nonce = rng.u64();
                self.knock_answers.push(nonce);
                requests.push(Request::Ping { relay, nonce });
            }
        }
    }

    /// Relays that can do that: they see us at the same external address as the one that is asked. Needless where
    /// that has a second address of its own.
    pub(super) fn knockers(&self, external: SocketAddr) -> Vec<(RelayHandle, SocketAddr)> {
        if self.server.elsewhere.is_some() {
            return Vec::new();
        }
        let able = self.others.iter().filter_map(|other| {
            let (relay, observed) = other.knocker?;
            (observed == external.ip()).then_some((relay, other.address))
        });
        able.take(KNOCKERS).collect()
    }

    /// A relay has answered a [`Request::Ping`].
    pub(crate) fn handle_pong(&mut self, nonce: u64) {
        let all_asked = self
            .knocking
            .is_some_and(|(_, asked)| asked == KNOCKS.len());
        self.knocked |= all_asked && self.knock_answers.contains(&nonce);
    }

    /// Takes a STUN response that arrived on one of our fresh sockets; `true` if it answers one of our requests.
    pub(crate) fn handle_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: &TransactionId,
        mapped: SocketAddr,
    ) -> bool {
        let Some(pending) = self.pending.get(id) else {
            return false;
        };
        if pending.from != Some(from) {
            return false;
        }
        match pending.question {
            Question::Address(at) => {
                let fresh = self.fresh.get_mut(at);
                if let Some(fresh) = fresh.filter(|fresh| fresh.external.is_none()) {
                    fresh.external = Some((now, mapped));
                }
            }
            Question::OtherPort => self.filter_open[0] = true,
            Question::OtherAddress => self.filter_open[1] = true,
            Question::Elsewhere(at, destination) => {
                self.seen.insert((at, destination), mapped);
            }
            Question::Hairpin => return false,
        }
        true
    }

    /// Takes a STUN request that arrived on one of our fresh sockets; `true` if it is our own.
    pub(crate) fn handle_request(&mut self, id: &TransactionId) -> bool {
        let pending = self.pending.get(id);
        let own = pending.is_some_and(|pending| pending.question == Question::Hairpin);
        self.hairpin |= own;
        own
    }
}
