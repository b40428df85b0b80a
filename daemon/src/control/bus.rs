//! meshd on the system bus.

use std::time::Duration;

use tokio::sync::{broadcast, oneshot};
use tokio::time::{sleep, timeout};
use zbus::fdo;

use super::backend::Backend;
use super::objects;
use super::polkit::Polkit;
use super::service::{Gatekeeper, Mesh};
use crate::api::Notice;

/// How long the bus daemon may take to let us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before connecting again to a bus that went away: longer than a bus daemon takes to restart.
const RECONNECT: Duration = Duration::from_secs(5);

/// Serves the interface on the system bus for as long as there is one; without it, the control socket is all there is.
///
/// `first` is told when the name is ours, or is not going to be.
pub(super) async fn run(
    backend: Backend,
    notices: broadcast::Sender<Notice>,
    first: oneshot::Sender<()>,
) {
    let mut first = Some(first);
    let mut was_there = false;
    loop {
        // Subscribed before anything is served, so that no change falls between.
        let heard = notices.subscribe();
        match timeout(CONNECT_TIMEOUT, connect(&backend)).await {
            Ok(Ok((connection, mesh))) => {
                tracing::info!("serving {} on the system bus", mesh_bus::BUS_NAME);
                was_there = true;
                first.take().map(|first| first.send(()));
                objects::serve(&connection, &mesh, &backend, heard).await;
                tracing::warn!("the system bus closed the connection; connecting again");
            }
            Ok(Err(error)) => {
                let again = was_there && !matches!(error, Error::Taken | Error::Denied(_));
                if !again {
                    tracing::warn!("{error}; going on with the control socket only");
                    return;
                }
            }
            Err(_) if !was_there => {
                tracing::warn!(
                    "the system bus does not answer; going on with the control socket only"
                );
                return;
            }
            Err(_) => {}
        }
        sleep(RECONNECT).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("there is no system bus ({0})")]
    Unreachable(zbus::Error),
    #[error("another meshd has our name on the system bus")]
    Taken,
    #[error(
        "the system bus does not give us our name ({0}); install the bus policy net.meshd.Mesh1.conf"
    )]
    Denied(zbus::Error),
}

async fn connect(backend: &Backend) -> Result<(zbus::Connection, Mesh), Error> {
    let connection = zbus::connection::Builder::system()
        .build()
        .await
        .map_err(Error::Unreachable)?;
    let gatekeeper = Gatekeeper::Bus(Polkit::default());
    let mesh = Mesh::new(backend.clone(), gatekeeper);
    connection
        .object_server()
        .at(mesh_bus::OBJECT_PATH, mesh.clone())
        .await
        .map_err(Error::Unreachable)?;
    // Neither replaces an owner nor queues behind one, nor lets itself be replaced.
    match connection
        .request_name_with_flags(mesh_bus::BUS_NAME, fdo::RequestNameFlags::DO_NOT_QUEUE)
        .await
    {
        Ok(_) => Ok((connection, mesh)),
        Err(zbus::Error::NameTaken) => Err(Error::Taken),
        Err(error) => Err(Error::Denied(error)),
    }
}
