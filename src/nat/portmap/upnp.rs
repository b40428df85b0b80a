//! The UPnP side of a gate: find the device, read what it can do, call it.
//!
//! Devices are believed only if they answer from our own link, and asked only at the address that they answered from.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::gate::{Gate, LEASE};
use super::{Actions, PortMapAction, PortMapProtocol};
use crate::time::Instant;
use crate::wire::ssdp::{self, Url};
use crate::wire::upnp::{self, Service, ServiceType};
use crate::wire::{WireError, http};

/// Devices whose descriptions are read in one search; a link has one router, seldom two.
const MAX_DEVICES: usize = 4;
/// Ports that are tried where a device cannot choose one itself.
const MAX_PORTS: u8 = 4;
/// How long a device may take for all calls that lead to a mapping.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// `ConflictInMappingEntry` and `ConflictWithOtherMechanisms`: somebody else has the port.
const PORT_TAKEN: [u16; 2] = [718, 729];
/// `OnlyPermanentLeasesSupported`.
const ONLY_PERMANENT: u16 = 725;

/// An exchange with a device that is under way.
#[derive(Debug, Clone)]
enum Exchange {
    Describe(Url),
    Address,
    Map,
    Delete,
}

/// What is known about the device.
#[derive(Debug, Default)]
pub(super) struct Upnp {
    /// Those whose description has been asked for in this search.
    devices: Vec<IpAddr>,
    pending: BTreeMap<u64, Exchange>,
    last_id: u64,
    service: Option<Service>,
    external: Option<IpAddr>,
    /// The external port that we have asked for, or have.
    port: u16,
    tried: u8,
    permanent: bool,
    pinhole: Option<u16>,
}

impl Upnp {
    /// `first` makes the exchanges of this gate differ from those of others.
    pub(super) fn new(first: u64) -> Self {
        Self {
            last_id: first,
            ..Self::default()
        }
    }

    /// Forgets the device, for a new search.
    pub(super) fn reset(&mut self) {
        self.devices.clear();
        self.pending.clear();
        self.service = None;
    }
}

impl Gate {
    /// Asks the link, and the router itself: many hosts have a firewall that drops the answers to multicast.
    pub(super) fn search_devices(&self, out: &mut Actions) {
        let group = match self.is_ipv4() {
            true => IpAddr::V4(ssdp::GROUP_V4),
            false => IpAddr::V6(ssdp::GROUP_V6),
        };
        let mut group = SocketAddr::new(group, ssdp::PORT);
        if let SocketAddr::V6(group) = &mut group {
            group.set_scope_id(self.gateway.interface);
        }
        let requests = [group, self.gateway.at(ssdp::PORT)]
            .map(|to| (to, ssdp::search_request(to)))
            .into();
        out.push_back(PortMapAction::Search {
            from: self.gateway.local.addr(),
            requests,
        });
    }

    /// A device says where its description is.
    pub(super) fn device_found(&mut self, from: SocketAddr, payload: &[u8], out: &mut Actions) {
        let on_link = match from.ip() {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => !self.is_ipv4(),
            ip => self.gateway.local.contains(&ip),
        };
        let known =
            self.upnp.devices.len() >= MAX_DEVICES || self.upnp.devices.contains(&from.ip());
        if !on_link || known || self.upnp.service.is_some() || self.is_over() {
            return;
        }
        let Ok(url) = ssdp::parse_response(payload) else {
            return;
        };
        if url.address.ip() != from.ip() {
            return;
        }
        self.upnp.devices.push(from.ip());
        let request = http::request(url.address, &url.path, None);
        self.exchange(url.address, request, Exchange::Describe(url), out);
    }

    fn exchange(
        &mut self,
        mut to: SocketAddr,
        request: Vec<u8>,
        exchange: Exchange,
        out: &mut Actions,
    ) {
        if let SocketAddr::V6(to) = &mut to
            && to.ip().is_unicast_link_local()
        {
            to.set_scope_id(self.gateway.interface);
        }
        self.upnp.last_id = self.upnp.last_id.wrapping_add(1);
        let id = self.upnp.last_id;
        self.upnp.pending.insert(id, exchange);
        out.push_back(PortMapAction::Http {
            id,
            from: self.gateway.local.addr(),
            to,
            request,
        });
    }

    fn call(&mut self, (action, body): (String, String), exchange: Exchange, out: &mut Actions) {
        let Some(service) = &self.upnp.service else {
            return;
        };
        let to = service.control.address;
        let request = http::request(to, &service.control.path, Some((&action, &body)));
        self.exchange(to, request, exchange, out);
    }

    /// Begins to ask for a mapping, or for more time.
    pub(super) fn ask_device(&mut self, out: &mut Actions) {
        self.upnp.tried = 0;
        self.upnp.port = self.mapped().map_or(self.port, |address| address.port());
        match self.upnp.service.as_ref().map(|service| service.kind) {
            Some(ServiceType::WanIpv6FirewallControl1) => self.map_at_device(out),
            Some(kind) => self.call(upnp::get_external_address(kind), Exchange::Address, out),
            None => {}
        }
    }

