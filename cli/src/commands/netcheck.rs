//! `meshctl netcheck`.

use mesh_bus::Netcheck;

use crate::args::Global;
use crate::client::{Client, document};
use crate::exit::Failure;
use crate::{output, render};

pub(super) async fn run(client: &Client, global: &Global) -> Result<(), Failure> {
    let network = global.network.as_deref().unwrap_or_default();
    let found: Netcheck = document(client.mesh().netcheck(network)).await?;
    if global.json {
        return Ok(output::document(&found)?);
    }
    Ok(output::text(&render::netcheck(&found))?)
}
