//! How two hosts have to end, from what their NATs do (RFC 4787's terms).
//!
//! "Open" filters (F°) let in whoever has an address that was sent to, from whatever port: EIF or ADF. An allocation is
//! *predictable* if a port follows from ports that were seen before.

use std::fmt;

use mesh_tests::sim::{Allocation, Filtering, Mapping, Pool};

use super::edges::Edge;

/// How a pair has to end, and by which means at most. Better is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Goal {
    /// Direct always, by the plain simultaneous punch.
    Plain,
    /// Direct always: a port is foretold.
    Prediction,
    /// Direct nearly always: many ports meet many ports.
    Birthday,
    /// Data flows over the relay.
    Relay,
    /// Nothing reaches anything: a host without UDP reaches no relay either.
    Nothing,
}

impl Goal {
    pub(super) const ALL: [Self; 5] = [
        Self::Plain,
        Self::Prediction,
        Self::Birthday,
        Self::Relay,
        Self::Nothing,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "direct, plain punch",
            Self::Prediction => "direct, port prediction",
            Self::Birthday => "direct in 98 %, birthday",
            Self::Relay => "relay",
            Self::Nothing => "nothing",
        }
    }

    /// How many of so many runs may end worse. The birthday attack within 2,048 probes misses once in 3,000 times; one
    /// miss is allowed in any number of runs, so that a test with few of them does not depend on luck.
    pub(super) const fn misses(self, runs: usize) -> usize {
        match self {
            Self::Birthday if runs >= 100 => runs / 50,
            Self::Birthday => 1,
            _ => 0,
        }
    }
}

/// What a NAT, or two in a row, do to a host.
#[derive(Debug, Clone, Copy)]
struct Behaviour {
    mapping: Mapping,
    filtering: Filtering,
    is_random: bool,
    /// A new mapping gets any of several addresses.
    is_pooled: bool,
}

impl Behaviour {
    fn of(edge: Edge) -> Option<Self> {
        let plain = |filtering| Self {
            mapping: Mapping::Eim,
            filtering,
            is_random: false,
            is_pooled: false,
        };
        let nat = |nat: mesh_tests::sim::NatConfig| Self {
            mapping: nat.mapping,
            filtering: nat.filtering,
            is_random: nat.mapping != Mapping::Eim && is_random(nat.allocation),
            is_pooled: nat.mapping != Mapping::Eim
                && matches!(nat.pool, Pool::Arbitrary(_) | Pool::ByDestination(_)),
        };
        match edge {
            Edge::Public => Some(plain(Filtering::Eif)),
            Edge::Firewall(filtering) => Some(plain(filtering)),
            Edge::Nat(one) | Edge::Late(one) => Some(nat(one)),
            Edge::Double { home, carrier } => {
                let (home, carrier) = (nat(home), nat(carrier));
                Some(Self {
                    mapping: home.mapping.max(carrier.mapping),
                    filtering: home.filtering.max(carrier.filtering),
                    is_random: home.is_random || carrier.is_random,
                    is_pooled: home.is_pooled || carrier.is_pooled,
                })
            }
            Edge::Blocked => None,
        }
    }

    fn is_easy(self) -> bool {
        self.mapping == Mapping::Eim
    }

    fn is_open(self) -> bool {
        self.filtering != Filtering::Apdf
    }
}

/// No port follows from another one. That an offset or a multiple of the inner port does is seen only by who knows the
/// inner ports; for everybody else they are as good as random.
fn is_random(allocation: Allocation) -> bool {
    matches!(
        allocation,
        Allocation::Random | Allocation::Block(_) | Allocation::Offset(_) | Allocation::Multiple(_)
    )
}

/// How the two have to end.
pub(super) fn goal(a: Edge, b: Edge) -> Goal {
    let (Some(a), Some(b)) = (Behaviour::of(a), Behaviour::of(b)) else {
        return Goal::Nothing;
    };
    match (a.is_easy(), b.is_easy()) {
        (true, true) => Goal::Plain,
        (true, false) => easy_and_hard(a, b),
        (false, true) => easy_and_hard(b, a),
        (false, false) => both_hard(a, b),
    }
}

/// The easy side's port is known. If it lets in whatever port of the hard side, that is all; otherwise the hard side's
/// port has to be foretold or met.
fn easy_and_hard(easy: Behaviour, hard: Behaviour) -> Goal {
    match (easy.is_open(), hard.is_random || hard.is_pooled) {
        (true, _) => Goal::Plain,
        (false, false) => Goal::Prediction,
        (false, true) => Goal::Birthday,
    }
}

