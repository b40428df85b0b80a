//! Which seeds a test runs with.

/// Runs a test for each seed, or, with `MESH_SIM_SEED` in the environment, for that one alone.
///
/// # Panics
/// If `MESH_SIM_SEED` is not a number.
pub fn for_seeds(seeds: std::ops::Range<u64>, mut test: impl FnMut(u64)) {
    match std::env::var("MESH_SIM_SEED") {
        Ok(seed) => match seed.parse() {
            Ok(seed) => test(seed),
            Err(error) => panic!("MESH_SIM_SEED={seed} is not a number: {error}"),
        },
        Err(_) => seeds.for_each(test),
    }
}
