//! Keeps what a connection serves in step with the supervisor: an object for each network, and a signal for each notice.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::broadcast::{self, error::RecvError};

use super::backend::Backend;
use super::service::{Mesh, emit};
use crate::api::Notice;

/// How long to wait before asking the supervisor again which networks there are.
const RETRY: Duration = Duration::from_secs(1);

/// Serves `mesh` on `connection` until the connection ends; the object of all networks must be there already.
pub(super) async fn serve(
    connection: &zbus::Connection,
    mesh: &Mesh,
    backend: &Backend,
    mut notices: broadcast::Receiver<Notice>,
) {
    let mut served = BTreeSet::new();
    let follow = async {
        let mut known = update(connection, mesh, backend, &mut served).await;
        loop {
            let notice = tokio::select! {
                notice = notices.recv() => notice,
                () = tokio::time::sleep(RETRY), if !known => {
                    known = update(connection, mesh, backend, &mut served).await;
                    continue;
                }
            };
            match notice {
                Ok(notice) => {
                    if matches!(notice, Notice::NetworkChanged { .. }) {
                        known = update(connection, mesh, backend, &mut served).await;
                    }
                    if emit(connection, &notice).await.is_err() {
                        return;
                    }
                }
                // Whoever reads too slowly misses signals, never blocks the supervisor.
                Err(RecvError::Lagged(_)) => {
                    known = update(connection, mesh, backend, &mut served).await;
                }
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = connection.closed() => {}
    }
}

/// Adds and removes objects; false if it is not known what there should be.
async fn update(
    connection: &zbus::Connection,
    mesh: &Mesh,
    backend: &Backend,
    served: &mut BTreeSet<String>,
) -> bool {
    let Ok(summary) = backend.fresh_summary().await else {
        return false;
    };
    let wanted: BTreeSet<String> = summary
        .networks
        .iter()
        .map(|network| network.name.clone())
        .collect();
    let server = connection.object_server();
    for gone in served.difference(&wanted) {
        let _ = server.remove::<Mesh, _>(mesh_bus::network_path(gone)).await;
    }
    for new in wanted.difference(served) {
        let _ = server
            .at(mesh_bus::network_path(new), mesh.child(new))
            .await;
    }
    *served = wanted;
    true
}
