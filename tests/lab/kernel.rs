//! The kernel's own WireGuard on the other side, in a virtual machine.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use data_encoding::BASE64;
use mesh_tests::lab::{
    Internet, KernelWireGuard, Lab, Namespace, Node, Pattern, PeerConfig, Settings, receive,
    scenario, send, until, within,
};

use super::SOON;

const KERNEL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
const MESH: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const MESH_PORT: u16 = 41_820;
const PORT: u16 = 51_820;
/// Where the kernel's WireGuard goes when it changes its port.
const OTHER_PORT: u16 = 51_999;
/// Some thousand packets each way, and time for events in the middle.
const BYTES: u64 = 10_000_000;
/// IPv4 and ICMP headers.
const HEADERS: u16 = 28;
const MTU: u16 = 1_280;
/// WireGuard pads to multiples of this many bytes.
const PADDING: u16 = 16;

/// Who has to send the first handshake, because only it knows the other's address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Initiator {
    Meshd,
    Kernel,
    Either,
}

/// A meshd and a kernel with WireGuard, each on a public host.
struct Interop {
    internet: Internet,
    node: Node,
    address: Ipv4Addr,
    kernel: KernelWireGuard,
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
    /// `psk` is what meshd has for the kernel.
    fn new(lab: &Lab, initiator: Initiator, psk: Option<&str>) -> Result<Self> {
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
                endpoint: (initiator != Initiator::Kernel)
                    .then(|| SocketAddr::new(kernel_address.into(), PORT)),
                wireguard: true,
            }],
            ..Settings::default()
        };
        let mut text = settings.to_toml();
        if let Some(psk) = psk {
            let path = node.dir().join("psk");
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(psk.as_bytes())?;
            text.push_str(&format!("psk_file = \"{}\"\n", path.display()));
        }
        node.configure_text(&text)?;
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
            internet,
            node,
            address,
            kernel,
            stanza,
        })
    }

    fn ping_from(&self, initiator: Initiator) -> Result<bool> {
        match initiator {
            Initiator::Kernel => self.kernel.pings(&format!("-c 1 -W 2 {MESH}")),
            _ => Ok(self.node.icmp(KERNEL, 1).is_ok()),
        }
    }

    /// Pings from the initiator's side until one is answered; then all have to be, both ways.
    fn contact(&self, initiator: Initiator) -> Result<()> {
        within("the first ping", SOON, || self.ping_from(initiator))?;
        self.node.icmp(KERNEL, 10)?;
        ensure!(self.kernel.pings(&format!("-c 10 -i 0.05 -W 5 {MESH}"))?);
        Ok(())
    }

    /// Packets of every length that padding can meet, up to the largest.
    fn sizes(&self) -> Result<()> {
        let largest = MTU - HEADERS;
        let small = 0..=PADDING;
        for size in small.clone().chain(largest - PADDING..=largest) {
            self.node.ns.run(
                "ping",
                &[
                    "-n",
                    "-c1",
                    "-W5",
                    "-Mdo",
                    "-s",
                    &size.to_string(),
                    &KERNEL.to_string(),
                ],
            )?;
        }
        self.sizes_from_kernel(small)?;
        self.sizes_from_kernel(largest - PADDING..=largest)?;
        // The kernel never pads beyond the interface's MTU: if that is odd, the largest packets come as they are.
        let odd = MTU - 5;
        self.kernel.run(&format!("ip link set wg0 mtu {odd}"))?;
        self.sizes_from_kernel(odd - HEADERS - PADDING..=odd - HEADERS)?;
        self.kernel
            .run(&format!("ip link set wg0 mtu {MTU}"))
            .map(drop)
    }

    fn sizes_from_kernel(&self, sizes: std::ops::RangeInclusive<u16>) -> Result<()> {
        let (first, last) = (sizes.start(), sizes.end());
        let lost = self.kernel.run(&format!(
            "for size in $(seq {first} {last}); do ping -q -c 1 -W 5 -s $size {MESH} >/dev/null || echo $size; done"
        ))?;
        ensure!(lost.trim().is_empty(), "not answered, by size:\n{lost}");
        Ok(())
    }

    /// A copy to the kernel's `path` that arrives whole; gives its hash. `during` is told the bytes sent so far.
    fn upload(&self, path: &str, mut during: impl FnMut(u64) -> Result<()>) -> Result<Vec<u8>> {
        self.kernel
            .run(&format!("nc -l -p 9000 </dev/null >{path} & receiver=$!"))?;
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

    /// A copy of the kernel's `path`, which has this hash; `during` runs while it is under way.
    fn download(&self, path: &str, hash: &[u8], during: impl FnOnce() -> Result<()>) -> Result<()> {
        let listener = self.node.ns.listen(SocketAddr::new(MESH.into(), 9000))?;
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&listener));
            self.kernel
                .run(&format!("nc {MESH} 9000 <{path} >/dev/null & sender=$!"))?;
            during()?;
            let received = receiver.join().expect("no panic")?;
            ensure!(received.bytes == BYTES && received.hash == hash);
            Ok(())
        })
    }

    /// When the kernel last completed a handshake, in Unix seconds; 0 for never.
    fn handshake(&self) -> Result<u64> {
        let text = self.kernel.show("latest-handshakes")?;
        text.parse().context("a time")
    }

    /// Makes the kernel forget the session, and call at once for a new one.
    fn forget_and_call(&self) -> Result<()> {
        let key = self.stanza_value("PublicKey")?;
        self.kernel
            .run(&format!(
                "wg set wg0 peer {key} remove peer {key} endpoint {}:{MESH_PORT} allowed-ips {MESH}/32 persistent-keepalive 25",
                self.address
            ))
            .map(drop)
    }

    fn stanza_value(&self, name: &str) -> Result<&str> {
        let settings = self
            .stanza
            .lines()
            .filter_map(|line| line.split_once(" = "));
        let mut values = settings.filter(|(key, _)| *key == name);
        let (_, value) = values.next().with_context(|| format!("no {name}"))?;
        Ok(value)
    }
}

