//! A `mesh-relay` in a namespace.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::netns::Namespace;
use super::process::Program;
use super::scenario::Lab;

/// Longest time that a program may take to start, on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(20);

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    /// What hosts put into `relays`.
    pub url: String,
    ns: Namespace,
    dir: PathBuf,
    lab: Lab,
    program: Option<Program>,
}

impl Relay {
    /// Starts a relay that admits everyone, on port 443 of `address`.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(lab: &Lab, ns: &Namespace, address: impl Into<IpAddr>) -> Result<Self> {
        Self::start_with(lab, ns, address, "access = \"open\"\n")
    }

    /// Starts a relay with a configuration of its own.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start_with(
        lab: &Lab,
        ns: &Namespace,
        address: impl Into<IpAddr>,
        config: &str,
    ) -> Result<Self> {
        let address = address.into();
        let dir = lab.dir().join(format!("relay-{}", ns.name()));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("relay.toml"), config)?;
        let program = Lab::binary("mesh-relay")?;
        let host = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let state = dir.join("state").display().to_string();
        let url = ns
            .run(
                &program.display().to_string(),
                &["--state-dir", &state, "--print-url", &format!("{host}:443")],
            )?
            .lines()
            .find(|line| line.starts_with("mesh://"))
            .context("mesh-relay --print-url prints a mesh:// line")?
            .to_owned();
        let mut relay = Self {
            url,
            ns: ns.clone(),
            dir,
            lab: lab.clone(),
            program: None,
        };
        relay.restart()?;
        Ok(relay)
    }

    /// Kills the relay, if it runs, and starts it with the same key.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.program = None;
        let mut command = self.ns.command(Lab::binary("mesh-relay")?);
        command
            .arg("--config")
            .arg(self.dir.join("relay.toml"))
            .arg("--state-dir")
            .arg(self.dir.join("state"))
            .arg("-vv");
        let mut program = Program::spawn(&self.lab, self.ns.name(), command)?;
        program.wait_ready(START)?;
        self.program = Some(program);
        Ok(())
    }

    /// Kills it without any farewell.
    pub fn kill(&mut self) {
        self.program = None;
    }

    /// The running program.
    ///
    /// # Panics
    ///
    /// After [`Self::stop`].
    pub fn program(&mut self) -> &mut Program {
        self.program.as_mut().expect("the relay was not stopped")
    }

    /// Asks it to stop and waits for it.
    ///
    /// # Errors
    ///
    /// When it does not stop, or not with success.
    pub fn stop(&mut self) -> Result<()> {
        self.program.take().map_or(Ok(()), Program::stop)
    }
}
