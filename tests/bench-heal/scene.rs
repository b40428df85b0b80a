//! Two hosts, one of which has two uplinks, and their relays.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::lab::{
    Internet, Lab, Namespace, Nat, Node, Pulse, Relay, Router, WanInput, within,
};

/// Longest that something which should take well under a second may take before anything is measured.
const SOON: Duration = Duration::from_secs(20);
/// How long is looked for a stall after something happened.
const WATCHED: Duration = Duration::from_secs(4);

/// Host a – wifi0 and lte0 to a router each – internet – router – host b, and one relay or two.
pub(crate) struct Scene {
    pub(crate) internet: Internet,
    pub(crate) wifi: Router,
    _lte: Router,
    pub(crate) far: Router,
    pub(crate) relays: Vec<Relay>,
    pub(crate) a: Node,
    _b: Node,
    pulse: Pulse,
}

impl Scene {
    /// Starts everything and waits for a path of this kind; "relay" is enforced.
    pub(crate) fn new(lab: &Lab, delay: Duration, relays: usize, kind: &str) -> Result<Self> {
        let mut internet = Internet::new(false)?;
        let mut places: Vec<(Namespace, std::net::Ipv4Addr)> = Vec::new();
        for number in 0..relays {
            places.push(internet.host(&format!("relay{number}"))?);
        }
        let mut wifi = internet.router("wifi", Nat::Masquerade, WanInput::Drop)?;
        let mut lte = internet.router("lte", Nat::Masquerade, WanInput::Drop)?;
        let mut far = internet.router("far", Nat::Masquerade, WanInput::Drop)?;
        let a = Namespace::new("a")?;
        wifi.attach(&a, "wifi0", 100)?;
        lte.attach(&a, "lte0", 200)?;
        let (b, _) = far.host("b")?;
        if !delay.is_zero() {
            internet.delay(delay)?;
        }
        if kind == "relay" {
            block(
                &internet,
                &[(&wifi, &far), (&far, &wifi), (&lte, &far), (&far, &lte)],
            )?;
        }
        let relays = places
            .iter()
            .map(|(ns, address)| Relay::start(lab, ns, *address))
            .collect::<Result<Vec<_>>>()?;
        let urls: Vec<&str> = relays.iter().map(|relay| relay.url.as_str()).collect();
        let (mut a, mut b) = Node::pair(lab, &a, &b, &urls)?;
        for node in [&mut a, &mut b] {
            node.start()?;
            node.wait_relay(SOON)?;
        }
        let overlay = b.overlay()?;
        within("a to reach b", SOON, || Ok(a.icmp(overlay, 1).is_ok()))?;
        a.wait_path("b", kind, SOON)?;
        b.wait_path("a", kind, SOON)?;
        let pulse = Pulse::start(&a, &b)?;
        let start = Instant::now();
        pulse.wait(start, SOON)?;
        // The paths have been measured by then, and the first punches are over.
        std::thread::sleep(Duration::from_secs(2));
        let quiet = Instant::now() - Duration::from_millis(500);
        let before = pulse.stall(quiet, Instant::now() - Duration::from_millis(200));
        ensure!(
            before < Duration::from_millis(150),
            "a stall of {before:?} before anything happened"
        );
        Ok(Self {
            internet,
            wifi,
            _lte: lte,
            far,
            relays,
            a,
            _b: b,
            pulse,
        })
    }

    /// Lets something happen; how long pings were not answered then. The TCP stream has to go on.
    pub(crate) fn stall(&self, happens: impl FnOnce(&Self) -> Result<()>) -> Result<Duration> {
        let start = Instant::now();
        happens(self)?;
        self.stall_since(start)
    }

    /// As [`Self::stall`], for something that began to be over at `start`.
    pub(crate) fn stall_since(&self, start: Instant) -> Result<Duration> {
        let end = start + WATCHED;
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        // What was sent last is still under way.
        let stall = self.pulse.stall(start, end - Duration::from_millis(300));
        self.pulse.check_stream(SOON)?;
        Ok(stall)
    }

    /// Time until a ping that is sent from `since` on is answered; the TCP stream has to go on.
    pub(crate) fn back_since(&self, since: Instant) -> Result<Duration> {
        let took = self.pulse.wait(since, SOON)?;
        self.pulse.check_stream(SOON)?;
        Ok(took)
    }
}

/// Drops every UDP packet from one router to the other of each pair.
pub(crate) fn block(internet: &Internet, pairs: &[(&Router, &Router)]) -> Result<()> {
    let rules: String = pairs
        .iter()
        .map(|(from, to)| {
            format!(
                "ip saddr {} ip daddr {} meta l4proto udp counter drop\n",
                from.wan, to.wan
            )
        })
        .collect();
    internet.ns().nft(&format!(
        "table ip block {{
           chain forward {{ type filter hook forward priority 0;
             {rules}
           }}
         }}"
    ))
}
