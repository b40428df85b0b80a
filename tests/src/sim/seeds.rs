//! Which seeds a test runs with.

use std::ops::Range;

/// Runs a test for each seed. In the environment, `MESH_SIM_SEED=7` asks for that one alone, and `MESH_SIM_SEEDS=1000`
/// for as many in place of the test's own number: to look for rare failures.
///
/// # Panics
/// If either variable is not a number.
pub fn for_seeds(seeds: Range<u64>, test: impl FnMut(u64)) {
    let seeds = match (number("MESH_SIM_SEED"), number("MESH_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => seeds.start..seeds.start + count,
        (None, None) => seeds,
    };
    seeds.for_each(test);
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    match value.parse() {
        Ok(number) => Some(number),
        Err(error) => panic!("{variable}={value} is not a number: {error}"),
    }
}
