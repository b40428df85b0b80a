//! Scenarios for the whole core in virtual time: see `mesh_tests::sim` for what is real and what is modelled.
//!
//! A test that fails prints the seed of its run and the newest part of its log; `MESH_SIM_SEED=…` runs that seed alone,
//! and `MESH_SIM_SEEDS=…` that many seeds of each test.

mod common;
mod memory;

mod blocked;
mod calm;
mod clones;
mod determinism;
mod garbage;
mod hard_nats;
mod healing;
mod impairments;
mod lan;
mod lifetimes;
mod liveness;
mod mappings;
mod matrix;
mod moves;
mod netcheck;
mod random;
mod relays;
mod restarts;
mod roaming;
mod scene;
mod topologies;
