//! Asks the router for a port of its own that leads to our mesh socket: by PCP, NAT-PMP or UPnP, in this order.
//!
//! Nothing waits for it. Every protocol is tried at once with requests that change nothing at the router; the first in
//! order that answers is then asked for a mapping, and the others stay untouched. A mapping is renewed at half of its
//! time, at once when the router has restarted, and ended when no network is up any more.
//!
//! A mapping is a [`Gate`] to one address family: over IPv4 a port of the router, over IPv6 a hole in its firewall.

mod epoch;
mod gate;
#[cfg(test)]
mod tests;
mod upnp;

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::limits;
use crate::rng::Random;
use crate::time::Instant;
use crate::wire::{http, pcp};
use gate::Gate;

/// The router that a default route leads to, and how we stand to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// Its address, which may be link-local for IPv6.
    pub address: IpAddr,
    /// The kernel's number of the interface that leads there.
    pub interface: u32,
    /// Our address there, with the prefix that is on the link.
    pub local: IpNet,
}

impl Gateway {
    /// Its address with a port, such that it can be sent to.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        let mut to = SocketAddr::new(self.address, port);
        if let SocketAddr::V6(to) = &mut to
            && to.ip().is_unicast_link_local()
        {
            to.set_scope_id(self.interface);
        }
        to
    }
}

/// Ways to ask a router for a mapping, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMapProtocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl PortMapProtocol {
    /// As in `netcheck --json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        }
    }
}

/// What the shell has to do for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortMapAction {
    /// Send a datagram from a fresh socket; whatever comes back from `to` within three seconds is a
    /// [`PortMapEvent::Datagram`].
    Exchange {
        /// Our address.
        from: IpAddr,
        /// Where it goes.
        to: SocketAddr,
        /// The datagram.
        payload: Vec<u8>,
    },
    /// Send these datagrams from one fresh socket; whatever comes back within three seconds, from anywhere, is a
    /// [`PortMapEvent::Datagram`].
    Search {
        /// Our address, whose interface multicast goes out of.
        from: IpAddr,
        /// Where they go, and what.
        requests: Vec<(SocketAddr, Vec<u8>)>,
    },
    /// Carry out an HTTP exchange over TCP; always answered by [`PortMapEvent::Http`], within five seconds.
    Http {
        /// For the answer.
        id: u64,
        /// Our address.
        from: IpAddr,
        /// The server.
        to: SocketAddr,
        /// The whole request.
        request: Vec<u8>,
    },
    /// We want to hear of restarts on port [`crate::wire::natpmp::ANNOUNCEMENT_PORT`], and what we hold has to be
    /// given back before the end, if true.
    Held(bool),
}

/// What the shell tells about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortMapEvent {
    /// A datagram came, for an [`PortMapAction::Exchange`] or on the port for announcements.
    Datagram {
        /// Where from.
        from: SocketAddr,
        /// The datagram.
        payload: Vec<u8>,
    },
    /// The end of a [`PortMapAction::Http`].
    Http {
        /// As given there.
        id: u64,
        /// `None` if it has failed in any way.
        response: Option<http::Response>,
    },
}

/// See the module.
#[derive(Default)]
pub(crate) struct PortMapper {
    wanted: bool,
    /// [`Self::wanted`] has changed.
    due: bool,
    gates: Vec<Gate>,
    /// Gates of gateways that we have left, which are given back what they granted. They may still be in reach.
    left: Vec<Gate>,
    /// With what each gateway that we met lately was asked: one that we come back to refuses anything else for as long as
    /// its mapping lasts (RFC 6887, section 11.3).
    nonces: VecDeque<(Gateway, u16, pcp::Nonce)>,
    actions: Actions,
    held: bool,
    changed: bool,
}

/// What is to be done by the shell.
type Actions = VecDeque<PortMapAction>;

impl PortMapper {
    /// Begins, or ends what there is, at the next timeout.
    pub(crate) fn set_wanted(&mut self, wanted: bool) {
        self.due |= self.wanted != wanted;
        self.wanted = wanted;
    }

