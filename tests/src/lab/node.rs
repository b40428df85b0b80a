//! A `meshd` in a namespace, and `meshctl` to ask it.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::netns::Namespace;
use super::process::Program;
use super::scenario::Lab;
use super::wait::{until, within};

/// Longest time that a program may take to start, on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(20);

/// A host with its state directory, and its daemon while that runs.
#[derive(Debug)]
pub struct Node {
    /// Name for peers and messages.
    pub name: String,
    /// Node ID in the network `lab`.
    pub id: String,
    /// Where it runs.
    pub ns: Namespace,
    dir: PathBuf,
    lab: Lab,
    program: Option<Program>,
    verbose: bool,
}

/// The configuration of a node: one network, called `lab`.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// UDP port; any free one by default.
    pub listen_port: u16,
    /// Relay addresses.
    pub relays: Vec<String>,
    /// Our IPv4 address in the overlay.
    pub address: Option<String>,
    /// Cap of the overlay's MTU.
    pub mtu: Option<u16>,
    /// Whether hosts on one network look for each other; they do by default.
    pub lan_discovery: Option<bool>,
    /// Who else is there.
    pub peers: Vec<PeerConfig>,
}

/// One peer in a configuration.
#[derive(Debug, Clone, Default)]
pub struct PeerConfig {
    /// Node ID, or WireGuard key.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its IPv4 address in the overlay.
    pub address: Option<String>,
    /// Where it can be reached without a relay.
    pub endpoint: Option<SocketAddr>,
    /// A stock WireGuard device.
    pub wireguard: bool,
}

/// What `meshctl` did.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; −1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Settings {
    /// The file.
    pub fn to_toml(&self) -> String {
        let mut text = format!("listen_port = {}\n", self.listen_port);
        if let Some(wanted) = self.lan_discovery {
            let _ = writeln!(text, "lan_discovery = {wanted}");
        }
        text.push_str("\n[network.lab]\n");
        if !self.relays.is_empty() {
            let _ = writeln!(text, "relays = {:?}", self.relays);
        }
        if let Some(address) = &self.address {
            let _ = writeln!(text, "address = [\"{address}/32\"]");
        }
        if let Some(mtu) = self.mtu {
            let _ = writeln!(text, "mtu = {mtu}");
        }
        for peer in &self.peers {
            let _ = writeln!(
                text,
                "\n[[network.lab.peer]]\nid = \"{}\"\nname = \"{}\"",
                peer.id, peer.name
            );
            if let Some(address) = &peer.address {
                let _ = writeln!(text, "address = [\"{address}\"]");
            }
            if let Some(endpoint) = peer.endpoint {
                let _ = writeln!(text, "endpoints = [\"{endpoint}\"]");
            }
            if peer.wireguard {
                let _ = writeln!(text, "wireguard = true");
            }
        }
        text
    }
}

impl Node {
    /// A host with an identity; no daemon runs yet.
    ///
    /// # Errors
    ///
    /// When `meshd --print-id` fails.
    pub fn new(lab: &Lab, ns: &Namespace, name: &str) -> Result<Self> {
        let dir = lab.dir().join(name);
        std::fs::create_dir_all(&dir)?;
        let program = Lab::binary("meshd")?.display().to_string();
        let state = dir.join("state").display().to_string();
        let id = ns
            .run(&program, &["--state-dir", &state, "--print-id", "lab"])?
            .trim()
            .to_owned();
        Ok(Self {
            name: name.to_owned(),
            id,
            ns: ns.clone(),
            dir,
            lab: lab.clone(),
            program: None,
            verbose: true,
        })
    }

