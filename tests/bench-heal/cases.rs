//! What breaks.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::lab::Lab;
use nix::sys::signal::Signal;

use crate::scene::{Scene, block};

/// How long connections may stand still.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    base: Duration,
    /// Round trips on top.
    rtts: u32,
}

impl Limit {
    const fn of(milliseconds: u64) -> Self {
        Self {
            base: Duration::from_millis(milliseconds),
            rtts: 0,
        }
    }

    /// The limit where it takes this long from site to site.
    pub(crate) fn at(self, delay: Duration) -> Duration {
        self.base + delay * 2 * self.rtts
    }
}

/// 50 ms and two round trips, where the kernel tells.
const TOLD: Limit = Limit {
    base: Duration::from_millis(50),
    rtts: 2,
};

/// A row of the table.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) limit: Limit,
    /// Returns the stall.
    pub(crate) run: fn(&Lab, Duration) -> Result<Duration>,
}

const fn case(
    name: &'static str,
    limit: Limit,
    run: fn(&Lab, Duration) -> Result<Duration>,
) -> Case {
    Case { name, limit, run }
}

pub(crate) const CASES: [Case; 12] = [
    case(
        "direct path dropped both ways",
        Limit::of(1_000),
        |lab, delay| {
            let scene = Scene::new(lab, delay, 1, "direct")?;
            scene.stall(|scene| {
                block(
                    &scene.internet,
                    &[(&scene.wifi, &scene.far), (&scene.far, &scene.wifi)],
                )
            })
        },
    ),
    case(
        "direct path dropped one way, there",
        Limit::of(1_000),
        |lab, delay| {
            let scene = Scene::new(lab, delay, 1, "direct")?;
            scene.stall(|scene| block(&scene.internet, &[(&scene.wifi, &scene.far)]))
        },
    ),
    case(
        "direct path dropped one way, back",
        Limit::of(1_000),
        |lab, delay| {
            let scene = Scene::new(lab, delay, 1, "direct")?;
            scene.stall(|scene| block(&scene.internet, &[(&scene.far, &scene.wifi)]))
        },
    ),
    case("uplink switch: admin down", TOLD, |lab, delay| {
        let scene = Scene::new(lab, delay, 1, "direct")?;
        scene.stall(|scene| scene.a.ns.ip("link set wifi0 down"))
    }),
    case(
        "uplink switch: default route replaced",
        TOLD,
        |lab, delay| {
            let scene = Scene::new(lab, delay, 1, "direct")?;
            scene.stall(|scene| scene.a.ns.ip("route del default dev wifi0"))
        },
    ),
    // The kernel keeps the route of an interface without carrier: what manages the network takes it away, 20 ms later here.
    case(
        "uplink switch: carrier lost, then the route",
        TOLD,
        |lab, delay| {
            let scene = Scene::new(lab, delay, 1, "direct")?;
            scene
                .wifi
                .ns
                .ip(&format!("link set {} down", scene.wifi.port(0)))?;
            std::thread::sleep(Duration::from_millis(20));
            scene.stall(|scene| scene.a.ns.ip("route del default dev wifi0"))
        },
    ),
    case("address of the uplink changes", TOLD, |lab, delay| {
        let scene = Scene::new(lab, delay, 1, "direct")?;
        let own = scene
            .a
            .ns
            .run("ip", &["-4", "-o", "addr", "show", "wifi0"])?;
        let net = own
            .split_whitespace()
            .find_map(|word| word.strip_suffix(".2/24"))
            .unwrap_or_default()
            .to_owned();
        ensure!(!net.is_empty(), "no address in {own:?}");
        scene.stall(|scene| {
            scene.a.ns.ip(&format!(
                "addr add {net}.77/24 dev wifi0
                 addr del {net}.2/24 dev wifi0
                 addr add {net}.77/24 dev wifi0
                 route add default via {net}.1 dev wifi0 metric 100"
            ))
        })
    }),
    case(
        "NAT forgets its mappings",
        Limit::of(1_000),
        |lab, delay| {
            let scene = Scene::new(lab, delay, 1, "direct")?;
            scene.stall(|scene| {
                let ns = &scene.wifi.ns;
                ns.run("conntrack", &["-F"]).map(drop)
            })
        },
    ),
    case(
        "home relay killed, standby there",
        Limit::of(1_000),
        |lab, delay| {
            let mut scene = Scene::new(lab, delay, 2, "relay")?;
            let home = scene.a.network()?["self"]["home_relay"].to_string();
            let at = scene
                .relays
                .iter()
                .position(|relay| home.contains(&relay.url));
            let start = Instant::now();
            scene.relays[at.unwrap_or(0)].kill();
            scene.stall_since(start)
        },
    ),
    case(
        "home relay restarted in place, no standby",
        Limit::of(500),
        |lab, delay| {
            let mut scene = Scene::new(lab, delay, 1, "relay")?;
            scene.relays[0].kill();
            std::thread::sleep(Duration::from_secs(2));
            scene.relays[0].restart()?;
            scene.back_since(Instant::now())
        },
    ),
    case(
        "link down for 5 s, relay only",
        Limit::of(500),
        |lab, delay| {
            let scene = Scene::new(lab, delay, 1, "relay")?;
            scene.a.ns.ip("link set lte0 down")?;
            let (port, ns) = (scene.wifi.port(0), &scene.wifi.ns);
            ns.ip(&format!("link set {port} down"))?;
            std::thread::sleep(Duration::from_secs(5));
            ns.ip(&format!("link set {port} up"))?;
            scene.back_since(Instant::now())
        },
    ),
    case(
        "stood still for 60 s, wakes on another network",
        Limit::of(1_000),
        |lab, delay| {
            let mut scene = Scene::new(lab, delay, 1, "direct")?;
            scene.a.program().signal(Signal::SIGSTOP)?;
            std::thread::sleep(Duration::from_secs(60));
            scene.a.ns.ip("link set wifi0 down")?;
            scene.a.program().signal(Signal::SIGCONT)?;
            scene.back_since(Instant::now())
        },
    ),
];