    fn map_at_device(&mut self, out: &mut Actions) {
        let Some(kind) = self.upnp.service.as_ref().map(|service| service.kind) else {
            return;
        };
        let internal = self.gateway.local.addr();
        let lease = if self.upnp.permanent { 0 } else { LEASE };
        let call = match kind {
            ServiceType::WanIpv6FirewallControl1 => upnp::add_pinhole(internal, self.port, LEASE),
            kind => upnp::add_port_mapping(kind, self.upnp.port, internal, self.port, lease),
        };
        self.call(call, Exchange::Map, out);
    }

    /// Ends the mapping; false if there is none that could be named.
    pub(super) fn delete_at_device(&mut self, out: &mut Actions) -> bool {
        let kind = self.upnp.service.as_ref().map(|service| service.kind);
        let call = match (kind, self.upnp.pinhole) {
            (Some(ServiceType::WanIpv6FirewallControl1), Some(id)) => upnp::delete_pinhole(id),
            (Some(ServiceType::WanIpv6FirewallControl1), None) | (None, _) => return false,
            (Some(kind), _) => upnp::delete_port_mapping(kind, self.upnp.port),
        };
        self.call(call, Exchange::Delete, out);
        true
    }

    /// Takes the answer to a request, `None` if there was none; true if the mapping has changed.
    pub(super) fn handle_http(
        &mut self,
        now: Instant,
        id: u64,
        response: Option<&http::Response>,
        out: &mut Actions,
    ) -> bool {
        let Some(exchange) = self.upnp.pending.remove(&id) else {
            return false;
        };
        match exchange {
            Exchange::Describe(location) => {
                if let Some(response) = response.filter(|response| response.status == 200) {
                    self.described(now, &location, response, out);
                }
                false
            }
            Exchange::Delete => {
                self.given_back(now, PortMapProtocol::Upnp, out);
                false
            }
            Exchange::Address | Exchange::Map if !self.is_asking(PortMapProtocol::Upnp) => false,
            Exchange::Address => self.address_told(now, response, out),
            Exchange::Map => self.mapped_by_device(now, response, out),
        }
    }

    fn described(
        &mut self,
        now: Instant,
        location: &Url,
        response: &http::Response,
        out: &mut Actions,
    ) {
        let services = upnp::parse_description(&response.body, location).unwrap_or_default();
        let hole = ServiceType::WanIpv6FirewallControl1;
        let ipv4 = self.is_ipv4();
        let service = services
            .into_iter()
            .find(|service| (service.kind == hole) != ipv4);
        if service.is_some() && self.upnp.service.is_none() && !self.is_over() {
            self.upnp.service = service;
            self.offer(now, PortMapProtocol::Upnp, out);
        }
    }

    fn address_told(
        &mut self,
        now: Instant,
        response: Option<&http::Response>,
        out: &mut Actions,
    ) -> bool {
        let answer = match read(response) {
            Ok(answer) => answer,
            Err(silent) => return self.fail(now, PortMapProtocol::Upnp, silent, out),
        };
        match answer.external_address {
            Some(address) if address.is_ipv4() && !address.is_unspecified() => {
                self.upnp.external = Some(address);
                self.map_at_device(out);
                false
            }
            _ => self.fail(now, PortMapProtocol::Upnp, false, out),
        }
    }

    fn mapped_by_device(
        &mut self,
        now: Instant,
        response: Option<&http::Response>,
        out: &mut Actions,
    ) -> bool {
        let protocol = PortMapProtocol::Upnp;
        let answer = match read(response) {
            Ok(answer) => answer,
            Err(silent) => return self.fail(now, protocol, silent, out),
        };
        match answer.fault {
            Some(ONLY_PERMANENT) if !self.upnp.permanent => {
                self.upnp.permanent = true;
                self.map_at_device(out);
                return false;
            }
            Some(code) if PORT_TAKEN.contains(&code) && self.upnp.tried < MAX_PORTS => {
                self.upnp.tried += 1;
                self.upnp.port = another_port(self.upnp.port);
                self.map_at_device(out);
                return false;
            }
            Some(_) => return self.fail(now, protocol, false, out),
            None => {}
        }
        let external = if self.is_ipv4() {
            self.upnp.port = answer.reserved_port.unwrap_or(self.upnp.port);
            self.upnp
                .external
                .map(|address| SocketAddr::new(address, self.upnp.port))
        } else {
            self.upnp.pinhole = answer.pinhole;
            // Nothing is translated: the hole is before our own address.
            answer.pinhole.map(|_| self.internal())
        };
        match external.filter(|external| external.port() != 0) {
            // A permanent mapping is renewed as well, for routers that forget it.
            Some(external) => self.granted(now, protocol, external, LEASE),
            None => self.fail(now, protocol, false, out),
        }
    }
}

/// A SOAP answer, whose faults come with status 500; `Err(true)` for silence.
fn read(response: Option<&http::Response>) -> Result<upnp::Answer, bool> {
    let response = response.ok_or(true)?;
    upnp::parse_answer(&response.body).map_err(|_: WireError| false)
}

/// Far from the one that is taken, and above the ports that routers keep for themselves.
fn another_port(port: u16) -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 50_000;
    FIRST + (port % COUNT + 7_919) % COUNT
}
