//! The control socket from a client's side, with a supervisor that is made up.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mesh_bus::{Error, MeshProxy, Network, NetworkState, Reloaded, SelfInfo, Status};
use zbus::connection::Builder;
use zbus::export::futures_core::Stream;

use super::*;
use crate::api::ApiError;

/// A running control interface and the networks that its supervisor says there are.
struct Fixture {
    directory: PathBuf,
    control: Option<Control>,
    notices: broadcast::Sender<Notice>,
    networks: Arc<Mutex<Vec<String>>>,
    reloads: Arc<AtomicU32>,
}

impl Fixture {
    async fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("meshd-control-{}-{count}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let (requests, heard) = mpsc::channel(8);
        let (notices, _) = broadcast::channel(8);
        let networks = Arc::new(Mutex::new(vec!["home".to_owned()]));
        let reloads = Arc::new(AtomicU32::new(0));
        tokio::spawn(supervise(heard, networks.clone(), reloads.clone()));
        let path = directory.join("control.sock");
        let control = start(&path, false, requests, notices.clone())
            .await
            .unwrap();
        Self {
            directory,
            control: Some(control),
            notices,
            networks,
            reloads,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    async fn try_client(&self) -> zbus::Result<zbus::Connection> {
        let stream = UnixStream::connect(self.path()).unwrap();
        Builder::unix_stream(stream).p2p().build().await
    }

    async fn client(&self) -> zbus::Connection {
        self.try_client().await.unwrap()
    }

    async fn drops(&self, reason: &str) -> u64 {
        let connection = self.client().await;
        let mesh = proxy(&connection).await;
        let status: Status = serde_json::from_str(&mesh.status().await.unwrap()).unwrap();
        status.drops.get(reason).copied().unwrap_or(0)
    }

    /// Waits until so many were dropped for a reason.
    async fn await_drops(&self, reason: &str, count: u64) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.drops(reason).await < count {
            assert!(
                Instant::now() < deadline,
                "{reason} is only {}",
                self.drops(reason).await
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.control.take());
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn proxy(connection: &zbus::Connection) -> MeshProxy<'static> {
    MeshProxy::builder(connection)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .unwrap()
}

async fn child(connection: &zbus::Connection, network: &str) -> MeshProxy<'static> {
    MeshProxy::builder(connection)
        .path(mesh_bus::network_path(network))
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .unwrap()
}

fn network(name: &str) -> Network {
    Network {
        name: name.to_owned(),
        id: "id".to_owned(),
        state: NetworkState::Up,
        interface: format!("mesh-{name}"),
        this: SelfInfo {
            id: "self".to_owned(),
            name: "alice".to_owned(),
            addresses: Vec::new(),
            home_relay: None,
            endpoints: Vec::new(),
        },
        peers: Vec::new(),
        health: Vec::new(),
    }
}

async fn supervise(
    mut requests: mpsc::Receiver<Request>,
    networks: Arc<Mutex<Vec<String>>>,
    reloads: Arc<AtomicU32>,
) {
    while let Some(request) = requests.recv().await {
        let names = networks.lock().unwrap().clone();
        let known = |name: &Option<String>| match name {
            Some(name) if !names.contains(name) => Err(ApiError::no_such(format!(
                "there is no network {name}; see meshctl status"
            ))),
            Some(name) => Ok(vec![name.clone()]),
            None => Ok(names.clone()),
        };
        match request {
            Request::Status { reply } => drop(reply.send(Ok(Status {
                version: "1".to_owned(),
                config: "/etc/meshd/config.toml".to_owned(),
                networks: names.iter().map(|name| network(name)).collect(),
                drops: BTreeMap::new(),
            }))),
            Request::Up { network, reply } | Request::Down { network, reply } => {
                drop(reply.send(known(&network)))
            }
            Request::Ping { peer, reply, .. } => drop(reply.send(Err(ApiError::no_such(peer)))),
            Request::Explain { peer, reply, .. } => drop(reply.send(Err(ApiError::no_such(peer)))),
            Request::Metrics { reply } => drop(reply.send(Ok(String::new()))),
            Request::Netcheck { reply, .. } => drop(reply.send(Err(ApiError::failed("no relay")))),
            Request::WireguardConfig { reply, .. } => {
                drop(reply.send(Ok("[Interface]".to_owned())))
            }
            Request::Reload { reply } => {
                reloads.fetch_add(1, Ordering::Relaxed);
                drop(reply.send(Ok(Reloaded {
                    unchanged: names,
                    ..Reloaded::default()
                })));
            }
        }
    }
}

#[tokio::test]
async fn requests_and_answers_cross_the_socket() {
    let fixture = Fixture::new().await;
    let connection = fixture.client().await;
    let mesh = proxy(&connection).await;
    let status: Status = serde_json::from_str(&mesh.status().await.unwrap()).unwrap();
    assert_eq!(status.networks[0].this.name, "alice");
    assert_eq!(mesh.wireguard_config("").await.unwrap(), "[Interface]");
    assert_eq!(mesh.networks().await.unwrap(), ["home"]);
    assert_eq!(mesh.state().await.unwrap(), "up");
    assert!(mesh.peers().await.unwrap().is_empty());
}

#[tokio::test]
async fn errors_arrive_as_what_they_are() {
    let fixture = Fixture::new().await;
    let connection = fixture.client().await;
    let mesh = proxy(&connection).await;
    match mesh.ping("", "carol", 1_000).await.unwrap_err() {
        Error::NoSuch(text) => assert_eq!(text, "carol"),
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(mesh.explain("", "dora").await.unwrap_err(), Error::NoSuch(text) if text == "dora")
    );
    assert!(
        matches!(mesh.netcheck("").await.unwrap_err(), Error::Failed(text) if text == "no relay")
    );
    for (peer, wait) in [("bob", 0), ("bob", u32::MAX), (&*"x".repeat(5_000), 1_000)] {
        assert!(matches!(
            mesh.ping("", peer, wait).await.unwrap_err(),
            Error::Usage(_)
        ));
    }
}

#[tokio::test]
async fn each_network_has_an_object_of_its_own() {
    let fixture = Fixture::new().await;
    let connection = fixture.client().await;
    let home = child(&connection, "home").await;
    // The objects are made while the first calls may already come.
    let deadline = Instant::now() + Duration::from_secs(5);
    while home.networks().await.is_err() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(home.networks().await.unwrap(), ["home"]);
    assert!(matches!(
        home.wireguard_config("work").await.unwrap_err(),
        Error::Usage(_)
    ));

    let mut changes = proxy(&connection)
        .await
        .receive_network_changed()
        .await
        .unwrap();
    *fixture.networks.lock().unwrap() = vec!["my-work".to_owned()];
    fixture
        .notices
        .send(Notice::NetworkChanged {
            network: "my-work".to_owned(),
        })
        .unwrap();
    let signal = poll_fn(|context| Pin::new(&mut changes).poll_next(context))
        .await
        .unwrap();
    assert_eq!(signal.args().unwrap().network(), &"my-work");
    let work = child(&connection, "my-work").await;
    let status: Status = serde_json::from_str(&work.status().await.unwrap()).unwrap();
    assert_eq!(status.networks.len(), 1);
    assert!(home.status().await.is_err());
}

/// A connection made by a thread that is somebody else; `None` without root.
fn connect_as(path: &Path, uid: u32, gid: u32) -> Option<UnixStream> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return None;
    }
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        // SAFETY: the raw calls, unlike libc's, change this thread alone, which ends with this closure; no memory is
        // passed.
        let changed = unsafe {
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) == 0
                && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
        };
        assert!(changed);
        UnixStream::connect(path).unwrap()
    });
    Some(thread.join().unwrap())
}