fn meets(lab: &Lab, initiator: Initiator) -> Result<()> {
    let interop = Interop::new(lab, initiator, None)?;
    interop.contact(initiator)?;
    ensure!(interop.handshake()? > 0);
    let peer = interop.node.peer("kernel")?;
    ensure!(peer["path"]["kind"] == "direct", "{peer}");
    ensure!(peer["id"] == interop.kernel.public_key.as_str(), "{peer}");
    interop.sizes()?;
    let hash = interop.upload("/tmp/file", |_| Ok(()))?;
    interop.download("/tmp/file", &hash, || Ok(()))?;
    // The kernel forgets the session, as after a restart: both ends have to agree on a new one.
    interop.kernel.apply(&interop.stanza)?;
    ensure!(interop.handshake()? == 0);
    interop.contact(initiator)?;
    ensure!(interop.handshake()? > 0);
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

/// What happens to two transfers, when a quarter and half of the one to the kernel has been sent.
fn disturb(interop: &Interop, sent: u64) -> Result<()> {
    // Chunks have 64 KiB, so each of the two is met once.
    let passes = |mark: u64| (mark..mark + 65_536).contains(&sent);
    if passes(BYTES / 4) {
        interop.forget_and_call()?;
        within("a new session", SOON, || Ok(interop.handshake()? > 0))?;
    } else if passes(BYTES / 2) {
        interop
            .kernel
            .run(&format!("wg set wg0 listen-port {OTHER_PORT}"))?;
        let remote = format!("{}:{OTHER_PORT}", interop.kernel.address);
        within("meshd to follow the kernel", SOON, || {
            Ok(interop.node.peer("kernel")?["path"]["remote"] == remote.as_str())
        })?;
    }
    Ok(())
}

#[test]
fn transfers_go_on_when_the_kernel_forgets_its_session_and_changes_its_port() {
    with_kernel(|lab| {
        let interop = Interop::new(lab, Initiator::Kernel, None)?;
        interop.contact(Initiator::Kernel)?;
        let hash = interop.upload("/tmp/file", |_| Ok(()))?;
        // What tells meshd of the new port, should the transfer from the kernel be over by then. One at a time: busybox's ping
        // gives up where a packet cannot be sent, as while the kernel has no peer.
        interop.kernel.run(&format!(
            "while :; do ping -c 1 -W 1 {MESH}; sleep 0.2; done >/dev/null 2>&1 & pings=$!"
        ))?;
        interop.download("/tmp/file", &hash, || {
            let again = interop.upload("/tmp/again", |sent| disturb(&interop, sent))?;
            ensure!(again == hash);
            Ok(())
        })?;
        interop
            .kernel
            .run("kill $pings && cmp /tmp/file /tmp/again")?;
        interop.contact(Initiator::Meshd)
    });
}

fn preshared_key(lab: &Lab) -> Result<String> {
    let output = std::process::Command::new("wg").arg("genpsk").output()?;
    let text = String::from_utf8(output.stdout)?.trim().to_owned();
    lab.keep_secret("preshared key", &BASE64.decode(text.as_bytes())?);
    Ok(text)
}

/// Both call, and neither is let in.
fn refuse_each_other(interop: &Interop) -> Result<()> {
    let before = interop.node.drops("unauthentic")?;
    within("meshd to refuse the kernel's response", SOON, || {
        ensure!(!interop.ping_from(Initiator::Meshd)?);
        Ok(interop.node.drops("unauthentic")? > before)
    })?;
    // That the kernel counts what came shows that the keys match, but for the preshared one.
    let transfer = interop.kernel.show("transfer")?;
    ensure!(!transfer.starts_with("0\t"), "{transfer}");
    ensure!(!interop.ping_from(Initiator::Kernel)?);
    ensure!(interop.handshake()? == 0);
    Ok(())
}

#[test]
fn a_preshared_key_has_to_be_the_kernels_too() {
    with_kernel(|lab| {
        let (psk, other) = (preshared_key(lab)?, preshared_key(lab)?);
        let interop = Interop::new(lab, Initiator::Either, Some(&psk))?;
        let place = interop
            .stanza
            .lines()
            .find(|line| line.starts_with("# PresharedKey"))
            .context("no place for the preshared key")?;
        let with = |key: &str| {
            let line = format!("PresharedKey = {key}");
            interop.kernel.apply(&interop.stanza.replace(place, &line))
        };
        refuse_each_other(&interop)?;
        with(&other)?;
        refuse_each_other(&interop)?;
        with(&psk)?;
        interop.contact(Initiator::Meshd)?;
        with(&psk)?;
        interop.contact(Initiator::Kernel)
    });
}

/// Cookie replies that crossed the internet.
struct Cookies(Namespace);

impl Cookies {
    /// Counts those from meshd to the kernel, and from the kernel to meshd and to `stranger`.
    fn watch(interop: &Interop, stranger: Ipv4Addr) -> Result<Self> {
        let (mesh, kernel) = (interop.address, interop.kernel.address);
        // By length and first byte: a cookie reply has 64 bytes, of which the first is 3.
        let rule = |from, to, name| {
            format!("ip saddr {from} ip daddr {to} udp length 72 @th,64,8 3 counter name {name}\n")
        };
        let ns = interop.internet.ns().clone();
        ns.nft(&format!(
            "table ip cookies {{
               counter to_kernel {{ }}
               counter to_mesh {{ }}
               counter to_stranger {{ }}
               chain forward {{ type filter hook forward priority 0;
                 {}{}{}
               }}
             }}",
            rule(mesh, kernel, "to_kernel"),
            rule(kernel, mesh, "to_mesh"),
            rule(kernel, stranger, "to_stranger"),
        ))?;
        Ok(Self(ns))
    }

    fn count(&self, name: &str) -> Result<u64> {
        let text = self
            .0
            .run("nft", &["list", "counter", "ip", "cookies", name])?;
        let mut words = text
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        words
            .nth(1)
            .context("no counter")?
            .parse()
            .context("a number")
    }
}

