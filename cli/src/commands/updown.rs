//! `meshctl up` and `meshctl down`.

use std::time::{Duration, Instant};

use mesh_bus::{Network, NetworkState, Pong, Status};
use serde_json::json;
use tokio::time::sleep;

use crate::client::{Client, call, document};
use crate::exit::Failure;
use crate::output;
use crate::progress::Progress;

/// How long each ping of `--wait` waits for its answer.
const PING: Duration = Duration::from_secs(1);
/// Peers that `--wait` pings at once: any answer will do, and a connection has room for 16 calls.
const AT_ONCE: usize = 8;
/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

pub(super) async fn up(
    client: &Client,
    json: bool,
    name: String,
    wait: Option<Duration>,
) -> Result<(), Failure> {
    let names = call(client.mesh().up(&name)).await?;
    if let Some(wait) = wait {
        let status: Status = document(client.mesh().status()).await?;
        // Without a name, what was up before counts as well.
        let wanted = |network: &&Network| match name.is_empty() {
            true => network.state != NetworkState::Down,
            false => network.name == name,
        };
        for network in status.networks.iter().filter(wanted) {
            first_answer(client, &network.name, wait).await?;
        }
    }
    tell(json, &names, "is up", "every network is up already")
}

pub(super) async fn down(client: &Client, json: bool, name: String) -> Result<(), Failure> {
    let names = call(client.mesh().down(&name)).await?;
    tell(json, &names, "is down", "every network is down already")
}

fn tell(json: bool, names: &[String], done: &str, nothing: &str) -> Result<(), Failure> {
    if json {
        return Ok(output::document(&json!({"networks": names}))?);
    }
    if names.is_empty() {
        return Ok(output::text(nothing)?);
    }
    for name in names {
        output::text(&format!("{name} {done}"))?;
    }
    Ok(())
}

/// Waits until the network is up and a peer answers; a network without peers has nobody to wait for.
async fn first_answer(client: &Client, name: &str, wait: Duration) -> Result<(), Failure> {
    let mut progress = Progress::new(format!("a peer of {name} to answer"));
    let deadline = Instant::now() + wait;
    let mut round = 0;
    loop {
        let status: Status = document(client.mesh().status()).await?;
        let Some(network) = status.networks.iter().find(|network| network.name == name) else {
            return Err(Failure::failed(format!(
                "network {name} is gone; see: meshctl status"
            )));
        };
        let up = network.state == NetworkState::Up;
        if up && (network.peers.is_empty() || network.peers.iter().any(|peer| peer.path.is_some()))
        {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::failed(format!(
                "no peer of {name} answered within {} s; see: meshctl status --network {name}",
                wait.as_secs_f64()
            )));
        }
        if up && pinged(client, network, round, left.min(PING), &mut progress).await {
            return Ok(());
        }
        round += 1;
        progress.tick();
        sleep(TICK.min(left)).await;
    }
}

/// Pings some of the peers, others in each round; true as soon as one answers.
async fn pinged(
    client: &Client,
    network: &Network,
    round: usize,
    wait: Duration,
    progress: &mut Progress,
) -> bool {
    let mut asked = tokio::task::JoinSet::new();
    let peers = network
        .peers
        .iter()
        .cycle()
        .skip(round * AT_ONCE % network.peers.len().max(1));
    for peer in peers.take(AT_ONCE.min(network.peers.len())) {
        let mesh = client.mesh().clone();
        let (name, id) = (network.name.clone(), peer.id.clone());
        let millis = wait.as_millis().clamp(1, 60_000) as u32;
        asked.spawn(async move {
            // A stock WireGuard device, for example, cannot be pinged.
            let pong: Option<Pong> = document(mesh.ping(&name, &id, millis)).await.ok();
            pong.is_some_and(|pong| pong.answer.is_some())
        });
    }
    loop {
        tokio::select! {
            answered = asked.join_next() => match answered {
                Some(Ok(true)) => return true,
                Some(_) => {}
                None => return false,
            },
            () = sleep(TICK) => progress.tick(),
        }
    }
}