    /// Tells the default gateways, one for each address family, and the ports of our mesh sockets. A new one is asked at
    /// once, and one that we have left is told so.
    pub(crate) fn set_gateways(
        &mut self,
        now: Instant,
        gateways: &[Gateway],
        ports: (Option<u16>, Option<u16>),
        rng: &mut Random,
    ) {
        let mut gates: Vec<Gate> = Vec::new();
        for gateway in gateways {
            let ipv4 = gateway.address.is_ipv4();
            let port = if ipv4 { ports.0 } else { ports.1 };
            let Some(port) = port else { continue };
            if gateway.local.addr().is_ipv4() != ipv4
                || gates.iter().any(|gate| gate.is_ipv4() == ipv4)
            {
                continue;
            }
            let old = self.gates.iter().position(|gate| gate.is(gateway, port));
            gates.push(match old {
                Some(at) => self.gates.swap_remove(at),
                None => {
                    // It is no longer given back what it is about to be asked for.
                    self.left.retain(|gate| !gate.is(gateway, port));
                    let nonce = self.nonce(gateway, port, rng);
                    let mut gate = Gate::new(*gateway, port, nonce);
                    if self.wanted {
                        gate.start(now, &mut self.actions);
                    }
                    gate
                }
            });
        }
        for mut gone in std::mem::replace(&mut self.gates, gates) {
            self.changed |= gone.mapped().is_some();
            if gone.is_held() {
                gone.release(now, &mut self.actions);
                self.left.push(gone);
            }
        }
        let surplus = self.left.len().saturating_sub(limits::LEFT_GATEWAYS);
        self.left.drain(..surplus);
        self.update_held();
    }

    fn nonce(&mut self, gateway: &Gateway, port: u16, rng: &mut Random) -> pcp::Nonce {
        let known = self.nonces.iter();
        let mut known = known.filter(|(known, at, _)| (known, *at) == (gateway, port));
        if let Some((.., nonce)) = known.next() {
            return *nonce;
        }
        if self.nonces.len() >= limits::KNOWN_GATEWAYS {
            self.nonces.pop_front();
        }
        let nonce = rng.bytes();
        self.nonces.push_back((*gateway, port, nonce));
        nonce
    }

    /// Looks for protocols again where none was found.
    pub(crate) fn refresh(&mut self, now: Instant) {
        for gate in &mut self.gates {
            gate.refresh(now, &mut self.actions);
        }
    }

    /// Takes what the shell reports.
    pub(crate) fn handle(&mut self, now: Instant, event: &PortMapEvent) {
        for gate in self.gates.iter_mut().chain(&mut self.left) {
            match event {
                PortMapEvent::Datagram { from, payload } => {
                    self.changed |= gate.handle_datagram(now, *from, payload, &mut self.actions);
                }
                PortMapEvent::Http { id, response } => {
                    self.changed |=
                        gate.handle_http(now, *id, response.as_ref(), &mut self.actions);
                }
            }
        }
        self.update_held();
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.due {
            return Some(Instant::default());
        }
        let gates = self.gates.iter().chain(&self.left);
        gates.filter_map(Gate::deadline).min()
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if std::mem::take(&mut self.due) {
            for gate in &mut self.gates {
                if !self.wanted {
                    self.changed |= gate.release(now, &mut self.actions);
                } else if gate.is_over() {
                    // One that came with its gateway meanwhile has begun already.
                    gate.start(now, &mut self.actions);
                }
            }
        }
        for gate in self.gates.iter_mut().chain(&mut self.left) {
            self.changed |= gate.handle_timeout(now, &mut self.actions);
        }
        self.update_held();
    }

    fn update_held(&mut self) {
        self.left.retain(Gate::is_held);
        let held = !self.left.is_empty() || self.gates.iter().any(Gate::is_held);
        if held != self.held {
            self.held = held;
            self.actions.push_back(PortMapAction::Held(held));
        }
    }

    pub(crate) fn poll_action(&mut self) -> Option<PortMapAction> {
        self.actions.pop_front()
    }

    /// True once after what is mapped has changed.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The addresses that lead to our mesh sockets.
    pub(crate) fn mapped(&self) -> impl Iterator<Item = SocketAddr> {
        self.gates.iter().filter_map(Gate::mapped)
    }

    /// What the routers have to offer.
    pub(crate) fn offers(&self) -> BTreeSet<PortMapProtocol> {
        let gates = self.gates.iter();
        gates
            .flat_map(|gate| gate.offers().iter().copied())
            .collect()
    }
}
