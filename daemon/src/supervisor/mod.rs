//! Owns the life of the networks.
