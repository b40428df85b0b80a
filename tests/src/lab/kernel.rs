//! The kernel's own WireGuard, in a virtual machine: the machine that runs the lab need not have it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::netns::Namespace;
use super::process::Program;
use super::scenario::Lab;
use super::wait::until;

/// Longest time that the virtual machine may take to boot, or to carry out a command: every instruction of it is
/// emulated, and boots take 4 s on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What it can do without: it has a file of some megabytes at most.
const MEMORY: &str = "256";

/// A virtual machine on a public host of the lab, with a WireGuard interface `wg0`.
#[derive(Debug)]
pub struct KernelWireGuard {
    /// Public key of `wg0`, base64.
    pub public_key: String,
    /// The machine's address on the lab's internet.
    pub address: Ipv4Addr,
    private_key: String,
    port: u16,
    // One command at a time; what comes back before its end belongs to it.
    console: RefCell<BufReader<UnixStream>>,
    program: Program,
}

impl KernelWireGuard {
    /// Why no virtual machine can be had here, if that is so.
    ///
    /// # Errors
    ///
    /// When nobody tried to make one.
    pub fn unavailable() -> Result<Option<String>> {
        let image = image()?;
        if let Ok(reason) = std::fs::read_to_string(image.join("unavailable")) {
            return Ok(Some(reason.trim().to_owned()));
        }
        ensure!(
            image.join("vmlinuz").exists(),
            "make the virtual machine first (`make test-lab` does): tests/kernel/image {}",
            image.display()
        );
        Ok(None)
    }

    /// Boots it in place of the public host `ns`, whose address it takes, with a fresh key and no peers.
    ///
    /// # Errors
    ///
    /// When it does not boot.
    pub fn boot(lab: &Lab, ns: &Namespace, address: Ipv4Addr, port: u16) -> Result<Self> {
        ns.ip("tuntap add dev tap0 mode tap
             link add lan type bridge
             addr flush dev wan
             link set wan master lan
             link set tap0 master lan
             link set tap0 up
             link set lan up")?;
        let private_key = ns.run("wg", &["genkey"])?.trim().to_owned();
        let bytes = data_encoding::BASE64
            .decode(private_key.as_bytes())
            .context("wg genkey")?;
        lab.keep_secret("WireGuard private key", &bytes);
        let public_key = ns.feed("wg", &["pubkey"], &private_key)?.trim().to_owned();
        let (program, mut console) = start(lab, ns)?;
        let mut line = String::new();
        console.read_line(&mut line).context("waiting for init")?;
        ensure!(
            line.starts_with("READY"),
            "{line:?} for READY from the virtual machine: {}",
            program.log()
        );
        let machine = Self {
            public_key,
            address,
            private_key,
            port,
            console: RefCell::new(console),
            program,
        };
        let [a, b, c, _] = address.octets();
        machine.run(&format!(
            "ip link set eth0 up && ip addr add {address}/24 dev eth0 && ip route add default via {a}.{b}.{c}.1 \
             && ip link add wg0 type wireguard"
        ))?;
        Ok(machine)
    }

    /// Runs a line of shell and gives what it wrote. A background job lives on; its output must go elsewhere.
    ///
    /// # Errors
    ///
    /// When it fails; the message has its output.
    pub fn run(&self, command: &str) -> Result<String> {
        let (status, output) = self.attempt(command)?;
        ensure!(
            status == 0,
            "`{command:.300}` in the virtual machine: exit {status}\n{output}"
        );
        Ok(output)
    }

    /// As [`Self::run`], for a command that may fail: gives its exit status as well.
    ///
    /// # Errors
    ///
    /// When the virtual machine does not answer.
    pub fn attempt(&self, command: &str) -> Result<(u8, String)> {
        ensure!(!command.contains('\n'), "one line at a time");
        let mut console = self.console.borrow_mut();
        console
            .get_mut()
            .write_all(format!("{command}\n").as_bytes())?;
        let mut output = String::new();
        loop {
            let mut line = String::new();
            let len = console.read_line(&mut line).with_context(|| {
                format!("no end of `{command:.300}` in the virtual machine; so far:\n{output}")
            })?;
            ensure!(len > 0, "the virtual machine is gone: {}", self.log());
            if let Some(status) = line.strip_prefix("ENDED ") {
                // The line break before the status is none of the command's.
                output.pop();
                return Ok((status.trim().parse()?, output));
            }
            output.push_str(&line);
        }
    }

    /// Writes a file.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let text = data_encoding::BASE64.encode(text.as_bytes());
        self.run(&format!("echo {text} | base64 -d >{path}"))
            .map(drop)
    }

