//! placeholder
use crate::table::Table;
use anyhow::Result;
use mesh_tests::lab::Lab;
pub(crate) fn run(_: &Lab, _: usize, _: &mut Table) -> Result<()> {
    Ok(())
}
