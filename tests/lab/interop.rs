//! A stock WireGuard device on the other side.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{
    Internet, Lab, Namespace, Node, Pattern, PeerConfig, Settings, WireGuardGo, receive, scenario,
    send, within,
};

use super::SOON;

const STOCK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
const MESH: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PORT: u16 = 51_820;

/// Who has to send the first handshake, because only it knows the other's address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Initiator {
    Meshd,
    WireGuard,
}

/// A meshd and a wireguard-go, each on a public host.
struct Interop {
    _internet: Internet,
    node: Node,
    stock: WireGuardGo,
    stock_ns: Namespace,
    stanza: String,
}

impl Interop {
    fn new(lab: &Lab, initiator: Initiator) -> Result<Self> {
        let mut internet = Internet::new(false)?;
        let ((ns, address), (stock_ns, stock_address)) =
            (internet.host("a")?, internet.host("stock")?);
        let stock = WireGuardGo::start(lab, &stock_ns, PORT)?;
        let mut node = Node::new(lab, &ns, "a")?;
        node.configure(&Settings {
            listen_port: 41_820,
            address: Some(MESH.to_string()),
            peers: vec![PeerConfig {
                id: stock.public_key.clone(),
                name: "stock".to_owned(),
                address: Some(STOCK.to_string()),
                endpoint: (initiator == Initiator::Meshd)
                    .then(|| SocketAddr::new(stock_address.into(), PORT)),
                wireguard: true,
            }],
            ..Settings::default()
        })?;
        node.start()?;
        let mut stanza = node.ctl_ok(&["status", "--wireguard"])?;
        let endpoint = format!("Endpoint = {address}:41820");
        ensure!(stanza.contains(&endpoint), "{stanza}");
        if initiator == Initiator::Meshd {
            // Without it the device cannot call, only answer.
            stanza = stanza.replace(&endpoint, "");
        }
        let mut interop = Self {
            _internet: internet,
            node,
            stock,
            stock_ns,
            stanza,
        };
        interop.stock.apply(&interop.stanza)?;
        Ok(interop)
    }

    fn ping_from_stock(&self) -> bool {
        self.stock_ns
            .run("ping", &["-n", "-c1", "-W2", &MESH.to_string()])
            .is_ok()
    }

    fn first_contact(&self, initiator: Initiator) -> Result<()> {
        within("the first ping", SOON, || {
            Ok(match initiator {
                Initiator::Meshd => self.node.icmp(STOCK, 1).is_ok(),
                Initiator::WireGuard => self.ping_from_stock(),
            })
        })?;
        Ok(())
    }

    /// Pings both ways and a hash-checked copy both ways.
    fn exchange(&self) -> Result<()> {
        const BYTES: u64 = 10_000_000;
        self.node.icmp(STOCK, 10)?;
        ensure!(self.ping_from_stock());
        for (from, to, address) in [
            (&self.node.ns, &self.stock_ns, STOCK),
            (&self.stock_ns, &self.node.ns, MESH),
        ] {
            let listener = to.listen(SocketAddr::new(address.into(), 9000))?;
            let remote = listener.local_addr()?;
            std::thread::scope(|scope| -> Result<()> {
                let receiver = scope.spawn(|| receive(&listener));
                let mut stream = from.connect(remote)?;
                let pattern = Pattern::new(7, self.node.lab().marker());
                let sent = send(&mut stream, pattern, BYTES, |_| Duration::ZERO)?;
                let received = receiver.join().expect("no panic")?;
                ensure!(received.hash == sent && received.bytes == BYTES);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// When wireguard-go last completed a handshake, in Unix seconds.
    fn handshake(&self) -> Result<u64> {
        self.stock
            .show("latest-handshakes")?
            .parse()
            .context("a time")
    }
}

fn meets(lab: &Lab, initiator: Initiator) -> Result<()> {
    let mut interop = Interop::new(lab, initiator)?;
    interop.first_contact(initiator)?;
    interop.exchange()?;
    let peer = interop.node.peer("stock")?;
    ensure!(peer["path"]["kind"] == "direct", "{peer}");
    ensure!(peer["id"] == interop.stock.public_key.as_str(), "{peer}");
    // The device forgets the session, as after a restart of its own: both ends have to agree on a new one.
    interop.stock.configure("")?;
    interop.stock.apply(&interop.stanza.clone())?;
    interop.first_contact(initiator)?;
    interop.exchange()
}

#[test]
fn wireguard_go_answers_a_meshd_that_calls_it() {
    scenario(|lab| meets(lab, Initiator::Meshd));
}

#[test]
fn wireguard_go_calls_a_meshd_that_answers() {
    scenario(|lab| meets(lab, Initiator::WireGuard));
}

/// Keeps a ping going until the session has been renewed by its age (WireGuard: 120 s), and loses none.
fn renews(lab: &Lab, initiator: Initiator) -> Result<()> {
    let interop = Interop::new(lab, initiator)?;
    interop.first_contact(initiator)?;
    let first = interop.handshake()?;
    let from = match initiator {
        Initiator::Meshd => (&interop.node.ns, STOCK),
        Initiator::WireGuard => (&interop.stock_ns, MESH),
    };
    // 28 s after the renewal is due, whatever the ends add as jitter.
    let text = from.0.run(
        "ping",
        &[
            "-n",
            "-i",
            "0.5",
            "-W",
            "2",
            "-c",
            "280",
            &from.1.to_string(),
        ],
    )?;
    ensure!(text.contains(" 0% packet loss"), "{text}");
    let second = interop.handshake()?;
    ensure!(second >= first + 100, "renewed after {} s", second - first);
    interop.exchange()
}

#[test]
fn a_session_that_meshd_began_is_renewed_without_loss() {
    scenario(|lab| renews(lab, Initiator::Meshd));
}

#[test]
fn a_session_that_wireguard_go_began_is_renewed_without_loss() {
    scenario(|lab| renews(lab, Initiator::WireGuard));
}
