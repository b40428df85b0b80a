//! The real programs in network namespaces behind real NATs; see `mesh_tests::lab`.
//!
//! Needs root; without it every test says so and does nothing.

mod nats;
