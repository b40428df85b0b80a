//! `meshctl status`.

use std::time::Duration;

use mesh_bus::{PeerState, Status};
use serde_json::json;
use tokio::time::sleep;

use crate::args::{Global, Peers};
use crate::client::{Client, call, document};
use crate::exit::{Code, Failure};
use crate::{output, render};

/// How often `--watch` looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Moves the cursor home and erases what is below it.
const HOME: &str = "\x1b[H\x1b[J";
/// Erases the screen.
const CLEAR: &str = "\x1b[2J";

pub(super) async fn once(client: &Client, global: &Global, peers: Peers) -> Result<(), Failure> {
    let status = look(client, global, peers).await?;
    if global.json {
        return Ok(output::document(&status)?);
    }
    Ok(output::text(&render::status(&status, output::colours()))?)
}

pub(super) async fn watch(client: &Client, global: &Global, peers: Peers) -> Result<(), Failure> {
    let screen = output::is_terminal() && !global.json;
    if screen {
        output::text(CLEAR)?;
    }
    let show = async {
        loop {
            let status = look(client, global, peers).await?;
            if global.json {
                output::document_line(&status)?;
            } else {
                let text = render::status(&status, output::colours());
                output::text(&if screen {
                    format!("{HOME}{text}")
                } else {
                    format!("{text}\n")
                })?;
            }
            sleep(PERIOD).await;
        }
    };
    tokio::select! {
        failed = show => failed,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

pub(super) async fn wireguard(client: &Client, global: &Global) -> Result<(), Failure> {
    let network = global.network.as_deref().unwrap_or_default();
    let stanza = call(client.mesh().wireguard_config(network)).await?;
    if global.json {
        return Ok(output::document(&json!({"wireguard": stanza}))?);
    }
    Ok(output::text(&stanza)?)
}

async fn look(client: &Client, global: &Global, peers: Peers) -> Result<Status, Failure> {
    let mut status: Status = document(client.mesh().status()).await?;
    if let Some(name) = &global.network {
        status.networks.retain(|network| network.name == *name);
        if status.networks.is_empty() {
            return Err(Failure::new(
                Code::NoSuch,
                format!("there is no network {name}; see: meshctl status"),
            ));
        }
    }
    if peers == Peers::Active {
        for network in &mut status.networks {
            network.peers.retain(|peer| peer.state == PeerState::Active);
        }
    }
    Ok(status)
}
