//! Finding meshd and calling it.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use mesh_bus::{Error, MeshProxy};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::fdo::{self, DBusProxy};
use zbus::proxy::CacheProperties;

use crate::exit::{Code, Failure};

/// How long the bus daemon, or meshd when it greets us, may take.
const GREETING: Duration = Duration::from_secs(5);
/// How long a call may take: a person may have to type a password.
const CALL: Duration = Duration::from_secs(180);

/// A connection to meshd.
#[derive(Debug)]
pub(crate) struct Client {
    mesh: MeshProxy<'static>,
}

impl Client {
    /// Connects to `socket`, or else to the system bus if meshd is there, or else to its usual socket.
    pub(crate) async fn connect(socket: Option<&Path>) -> Result<Self, Failure> {
        if let Some(path) = socket {
            return over_socket(path).await;
        }
        if let Some(client) = over_bus().await {
            return Ok(client);
        }
        over_socket(Path::new(mesh_bus::DEFAULT_SOCKET)).await
    }

    /// The interface itself.
    pub(crate) const fn mesh(&self) -> &MeshProxy<'static> {
        &self.mesh
    }

    async fn new(connection: &zbus::Connection) -> zbus::Result<Self> {
        let mesh = MeshProxy::builder(connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        Ok(Self { mesh })
    }
}

/// Waits for the answer to a call.
pub(crate) async fn call<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    answer.await.map_err(failure)
}

/// Waits for the answer to a call that is a JSON document.
pub(crate) async fn document<T: DeserializeOwned>(
    answer: impl Future<Output = Result<String, Error>>,
) -> Result<T, Failure> {
    let text = call(answer).await?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::failed(format!(
            "cannot read the answer of meshd ({error}); use a meshctl of the same version"
        ))
    })
}

async fn over_bus() -> Option<Client> {
    let find = async {
        let connection = Builder::system().method_timeout(CALL).build().await?;
        let bus = DBusProxy::new(&connection).await?;
        if !bus.name_has_owner(mesh_bus::BUS_NAME.try_into()?).await? {
            return Err(zbus::Error::InterfaceNotFound);
        }
        Client::new(&connection).await
    };
    timeout(GREETING, find).await.ok()?.ok()
}

async fn over_socket(path: &Path) -> Result<Client, Failure> {
    let show = path.display();
    let greet = async {
        let stream = std::os::unix::net::UnixStream::connect(path).map_err(Greeting::Socket)?;
        let builder = Builder::unix_stream(stream).p2p().method_timeout(CALL);
        let connection = builder.build().await.map_err(Greeting::Bus)?;
        Client::new(&connection).await.map_err(Greeting::Bus)
    };
    match timeout(GREETING, greet).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(Greeting::Socket(error))) => Err(match error.kind() {
            io::ErrorKind::NotFound => Failure::not_running(format_args!("there is no {show}")),
            io::ErrorKind::ConnectionRefused => {
                Failure::not_running(format_args!("nobody answers on {show}"))
            }
            io::ErrorKind::PermissionDenied => Failure::new(
                Code::NotAuthorised,
                format!("you may not open {show}; run this as root"),
            ),
            _ => Failure::failed(format!(
                "cannot connect to {show}: {error}; choose another --socket"
            )),
        }),
        Ok(Err(Greeting::Bus(error))) => Err(Failure::failed(format!(
            "meshd on {show} does not let us in ({error}); try again in a moment"
        ))),
        Err(_) => Err(Failure::failed(format!(
            "meshd on {show} does not answer; see: systemctl status meshd"
        ))),
    }
}

enum Greeting {
    Socket(io::Error),
    Bus(zbus::Error),
}

fn failure(error: Error) -> Failure {
    match error.kind() {
        Some(kind) => Failure::new(kind.into(), error.to_string()),
        None => match error {
            Error::Bus(error) => bus_failure(&error),
            other => Failure::failed(other.to_string()),
        },
    }
}

fn bus_failure(error: &zbus::Error) -> Failure {
    match error {
        zbus::Error::InputOutput(error) if error.kind() == io::ErrorKind::TimedOut => {
            Failure::failed("meshd does not answer; see: systemctl status meshd")
        }
        zbus::Error::InputOutput(_) => Failure::not_running("it went away"),
        zbus::Error::FDO(error) => match &**error {
            fdo::Error::ServiceUnknown(_)
            | fdo::Error::NameHasNoOwner(_)
            | fdo::Error::NoReply(_) => Failure::not_running("it went away"),
            fdo::Error::AccessDenied(text) => {
                Failure::new(Code::NotAuthorised, format!("{text}; run this as root"))
            }
            fdo::Error::UnknownMethod(text)
            | fdo::Error::UnknownInterface(text)
            | fdo::Error::UnknownObject(text) => Failure::failed(format!(
                "{text}; use a meshctl of the same version as meshd"
            )),
            other => Failure::failed(format!("{other}; see: systemctl status meshd")),
        },
        other => Failure::failed(format!("{other}; see: systemctl status meshd")),
    }
}

#[cfg(test)]
mod tests {
    use mesh_bus::ErrorKind;

    use super::*;

    fn code(error: Error) -> Code {
        match failure(error) {
            Failure::Told { code, message } => {
                assert!(message.contains("; "), "{message}");
                code
            }
            Failure::NobodyReads => panic!("not told"),
        }
    }

    #[test]
    fn errors_of_the_interface_keep_their_kind() {
        let refused = Error::new(
            ErrorKind::NotAuthorised,
            "you may not; run this as root".to_owned(),
        );
        assert_eq!(code(refused), Code::NotAuthorised);
        let missing = Error::new(
            ErrorKind::NoSuch,
            "no peer carol; see meshctl status".to_owned(),
        );
        assert_eq!(code(missing), Code::NoSuch);
    }

    #[test]
    fn a_daemon_that_goes_away_is_not_running() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(
            code(Error::Bus(zbus::Error::from(closed))),
            Code::NotRunning
        );
        let gone = fdo::Error::ServiceUnknown("no such name".to_owned());
        assert_eq!(code(Error::Bus(zbus::Error::from(gone))), Code::NotRunning);
    }

    #[test]
    fn a_bus_that_forbids_the_call_is_not_authorised() {
        let denied = fdo::Error::AccessDenied("rejected".to_owned());
        assert_eq!(
            code(Error::Bus(zbus::Error::from(denied))),
            Code::NotAuthorised
        );
    }

    #[tokio::test]
    async fn without_a_socket_meshd_is_not_running() {
        let Err(Failure::Told { code, message }) =
            Client::connect(Some(Path::new("/nonexistent/s"))).await
        else {
            panic!("connected to nothing");
        };
        assert_eq!(code, Code::NotRunning);
        assert!(
            message.ends_with("start it with: systemctl start meshd"),
            "{message}"
        );
    }
}
