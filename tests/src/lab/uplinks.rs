//! Two hosts, one of which has two uplinks, and their relays; pings and a TCP stream run between them all along.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::arrivals::{Arrival, Arrivals};
use super::nat::{Nat, WanInput};
use super::netns::Namespace;
use super::node::{Node, Settings};
use super::pulse::Pulse;
use super::relay::Relay;
use super::scenario::Lab;
use super::topology::{Internet, Router, carrier};
use super::wait::within;
use anyhow::{Context, Result, ensure};

/// Longest that something which should take well under a second may take before anything is measured.
const SOON: Duration = Duration::from_secs(20);
/// How long is looked for a stall after something happened.
const WATCHED: Duration = Duration::from_secs(4);
/// A connection that stood still for a minute may wait for nearly as long again before it repeats what was lost.
const PATIENT: Duration = Duration::from_secs(130);
/// How much longer than a round trip by way of the relay an answer may take and count: the time that a busy machine needs.
const LATE: Duration = Duration::from_millis(50);
/// Of the host that is found without a relay.
const PORT: u16 = 41_820;

/// What an uplink offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uplink {
    /// IPv4 alone.
    V4,
    /// Both families, but nobody is reached directly over IPv4, only relays.
    V6,
}

/// What a scene begins with.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// How many relays there are.
    pub relays: usize,
    /// Enforced: no direct path is possible.
    pub relayed: bool,
    /// What wifi0 offers, which is used first.
    pub wifi: Uplink,
    /// And lte0.
    pub lte: Uplink,
    /// Of the router at wifi0.
    pub nat: Nat,
    /// One way between two sites.
    pub delay: Duration,
    /// Pings go from b to a.
    pub backwards: bool,
    /// lte0 has no address until [`Uplinks::switch`].
    pub late: bool,
}

/// A direct path over IPv4, one relay.
pub const DIRECT: Setup = Setup {
    relays: 1,
    relayed: false,
    wifi: Uplink::V4,
    lte: Uplink::V4,
    nat: Nat::Masquerade,
    delay: Duration::ZERO,
    backwards: false,
    late: false,
};

/// A relay and nothing else.
pub const RELAYED: Setup = Setup {
    relayed: true,
    ..DIRECT
};

/// Host a – wifi0 and lte0 to a router each – internet – router – host b, and relays. Without any, b is public.
#[derive(Debug)]
pub struct Uplinks {
    /// The middle.
    pub internet: Internet,
    /// The router at wifi0, a being its host number 0.
    pub wifi: Router,
    _lte: Router,
    _far_router: Option<Router>,
    /// b's outer address.
    pub far: Ipv4Addr,
    /// The relays.
    pub relays: Vec<Relay>,
    /// The host with two uplinks.
    pub a: Node,
    /// The other one.
    pub b: Node,
    /// What gives lte0 its addresses and routes, if it is late.
    later: String,
    /// What runs between them.
    pub pulse: Pulse,
    /// Pings on direct paths, as they reach a and b.
    arrivals: [Arrivals; 2],
}

