//! One run of one cell: two hosts that talk to each other until they have found what there is to find.

use std::fmt;
use std::time::Duration;

use mesh_core::engine::{AttemptReport, Strategy};
use mesh_core::limits;
use mesh_tests::sim::{FlowConfig, FlowId, LinkConfig, Pair, RelayId, RouterId, Sim};

use super::edges::Edge;
use super::goals::{Goal, goal};
use crate::common::secs;

/// Longest time from the first packet to a direct path. What it takes is measured; this is when to give up.
const LIMIT: Duration = secs(60);
/// How long sockets that did not win may be open.
const CLOSING: Duration = secs(5);
/// How many may be kept: every port of a row may have been answered, and any may be the one that the peer sends to.
const KEPT: usize = limits::ROW_SOCKETS + 1;
/// How long a host without UDP takes to find that out.
const DIAL: Duration = secs(20);
/// Longest time until data flows again after a silence in which a mapping was lost: two seconds, and more on a line
/// whose jitter is twice its round trip time.
const RECOVERY: Duration = secs(4);
/// Mappings that one router may make for one host in one run: one spray of 2,048 probes, the ports that one side opens
/// for it and for a prediction, and what plain punching, measuring and relays need.
const MAPPINGS: u64 = 2_048 + 512;

/// A pair of edges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cell {
    pub(super) a: Edge,
    pub(super) b: Edge,
    pub(super) goal: Goal,
}

/// How two hosts reach each other in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Direct,
    Relay,
    Nothing,
}

/// What opened a direct path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Means {
    Plain,
    Prediction,
    Birthday,
}

impl Means {
    pub(super) const ALL: [Self; 3] = [Self::Plain, Self::Prediction, Self::Birthday];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain punch",
            Self::Prediction => "port prediction",
            Self::Birthday => "birthday",
        }
    }
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What came of a run.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) end: End,
    pub(super) means: Option<Means>,
    /// From the first answer, which comes over the relay, until both ends send directly.
    pub(super) took: Option<Duration>,
    /// Mappings that each side's router has made.
    pub(super) mappings: [u64; 2],
    /// What the hosts tried, in words.
    pub(super) tried: String,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.a, self.b)
    }
}

impl Cell {
    pub(super) fn new(a: Edge, b: Edge) -> Self {
        let goal = goal(a, b);
        Self { a, b, goal }
    }

    /// True if the outcome is what the goal asks for, or better.
    pub(super) fn is_met_by(&self, outcome: &Outcome) -> bool {
        match self.goal {
            Goal::Nothing => true,
            Goal::Relay => outcome.end <= End::Relay,
            Goal::Plain | Goal::Prediction | Goal::Birthday => outcome.end == End::Direct,
        }
    }

    /// Runs it. Where the relay is the goal, `patience` is how long the hosts may look for something better.
    ///
    /// # Errors
    /// What may happen in no cell, and did.
    pub(super) fn run(&self, sim: &mut Sim, patience: Duration) -> Result<Outcome, String> {
        let seed = sim.seed();
        let pair = self.start(sim, seed);
        let flow = talk(sim, pair, seed);
        let start = sim.now();
        let limit = match self.goal {
            Goal::Plain | Goal::Prediction | Goal::Birthday => LIMIT,
            Goal::Relay => patience,
            Goal::Nothing => DIAL,
        };
        let direct = sim.try_until(limit, |sim| sim.is_direct(pair.a, pair.b));
        let first = sim.stream(flow).first_success().map(|at| at.since(start));
        let took = direct.map(|direct| direct.saturating_sub(first.unwrap_or_default()));
        // Whatever the path: it stays, and it carries data.
        sim.run_for(secs(1));
        let since = sim.now();
        sim.run_for(secs(1));
        let is_direct = sim.is_direct(pair.a, pair.b);
        let works = sim.stream(flow).works_since(since);
        if direct.is_some() && !is_direct {
            return Err(format!("direct after {took:?}, and then not any more"));
        }
        if is_direct && !works {
            return Err("the direct path carries no data".to_owned());
        }
        let end = match (is_direct, works) {
            (true, _) => End::Direct,
            (false, true) => End::Relay,
            (false, false) => End::Nothing,
        };
        self.check_end(sim, pair, end)?;
        if is_direct && (self.a.forgets() || self.b.forgets()) {
            check_recovery(sim, pair, flow)?;
        }
        let mappings = [pair.router_a, pair.router_b].map(|router| mappings(sim, router));
        if mappings.iter().any(|made| *made > MAPPINGS) {
            return Err(format!("{mappings:?} mappings were made"));
        }
        let means = is_direct.then(|| means(sim, pair));
        check_sockets(sim, pair)?;
        Ok(Outcome {
            end,
            means,
            took,
            mappings,
            tried: tried(sim, pair),
        })
    }

