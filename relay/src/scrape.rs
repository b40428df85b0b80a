//! Lets Prometheus fetch metrics: a small HTTP server, for `mesh-relay` and for `meshd`.
//!
//! What is understood and answered is in `mesh_core::wire::scrape`. Here are the bounds of a service that whoever reaches
//! its port may talk to: so many connections at once, each for one request and for a limited time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::limits;
use mesh_core::wire::scrape::{self, Refusal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections that the kernel keeps for us beyond those that are served.
const BACKLOG: u32 = 32;
/// How long to wait after no connection could be had: there are no descriptors left, and that does not pass at once.
const PAUSE: Duration = Duration::from_millis(200);

/// Why metrics cannot be offered.
#[derive(Debug, thiserror::Error)]
#[error("cannot offer metrics at {address}: {source}{}", advice(source))]
pub struct ScrapeError {
    /// The address as configured.
    pub address: SocketAddr,
    /// What the kernel says.
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program has the port: set `metrics` to another one",
        io::ErrorKind::AddrNotAvailable => {
            "; set `metrics` to an address that this host has when the program starts"
        }
        io::ErrorKind::PermissionDenied => "; set `metrics` to a port from 1024 on",
        _ => "",
    }
}

/// Listens at an address. To be called in a Tokio runtime.
///
/// # Errors
///
/// When the kernel refuses.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ScrapeError> {
    open(address).map_err(|source| ScrapeError { address, source })
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections of the program before this one may still be on their way out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers with what `render` makes, which is `None` if it cannot now, until it is dropped.
pub async fn serve<F, R>(listener: TcpListener, render: F)
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Option<String>> + Send,
{
    let places = Arc::new(Semaphore::new(limits::METRICS_CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        // Whoever comes now waits in the kernel.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let render = render.clone();
                tasks.spawn(async move {
                    let answered = timeout(limits::METRICS_TIME, answer(stream, render)).await;
                    if let Ok(Err(error)) = answered {
                        tracing::trace!(%error, "a request for metrics came to nothing");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot take a connection for metrics");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn answer<F, R>(mut stream: TcpStream, render: F) -> io::Result<()>
where
    F: Fn() -> R,
    R: Future<Output = Option<String>>,
{
    let local = stream.local_addr()?.ip().to_canonical().is_loopback();
    let mut request = Vec::new();
    let mut buffer = [0; 1_024];
    let verdict = loop {
        if let Some(verdict) = scrape::read_request(&request, local) {
            break verdict;
        }
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        request.extend_from_slice(buffer.get(..length).unwrap_or_default());
    };
    let response = match verdict {
        Ok(()) => match render().await {
            Some(metrics) => scrape::metrics_response(&metrics),
            None => Refusal::Unavailable.response(),
        },
        Err(refusal) => refusal.response(),
    };
    stream.write_all(&response).await?;
    stream.shutdown().await?;
    // What is left unread would make the kernel reset the connection, and the answer with it. The time is limited.
    let mut surplus = limits::METRICS_REQUEST;
    while surplus > 0 {
        match stream.read(&mut buffer).await? {
            0 => break,
            length => surplus = surplus.saturating_sub(length),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

    async fn server(
        render: impl Fn() -> Option<String> + Clone + Send + Sync + 'static,
    ) -> SocketAddr {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, move || std::future::ready(render())));
        address
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_are_made_for_each_request() {
        let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let address = server(move || {
            let count = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Some(format!("x {count}\n{}", "y 1\n".repeat(300_000)))
        })
        .await;
        for count in 0..3 {
            let answer = ask(address, REQUEST).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
            assert!(answer.contains(&format!("\r\n\r\nx {count}\ny 1\n")));
            assert_eq!(
                answer.len() - answer.find("\r\n\r\n").unwrap(),
                4 + 4 + 1_200_000
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_request_for_metrics_is_told_so() {
        let address = server(|| None).await;
        for (request, status) in [
            (REQUEST.replace("/metrics", "/"), "404"),
            (REQUEST.replace("GET", "DELETE"), "405"),
            (REQUEST.replace("localhost", "evil.example"), "421"),
            ("\r\n\r\n".to_owned(), "400"),
            ("x".repeat(3 * limits::METRICS_REQUEST), "431"),
            (REQUEST.to_owned(), "503"),
        ] {
            let answer = ask(address, &request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_say_nothing_keep_others_waiting_for_a_limited_time() {
        let address = server(|| Some("x 1\n".to_owned())).await;
        let mut silent = Vec::new();
        for _ in 0..limits::METRICS_CONNECTIONS + 2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metr").await.unwrap();
            silent.push(stream);
        }
        let start = tokio::time::Instant::now();
        assert!(ask(address, REQUEST).await.ends_with("\r\n\r\nx 1\n"));
        assert!(
            start.elapsed() >= limits::METRICS_TIME,
            "the places were taken"
        );
        for mut stream in silent {
            assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_with_advice() {
        let address = server(|| None).await;
        let error = listen(address).unwrap_err().to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("another program"),
            "{error}"
        );
        let error = listen("203.0.113.7:9587".parse().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("an address that this host has"), "{error}");
    }
}
