//! Hosts that change networks or stand still, and lines that change.

use std::net::IpAddr;
use std::time::Duration;

use mesh_core::time::Instant;

use super::host::Input;
use super::link::LinkConfig;
use super::router::LinkIndex;
use super::traffic::FlowId;
use super::world::{Event, HostId, RouterId, Sim};

/// Which families a network offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Both,
}

impl Sim {
    /// A host loses every link. It is told, unless `silently`: then only silence tells.
    pub fn unplug(&mut self, id: HostId, silently: bool) {
        self.note(id.0, "loses its links".to_owned());
        let links: Vec<LinkIndex> = self.nodes[id.0.0]
            .table
            .addresses
            .iter()
            .map(|(link, _)| *link)
            .collect();
        for link in links {
            self.nodes[id.0.0].table.remove_link(link);
            self.neighbours[link.0].retain(|_, node| *node != id.0);
        }
        if !silently {
            self.tell(id, Input::Addresses);
        }
    }

    /// A host without links joins the network behind a router, and is told unless `silently`.
    pub fn plug(&mut self, id: HostId, router: RouterId, families: Families, silently: bool) {
        self.note(id.0, "joins a network".to_owned());
        if families != Families::V6 {
            self.attach_v4(id, router);
        }
        if families != Families::V4 {
            self.add_ipv6(id, router);
        }
        if !silently {
            self.tell(id, Input::Addresses);
        }
    }

    /// The addresses of a host.
    pub fn addresses(&self, id: HostId) -> Vec<IpAddr> {
        let addresses = self.nodes[id.0.0].table.addresses.iter();
        addresses.map(|(_, ip)| *ip).collect()
    }

    /// A host that keeps its addresses is told that something else about its network has changed.
    pub fn announce_change(&mut self, id: HostId) {
        self.tell(id, Input::Addresses);
    }

    /// A host's process stands still: what arrives is lost, no timer fires, applications are silent.
    pub fn freeze(&mut self, id: HostId) {
        self.note(id.0, "stands still".to_owned());
        self.host_mut(id).frozen = true;
    }

    /// It goes on, and its timers find themselves late.
    pub fn thaw(&mut self, id: HostId) {
        self.note(id.0, "goes on".to_owned());
        self.host_mut(id).frozen = false;
        let now = self.now();
        self.host_mut(id).quic_armed = Some(now);
        self.schedule(now, Event::WakeQuic(id));
        self.tell(id, Input::Timeout);
    }

    /// Changes how the access line of a router treats packets.
    pub fn set_access(&mut self, router: RouterId, change: impl FnOnce(&mut LinkConfig)) {
        if let Some(link) = self.router_mut(router).outside {
            change(&mut self.links[link.0].config);
        }
    }

    /// The longest time, among packets of a stream that were sent in `range`, from one that was done to the next, both
    /// by when they were sent; also from the start and to the end of the range.
    pub fn stall(&self, flow: FlowId, range: std::ops::Range<Instant>) -> Duration {
        let stream = self.stream(flow);
        let done = stream.packets.iter().filter(|packet| {
            let done = if stream.config.echo {
                packet.answered
            } else {
                packet.delivered
            };
            range.contains(&packet.sent) && done.is_some()
        });
        let mut longest = Duration::ZERO;
        let mut last = range.start;
        for packet in done {
            longest = longest.max(packet.sent.since(last));
            last = packet.sent;
        }
        longest.max(range.end.since(last))
    }
}
