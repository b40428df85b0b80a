//! Hears from systemd-logind that the host has woken from sleep.
//!
//! The kernel tells the data thread so itself ([`crate::dataplane`]), and earlier. logind also knows of sleep that the
//! clock does not show, such as hibernation on a machine whose clock stands still meanwhile. The data thread makes one of
//! the two. Nothing waits for logind, nor for the bus: they may be absent, come late, or be restarted.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::{sleep, timeout};
use zbus::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::message::Type;
use zbus::names::BusName;
use zbus::{MatchRule, Message, MessageStream};

use crate::dataplane::{Command, DataPlane};

const LOGIND: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
/// Sent before the host sleeps with `true`, and after it has woken with `false`.
const SIGNAL: &str = "PrepareForSleep";

/// How long the bus may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait. A bus that is restarted is back in a moment, and one that is not there will hardly come.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// Before connecting again after the connection was lost.
    pub first: Duration,
    /// Before connecting again after many attempts.
    pub most: Duration,
    /// Before the next signal is looked at: every local process can send us one that looks like logind's.
    pub between: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(5),
            most: Duration::from_secs(300),
            between: Duration::from_secs(1),
        }
    }
}

/// Tells the data plane each time that the host has woken, for as long as it is polled. `bus` says where the bus is.
pub async fn watch(bus: impl Fn() -> Builder<'static>, pauses: Pauses, data: DataPlane) {
    let mut pause = pauses.first;
    loop {
        match timeout(PATIENCE, connect(bus())).await {
            Ok(Ok((connection, signals))) => {
                pause = pauses.first;
                listen(&connection, signals, pauses.between, &data).await;
                tracing::debug!("the system bus is gone, and logind with it");
            }
            Ok(Err(error)) => tracing::debug!(%error, "logind cannot be heard"),
            Err(_) => tracing::debug!("logind cannot be heard: the system bus does not answer"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(pauses.most);
    }
}

/// What the bus passes on is bound to logind's name rather than to whoever has it now, so that logind may come and go.
async fn connect(bus: Builder<'static>) -> zbus::Result<(zbus::Connection, MessageStream)> {
    let connection = bus.build().await?;
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(LOGIND)
        .path(PATH)
        .interface(MANAGER)
        .member(SIGNAL)
        .build()?;
    let signals = MessageStream::for_match_rule(rule, &connection, None).await?;
    Ok((connection, signals))
}

/// Until the connection ends.
async fn listen(
    connection: &zbus::Connection,
    mut signals: MessageStream,
    between: Duration,
    data: &DataPlane,
) {
    while let Some(Ok(signal)) = signals.next().await {
        let woken = matches!(signal.body().deserialize(), Ok(false));
        if !woken {
            continue;
        }
        match timeout(PATIENCE, is_of_logind(connection, &signal)).await {
            Ok(Ok(true)) => {
                // Fails when the data plane is on its way out.
                let _ = data.send(Command::Woken).await;
            }
            _ => tracing::debug!("somebody who is not logind says that the host has woken"),
        }
        sleep(between).await;
    }
}

/// The bus binds only what is sent to all: what is sent to us alone comes whoever sends it.
async fn is_of_logind(connection: &zbus::Connection, signal: &Message) -> zbus::Result<bool> {
    let bus = DBusProxy::new(connection).await?;
    let owner = bus.get_name_owner(BusName::try_from(LOGIND)?).await?;
    Ok(signal.header().sender() == Some(&*owner))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::{Child, Stdio};

    use tokio::sync::mpsc;

    use super::*;
    use crate::testing::TempDir;

    /// A bus of our own.
    struct Bus {
        directory: TempDir,
        daemon: Option<Child>,
    }

    impl Bus {
        fn new() -> Self {
            let directory = TempDir::new();
            let config = format!(
                "<busconfig><type>system</type><listen>unix:path={}</listen><policy context=\"default\">\
                 <allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/>\
                 <allow receive_sender=\"*\"/></policy></busconfig>",
                directory.path().join("bus").display()
            );
            std::fs::write(directory.path().join("bus.conf"), config).unwrap();
            Self {
                directory,
                daemon: None,
            }
        }

        fn socket(&self) -> PathBuf {
            self.directory.path().join("bus")
        }

        fn address(&self) -> String {
            format!("unix:path={}", self.socket().display())
        }

        /// False, after saying so, where there is no dbus-daemon.
        fn start(&mut self) -> bool {
            let _ = std::fs::remove_file(self.socket());
            let config = self.directory.path().join("bus.conf");
            let daemon = std::process::Command::new("dbus-daemon")
                .arg("--nofork")
                .arg(format!("--config-file={}", config.display()))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            match daemon {
                Ok(daemon) => self.daemon = Some(daemon),
                Err(_) => eprintln!("SKIPPED: there is no dbus-daemon"),
            }
            self.daemon.is_some()
        }

        fn stop(&mut self) {
            if let Some(mut daemon) = self.daemon.take() {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
        }

        /// A client, as soon as the bus takes any.
        async fn client(&self) -> zbus::Connection {
            let client = async {
                loop {
                    let builder = Builder::address(self.address().as_str());
                    if let Ok(connection) = builder.build().await {
                        return connection;
                    }
                    sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(Duration::from_secs(20), client).await.unwrap()
        }

        async fn logind(&self) -> zbus::Connection {
            let connection = self.client().await;
            connection.request_name(LOGIND).await.unwrap();
            connection
        }
    }

    impl Drop for Bus {
        fn drop(&mut self) {
            self.stop();
        }
    }

    async fn say(from: &zbus::Connection, to: Option<&str>, asleep: bool) {
        from.emit_signal(to, PATH, MANAGER, SIGNAL, &asleep)
            .await
            .unwrap();
    }

    /// Says that the host has woken until that is heard.
    async fn until_heard(logind: &zbus::Connection, commands: &mut mpsc::Receiver<Command>) {
        let heard = async {
            loop {
                say(logind, None, false).await;
                let wait = timeout(Duration::from_millis(200), commands.recv());
                if let Ok(Some(command)) = wait.await {
                    assert!(matches!(command, Command::Woken));
                    return;
                }
            }
        };
        timeout(Duration::from_secs(20), heard).await.unwrap();
    }

    fn start(bus: &Bus) -> (tokio::task::JoinHandle<()>, mpsc::Receiver<Command>) {
        let (data, commands) = DataPlane::for_tests();
        let address = bus.address();
        let pauses = Pauses {
            first: Duration::from_millis(20),
            most: Duration::from_millis(50),
            between: Duration::from_millis(10),
        };
        let bus = move || Builder::address(address.as_str());
        (tokio::spawn(watch(bus, pauses, data)), commands)
    }

    #[tokio::test]
    async fn a_bus_and_a_logind_that_come_late_and_are_restarted_are_heard() {
        let mut bus = Bus::new();
        let (watch, mut commands) = start(&bus);
        sleep(Duration::from_millis(100)).await;
        if !bus.start() {
            return;
        }
        let logind = bus.logind().await;
        until_heard(&logind, &mut commands).await;
        drop(logind);
        let logind = bus.logind().await;
        until_heard(&logind, &mut commands).await;
        bus.stop();
        assert!(bus.start());
        let logind = bus.logind().await;
        until_heard(&logind, &mut commands).await;
        assert!(!watch.is_finished());
    }

    #[tokio::test]
    async fn going_to_sleep_and_the_word_of_somebody_else_do_nothing() {
        let mut bus = Bus::new();
        let (_watch, mut commands) = start(&bus);
        if !bus.start() {
            return;
        }
        let logind = bus.logind().await;
        until_heard(&logind, &mut commands).await;
        // What was said until that was heard.
        let rest = Duration::from_millis(300);
        while timeout(rest, commands.recv()).await.is_ok() {}
        // Everyone else on the bus; one of them is who listens.
        let stranger = bus.client().await;
        let names = DBusProxy::new(&stranger).await.unwrap();
        for name in names.list_names().await.unwrap() {
            if name.starts_with(':') {
                say(&stranger, Some(name.as_str()), false).await;
            }
        }
        say(&stranger, None, false).await;
        say(&logind, None, true).await;
        let quiet = timeout(Duration::from_millis(500), commands.recv()).await;
        assert!(quiet.is_err(), "nobody has woken");
        until_heard(&logind, &mut commands).await;
    }
}