    /// Applies a wg-quick file from which the private key was left out, as `wg-quick up` would apply it.
    ///
    /// # Errors
    ///
    /// When `wg` or the kernel refuses something in it.
    pub fn apply(&self, stanza: &str) -> Result<()> {
        let mut device = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {}\n",
            self.private_key, self.port
        );
        let (mut links, mut routes) = (String::new(), String::new());
        let settings = stanza
            .lines()
            .filter(|line| !line.starts_with("[Interface]"));
        for line in settings {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            let (key, value) = (key.trim(), value.trim());
            for item in value.split(',').map(str::trim) {
                let _ = match key {
                    "Address" => write!(links, "ip addr replace {item} dev wg0 && "),
                    "MTU" => write!(links, "ip link set wg0 mtu {item} && "),
                    "AllowedIPs" => write!(routes, " && ip route replace {item} dev wg0"),
                    _ => Ok(()),
                };
            }
            if !matches!(key, "Address" | "MTU") {
                let _ = writeln!(device, "{line}");
            }
        }
        self.write("/tmp/wg.conf", &device)?;
        self.run(&format!(
            "wg setconf wg0 /tmp/wg.conf && {links} ip link set wg0 up {routes}"
        ))
        .map(drop)
    }

    /// A column of `wg show`, such as `latest-handshakes`, for its only peer.
    ///
    /// # Errors
    ///
    /// When there is no peer.
    pub fn show(&self, what: &str) -> Result<String> {
        let text = self.run(&format!("wg show wg0 {what}"))?;
        let (_, value) = text
            .trim()
            .split_once('\t')
            .with_context(|| format!("wg knows no peer: {text:?}"))?;
        Ok(value.to_owned())
    }

    /// True when a `ping` with these arguments got all its answers.
    ///
    /// # Errors
    ///
    /// When the virtual machine does not answer.
    pub fn pings(&self, arguments: &str) -> Result<bool> {
        let (status, output) = self.attempt(&format!("ping {arguments}"))?;
        Ok(status == 0 && output.contains(" 0% packet loss"))
    }

    /// What it wrote on its first serial port: the kernel's messages.
    pub fn log(&self) -> String {
        self.program.log()
    }
}

/// Where the virtual machine's kernel and initramfs lie: beside the directory of the release programs.
fn image() -> Result<PathBuf> {
    let programs = Lab::binary("meshd")?;
    let target = programs.ancestors().nth(2).context("no directory")?;
    Ok(target.join("kernel-wg"))
}

/// Starts qemu; gives it and its second serial port.
fn start(lab: &Lab, ns: &Namespace) -> Result<(Program, BufReader<UnixStream>)> {
    let image = image()?;
    let socket = lab.dir().join("console");
    let mut command = ns.command("qemu-system-x86_64");
    command
        // A plain CPU: what emulates vector instructions is slower than the kernel's plain C, by half. But it has a source
        // of randomness, for which init would have to wait.
        .args(["-machine", "pc", "-accel", "tcg"])
        .args(["-cpu", "qemu64,+rdrand"])
        .args(["-m", MEMORY, "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio"])
        // It waits for us, so nothing that init says is lost.
        .arg("-chardev")
        .arg(format!(
            "socket,id=console,path={},server=on,wait=on",
            socket.display()
        ))
        .args(["-serial", "chardev:console"])
        .args(["-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no"])
        .args(["-device", "virtio-net-pci,netdev=net,romfile="])
        .arg("-kernel")
        .arg(image.join("vmlinuz"))
        .arg("-initrd")
        .arg(image.join("initrd"))
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 mitigations=off audit=0",
        ]);
    let mut program = Program::spawn(lab, &format!("qemu-{}", ns.name()), command)?;
    let stream = until("qemu's console", PATIENCE, || {
        ensure!(program.is_running(), "qemu ended: {}", program.log());
        Ok(UnixStream::connect(&socket).ok())
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok((program, BufReader::new(stream)))
}