    /// Both hosts, with one relay or two, of which one cannot tell every kind of mapping; they have measured their NATs.
    fn start(&self, sim: &mut Sim, seed: u64) -> Pair {
        let relays: Vec<RelayId> = (0..=seed / 2 % 2)
            .map(|_| sim.add_relay(LinkConfig::access()))
            .collect();
        let (a, router_a) = sim.host_at("a", self.a.site());
        let (b, router_b) = sim.host_at("b", self.b.site());
        sim.network(&[a, b], &relays);
        sim.run_for(secs(3));
        Pair {
            a,
            b,
            relay: relays[0],
            router_a,
            router_b,
        }
    }

    fn check_end(&self, sim: &Sim, pair: Pair, end: End) -> Result<(), String> {
        match self.goal {
            Goal::Nothing => {
                for (edge, host) in [(self.a, pair.a), (self.b, pair.b)] {
                    let complains = !sim.health(host).is_empty();
                    if complains != (edge == Edge::Blocked) {
                        return Err(format!("{edge}: health says {:?}", sim.health(host)));
                    }
                }
                Ok(())
            }
            _ if end == End::Nothing => Err(format!("no data: {:?}", sim.remote(pair.a, pair.b))),
            _ => Ok(()),
        }
    }
}

/// A stream of questions and answers; which side begins depends on the seed.
fn talk(sim: &mut Sim, pair: Pair, seed: u64) -> FlowId {
    let (from, to) = match seed % 2 {
        0 => (pair.a, pair.b),
        _ => (pair.b, pair.a),
    };
    sim.flow(FlowConfig {
        from,
        to,
        interval: Duration::from_millis(200),
        size: 100,
        echo: true,
    })
}

/// What opened the path, as the hosts themselves tell it: on one side the peer's packets may just have come in.
fn means(sim: &Sim, pair: Pair) -> Means {
    let of = |(from, to)| {
        let explanation = sim.explain(from, to)?;
        let mut answered = explanation.attempts.iter().filter(|tried| tried.answered);
        answered.next_back().map(|tried| match tried.strategy {
            Strategy::Plain => Means::Plain,
            Strategy::Meet => Means::Prediction,
            Strategy::Open | Strategy::Search => Means::Birthday,
        })
    };
    let both = [(pair.a, pair.b), (pair.b, pair.a)].map(of);
    both.into_iter().flatten().max().unwrap_or(Means::Plain)
}

/// What both hosts have tried, for people.
fn tried(sim: &Sim, pair: Pair) -> String {
    let of = |(from, to)| {
        let attempts = sim.explain(from, to).map(|one| one.attempts);
        let one = |one: &AttemptReport| {
            let answered = if one.answered { ", answered" } else { "" };
            let (strategy, probes) = (one.strategy, one.probes);
            format!("{strategy:?} {probes} in {:?}{answered}", one.duration)
        };
        let lines: Vec<String> = attempts.iter().flatten().map(one).collect();
        lines.join(", ")
    };
    let [a, b] = [(pair.a, pair.b), (pair.b, pair.a)].map(of);
    format!("a tried {a}; b tried {b}")
}

/// Soon after the end of all attempts only sockets that were answered are left.
fn check_sockets(sim: &mut Sim, pair: Pair) -> Result<(), String> {
    let attempting = |sim: &Sim, from, to| {
        let tried = sim.explain(from, to).map(|one| one.attempts);
        let last = tried.as_ref().and_then(|tried| tried.last());
        last.is_some_and(|last| !last.answered && last.strategy != Strategy::Plain)
    };
    let left = |sim: &Sim, host| sim.host(host).spares();
    let done = |sim: &Sim, host, other| attempting(sim, host, other) || left(sim, host) <= KEPT;
    sim.try_until(CLOSING, |sim| {
        done(sim, pair.a, pair.b) && done(sim, pair.b, pair.a)
    });
    for (host, other) in [(pair.a, pair.b), (pair.b, pair.a)] {
        let left = left(sim, host);
        if left > limits::SPRAY_SOCKETS + 16 || !done(sim, host, other) {
            return Err(format!(
                "{left} sockets are still open after {CLOSING:?}: {}",
                tried(sim, pair)
            ));
        }
        let done = sim
            .host(host)
            .engine()
            .map(mesh_core::engine::Engine::traversal);
        if done.is_some_and(|done| done.probes > done.attempts * limits::SPRAY_PROBES as u64) {
            return Err(format!("beyond the budget: {done:?}"));
        }
    }
    Ok(())
}

/// A silence longer than the mapping's lifetime: data flows again soon, and directly in the end.
fn check_recovery(sim: &mut Sim, pair: Pair, flow: FlowId) -> Result<(), String> {
    sim.stop_flow(flow);
    sim.run_for(secs(12));
    sim.resume_flow(flow);
    let since = sim.now();
    let works = sim.try_until(RECOVERY, |sim| sim.stream(flow).works_since(since));
    works.ok_or_else(|| "no data after a silence".to_owned())?;
    let direct = sim.try_until(LIMIT, |sim| sim.is_direct(pair.a, pair.b));
    direct.ok_or_else(|| "not direct after a silence".to_owned())?;
    Ok(())
}

fn mappings(sim: &mut Sim, router: Option<RouterId>) -> u64 {
    let nat = router.and_then(|router| sim.router_mut(router).nat.as_ref());
    nat.map_or(0, mesh_tests::sim::Nat::made)
}