#[tokio::test]
async fn a_stranger_may_read_but_change_nothing() {
    let fixture = Fixture::new().await;
    let Some(stream) = connect_as(&fixture.path(), 65_534, 65_534) else {
        return;
    };
    let connection = Builder::unix_stream(stream)
        .p2p()
        .user_id(65_534)
        .build()
        .await
        .unwrap();
    let mesh = proxy(&connection).await;
    mesh.status().await.unwrap();
    assert!(matches!(
        mesh.ping("", "carol", 1_000).await.unwrap_err(),
        Error::NoSuch(_)
    ));
    for refused in [
        mesh.up("").await.unwrap_err(),
        mesh.down("home").await.unwrap_err(),
        mesh.reload().await.unwrap_err(),
    ] {
        let Error::NotAuthorised(text) = refused else {
            panic!("{refused:?}");
        };
        assert!(text.contains("as root"), "{text}");
    }
    assert_eq!(fixture.reloads.load(Ordering::Relaxed), 0);

    let connection = fixture.client().await;
    let root = proxy(&connection).await;
    assert_eq!(root.up("home").await.unwrap(), ["home"]);
    assert!(matches!(
        root.down("work").await.unwrap_err(),
        Error::NoSuch(_)
    ));
    root.reload().await.unwrap();
    assert_eq!(fixture.reloads.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn nobody_can_claim_to_be_somebody_else() {
    let fixture = Fixture::new().await;
    let Some(stream) = connect_as(&fixture.path(), 65_534, 65_534) else {
        return;
    };
    assert!(
        Builder::unix_stream(stream)
            .p2p()
            .user_id(0)
            .build()
            .await
            .is_err()
    );
}

/// Writes, then reads until the other side closes; false if it does not.
async fn is_sent_away(path: &Path, bytes: Vec<u8>) -> bool {
    let path = path.to_owned();
    let work = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        // The other side may have hung up before it took everything.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    });
    work.await.unwrap()
}

/// A generator that gives the same bytes each time.
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

fn authentication() -> Vec<u8> {
    let uid: String = nix::unistd::geteuid()
        .to_string()
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").into_bytes()
}

#[tokio::test]
async fn garbage_is_counted_and_harms_nobody() {
    let fixture = Fixture::new().await;
    let mut random = Bytes(0x9e37_79b9_7f4a_7c15);
    let mut cases = vec![
        b"\n".to_vec(),
        b"\0\n".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![b'a'; 1 << 20],
        [authentication(), vec![0; 64]].concat(),
        [authentication(), vec![0xff; 1 << 16]].concat(),
    ];
    for size in [1, 2, 16, 100, 1_000, 10_000] {
        let mut bytes = random.take(size);
        bytes[0] |= 1;
        cases.push(bytes);
        cases.push([authentication(), random.take(size.max(16))].concat());
    }
    let count = cases.len() as u64;
    for bytes in cases {
        assert!(is_sent_away(&fixture.path(), bytes).await);
    }
    fixture.await_drops("control_malformed", count - 1).await;
    assert!(fixture.drops("control_malformed").await <= count);
}

/// A valid call as bytes.
fn call(member: &str, body: &(impl serde::Serialize + zbus::Type)) -> Vec<u8> {
    let message = zbus::message::Message::method_call(mesh_bus::OBJECT_PATH, member)
        .interface(mesh_bus::INTERFACE)
        .build(body)
        .unwrap();
    message.data().to_vec()
}

#[tokio::test]
async fn damaged_calls_harm_nobody() {
    // A panic in a task of zbus would go unnoticed here, but ends a release build.
    static PANICS: AtomicU32 = AtomicU32::new(0);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info
            .location()
            .is_some_and(|location| location.file().contains("zbus"))
        {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        hook(info);
    }));
    let fixture = Fixture::new().await;
    let mut random = Bytes(42);
    let calls = [
        call("Status", &()),
        call("Ping", &("", "bob", 1_000_u32)),
        call("Up", &"home"),
        zbus::message::Message::method_call(mesh_bus::OBJECT_PATH, "Get")
            .interface("org.freedesktop.DBus.Properties")
            .build(&(mesh_bus::INTERFACE, "Peers"))
            .unwrap()
            .data()
            .to_vec(),
        zbus::message::Message::method_call("/", "Introspect")
            .interface("org.freedesktop.DBus.Introspectable")
            .build(&())
            .unwrap()
            .data()
            .to_vec(),
    ];
    for round in 0..400 {
        let mut bytes = authentication();
        for _ in 0..3 {
            let mut damaged = calls[random.next() as usize % calls.len()].clone();
            for _ in 0..1 + round % 4 {
                let at = random.next() as usize % damaged.len();
                damaged[at] = match random.next() % 4 {
                    0 => 0,
                    1 => 0xff,
                    2 => damaged[at].wrapping_add(1),
                    _ => random.next() as u8,
                };
            }
            bytes.extend(damaged);
        }
        assert!(is_sent_away(&fixture.path(), bytes).await, "round {round}");
    }
    assert!(fixture.drops("control_malformed").await > 0);
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_client_that_reads_no_answers_does_not_keep_others_out() {
    let fixture = Fixture::new().await;
    let path = fixture.path();
    let flood = std::thread::spawn(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        stream.write_all(&authentication()).unwrap();
        let call = call("Status", &());
        let mut sent = 0_usize;
        while sent < 100_000 && stream.write_all(&call).is_ok() {
            sent += 1;
        }
        (stream, sent)
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let connection = fixture.client().await;
    proxy(&connection).await.status().await.unwrap();
    let (_stream, sent) = tokio::task::spawn_blocking(|| flood.join().unwrap())
        .await
        .unwrap();
    assert!(
        sent < 100_000,
        "every call was taken although no answer was read"
    );
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_sent_away() {
    let fixture = Fixture::new().await;
    let mut stream = UnixStream::connect(fixture.path()).unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

#[tokio::test]
async fn only_so_many_are_served_at_once() {
    let fixture = Fixture::new().await;
    let mut clients = Vec::new();
    for _ in 0..130 {
        let client = UnixStream::connect(fixture.path()).unwrap();
        client.set_nonblocking(true).unwrap();
        clients.push(client);
        tokio::task::yield_now().await;
    }
    let refused = |mut client: &UnixStream| matches!(client.read(&mut [0]), Ok(0));
    let deadline = Instant::now() + Duration::from_secs(4);
    while clients.iter().filter(|client| refused(client)).count() < 2 {
        assert!(Instant::now() < deadline, "everyone was let in");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Their places are free again, sooner or later.
    clients.clear();
    while fixture.try_client().await.is_err() {
        assert!(Instant::now() < deadline, "nobody is let in any more");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fixture.await_drops("control_too_many", 2).await;
}

#[tokio::test]
async fn a_second_daemon_on_the_socket_is_refused() {
    let fixture = Fixture::new().await;
    let (requests, _heard) = mpsc::channel(1);
    let error = start(&fixture.path(), false, requests, fixture.notices.clone())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("another meshd answers on"),
        "{error}"
    );
    let connection = fixture.client().await;
    proxy(&connection).await.status().await.unwrap();
}

#[tokio::test]
async fn stopping_closes_connections_and_removes_the_socket() {
    let mut fixture = Fixture::new().await;
    let connection = fixture.client().await;
    proxy(&connection).await.status().await.unwrap();
    fixture.control.take().unwrap().stop().await;
    tokio::time::timeout(Duration::from_secs(5), connection.closed())
        .await
        .unwrap();
    assert!(!fixture.path().exists());
}
