//! What breaks.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{DIRECT, Freezer, Lab, Nat, RELAYED, Setup, Uplink, Uplinks, block};

use crate::flood;

/// What a run measures, and the most that it may be.
#[derive(Debug)]
pub(crate) struct Figure {
    /// Behind the row's name.
    pub(crate) what: &'static str,
    unit: &'static str,
    most: f64,
    /// Round trips on the direct path that come on top, where the figure is a time.
    rtts: u32,
}

impl Figure {
    /// A number of something, with a unit that says what.
    const fn count(what: &'static str, unit: &'static str, most: f64) -> Self {
        Self {
            what,
            unit,
            most,
            rtts: 0,
        }
    }

    /// A time in milliseconds, and round trips.
    const fn time(what: &'static str, most: f64, rtts: u32) -> Self {
        Self {
            what,
            unit: "ms",
            most,
            rtts,
        }
    }

    /// The limit where it takes this long from site to site.
    pub(crate) fn limit(&self, delay: Duration) -> f64 {
        self.most + delay.as_secs_f64() * 2_000.0 * f64::from(self.rtts)
    }

    pub(crate) fn shown(&self, value: f64) -> String {
        format!("{value:.0} {}", self.unit)
    }
}

/// One run of a row.
pub(crate) struct Run<'a> {
    pub(crate) lab: &'a Lab,
    /// One way between two sites.
    pub(crate) delay: Duration,
    /// Pings go from the host with two uplinks in every other run, and to it in the rest.
    pub(crate) number: usize,
}

impl Run<'_> {
    fn scene(&self, setup: Setup) -> Result<Uplinks> {
        let setup = Setup {
            delay: self.delay,
            backwards: !self.number.is_multiple_of(2),
            ..setup
        };
        let scene = Uplinks::new(self.lab, setup)?;
        scene.settle()?;
        Ok(scene)
    }
}

/// How long a row takes, and in what company.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Ten seconds, most of them spent waiting.
    Short,
    /// More than a minute.
    Slow,
    /// It needs the machine for itself.
    Alone,
}

/// A row of the table.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) pace: Pace,
    pub(crate) figures: &'static [Figure],
    /// Returns the figures, in that order.
    pub(crate) run: fn(&Run<'_>) -> Result<Vec<f64>>,
}