fn both_hard(a: Behaviour, b: Behaviour) -> Goal {
    if a.is_pooled || b.is_pooled {
        // Who looks at the address does not know it in advance, be its port known or not.
        let anyone = |side: Behaviour| side.filtering == Filtering::Eif;
        return if anyone(a) || anyone(b) {
            Goal::Plain
        } else {
            Goal::Relay
        };
    }
    match (a.is_open(), b.is_open()) {
        (true, true) => both_open(a, b),
        (true, false) => open_and_closed(a, b),
        (false, true) => open_and_closed(b, a),
        (false, false) if a.is_random || b.is_random => Goal::Relay,
        (false, false) => Goal::Prediction,
    }
}

/// Who lets in anybody is reached at the port that the relay sees; what it answers comes from another port, which the
/// other side lets in. Otherwise one side's port towards the other has to be foretold or met, and then the same happens.
fn both_open(a: Behaviour, b: Behaviour) -> Goal {
    let by_nothing = |side: Behaviour| side.filtering == Filtering::Eif;
    if by_nothing(a) || by_nothing(b) {
        Goal::Plain
    } else if a.is_random && b.is_random {
        Goal::Birthday
    } else {
        Goal::Prediction
    }
}

/// An address-dependent mapping of the open side stays once it is met: its answers leave from where it was met. One that
/// depends on the port answers from yet another port, which the closed side does not let in unless it is foretold too.
fn open_and_closed(open: Behaviour, closed: Behaviour) -> Goal {
    match (open.mapping, open.is_random, closed.is_random) {
        (Mapping::Adm, true, _) => Goal::Birthday,
        (Mapping::Adm, false, _) | (_, false, false) => Goal::Prediction,
        _ => Goal::Relay,
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::edges::nat;

    fn of(a: (Mapping, Filtering, Allocation), b: (Mapping, Filtering, Allocation)) -> Goal {
        let edge =
            |(mapping, filtering, allocation)| Edge::Nat(nat(mapping, filtering, allocation));
        let goal = goal(edge(a), edge(b));
        assert_eq!(
            goal,
            super::goal(edge(b), edge(a)),
            "the order does not matter"
        );
        goal
    }

    #[test]
    fn the_goals_are_those_of_the_table() {
        use Allocation::{Preserving as P, Random as R, Sequential};
        use Filtering::{Adf, Apdf, Eif};
        use Mapping::{Adm, Apdm, Eim};
        let s = Sequential(1);
        for (a, b, expected) in [
            ((Eim, Adf, P), (Apdm, Apdf, R), Goal::Plain),
            ((Eim, Apdf, R), (Eim, Apdf, R), Goal::Plain),
            ((Eim, Apdf, P), (Apdm, Apdf, P), Goal::Prediction),
            ((Eim, Apdf, P), (Adm, Eif, s), Goal::Prediction),
            ((Eim, Apdf, P), (Apdm, Eif, R), Goal::Birthday),
            ((Apdm, Eif, R), (Apdm, Adf, R), Goal::Plain),
            ((Adm, Adf, R), (Apdm, Adf, R), Goal::Birthday),
            ((Adm, Adf, s), (Apdm, Adf, s), Goal::Prediction),
            ((Adm, Adf, R), (Apdm, Apdf, R), Goal::Birthday),
            ((Adm, Eif, P), (Apdm, Apdf, R), Goal::Prediction),
            ((Apdm, Adf, P), (Adm, Apdf, s), Goal::Prediction),
            ((Apdm, Adf, R), (Adm, Apdf, s), Goal::Relay),
            ((Apdm, Eif, s), (Apdm, Apdf, R), Goal::Relay),
            ((Apdm, Apdf, P), (Adm, Apdf, s), Goal::Prediction),
            ((Apdm, Apdf, R), (Adm, Apdf, s), Goal::Relay),
        ] {
            assert_eq!(of(a, b), expected, "{a:?} × {b:?}");
        }
    }

    #[test]
    fn few_birthday_runs_may_miss_and_no_other() {
        assert_eq!(Goal::Prediction.misses(500), 0);
        assert_eq!(Goal::Birthday.misses(20), 1);
        assert_eq!(Goal::Birthday.misses(500), 10);
    }
}