/// An initiation that passes for one to `public_key` until it is opened, which is all that a flood needs.
fn initiation(public_key: &str) -> Result<Vec<u8>> {
    let public_key = BASE64.decode(public_key.as_bytes())?;
    let mut message = vec![9; 148];
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(public_key)
        .finalize();
    let mut mac = Blake2sMac::<U16>::new_from_slice(&key).context("the key's length")?;
    Mac::update(&mut mac, &message[..116]);
    message[116..132].copy_from_slice(&mac.finalize().into_bytes());
    message[132..].fill(0);
    Ok(message)
}

/// Runs `body` while bursts of `count` initiations go from `ns` to `target`.
fn flooded(
    ns: &Namespace,
    target: SocketAddr,
    public_key: &str,
    (count, pause): (u32, Duration),
    body: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let message = initiation(public_key)?;
    let socket = ns.udp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..count {
                    // A full buffer is no reason to stop.
                    let _ = socket.send_to(&message, target);
                }
                std::thread::sleep(pause);
            }
        });
        let outcome = body();
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

#[test]
fn meshd_under_load_lets_the_kernel_in_by_a_cookie() {
    with_kernel(|lab| {
        let mut interop = Interop::new(lab, Initiator::Kernel, None)?;
        let (ns, address) = interop.internet.host("stranger")?;
        let cookies = Cookies::watch(&interop, address)?;
        let target = SocketAddr::new(interop.address.into(), MESH_PORT);
        let key = interop.stanza_value("PublicKey")?.to_owned();
        // 10,000 a second; meshd takes 200 without a cookie.
        flooded(&ns, target, &key, (20, Duration::from_millis(2)), || {
            until("a cookie for the kernel", SOON, || {
                let _ = interop.ping_from(Initiator::Kernel)?;
                if cookies.count("to_kernel")? > 0 {
                    return Ok(Some(()));
                }
                // It came among the first of a second: once more.
                interop.kernel.apply(&interop.stanza)?;
                Ok(None)
            })?;
            interop.contact(Initiator::Kernel)?;
            ensure!(interop.handshake()? > 0);
            ensure!(cookies.count("to_kernel")? == 1, "the first was of no use");
            Ok(())
        })
    });
}

#[test]
fn the_kernel_under_load_lets_meshd_in_by_a_cookie() {
    with_kernel(|lab| {
        let mut interop = Interop::new(lab, Initiator::Meshd, None)?;
        let (ns, address) = interop.internet.host("stranger")?;
        let cookies = Cookies::watch(&interop, address)?;
        let target = SocketAddr::new(interop.kernel.address.into(), PORT);
        // More than the 512 that the kernel lets wait before it asks for cookies; it then does so for a second.
        let key = interop.kernel.public_key.clone();
        flooded(&ns, target, &key, (900, Duration::from_millis(400)), || {
            within("the kernel to be under load", SOON, || {
                Ok(cookies.count("to_stranger")? > 0)
            })?;
            within("meshd to be let in", SOON, || {
                interop.ping_from(Initiator::Meshd)
            })?;
            ensure!(cookies.count("to_mesh")? > 0, "without a cookie");
            ensure!(interop.handshake()? > 0);
            Ok(())
        })
    });
}
