//! `make bench-micro`: what the parts of the core cost, each alone. Figures depend on the CPU; what is compared from one
//! change to the next are the instructions that `make test-instructions` counts.

mod packets;
mod tables;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

/// Half of criterion's own times: all of it in three minutes, and the spread is that of the machine all the same.
fn settings() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
}

criterion_group!(
    name = benches;
    config = settings();
    targets =
    tables::classify,
    tables::lookup,
    tables::choose,
    packets::cipher,
    packets::seal,
    packets::open,
    tables::roster,
);
criterion_main!(benches);