impl Uplinks {
    /// Starts everything and waits for the path.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn new(lab: &Lab, setup: Setup) -> Result<Self> {
        let ipv6 = [setup.wifi, setup.lte].contains(&Uplink::V6);
        let mut internet = Internet::new(ipv6)?;
        let mut places: Vec<(Namespace, Ipv4Addr)> = Vec::new();
        for number in 0..setup.relays {
            places.push(internet.host(&format!("relay{number}"))?);
        }
        let mut wifi = internet.router("wifi", setup.nat, WanInput::Drop)?;
        let mut lte = internet.router("lte", Nat::Masquerade, WanInput::Drop)?;
        let a = Namespace::new("a")?;
        wifi.attach(&a, "wifi0", 100)?;
        lte.attach(&a, "lte0", 200)?;
        let (b, far, far_router) = far_host(&mut internet, setup)?;
        if !setup.delay.is_zero() {
            internet.delay(setup.delay)?;
        }
        for (uplink, router, interface) in [(setup.wifi, &wifi, "wifi0"), (setup.lte, &lte, "lte0")]
        {
            if setup.relayed || uplink == Uplink::V6 {
                block(&internet, &[(router.wan, far), (far, router.wan)])?;
            }
            if ipv6 && uplink == Uplink::V4 {
                a.ip6(&format!(
                    "addr flush dev {interface} scope global\nroute del default dev {interface}"
                ))?;
            }
        }
        let later = if setup.late {
            strip(&a, "lte0")?
        } else {
            String::new()
        };
        let relays = places
            .iter()
            .map(|(ns, address)| Relay::start(lab, ns, *address))
            .collect::<Result<Vec<_>>>()?;
        let (a, b) = start(lab, (&a, &b), far, &relays)?;
        let kind = if setup.relayed { "relay" } else { "direct" };
        a.wait_path("b", kind, SOON)?;
        b.wait_path("a", kind, SOON)?;
        let arrivals = [
            Arrivals::watch(&a.ns, Pulse::WIRE_BYTES)?,
            Arrivals::watch(&b.ns, Pulse::WIRE_BYTES)?,
        ];
        let (from, to) = if setup.backwards { (&b, &a) } else { (&a, &b) };
        let pulse = Pulse::start(from, to, setup.delay * 4 + LATE)?;
        let scene = Self {
            internet,
            wifi,
            _lte: lte,
            _far_router: far_router,
            far,
            relays,
            a,
            b,
            later,
            pulse,
            arrivals,
        };
        scene.pulse.wait(Instant::now(), SOON)?;
        // For a while, so that what comes later can be told from it.
        let direct = || {
            let past = Instant::now() - Duration::from_millis(50);
            scene.arrivals.each_ref().map(|seen| seen.last(past))
        };
        if !setup.relayed {
            within("pings to go directly", SOON, || {
                Ok(direct().iter().all(Option::is_some))
            })?;
        }
        let direct = direct();
        ensure!(
            direct.iter().all(|seen| seen.is_some() != setup.relayed),
            "pings arrived directly: {direct:?}"
        );
        if setup.wifi == Uplink::V6 {
            let v6 = |seen: &Option<Arrival>| seen.is_some_and(|seen| seen.to.is_ipv6());
            ensure!(
                direct.iter().all(v6),
                "the path is not over IPv6: {direct:?}"
            );
        }
        Ok(scene)
    }

    /// Lets the paths be measured and the first punches end, and checks that nothing stands still then.
    ///
    /// # Errors
    ///
    /// When something does.
    pub fn settle(&self) -> Result<()> {
        std::thread::sleep(Duration::from_secs(2));
        let now = Instant::now();
        let quiet = now - Duration::from_millis(500);
        let before = self.pulse.stall(quiet, now - Duration::from_millis(200));
        ensure!(
            before < Duration::from_millis(150),
            "a stall of {before:?} before anything happened"
        );
        Ok(())
    }

    /// Lets something happen; how long pings were not answered from when it began, in milliseconds. The TCP stream has to
    /// go on.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn stall(&self, happens: impl FnOnce(&Self) -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        happens(self)?;
        self.stall_since(start)
    }

    /// As [`Self::stall`], for something that began, or was over, at `start`.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn stall_since(&self, start: Instant) -> Result<f64> {
        let end = start + WATCHED;
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        // What was sent last is still under way.
        let stall = self.pulse.stall(start, end - Duration::from_millis(300));
        self.pulse.check_stream(SOON)?;
        Ok(ms(stall))
    }

    /// Host a moves: how long pings were not answered, and after how long they came and went directly by the new way.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn moves(&self, happens: impl FnOnce(&Self) -> Result<()>) -> Result<Vec<f64>> {
        let start = Instant::now();
        happens(self)?;
        self.moved_since(start)
    }

    /// The first uplink is lost, and `pause` later the second one, a late one, gets its addresses.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn change_uplink(&self, pause: Duration) -> Result<()> {
        self.a.ns.ip("link set wifi0 down")?;
        std::thread::sleep(pause);
        self.a.ns.ip(&self.later)
    }

    /// Gives wifi0 another address in its network.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn readdress(&self) -> Result<()> {
        let ns = &self.a.ns;
        let own = ns.run("ip", &["-4", "-o", "addr", "show", "wifi0"])?;
        let mut words = own.split_whitespace();
        let net = words
            .find_map(|word| word.strip_suffix(".2/24"))
            .with_context(|| format!("no address in {own:?}"))?;
        ns.ip(&format!(
            "addr del {net}.2/24 dev wifi0
             addr add {net}.77/24 dev wifi0
             route add default via {net}.1 dev wifi0 metric 100"
        ))
    }

    /// Makes the router at wifi0 forget all mappings at once: one that stayed for a moment would hand its port on.
    ///
    /// # Errors
    ///
    /// When nft or conntrack refuses.
    pub fn forget_mappings(&self) -> Result<()> {
        let ns = &self.wifi.ns;
        ns.nft("table ip hold { chain forward { type filter hook forward priority -1; policy drop; }\n }")?;
        ns.run("conntrack", &["-F"])?;
        ns.nft("delete table ip hold")
    }

    /// Host a has no link at all for a while. Returns when it carries packets again: the router's bridge takes its time.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn lose_link(&self, time: Duration) -> Result<()> {
        self.a.ns.ip("link set lte0 down")?;
        let (port, ns) = (self.wifi.port(0), &self.wifi.ns);
        ns.ip(&format!("link set {port} down"))?;
        std::thread::sleep(time);
        ns.ip(&format!("link set {port} up"))?;
        carrier(ns, "lan")?;
        carrier(&self.a.ns, "wifi0")
    }

    /// As [`Self::moves`], when the new way can be used since `start`.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn moved_since(&self, start: Instant) -> Result<Vec<f64>> {
        let stall = self.stall_since(start)?;
        let direct = self.direct_again(start)?;
        let direct = direct.context("pings do not come and go directly after the move")?;
        Ok(vec![stall, ms(direct)])
    }

    /// How long after a's move at `start` pings came and went directly, by the new way.
    ///
    /// # Errors
    ///
    /// When they did not do so before the move.
    pub fn direct_again(&self, start: Instant) -> Result<Option<Duration>> {
        let [at_a, at_b] = &self.arrivals;
        let before = start - Duration::from_millis(20);
        let old_a = at_a
            .last(before)
            .context("no ping came to a directly before")?;
        let old_b = at_b
            .last(before)
            .context("no ping came to b directly before")?;
        let there = at_b.first(start, |seen| seen.from != old_b.from);
        // Where only the route has changed, b's packets may go on arriving by the old way: then they never ceased to.
        let goes_on = at_a.first(start + Duration::from_secs(1), |_| true);
        let back = at_a.first(start, |seen| seen.to != old_a.to);
        let back = back.or(goes_on.map(|_| Duration::ZERO));
        Ok(there.zip(back).map(|(there, back)| there.max(back)))
    }

    /// Milliseconds until a ping that is sent from `since` on is answered; the TCP stream has to go on.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn back_since(&self, since: Instant) -> Result<f64> {
        let took = self.pulse.wait(since, SOON)?;
        self.pulse.check_stream(PATIENT)?;
        Ok(ms(took))
    }

    /// Where b sends a's packets.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn remote_of_a(&self) -> Result<String> {
        Ok(self.b.peer("a")?["path"]["remote"].to_string())
    }
}

