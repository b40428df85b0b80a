//! `meshctl explain`.

use mesh_bus::Explanation;

use crate::args::Global;
use crate::client::{Client, document};
use crate::exit::Failure;
use crate::{output, render};

pub(super) async fn run(client: &Client, global: &Global, peer: &str) -> Result<(), Failure> {
    let network = global.network.as_deref().unwrap_or_default();
    let found: Explanation = document(client.mesh().explain(network, peer)).await?;
    if global.json {
        return Ok(output::document(&found)?);
    }
    Ok(output::text(&render::explanation(&found))?)
}