impl Case {
    const fn new(
        name: &'static str,
        figures: &'static [Figure],
        run: fn(&Run<'_>) -> Result<Vec<f64>>,
    ) -> Self {
        Self {
            name,
            pace: Pace::Short,
            figures,
            run,
        }
    }

    const fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// True if a run's figures keep the limits.
    pub(crate) fn holds(&self, figures: &[f64], delay: Duration) -> bool {
        let mut pairs = self.figures.iter().zip(figures);
        figures.len() == self.figures.len()
            && pairs.all(|(figure, value)| *value <= figure.limit(delay))
    }
}

/// Only silence tells.
const SILENT: &[Figure] = &[Figure::time("", 1_000.0, 0)];
/// The kernel tells, or the relay is there again.
const HALF_A_SECOND: &[Figure] = &[Figure::time("", 500.0, 0)];
/// The kernel tells that an address, a route or a link has changed.
const MOVED: &[Figure] = &[
    Figure::time("", 50.0, 2),
    Figure::time(": direct again", 150.0, 3),
];
/// There was no network at all for so long that the relay has to be dialled anew.
const NETWORK_BACK: &[Figure] = &[
    Figure::time("", 500.0, 0),
    Figure::time(": direct again", 500.0, 3),
];
/// Nobody but the peer itself can be asked: two round trips to prove the new address, what the kernel takes to tell, and
/// the time from one ping to the next on both ends.
const MOVED_ALONE: &[Figure] = &[
    Figure::time("", 1_000.0, 0),
    Figure::time(": direct again", 80.0, 2),
];
const PLANNED: &[Figure] = &[
    Figure::count("", "lost", 0.0),
    Figure::count(": taken for replays", "packets", 0.0),
    Figure::count(": relay probes without answer", "missing", 0.0),
];

pub(crate) static CASES: [Case; 19] = [
    Case::new("direct path dropped both ways", SILENT, |run| {
        run.scene(DIRECT)?
            .stall(|scene| cut(scene, true, true))
            .map(|stall| vec![stall])
    }),
    Case::new("direct path dropped one way, there", SILENT, |run| {
        run.scene(DIRECT)?
            .stall(|scene| cut(scene, true, false))
            .map(|stall| vec![stall])
    }),
    Case::new("direct path dropped one way, back", SILENT, |run| {
        run.scene(DIRECT)?
            .stall(|scene| cut(scene, false, true))
            .map(|stall| vec![stall])
    }),
    Case::new("uplink switch: admin down", MOVED, |run| {
        run.scene(DIRECT)?.moves(admin_down)
    }),
    // The kernel keeps the route of an interface without carrier: what manages the network takes it away, 20 ms later
    // here, and only then another one can be used.
    Case::new(
        "uplink switch: carrier lost, then its route",
        MOVED,
        |run| {
            let scene = run.scene(DIRECT)?;
            let port = scene.wifi.port(0);
            scene.wifi.ns.ip(&format!("link set {port} down"))?;
            std::thread::sleep(Duration::from_millis(20));
            scene.moves(|scene| scene.a.ns.ip("route del default dev wifi0"))
        },
    ),
    Case::new("uplink switch: default route replaced", MOVED, |run| {
        run.scene(DIRECT)?
            .moves(|scene| scene.a.ns.ip("route del default dev wifi0"))
    }),
    Case::new("uplink switch: another address", MOVED, |run| {
        let scene = run.scene(DIRECT)?;
        scene.readdress()?;
        scene.moved_since(Instant::now())
    }),
    Case::new(
        "uplink switch: the next one comes 2 s later",
        NETWORK_BACK,
        |run| {
            let late = true;
            let setup = Setup { late, ..DIRECT };
            switch(run, setup, Duration::from_secs(2))
        },
    ),
    Case::new("uplink switch: IPv4 to IPv6", MOVED, |run| {
        let (lte, late) = (Uplink::V6, true);
        let setup = Setup {
            lte,
            late,
            ..DIRECT
        };
        switch(run, setup, Duration::ZERO)
    }),
    Case::new("uplink switch: IPv6 to IPv4", MOVED, |run| {
        let wifi = Uplink::V6;
        run.scene(Setup { wifi, ..DIRECT })?.moves(admin_down)
    }),
    Case::new("router gets another address, nobody tells", SILENT, |run| {
        let scene = run.scene(DIRECT)?;
        let before = scene.remote_of_a()?;
        let stall = scene.stall(renumber)?;
        let after = scene.remote_of_a()?;
        ensure!(before != after, "a is still reached at {before}");
        Ok(vec![stall])
    }),
    Case::new(
        "NAT forgets its mappings, new ones get other ports",
        SILENT,
        |run| {
            let nat = Nat::RandomPorts;
            let scene = run.scene(Setup { nat, ..DIRECT })?;
            let before = scene.remote_of_a()?;
            let stall = scene.stall(Uplinks::forget_mappings)?;
            let after = scene.remote_of_a()?;
            ensure!(before != after, "a is still reached at {before}");
            Ok(vec![stall])
        },
    ),
    Case::new("home relay killed, another one there", SILENT, |run| {
        let relays = 2;
        let mut scene = run.scene(Setup { relays, ..RELAYED })?;
        let used = scene.a.peer("b")?["path"]["relay"].to_string();
        let mut relays = scene.relays.iter_mut();
        let used = relays.find(|relay| used.contains(&relay.url));
        let start = Instant::now();
        used.context("no relay is used")?.kill();
        Ok(vec![scene.stall_since(start)?])
    }),
    Case::new(
        "home relay restarted, no other there",
        HALF_A_SECOND,
        |run| {
            let mut scene = run.scene(RELAYED)?;
            scene.relays[0].kill();
            std::thread::sleep(Duration::from_secs(2));
            scene.relays[0].restart()?;
            Ok(vec![scene.back_since(Instant::now())?])
        },
    ),
    Case::new("link down for 5 s, relay only", HALF_A_SECOND, |run| {
        link_down(run, Duration::from_secs(5))
    }),
    Case::new("link down for 60 s, relay only", HALF_A_SECOND, |run| {
        link_down(run, Duration::from_secs(60))
    })
    .pace(Pace::Slow),
    Case::new(
        "frozen for 60 s, thawed on another network",
        SILENT,
        |run| {
            let mut scene = run.scene(DIRECT)?;
            let freezer = Freezer::around(scene.a.program())?;
            freezer.freeze()?;
            std::thread::sleep(Duration::from_secs(60));
            scene.a.ns.ip("link set wifi0 down")?;
            freezer.thaw()?;
            Ok(vec![scene.back_since(Instant::now())?])
        },
    )
    .pace(Pace::Slow),
    Case::new(
        "moves, no relay, the other one public",
        MOVED_ALONE,
        |run| {
            let relays = 0;
            run.scene(Setup { relays, ..DIRECT })?.moves(admin_down)
        },
    ),
    Case::new(
        "better path appears at 80,000 packets/s",
        PLANNED,
        flood::run,
    )
    .pace(Pace::Alone),
];

fn switch(run: &Run<'_>, setup: Setup, pause: Duration) -> Result<Vec<f64>> {
    let scene = run.scene(setup)?;
    scene.change_uplink(pause)?;
    scene.moved_since(Instant::now())
}

fn admin_down(scene: &Uplinks) -> Result<()> {
    scene.a.ns.ip("link set wifi0 down")
}

/// Drops what goes directly from a's first uplink to b, or comes from there.
fn cut(scene: &Uplinks, there: bool, back: bool) -> Result<()> {
    let (near, far) = (scene.wifi.wan, scene.far);
    let mut pairs: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
    pairs.extend(there.then_some((near, far)));
    pairs.extend(back.then_some((far, near)));
    block(&scene.internet, &pairs)
}

/// Gives the router at wifi0 another outer address; its mappings are gone with the old one.
fn renumber(scene: &Uplinks) -> Result<()> {
    let ns = &scene.wifi.ns;
    let [a, b, c, _] = scene.wifi.wan.octets();
    ns.ip(&format!(
        "addr add {a}.{b}.{c}.3/24 dev wan
         addr del {a}.{b}.{c}.2/24 dev wan
         addr replace {a}.{b}.{c}.3/24 dev wan
         route replace default via {a}.{b}.{c}.1"
    ))?;
    ns.run("conntrack", &["-F"]).map(drop)
}

/// Host a has no link at all for a while.
fn link_down(run: &Run<'_>, time: Duration) -> Result<Vec<f64>> {
    let scene = run.scene(RELAYED)?;
    scene.lose_link(time)?;
    Ok(vec![scene.back_since(Instant::now())?])
}
