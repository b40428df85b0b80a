//! Every pair of NATs: each ends as well as it can, direct where there is a way at all.
//!
//! The goals are in `goals`. `make test` runs a bounded part; `make nat-matrix` runs everything, and writes it to `docs`
//! when asked to. A failure names the cell and the seeds.
//! `MATRIX_CELL="EIM/APDF × APDM/APDF random" MESH_SIM_SEED=7` with
//! `-- --ignored --nocapture one_cell` runs that one and shows its log.

mod chart;
mod edges;
mod goals;
mod run;
mod sweep;
mod table;
mod times;

use std::path::Path;
use std::time::Duration;

use edges::{ALLOCATIONS, Edge, FILTERINGS, awkward, distinct, faces, nat, open, pools, product};
use goals::Goal;
use mesh_tests::sim::{Allocation, Mapping, Sim, for_seeds};
use run::Cell;
use sweep::{Effort, sweep};

/// What `make test` has the time for.
const QUICK: Effort = Effort {
    sure: 20,
    likely: 20,
    relay: 2,
    patience: Duration::from_secs(4),
};
/// What shows rare failures, in minutes. A cell that ends on the relay has the time for all that the hosts try.
const THOROUGH: Effort = Effort {
    sure: 20,
    likely: 500,
    relay: 20,
    patience: Duration::from_secs(45),
};

/// Each pair of an edge of the one list with one of the other, but none twice.
fn cells(left: &[Edge], right: &[Edge]) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for a in left {
        for b in right {
            let again = |cell: &Cell| (cell.a, cell.b) == (*b, *a) || (cell.a, cell.b) == (*a, *b);
            if !cells.iter().any(again) {
                cells.push(Cell::new(*a, *b));
            }
        }
    }
    cells
}

/// Everything, without what is the same by symmetry or by what an endpoint-independent mapping is.
fn all() -> Vec<Cell> {
    let plain: Vec<Edge> = open().into_iter().chain(distinct()).collect();
    let mut all = cells(&plain, &plain);
    all.extend(cells(&awkward(), &faces()));
    all.extend(cells(&awkward(), &awkward()));
    all.extend(cells(&[Edge::Blocked], &faces()));
    all.extend(cells(&pools(), &faces()));
    all
}

fn check(cells: &[Cell], effort: &Effort) {
    judge(&sweep(cells, effort));
}

fn judge(results: &[sweep::Result]) {
    let wrong: Vec<String> = results
        .iter()
        .filter_map(sweep::Result::complaint)
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} cells are wrong:\n{}",
        wrong.len(),
        results.len(),
        wrong.join("\n")
    );
}

fn check_goals(goals: &[Goal]) {
    let mut cells = all();
    cells.retain(|cell| goals.contains(&cell.goal));
    check(&cells, &QUICK);
}

#[test]
fn what_the_plain_punch_can_open_ends_direct_always() {
    check_goals(&[Goal::Plain]);
}

#[test]
fn what_nothing_can_open_ends_on_the_relay_and_carries_data() {
    check_goals(&[Goal::Relay, Goal::Nothing]);
}

#[test]
fn what_a_prediction_can_open_ends_direct_always() {
    check_goals(&[Goal::Prediction]);
}

#[test]
fn what_many_ports_can_open_ends_direct_nearly_always() {
    check_goals(&[Goal::Birthday]);
}

#[test]
fn how_an_endpoint_independent_mapping_came_by_its_port_does_not_matter() {
    let others = ALLOCATIONS
        .into_iter()
        .filter(|one| *one != Allocation::Preserving);
    let others: Vec<Edge> = others
        .flat_map(|one| FILTERINGS.map(|filtering| Edge::Nat(nat(Mapping::Eim, filtering, one))))
        .collect();
    let effort = Effort { sure: 3, ..QUICK };
    let mut cells = cells(&others, &product());
    cells.retain(|cell| cell.goal == Goal::Plain);
    check(&cells, &effort);
}

#[test]
#[ignore = "takes long: `make nat-matrix`"]
fn the_whole_matrix_ends_as_well_as_it_can() {
    let results = sweep(&all(), &THOROUGH);
    let page = table::page(&results);
    println!("{page}");
    if std::env::var_os("MATRIX_DOCS").is_some() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        for (name, text) in [
            ("nat-matrix.md", page),
            ("nat-matrix.svg", chart::svg(&results)),
        ] {
            std::fs::write(docs.join(name), text).expect("docs can be written");
        }
    }
    judge(&results);
}

#[test]
#[ignore = "for people: MATRIX_CELL=\"EIM/APDF × public\" MESH_SIM_SEED=7"]
fn one_cell() {
    let name = std::env::var("MATRIX_CELL").expect("MATRIX_CELL names a cell");
    let cells = all();
    let cell = cells.iter().find(|cell| cell.to_string() == name);
    let cell = cell.unwrap_or_else(|| panic!("no cell is called {name:?}"));
    for_seeds(0..1, |seed| {
        let mut sim = Sim::new(seed);
        let outcome = cell.run(&mut sim, THOROUGH.patience);
        sim.print();
        println!("{cell}, seed {seed}: {outcome:?}");
    });
}
