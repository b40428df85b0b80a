//! The kernel's own WireGuard on the other side, in a virtual machine.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{
    Internet, KernelWireGuard, Lab, Namespace, Node, Pattern, PeerConfig, Received, Settings,
    receive, scenario, send, until, within,
};

use super::SOON;

const KERNEL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
const MESH: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const MESH_PORT: u16 = 41_820;
const PORT: u16 = 51_820;
/// Where the kernel's WireGuard goes when it changes its port.
const OTHER_PORT: u16 = 51_999;
/// Enough for some thousand packets each way, and for events in the middle.
const BYTES: u64 = 10_000_000;
/// Bytes of IPv4 and ICMP headers.
const HEADERS: u16 = 28;
const MTU: u16 = 1_280;

/// Who has to send the first handshake, because only it knows the other's address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Initiator {
    Meshd,
    Kernel,
}

/// A meshd and a kernel with WireGuard, each on a public host.
struct Interop {
    _internet: Internet,
    node: Node,
    kernel: KernelWireGuard,
    settings: Settings,
    stanza: String,
}

/// A scenario with a virtual machine; where none can be had, it says so and does nothing.
fn with_kernel(body: impl FnOnce(&Lab) -> Result<()>) {
    scenario(|lab| {
        let Some(reason) = KernelWireGuard::unavailable()? else {
            return body(lab);
        };
        let name = std::thread::current().name().unwrap_or("kernel").to_owned();
        // Straight to the descriptor: libtest hides what a passing test prints.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {name}: {reason}");
        Ok(())
    });
}

impl Interop {
    fn new(lab: &Lab, initiator: Initiator) -> Result<Self> {
        let mut internet = Internet::new(false)?;
        let ((ns, address), (kernel_ns, kernel_address)) =
            (internet.host("a")?, internet.host("kernel")?);
        let kernel = KernelWireGuard::boot(lab, &kernel_ns, kernel_address, PORT)?;
        let mut node = Node::new(lab, &ns, "a")?;
        let settings = Settings {
            listen_port: MESH_PORT,
            address: Some(MESH.to_string()),
            peers: vec![PeerConfig {
                id: kernel.public_key.clone(),
                name: "kernel".to_owned(),
                address: Some(KERNEL.to_string()),
                endpoint: (initiator == Initiator::Meshd)
                    .then(|| SocketAddr::new(kernel_address.into(), PORT)),
                wireguard: true,
            }],
            ..Settings::default()
        };
        node.configure(&settings)?;
        node.start()?;
        let mut stanza = node.ctl_ok(&["status", "--wireguard"])?;
        let endpoint = format!("Endpoint = {address}:{MESH_PORT}");
        ensure!(stanza.contains(&endpoint), "{stanza}");
        if initiator == Initiator::Meshd {
            // Without it the kernel cannot call, only answer.
            stanza = stanza.replace(&endpoint, "");
        }
        kernel.apply(&stanza)?;
        Ok(Self {
            _internet: internet,
            node,
            kernel,
            settings,
            stanza,
        })
    }

    fn ping_from_kernel(&self) -> Result<bool> {
        self.kernel.pings(&format!("-c 1 {MESH}"))
    }

    /// Pings from the initiator's side until one is answered; then all have to be, both ways.
    fn contact(&self, initiator: Initiator) -> Result<()> {
        within("the first ping", SOON, || match initiator {
            Initiator::Meshd => Ok(self.node.icmp(KERNEL, 1).is_ok()),
            Initiator::Kernel => self.ping_from_kernel(),
        })?;
        self.node.icmp(KERNEL, 10)?;
        ensure!(self.kernel.pings(&format!("-c 10 -i 0.05 {MESH}"))?);
        Ok(())
    }

    /// A hash-checked copy to the kernel and back, one after the other.
    fn exchange(&self) -> Result<()> {
        let sent = self.upload(|_| Ok(()))?;
        let received = self.download(|| Ok(()))?;
        ensure!(
            received.bytes == BYTES && received.hash == sent,
            "what came back is not what went"
        );
        Ok(())
    }

    /// Copies the lab's pattern into the virtual machine's `/tmp/file`; `during` is called with the bytes sent so far.
    fn upload(&self, mut during: impl FnMut(u64) -> Result<()>) -> Result<Vec<u8>> {
        self.kernel
            .run("nc -l -p 9000 </dev/null >/tmp/file 2>/tmp/nc & receiver=$!")?;
        // It is refused until nc listens.
        let remote = SocketAddr::new(KERNEL.into(), 9000);
        let mut stream = until("nc to listen", SOON, || {
            Ok(self.node.ns.connect(remote).ok())
        })?;
        let pattern = Pattern::new(7, self.node.lab().marker());
        let mut outcome = Ok(());
        let sent = send(&mut stream, pattern, BYTES, |bytes| {
            if outcome.is_ok() {
                outcome = during(bytes);
            }
            Duration::ZERO
        })?;
        outcome?;
        self.kernel.run("wait $receiver")?;
        Ok(sent)
    }

    /// Copies the virtual machine's `/tmp/file` back; `during` is called once while it is on its way.
    fn download(&self, during: impl FnOnce() -> Result<()>) -> Result<Received> {
        let listener = self.node.ns.listen(SocketAddr::new(MESH.into(), 9000))?;
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&listener));
            self.kernel.run(&format!(
                "nc {MESH} 9000 </tmp/file >/tmp/nc 2>&1 & sender=$!"
            ))?;
            during()?;
            self.kernel.run("wait $sender")?;
            receiver.join().expect("no panic")
        })
    }

    /// When the kernel last completed a handshake, in Unix seconds; 0 for never.
    fn handshake(&self) -> Result<u64> {
        self.kernel
            .show("latest-handshakes")?
            .parse()
            .context("a time")
    }
}

fn meets(lab: &Lab, initiator: Initiator) -> Result<()> {
    let interop = Interop::new(lab, initiator)?;
    let t = std::time::Instant::now();
    interop.contact(initiator)?;
    eprintln!("contact {:?}", t.elapsed());
    interop.exchange()?;
    eprintln!("exchange {:?}", t.elapsed());
    let peer = interop.node.peer("kernel")?;
    eprintln!("{peer}");
    ensure!(peer["path"]["kind"] == "direct", "{peer}");
    ensure!(peer["id"] == interop.kernel.public_key.as_str(), "{peer}");
    eprintln!("{}", interop.kernel.run("wg show; ping --help")?);
    Ok(())
}

#[test]
fn the_kernels_wireguard_answers_a_meshd_that_calls_it() {
    with_kernel(|lab| meets(lab, Initiator::Meshd));
}

#[test]
fn the_kernels_wireguard_calls_a_meshd_that_answers() {
    with_kernel(|lab| meets(lab, Initiator::Kernel));
}