    /// Runs the daemon without `-vv`, as a user does: for measurements.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.verbose = false;
        self
    }

    /// Two hosts that know each other and the relay, `a` as 10.77.0.1 and `b` as 10.77.0.2, configured and not started.
    ///
    /// # Errors
    ///
    /// When an identity cannot be made.
    pub fn pair(lab: &Lab, a: &Namespace, b: &Namespace, relays: &[&str]) -> Result<(Self, Self)> {
        let (a, b) = (Self::new(lab, a, "a")?, Self::new(lab, b, "b")?);
        let relays: Vec<String> = relays.iter().map(ToString::to_string).collect();
        for (own, peer, number, peer_number) in [(&a, &b, 1, 2), (&b, &a, 2, 1)] {
            own.configure(&Settings {
                relays: relays.clone(),
                address: Some(format!("10.77.0.{number}")),
                peers: vec![peer.as_peer(&format!("10.77.0.{peer_number}"))],
                ..Settings::default()
            })?;
        }
        Ok((a, b))
    }

    /// This node as another's configuration names it.
    pub fn as_peer(&self, address: &str) -> PeerConfig {
        PeerConfig {
            id: self.id.clone(),
            name: self.name.clone(),
            address: Some(address.to_owned()),
            ..PeerConfig::default()
        }
    }

    /// Writes the configuration file.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn configure(&self, settings: &Settings) -> Result<()> {
        self.configure_text(&settings.to_toml())
    }

    /// Writes the configuration file as given.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn configure_text(&self, text: &str) -> Result<()> {
        std::fs::write(self.config_path(), text).context("write the configuration")
    }

    /// Where the configuration lies.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Where the state lies.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where the control socket lies.
    pub fn socket_path(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// The daemon's command line, with any system bus left alone.
    ///
    /// # Errors
    ///
    /// When it was not built.
    pub fn command(&self) -> Result<Command> {
        let mut command = self.bus_command()?;
        command.arg("--no-bus");
        Ok(command)
    }

    /// The daemon's command line without `--no-bus`.
    ///
    /// # Errors
    ///
    /// When it was not built.
    pub fn bus_command(&self) -> Result<Command> {
        let mut command = self.ns.command(Lab::binary("meshd")?);
        command
            .arg("--config")
            .arg(self.config_path())
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--socket")
            .arg(self.socket_path());
        if self.verbose {
            command.arg("-vv");
        }
        Ok(command)
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not get there.
    pub fn start(&mut self) -> Result<Duration> {
        self.launch()?;
        self.program().wait_ready(START)
    }

    /// Starts the daemon and returns at once.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        let command = self.command()?;
        self.launch_as(command)
    }

    /// Starts the daemon by a command line of one's own.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn launch_as(&mut self, command: Command) -> Result<()> {
        self.program = None;
        self.program = Some(Program::spawn(&self.lab, &self.name, command)?);
        Ok(())
    }

    /// The running daemon.
    ///
    /// # Panics
    ///
    /// When none was started.
    pub fn program(&mut self) -> &mut Program {
        self.program.as_mut().expect("the daemon was started")
    }

    /// Asks the daemon to stop and waits for it.
    ///
    /// # Errors
    ///
    /// When it does not stop, or not with success.
    pub fn stop(&mut self) -> Result<()> {
        self.program.take().map_or(Ok(()), Program::stop)
    }

    /// Kills the daemon (SIGKILL).
    pub fn kill(&mut self) {
        self.program = None;
    }

    /// Runs `meshctl` against this node's control socket.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn ctl(&self, args: &[&str]) -> Result<Output> {
        self.ctl_as(Command::new(Lab::binary("meshctl")?), args)
    }

    /// Runs `command`, which is or becomes `meshctl`, with the socket and `args` behind it.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn ctl_as(&self, mut command: Command, args: &[&str]) -> Result<Output> {
        let output = command
            .arg("--socket")
            .arg(self.socket_path())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("run meshctl")?;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `meshctl` that must succeed; gives its standard output.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn ctl_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.ctl(args)?;
        if output.code != 0 {
            bail!(
                "meshctl {} on {}: exit {}: {}",
                args.join(" "),
                self.name,
                output.code,
                output.stderr.trim()
            );
        }
        Ok(output.stdout)
    }

    /// `meshctl status --json`.
    ///
    /// # Errors
    ///
    /// When it cannot be had.
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ctl_ok(&["status", "--json"])?)?)
    }

    /// `meshctl explain PEER --json`.
    ///
    /// # Errors
    ///
    /// When it cannot be had.
    pub fn explain(&self, peer: &str) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.ctl_ok(&["explain", peer, "--json"])?,
        )?)
    }

    /// What the daemon dropped for this reason since its start.
    ///
    /// # Errors
    ///
    /// When `status` cannot be had.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        Ok(self.status()?["drops"][reason].as_u64().unwrap_or(0))
    }

    /// The network `lab` of `meshctl status --json`.
    ///
    /// # Errors
    ///
    /// When it cannot be had.
    pub fn network(&self) -> Result<Value> {
        let status = self.status()?;
        let mut networks = status["networks"].as_array().into_iter().flatten();
        let network = networks.find(|network| network["name"] == "lab");
        network
            .cloned()
            .with_context(|| format!("no network `lab` in {status}"))
    }

    /// A peer of `meshctl status --json`.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn peer(&self, name: &str) -> Result<Value> {
        let network = self.network()?;
        network["peers"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|peer| peer["name"] == name)
            .cloned()
            .with_context(|| format!("no peer {name} in {network}"))
    }

    /// The kind of a peer's current path.
    ///
    /// # Errors
    ///
    /// When there is no such peer.
    pub fn path_kind(&self, peer: &str) -> Result<Option<String>> {
        Ok(self.peer(peer)?["path"]["kind"].as_str().map(str::to_owned))
    }

    /// Waits until a peer is reached by a path of this kind.
    ///
    /// # Errors
    ///
    /// When it is not within `timeout`.
    pub fn wait_path(&self, peer: &str, kind: &str, timeout: Duration) -> Result<Duration> {
        let what = format!("{} to reach {peer} by a {kind} path", self.name);
        within(&what, timeout, || {
            Ok(self.path_kind(peer)?.as_deref() == Some(kind))
        })
    }

    /// Waits for a health line that contains `text`, in either case.
    ///
    /// # Errors
    ///
    /// When none comes within `timeout`.
    pub fn wait_health(&self, text: &str, timeout: Duration) -> Result<String> {
        until(
            &format!("a health line with {text:?} on {}", self.name),
            timeout,
            || {
                let network = self.network()?;
                let mut lines = network["health"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str);
                Ok(lines
                    .find(|line| line.to_lowercase().contains(&text.to_lowercase()))
                    .map(str::to_owned))
            },
        )
    }

    /// Waits until the node has a home relay.
    ///
    /// # Errors
    ///
    /// When it has none within `timeout`.
    pub fn wait_relay(&self, timeout: Duration) -> Result<Duration> {
        within(
            &format!("{} to have a home relay", self.name),
            timeout,
            || Ok(self.network()?["self"]["home_relay"].is_string()),
        )
    }

    /// The overlay address derived from the node's ID.
    ///
    /// # Errors
    ///
    /// When the daemon does not tell it.
    pub fn overlay(&self) -> Result<Ipv6Addr> {
        let network = self.network()?;
        network["self"]["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|address| address.as_str()?.split('/').next()?.parse::<IpAddr>().ok())
            .find_map(|address| match address {
                IpAddr::V6(address) => Some(address),
                IpAddr::V4(_) => None,
            })
            .with_context(|| format!("no derived address in {network}"))
    }

    /// One `meshctl ping`; gives the path that its answer names (`relay …`, or an address), or `None` without an answer.
    ///
    /// # Errors
    ///
    /// When `meshctl` cannot be run, or fails for another reason than silence.
    pub fn ping(&self, peer: &str) -> Result<Option<String>> {
        let output = self.ctl(&["ping", peer, "-c", "1", "-W", "2"])?;
        match output.code {
            0 => Ok(output.stdout.lines().find_map(pong_path)),
            1 => Ok(None),
            code => bail!(
                "meshctl ping on {}: exit {code}: {}",
                self.name,
                output.stderr.trim()
            ),
        }
    }

    /// ICMP pings with the lab's marker in them, by the host's own `ping`.
    ///
    /// # Errors
    ///
    /// When one of them is not answered; the message is what `ping` printed.
    pub fn icmp(&self, destination: impl Into<IpAddr>, count: u32) -> Result<()> {
        let pattern: String = self
            .lab
            .marker()
            .bytes()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut command = self.ns.command("ping");
        command.args(["-n", "-i", "0.05", "-W", "2", "-p", &pattern]);
        if count > 1 {
            // Else it waits for the last answer no longer than for one ping to follow the other; so it sends more of them.
            command.args(["-w", &(5 + count.div_ceil(20)).to_string()]);
        }
        let output = command
            .args(["-c", &count.to_string()])
            .arg(destination.into().to_string())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let answered = |number: u32| {
            let number = format!(" icmp_seq={number} ");
            let mut answers = text.lines().filter(|line| line.contains(" bytes from "));
            answers.any(|line| line.contains(&number))
        };
        if !(1..=count).all(answered) {
            bail!(
                "ping from {}: {text}{}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// The lab that it is part of.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The directory with its configuration and state.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// The path in a line `pong from bob (10.77.0.2) via 203.0.113.7:41820 in 12 ms`.
pub fn pong_path(line: &str) -> Option<String> {
    let (_, rest) = line.strip_prefix("pong from ")?.split_once(" via ")?;
    Some(rest.split_once(" in ")?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_pong_is_what_stands_between_via_and_in() {
        assert_eq!(
            pong_path("pong from bob (10.77.0.2) via 203.0.113.7:41820 in 12 ms").as_deref(),
            Some("203.0.113.7:41820")
        );
        assert_eq!(
            pong_path("pong from bob (10.77.0.2) via relay r1 in 12 ms").as_deref(),
            Some("relay r1")
        );
        assert_eq!(pong_path("no answer"), None);
    }
}