/// Takes an interface's addresses and routes away; returns the commands that bring them back.
fn strip(ns: &Namespace, interface: &str) -> Result<String> {
    let mut commands = String::new();
    for family in ["-4", "-6"] {
        let shown = ns.run(
            "ip",
            &[
                family, "-o", "addr", "show", "dev", interface, "scope", "global",
            ],
        )?;
        for line in shown.lines() {
            let own = line.split_whitespace().nth(3).context("an address")?;
            let nodad = if family == "-6" { "nodad" } else { "" };
            commands += &format!("addr add {own} dev {interface} {nodad}\n");
        }
        let routes = ns.run(
            "ip",
            &[family, "route", "show", "default", "dev", interface],
        )?;
        for line in routes.lines() {
            let mut words = line.split_whitespace().skip_while(|word| *word != "via");
            let via = words.nth(1).context("a gateway")?;
            commands += &format!("route add default via {via} dev {interface} metric 200\n");
        }
        let _ = ns.run(
            "ip",
            &[family, "addr", "flush", "dev", interface, "scope", "global"],
        )?;
        let _ = ns.run(
            "ip",
            &[family, "route", "flush", "default", "dev", interface],
        );
    }
    Ok(commands)
}

/// Host b, its outer address, and its router if it has one.
fn far_host(
    internet: &mut Internet,
    setup: Setup,
) -> Result<(Namespace, Ipv4Addr, Option<Router>)> {
    if setup.relays == 0 {
        let (b, address) = internet.host("b")?;
        return Ok((b, address, None));
    }
    let mut router = internet.router("far", Nat::Masquerade, WanInput::Drop)?;
    let (b, _) = router.host("b")?;
    Ok((b, router.wan, Some(router)))
}

/// Starts both daemons and waits until a reaches b.
fn start(
    lab: &Lab,
    places: (&Namespace, &Namespace),
    far: Ipv4Addr,
    relays: &[Relay],
) -> Result<(Node, Node)> {
    let urls: Vec<&str> = relays.iter().map(|relay| relay.url.as_str()).collect();
    let (mut a, mut b) = Node::pair(lab, places.0, places.1, &urls)?;
    if relays.is_empty() {
        let mut there = b.as_peer("10.77.0.2");
        there.endpoint = Some((far, PORT).into());
        let own = |address: &str, peer, listen_port| Settings {
            listen_port,
            address: Some(address.to_owned()),
            peers: vec![peer],
            ..Settings::default()
        };
        a.configure(&own("10.77.0.1", there, 0))?;
        b.configure(&own("10.77.0.2", a.as_peer("10.77.0.1"), PORT))?;
    }
    for node in [&mut a, &mut b] {
        // On the wire a burst would be one packet, and the pings in it not to be told by their size.
        let mut command = node.command()?;
        command.env("MESHD_DISABLE", "udp-gso");
        node.launch_as(command)?;
        node.program().wait_ready(SOON)?;
        if !relays.is_empty() {
            node.wait_relay(SOON)?;
        }
    }
    let overlay = b.overlay()?;
    within("a to reach b", SOON, || Ok(a.icmp(overlay, 1).is_ok()))?;
    Ok((a, b))
}

/// Drops every UDP packet over IPv4 from one address to the other of each pair.
///
/// # Errors
///
/// When nft refuses.
pub fn block(internet: &Internet, pairs: &[(Ipv4Addr, Ipv4Addr)]) -> Result<()> {
    let rules: String = pairs
        .iter()
        .map(|(from, to)| format!("ip saddr {from} ip daddr {to} meta l4proto udp counter drop\n"))
        .collect();
    internet.ns().nft(&format!(
        "table ip block {{
           chain forward {{ type filter hook forward priority 0;
             {rules}
           }}
         }}"
    ))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
