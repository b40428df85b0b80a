//! Two hosts, their relays, and pings every 10 ms while something happens below them.

use std::time::Duration;

use ipnet::IpNet;
use mesh_core::time::Instant;
use mesh_tests::sim::{
    FlowConfig, FlowId, HostId, LinkConfig, NatConfig, Pair, RelayId, RouterId, Sim, Site,
    for_seeds,
};

use crate::common::{ms, secs};

/// Delays of an access line: from host to host it is twice that.
const LINES: [Duration; 2] = [ms(0), ms(15)];

pub(crate) fn home(line: Duration) -> Site {
    Site::nat(NatConfig::home()).access(LinkConfig::delay(line))
}

pub(crate) fn hard(line: Duration) -> Site {
    crate::common::hard().access(LinkConfig::delay(line))
}

/// Two hosts, their relays, and a stream of pings every 10 ms each way.
pub(crate) struct Scene {
    pub(crate) sim: Sim,
    pub(crate) pair: Pair,
    pub(crate) standby: Option<RelayId>,
    pub(crate) flows: [FlowId; 2],
    pub(crate) line: Duration,
}

impl Scene {
    pub(crate) fn new(seed: u64, line: Duration, sites: [Site; 2], relays: usize) -> Self {
        let mut sim = Sim::new(seed);
        let relays: Vec<RelayId> = (0..relays)
            .map(|_| sim.add_relay(LinkConfig::delay(line)))
            .collect();
        let (a, router_a) = sim.host_at("a", sites[0]);
        let (b, router_b) = sim.host_at("b", sites[1]);
        sim.configure(&[a, b], &relays);
        if relays.is_empty() {
            let at = (sim.socket_of(a), sim.socket_of(b));
            sim.host_mut(a).membership.peers[0].endpoints = vec![at.1];
            sim.host_mut(b).membership.peers[0].endpoints = vec![at.0];
        }
        sim.start(a);
        sim.start(b);
        sim.run_for(secs(1));
        let pings = |from, to| FlowConfig {
            from,
            to,
            interval: ms(10),
            size: 200,
            echo: true,
        };
        let flows = [sim.flow(pings(a, b)), sim.flow(pings(b, a))];
        let relay = relays.first().copied();
        let pair = Pair {
            a,
            b,
            // Scenes without a relay do not touch it.
            relay: relay.unwrap_or_else(|| sim.add_relay(LinkConfig::delay(line))),
            router_a,
            router_b,
        };
        Self {
            sim,
            pair,
            standby: relays.get(1).copied(),
            flows,
            line,
        }
    }

    pub(crate) fn direct(seed: u64, line: Duration) -> Self {
        let mut scene = Self::new(seed, line, [home(line), home(line)], 1);
        scene.until_direct();
        scene.sim.run_for(secs(3));
        scene
    }

    pub(crate) fn relayed(seed: u64, line: Duration, relays: usize) -> Self {
        let mut scene = Self::new(seed, line, [hard(line), hard(line)], relays);
        let (a, b) = (scene.pair.a, scene.pair.b);
        scene
            .sim
            .run_until("a relayed path", secs(10), |sim| sim.is_relayed(a, b));
        scene.sim.run_for(secs(12));
        scene
    }

    /// Round trip time on the direct path.
    pub(crate) fn rtt(&self) -> Duration {
        self.line * 4
    }

    pub(crate) fn until_direct(&mut self) -> Duration {
        let (a, b) = (self.pair.a, self.pair.b);
        self.sim
            .run_until("a direct path", secs(10), |sim| sim.is_direct(a, b))
    }

    pub(crate) fn externals(&self) -> (IpNet, IpNet) {
        let external = |router: Option<RouterId>| match router {
            Some(router) => IpNet::from(self.sim.external(router)),
            None => panic!("both hosts are behind routers"),
        };
        (external(self.pair.router_a), external(self.pair.router_b))
    }

    pub(crate) fn mover(&self, seed: u64) -> HostId {
        if seed.is_multiple_of(2) {
            self.pair.a
        } else {
            self.pair.b
        }
    }

    /// The router that one of the two hosts is behind.
    pub(crate) fn router_of(&self, host: HostId) -> RouterId {
        let router = if host == self.pair.a {
            self.pair.router_a
        } else {
            self.pair.router_b
        };
        router.expect("both hosts are behind routers")
    }

    /// Lets something happen, and pings go on for a while: no stream may stand still for longer than `limit`.
    pub(crate) fn check(&mut self, limit: Duration, happens: impl FnOnce(&mut Sim)) {
        let start = self.sim.now();
        happens(&mut self.sim);
        self.sim.run_for(secs(4));
        self.check_since(start, limit);
    }

    pub(crate) fn check_since(&mut self, start: Instant, limit: Duration) {
        let end = self.sim.now();
        self.sim.run_for(secs(1));
        for flow in self.flows {
            let stall = self.sim.stall(flow, start..end);
            assert!(stall <= limit, "a stall of {stall:?} at {:?}", self.line);
            assert_eq!(self.sim.stream(flow).duplicates, 0);
        }
    }
}

pub(crate) fn for_lines(seeds: u64, test: impl Fn(u64, Duration) + Sync) {
    for line in LINES {
        for_seeds(0..seeds, |seed| test(seed, line));
    }
}

impl Scene {
    /// Until both ends send directly, the other one to where the mover is now; how long that took.
    pub(crate) fn until_direct_again(&mut self, mover: HostId, next: RouterId) -> Duration {
        let (a, b) = (self.pair.a, self.pair.b);
        let other = if mover == a { b } else { a };
        self.sim.run_until("a direct path again", secs(1), |sim| {
            let remote = sim.remote(other, mover).map(|remote| remote.ip());
            let there = remote.is_some_and(|ip| {
                ip == sim.external(next) || ip.is_ipv6() && sim.addresses(mover).contains(&ip)
            });
            there && sim.is_direct(a, b)
        })
    }
}
