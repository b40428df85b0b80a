//! meshd on its control socket: the same interface, peer to peer, for hosts and containers without a system bus.
//!
//! Everyone may connect, so nobody is trusted: the number of connections, the time to authenticate and all that a
//! connection can send are bounded, and what is refused is counted, not logged.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use zbus::Guid;

use super::access::Credentials;
use super::backend::Backend;
use super::counters::Counters;
use super::handshake::{Garbage, Handshake, Step};
use super::objects;
use super::service::{Gatekeeper, Mesh};
use super::transport::Transport;
use crate::api::Notice;

/// Connections served at once.
const MAX_CONNECTIONS: usize = 128;
/// How many of them are kept for root.
const KEPT_FOR_ROOT: usize = 16;
/// Connections of one user other than root.
const MAX_PER_USER: usize = 32;
/// How long a client may take to say who it is; an honest one needs no time at all.
const AUTH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait when the kernel has no descriptor for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Accepts connections until it is dropped, and with it all of them.
pub(super) async fn run(
    listener: UnixListener,
    backend: Backend,
    notices: broadcast::Sender<Notice>,
    counters: Arc<Counters>,
) {
    let guid = Guid::generate();
    let places = Places::default();
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(credentials) = credentials(&stream) else {
            continue;
        };
        let Some(place) = places.take(credentials.uid) else {
            counters.too_many();
            continue;
        };
        let (backend, heard) = (backend.clone(), notices.subscribe());
        let (guid, counters) = (guid.clone(), counters.clone());
        clients.spawn(async move {
            let _place = place;
            // Whatever a client does wrong is its own affair.
            if let Err(reason) = client(stream, credentials, &guid, backend, heard, &counters).await
            {
                match reason {
                    Refusal::Garbage => counters.malformed(),
                    Refusal::Silence => counters.silent(),
                    Refusal::Gone => {}
                }
            }
        });
    }
}

/// Why a connection came to nothing.
#[derive(Debug)]
enum Refusal {
    Garbage,
    Silence,
    Gone,
}

impl From<Garbage> for Refusal {
    fn from(_: Garbage) -> Self {
        Self::Garbage
    }
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<zbus::Error> for Refusal {
    fn from(_: zbus::Error) -> Self {
        Self::Gone
    }
}

async fn client(
    stream: UnixStream,
    credentials: Credentials,
    guid: &Guid<'static>,
    backend: Backend,
    heard: broadcast::Receiver<Notice>,
    counters: &Arc<Counters>,
) -> Result<(), Refusal> {
    let uid = credentials.uid.ok_or(Refusal::Gone)?;
    let received = timeout(AUTH_TIMEOUT, authenticate(&stream, uid, guid.as_str()))
        .await
        .map_err(|_| Refusal::Silence)??;
    let transport = Transport::new(Arc::new(stream), received, counters.clone());
    let mesh = Mesh::new(backend.clone(), Gatekeeper::Known(credentials));
    let connection = zbus::connection::Builder::authenticated_socket(transport, guid.clone())
        .p2p()
        .serve_at(mesh_bus::OBJECT_PATH, mesh.clone())
        .build()
        .await?;
    objects::serve(&connection, &mesh, &backend, heard).await;
    Ok(())
}

/// Returns what came behind the authentication.
async fn authenticate(stream: &UnixStream, uid: u32, guid: &str) -> Result<Vec<u8>, Refusal> {
    let mut handshake = Handshake::new(uid, guid);
    let mut buffer = [0; 512];
    loop {
        stream.readable().await?;
        let count = match stream.try_read(&mut buffer) {
            Ok(0) => return Err(Refusal::Gone),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        let mut answer = Vec::new();
        let step = handshake.receive(&buffer[..count], &mut answer)?;
        let mut rest = &answer[..];
        while !rest.is_empty() {
            stream.writable().await?;
            match stream.try_write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Step::Done(received) = step {
            return Ok(received);
        }
    }
}

/// Who is at the other end, as of when it connected.
fn credentials(stream: &UnixStream) -> io::Result<Credentials> {
    let peer = stream.peer_cred()?;
    let mut groups = peer_groups(stream)?;
    groups.push(peer.gid());
    Ok(Credentials {
        uid: Some(peer.uid()),
        groups: Some(groups),
    })
}

/// Supplementary groups of the other end (`SO_PEERGROUPS`, Linux 4.13).
fn peer_groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut bytes = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: the descriptor is open, the buffer is writable for `bytes` bytes, and the kernel writes whole gid_t.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = bytes as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel says how many there are; at most NGROUPS_MAX.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Who is connected.
#[derive(Debug, Clone, Default)]
struct Places(Arc<Mutex<BTreeMap<u32, usize>>>);

/// A connection that counts until it is dropped.
#[derive(Debug)]
struct Place {
    places: Places,
    uid: u32,
}

impl Places {
    fn take(&self, uid: Option<u32>) -> Option<Place> {
        let uid = uid?;
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = users.values().sum();
        let own = users.get(&uid).copied().unwrap_or(0);
        let free = if uid == 0 {
            total < MAX_CONNECTIONS
        } else {
            total < MAX_CONNECTIONS - KEPT_FOR_ROOT && own < MAX_PER_USER
        };
        free.then(|| {
            users.insert(uid, own + 1);
            Place {
                places: self.clone(),
                uid,
            }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        match users.get_mut(&self.uid) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(users.remove(&self.uid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_all_places() {
        let places = Places::default();
        let taken: Vec<Place> = std::iter::from_fn(|| places.take(Some(1_000))).collect();
        assert_eq!(taken.len(), MAX_PER_USER);
        assert!(places.take(Some(1_001)).is_some());
        drop(taken);
        assert!(places.take(Some(1_000)).is_some());
        assert!(places.0.lock().unwrap().is_empty());
    }

    #[test]
    fn all_users_together_leave_places_for_root() {
        let places = Places::default();
        let taken: Vec<Place> = (0..)
            .map_while(|n| places.take(Some(1_000 + n / 8)))
            .collect();
        assert_eq!(taken.len(), MAX_CONNECTIONS - KEPT_FOR_ROOT);
        let root: Vec<Place> = std::iter::from_fn(|| places.take(Some(0))).collect();
        assert_eq!(root.len(), KEPT_FOR_ROOT);
    }

    #[tokio::test]
    async fn the_kernel_says_who_is_there() {
        let (one, _other) = UnixStream::pair().unwrap();
        let credentials = credentials(&one).unwrap();
        assert_eq!(credentials.uid, Some(nix::unistd::getuid().as_raw()));
        assert!(
            credentials
                .groups
                .unwrap()
                .contains(&nix::unistd::getgid().as_raw())
        );
    }
}
