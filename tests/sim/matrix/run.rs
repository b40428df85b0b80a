//! One run of one cell: two hosts that talk to each other until they have found what there is to find.

use std::fmt;
use std::time::Duration;

use mesh_tests::sim::{FlowConfig, FlowId, Pair, RouterId, Sim};

use super::edges::Edge;
use super::goals::{Goal, goal};
use crate::common::secs;

/// Longest time from the first packet to a direct path. What it takes is measured; this is when to give up.
const LIMIT: Duration = secs(60);
/// How long a host without UDP takes to find that out.
const DIAL: Duration = secs(20);
/// Longest time until data flows again after a silence in which a mapping was lost.
const RECOVERY: Duration = secs(2);
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
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) end: End,
    pub(super) means: Option<Means>,
    /// From the first answer, which comes over the relay, until both ends send directly.
    pub(super) took: Option<Duration>,
    /// Mappings that each side's router has made.
    pub(super) mappings: [u64; 2],
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
        let pair = sim.pair(self.a.site(), self.b.site());
        sim.run_for(secs(1));
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
        // The core knows no other way yet.
        let means = is_direct.then_some(Means::Plain);
        Ok(Outcome {
            end,
            means,
            took,
            mappings,
        })
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
