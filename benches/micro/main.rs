//! `make bench-micro`: what the parts of the core cost, each alone. Figures depend on the CPU; what is compared from one
//! change to the next are the instructions that `make test-instructions` counts.

mod packets;
mod tables;

use criterion::{criterion_group, criterion_main};

criterion_group!(
    benches,
    tables::classify,
    tables::lookup,
    tables::choose,
    packets::cipher,
    packets::seal,
    packets::open,
    tables::roster,
);
criterion_main!(benches);
