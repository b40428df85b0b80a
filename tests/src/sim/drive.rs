//! Drives hosts: inputs into the engine, and what comes of them into the network.

use std::net::IpAddr;

use mesh_core::batch::Batches;
use mesh_core::engine::Event as EngineEvent;
use mesh_core::session::Kernel;
use mesh_core::time::Instant;

use super::host::{Effects, Input};
use super::log::Entry;
use super::packet::Body;
use super::traffic::{self, FlowId, Label};
use super::world::{Event, HostId, Sim};

impl Sim {
    pub(super) fn tell(&mut self, id: HostId, input: Input) {
        if self.host(id).frozen {
            return;
        }
        let addresses: Vec<IpAddr> = self.nodes[id.0.0]
            .table
            .addresses
            .iter()
            .map(|(_, ip)| *ip)
            .collect();
        // Taken and put back: they are large, and every host uses the same ones.
        let mut batches = self
            .batches
            .take()
            .unwrap_or_else(|| Batches::new(Kernel::Ring));
        let now = self.now;
        let moved = matches!(input, Input::Addresses) && self.host(id).multicast.wanted;
        let effects = self
            .host_mut(id)
            .handle(now, input, &addresses, &mut batches);
        self.batches = Some(batches);
        self.apply(id, effects);
        if moved {
            let links = self.lan_links(id);
            self.tell(id, Input::Links(links));
        }
    }

    pub(super) fn apply(&mut self, id: HostId, effects: Effects) {
        for (port, to, ttl, bytes) in effects.datagrams {
            self.send_from_port(id, port, to, ttl, Body::Bytes(bytes));
        }
        for packet in effects.inner {
            self.delivered(id, packet);
        }
        for (handle, action) in effects.relay {
            self.relay_action(id, handle, action);
        }
        for action in effects.lan {
            self.lan_action(id, action);
        }
        for event in effects.events {
            if let EngineEvent::PathChanged {
                name, path, reason, ..
            } = event
            {
                let path = path.map_or_else(
                    || "none".to_owned(),
                    |path| format!("{:?} {}", path.kind, path.remote),
                );
                self.note(id.0, format!("path to {name}: {path} ({reason})"));
            }
        }
        self.arm(id, effects.timeout);
    }

    fn arm(&mut self, id: HostId, timeout: Option<Instant>) {
        let now = self.now;
        let host = self.host_mut(id);
        let Some(at) = timeout.map(|at| at.max(now)) else {
            host.armed = None;
            return;
        };
        if host.armed != Some(at) {
            host.armed = Some(at);
            self.schedule(at, Event::Wake(id));
        }
    }

    pub(super) fn wake(&mut self, id: HostId) {
        let now = self.now;
        let host = self.host_mut(id);
        if host.armed != Some(now) {
            return; // armed for another instant meanwhile
        }
        host.armed = None;
        host.count_timeout(now);
        self.tell(id, Input::Timeout);
    }

    /// An inner packet comes out of the tunnel.
    fn delivered(&mut self, id: HostId, packet: Vec<u8>) {
        self.log
            .push(self.now, id.0.0, Entry::Delivered(packet.len()));
        let now = self.now;
        let Some(label) = traffic::parse(&packet) else {
            return self.foreign.push((id, packet));
        };
        let Some(flow) = self.flows.get_mut(label.flow.0) else {
            return self.foreign.push((id, packet));
        };
        let receiver = if label.is_answer {
            flow.config.from
        } else {
            flow.config.to
        };
        assert_eq!(receiver, id, "an inner packet came out at the wrong host");
        let Some(fate) = flow.packets.get_mut(label.sequence) else {
            panic!("an inner packet that was never sent: {label:?}");
        };
        let slot = if label.is_answer {
            &mut fate.answered
        } else {
            &mut fate.delivered
        };
        if slot.replace(now).is_some() {
            flow.duplicates += 1;
            return;
        }
        if flow.config.echo && !label.is_answer {
            let config = flow.config.clone();
            let (from, to) = (
                self.host(config.to).overlay(),
                self.host(config.from).overlay(),
            );
            let answer = Label {
                is_answer: true,
                ..label
            };
            let packet = traffic::inner_packet(from, to, answer, config.size);
            self.schedule(now, Event::Answer(id, packet));
        }
    }

    /// An application writes an inner packet into the tunnel.
    pub(super) fn inner(&mut self, id: HostId, packet: Vec<u8>) {
        self.log.push(self.now, id.0.0, Entry::Inner(packet.len()));
        self.tell(id, Input::Tun(packet));
    }

    pub(super) fn flow_tick(&mut self, id: FlowId) {
        let now = self.now;
        let flow = &mut self.flows[id.0];
        if !flow.running {
            return;
        }
        let (config, sequence) = (flow.config.clone(), flow.packets.len());
        flow.packets.push(traffic::Fate {
            sent: now,
            delivered: None,
            answered: None,
        });
        let label = Label {
            flow: id,
            sequence,
            is_answer: false,
        };
        let (from, to) = (
            self.host(config.from).overlay(),
            self.host(config.to).overlay(),
        );
        self.inner(
            config.from,
            traffic::inner_packet(from, to, label, config.size),
        );
        self.schedule(now + config.interval, Event::Flow(id));
    }
}
