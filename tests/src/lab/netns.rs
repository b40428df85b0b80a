//! Network namespaces held by a descriptor, and how to get a command or a socket into one.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;

/// An anonymous network namespace. It goes when the last clone and the last process in it are gone.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: Arc<str>,
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// Makes a namespace with its loopback up; `name` is for messages only.
    ///
    /// # Errors
    ///
    /// Without CAP_SYS_ADMIN and CAP_NET_ADMIN.
    pub fn new(name: &str) -> Result<Self> {
        // A throwaway thread, because unshare moves the calling thread for good.
        let fd = std::thread::scope(|scope| {
            scope
                .spawn(|| -> Result<OwnedFd> {
                    unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
                    Ok(File::open("/proc/thread-self/ns/net")?.into())
                })
                .join()
                .expect("the thread does not panic")
        })?;
        let namespace = Self {
            name: name.into(),
            fd: Arc::new(fd),
        };
        // Addresses are usable at once, and a bridge's frames are not shown to the IP layer's filters,
        // which would falsify hairpin.
        namespace.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        for family in ["iptables", "ip6tables"] {
            let key = format!("net.bridge.bridge-nf-call-{family}");
            if namespace.inside(|| Path::new("/proc/sys/net/bridge").exists()) {
                namespace.sysctl(&key, "0")?;
            }
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name given to [`Self::new`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that `ip link … netns` takes, valid as long as this process and a clone of this value live.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Runs `body` on a thread inside the namespace. Sockets made there stay in it wherever they are used.
    pub fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                setns(&*self.fd, CloneFlags::CLONE_NEWNET).expect("a namespace that we made");
                body()
            });
            match run.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command that will run inside the namespace and be killed when the thread that spawns it ends.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let fd = Arc::clone(&self.fd);
        let mut command = Command::new(program);
        command
            .env_remove("DBUS_SYSTEM_BUS_ADDRESS")
            .env_remove("RUST_LOG");
        // SAFETY: setns and prctl are async-signal-safe system calls; nothing is allocated between fork and exec.
        unsafe {
            command.pre_exec(move || {
                setns(&*fd, CloneFlags::CLONE_NEWNET)?;
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
        command
    }

    /// Runs a command to its end and gives what it wrote to its standard output.
    ///
    /// # Errors
    ///
    /// When it cannot be started or fails; the message has what it wrote to its standard error.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.feed(program, args, "")
    }

    /// Carries out `ip` commands, one a line.
    ///
    /// # Errors
    ///
    /// When one fails.
    pub fn ip(&self, commands: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], commands).map(drop)
    }

    /// As [`Self::ip`], for IPv6 where the command itself does not tell.
    ///
    /// # Errors
    ///
    /// When one fails.
    pub fn ip6(&self, commands: &str) -> Result<()> {
        self.feed("ip", &["-6", "-batch", "-"], commands).map(drop)
    }

    /// Loads an nftables ruleset, in one transaction.
    ///
    /// # Errors
    ///
    /// When nft refuses it.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], rules).map(drop)
    }

    /// Sets a `net.*` kernel parameter of this namespace.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.inside(|| std::fs::write(&path, value))
            .with_context(|| format!("sysctl {key}={value}"))
    }

    /// A UDP socket in the namespace, with a read timeout of 2 s.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn udp(&self, bind: SocketAddr) -> Result<UdpSocket> {
        let socket = self
            .inside(|| UdpSocket::bind(bind))
            .with_context(|| format!("bind {bind} in {}", self.name))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    }

    /// A listening TCP socket in the namespace.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn listen(&self, bind: SocketAddr) -> Result<TcpListener> {
        self.inside(|| TcpListener::bind(bind))
            .with_context(|| format!("listen on {bind} in {}", self.name))
    }

    /// Connects a TCP socket from inside the namespace, waiting at most 10 s.
    ///
    /// # Errors
    ///
    /// When it is refused or not answered.
    pub fn connect(&self, remote: SocketAddr) -> Result<TcpStream> {
        self.inside(|| TcpStream::connect_timeout(&remote, Duration::from_secs(10)))
            .with_context(|| format!("connect to {remote} from {}", self.name))
    }

    pub(super) fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .command(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!("run {program} (is it installed? tests/setup.sh installs it)")
            })?;
        // The program may end before it has read everything; its exit status then tells why.
        let _ = child
            .stdin
            .take()
            .expect("piped")
            .write_all(input.as_bytes());
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "{program} {} in {}: {}\n{}{input:.2000}",
                args.join(" "),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
