//! `meshctl reload`.

use mesh_bus::Reloaded;

use crate::args::Global;
use crate::client::{Client, document};
use crate::exit::Failure;
use crate::{output, render};

pub(super) async fn run(client: &Client, global: &Global) -> Result<(), Failure> {
    let reloaded: Reloaded = document(client.mesh().reload()).await?;
    if global.json {
        return Ok(output::document(&reloaded)?);
    }
    Ok(output::text(&render::reloaded(&reloaded))?)
}
