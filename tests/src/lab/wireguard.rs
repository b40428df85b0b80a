//! A stock WireGuard device: Debian's `wireguard-go`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::netns::Namespace;
use super::process::Program;
use super::scenario::Lab;
use super::wait::within;

/// A running wireguard-go.
#[derive(Debug)]
pub struct WireGuardGo {
    /// Its public key, base64.
    pub public_key: String,
    /// Its interface.
    pub interface: String,
    ns: Namespace,
    private_key: String,
    port: u16,
    config: PathBuf,
    program: Program,
}

impl WireGuardGo {
    /// Starts one with a fresh key, no peers and no addresses, listening on `port`.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(lab: &Lab, ns: &Namespace, port: u16) -> Result<Self> {
        // Its control socket is a file in /run named after the interface, and namespaces share that directory.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let interface = format!(
            "wg{}x{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let private_key = ns.run("wg", &["genkey"])?.trim().to_owned();
        let bytes = data_encoding::BASE64
            .decode(private_key.as_bytes())
            .context("wg genkey")?;
        lab.keep_secret("WireGuard private key", &bytes);
        let mut command = ns.command("wireguard-go");
        // It would rather be a kernel module.
        command
            .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
            .args(["-f", &interface]);
        let mut device = Self {
            public_key: ns.feed("wg", &["pubkey"], &private_key)?.trim().to_owned(),
            config: lab.dir().join(format!("{interface}.conf")),
            program: Program::spawn(lab, &format!("wireguard-go-{}", ns.name()), command)?,
            ns: ns.clone(),
            interface,
            private_key,
            port,
        };
        within(
            "wireguard-go's control socket",
            Duration::from_secs(10),
            || Ok(device.socket().exists()),
        )?;
        device.configure("")?;
        Ok(device)
    }

    /// Replaces its peers by these `[Peer]` sections.
    ///
    /// # Errors
    ///
    /// When `wg` refuses them.
    pub fn configure(&mut self, peers: &str) -> Result<()> {
        let own = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {}\n",
            self.private_key, self.port
        );
        std::fs::write(&self.config, format!("{own}\n{peers}"))?;
        self.ns
            .run(
                "wg",
                &[
                    "setconf",
                    &self.interface,
                    &self.config.display().to_string(),
                ],
            )
            .map(drop)
    }

    /// Gives the interface an address (with prefix length) and brings it up.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn up(&self, address: &str) -> Result<()> {
        let interface = &self.interface;
        self.ns.ip(&format!(
            "addr add {address} dev {interface}\nlink set {interface} up"
        ))
    }

    /// Applies a wg-quick file from which the private key was left out, as `wg-quick up` would apply it.
    ///
    /// # Errors
    ///
    /// When it has no place for the key, or `wg-quick`, `wg` or the kernel refuses something in it.
    pub fn apply(&mut self, stanza: &str) -> Result<()> {
        let own = format!(
            "PrivateKey = {}\nListenPort = {}",
            self.private_key, self.port
        );
        let mut text = String::new();
        for line in stanza.lines() {
            text.push_str(if line.starts_with("# PrivateKey") {
                &own
            } else {
                line
            });
            text.push('\n');
        }
        ensure!(
            text.contains(&own),
            "no place for the private key in:\n{stanza}"
        );
        std::fs::write(&self.config, &text)?;
        let path = self.config.display().to_string();
        let stripped = self.ns.run("wg-quick", &["strip", &path])?;
        self.ns
            .feed("wg", &["setconf", &self.interface, "/dev/stdin"], &stripped)?;
        let values = |key: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            lines
                .filter(|(name, _)| name.trim() == key)
                .flat_map(|(_, list)| list.split(','))
                .map(|value| value.trim().to_owned())
                .collect()
        };
        let interface = &self.interface;
        for address in values("Address") {
            self.ns
                .ip(&format!("addr replace {address} dev {interface}"))?;
        }
        for mtu in values("MTU") {
            self.ns.ip(&format!("link set {interface} mtu {mtu}"))?;
        }
        self.ns.ip(&format!("link set {interface} up"))?;
        for route in values("AllowedIPs") {
            self.ns
                .ip(&format!("route replace {route} dev {interface}"))?;
        }
        Ok(())
    }

    /// A column of `wg show`, such as `latest-handshakes`, for its only peer.
    ///
    /// # Errors
    ///
    /// When there is no peer.
    pub fn show(&self, what: &str) -> Result<String> {
        let text = self.ns.run("wg", &["show", &self.interface, what])?;
        let line = text.lines().next().context("wg knows no peer")?;
        Ok(line
            .split_once('\t')
            .map_or(line, |(_, value)| value)
            .to_owned())
    }

    /// The process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    fn socket(&self) -> PathBuf {
        Path::new("/run/wireguard").join(format!("{}.sock", self.interface))
    }
}

impl Drop for WireGuardGo {
    fn drop(&mut self) {
        // It is killed, so it cannot do this itself.
        let _ = std::fs::remove_file(self.socket());
    }
}
