//! Peers on one network find each other without any relay and without configured addresses.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{
    Internet, Lab, Namespace, Nat, Node, Router, Settings, WanInput, scenario, within,
};

use super::SOON;

/// Multicast DNS (RFC 6762).
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const MDNS: u16 = 5353;
/// The question for all meshds of the link.
const QUESTION: &[u8] = b"\0\0\0\0\0\x01\0\0\0\0\0\0\x06_meshd\x04_udp\x05local\0\0\x0c\0\x01";

/// A home with two hosts in it that know each other and nobody else, not started.
struct Home {
    router: Router,
    a: Node,
    b: Node,
    b_address: Ipv4Addr,
    _internet: Internet,
}

impl Home {
    fn new(lab: &Lab, ipv6: bool, lan_discovery: bool) -> Result<Self> {
        let mut internet = Internet::new(ipv6)?;
        let mut router = internet.router("home", Nat::Masquerade, WanInput::Drop)?;
        let (a, _) = router.host("a")?;
        let (b, b_address) = router.host("b")?;
        let (a, b) = Node::pair(lab, &a, &b, &[])?;
        if !lan_discovery {
            for (own, peer, number, peer_number) in [(&a, &b, 1, 2), (&b, &a, 2, 1)] {
                own.configure(&settings(peer, (number, peer_number), Some(false)))?;
            }
        }
        for node in [&a, &b] {
            count(&node.ns)?;
        }
        Ok(Self {
            router,
            a,
            b,
            b_address,
            _internet: internet,
        })
    }

    fn start(&mut self) -> Result<()> {
        self.a.start()?;
        self.b.start().map(drop)
    }
}

fn settings(peer: &Node, numbers: (u8, u8), lan_discovery: Option<bool>) -> Settings {
    Settings {
        address: Some(format!("10.77.0.{}", numbers.0)),
        peers: vec![peer.as_peer(&format!("10.77.0.{}", numbers.1))],
        lan_discovery,
        ..Settings::default()
    }
}

/// Counts what a host sends to port 5353.
fn count(ns: &Namespace) -> Result<()> {
    ns.nft(
        "table inet count {
           counter mdns { }
           chain output { type filter hook output priority 0;
             udp dport 5353 counter name mdns
           }
         }",
    )
}

/// How many packets [`count`] has counted.
fn counted(ns: &Namespace) -> Result<u64> {
    let text = ns.run("nft", &["list", "counter", "inet", "count", "mdns"])?;
    let mut words = text.split_whitespace();
    words.find(|word| *word == "packets");
    words.next().context("no counter")?.parse().context(text)
}

fn has_socket(ns: &Namespace) -> Result<bool> {
    let sockets = ns.run("ss", &["-Huln", "sport", "=", "5353"])?;
    Ok(!sockets.trim().is_empty())
}

/// A socket of another host of the network, in the group.
fn listener(router: &mut Router) -> Result<(Namespace, UdpSocket)> {
    let (ns, address) = router.host("listener")?;
    let socket = ns.udp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, MDNS)))?;
    ns.inside(|| socket.join_multicast_v4(&GROUP, &address))?;
    socket.set_read_timeout(Some(SOON))?;
    Ok((ns, socket))
}

#[test]
fn hosts_on_one_lan_reach_each_other_without_relay_and_endpoints() {
    scenario(|lab| {
        let mut home = Home::new(lab, false, true)?;
        home.start()?;
        let (a, b) = (&home.a, &home.b);
        a.icmp(b.overlay()?, 1)
            .or_else(|_| a.icmp(b.overlay()?, 1))?;
        a.wait_path("b", "direct", SOON)?;
        b.wait_path("a", "direct", SOON)?;
        let via = a.ping("b")?.context("a ping is answered")?;
        ensure!(via.starts_with(&format!("{}:", home.b_address)), "{via}");
        ensure!(counted(&a.ns)? > 0, "the counter counts nothing");
        a.icmp(Ipv4Addr::new(10, 77, 0, 2), 10)
    });
}

#[test]
fn hosts_find_each_other_over_ipv6_alone() {
    scenario(|lab| {
        let mut home = Home::new(lab, true, true)?;
        for node in [&home.a, &home.b] {
            node.ns.nft(
                "table ip quiet {
                   chain output { type filter hook output priority 0; udp dport 5353 drop }
                 }",
            )?;
        }
        home.start()?;
        let overlay = home.b.overlay()?;
        within("a to reach b", SOON, || Ok(home.a.icmp(overlay, 1).is_ok()))?;
        home.a.wait_path("b", "direct", SOON)?;
        let via = home.a.ping("b")?.context("a ping is answered")?;
        // IPv4 addresses are offered in the tunnel, and may be no worse.
        ensure!(
            via.starts_with("[2a00:") || via.starts_with("192.168."),
            "{via}"
        );
        home.b.wait_path("a", "direct", SOON).map(drop)
    });
}

#[test]
fn without_lan_discovery_nothing_is_sent_and_a_reload_turns_it_on() {
    scenario(|lab| {
        let mut home = Home::new(lab, false, false)?;
        home.start()?;
        let (a, b) = (&home.a, &home.b);
        ensure!(a.ping("b")?.is_none(), "b answers");
        ensure!(b.ping("a")?.is_none(), "a answers");
        for node in [a, b] {
            ensure!(!has_socket(&node.ns)?, "{} has a socket", node.name);
            ensure!(counted(&node.ns)? == 0, "{} has sent something", node.name);
        }
        for (own, peer, number, peer_number) in [(a, b, 1, 2), (b, a, 2, 1)] {
            own.configure(&settings(peer, (number, peer_number), None))?;
            own.ctl_ok(&["reload"])?;
        }
        within("a to reach b", SOON, || Ok(a.ping("b")?.is_some()))?;
        ensure!(has_socket(&a.ns)?, "no socket");
        for (own, peer, number, peer_number) in [(a, b, 1, 2), (b, a, 2, 1)] {
            own.configure(&settings(peer, (number, peer_number), Some(false)))?;
            own.ctl_ok(&["reload"])?;
        }
        for node in [a, b] {
            within("the sockets to be closed", SOON, || {
                Ok(!has_socket(&node.ns)?)
            })?;
        }
        ensure!(a.ping("b")?.is_some(), "the path is lost");
        Ok(())
    });
}

#[test]
fn an_announcement_names_nobody() {
    scenario(|lab| {
        let mut home = Home::new(lab, false, true)?;
        let (_ns, socket) = listener(&mut home.router)?;
        home.a.start()?;
        let mut buffer = [0; 1_500];
        let (length, from) = socket.recv_from(&mut buffer)?;
        let packet = &buffer[..length];
        let shown: String = packet.escape_ascii().to_string();
        let records = records_of(packet)?;
        // For `--nocapture`: this is what anybody on the network sees.
        eprintln!("{length} bytes from {from}");
        for record in &records {
            eprintln!("{record}");
        }
        let kinds: Vec<u16> = records.iter().map(|record| record.kind).collect();
        ensure!(kinds == [12, 33, 16], "PTR, SRV, TXT: {kinds:?}");
        ensure!(records.iter().all(|record| record.lifetime == 120));
        ensure!(from.port() == MDNS, "{from}");
        for name in [&home.a.id, &home.a.name.repeat(2), "lab", "mesh-", "10.77"] {
            ensure!(!shown.contains(name), "{name} is in {shown}");
        }
        // The second announcement is the same, and then there is silence.
        let (again, _) = socket.recv_from(&mut buffer[length..])?;
        ensure!(buffer[..length] == buffer[length..length + again]);
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        ensure!(socket.recv_from(&mut buffer).is_err(), "more is said");
        home.a.stop()?;
        socket.set_read_timeout(Some(SOON))?;
        let (length, _) = socket.recv_from(&mut buffer)?;
        let goodbye = records_of(&buffer[..length])?;
        ensure!(
            goodbye.iter().all(|record| record.lifetime == 0),
            "it is taken back"
        );
        Ok(())
    });
}

#[test]
fn other_multicast_dns_does_not_wake_the_daemon() {
    scenario(|lab| {
        let mut home = Home::new(lab, false, true)?;
        let (ns, socket) = listener(&mut home.router)?;
        home.a.start()?;
        // Both announcements.
        let mut buffer = [0; 1_500];
        for _ in 0..2 {
            socket.recv_from(&mut buffer)?;
        }
        let others = b"\0\0\x84\0\0\0\0\x01\0\0\0\0\x04_ipp\x04_tcp\x05local\0\0\x0c\0\x01\0\0\0\x78\0\x02\xc0\x0c";
        let pid = home.a.program().pid();
        let before = switches(pid)?;
        for _ in 0..200 {
            ns.inside(|| socket.send_to(others, (GROUP, MDNS)))?;
            std::thread::sleep(Duration::from_millis(5));
        }
        let after = switches(pid)?;
        ensure!(after - before < 20, "{} wake-ups", after - before);
        // The same with our own name does: the counter counts.
        for _ in 0..50 {
            ns.inside(|| socket.send_to(QUESTION, (GROUP, MDNS)))?;
            std::thread::sleep(Duration::from_millis(5));
        }
        ensure!(switches(pid)? - after > 20, "nothing was heard");
        Ok(())
    });
}

/// How often the threads of a process have gone to sleep.
fn switches(pid: u32) -> Result<u64> {
    let mut all = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        all += line.context("no count")?.trim().parse::<u64>()?;
    }
    Ok(all)
}

/// A record of an answer, read by other code than what is tested.
struct Record {
    name: String,
    kind: u16,
    class: u16,
    lifetime: u32,
    data: Vec<u8>,
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            kind,
            class,
            lifetime,
            data,
        } = self;
        let data = data.escape_ascii();
        write!(
            f,
            "  {name} type {kind} class {class:#06x} lifetime {lifetime} data \"{data}\""
        )
    }
}

fn records_of(packet: &[u8]) -> Result<Vec<Record>> {
    let short = "the packet is cut short";
    let word = |at: usize| -> Result<u16> {
        let bytes = packet.get(at..at + 2).context(short)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    ensure!(word(2)? == 0x8400, "no answer");
    let (mut at, mut records) = (12, Vec::new());
    for _ in 0..word(6)? {
        let name;
        (name, at) = name_at(packet, at)?;
        let length = usize::from(word(at + 8)?);
        records.push(Record {
            name,
            kind: word(at)?,
            class: word(at + 2)?,
            lifetime: u32::from(word(at + 4)?) << 16 | u32::from(word(at + 6)?),
            data: packet
                .get(at + 10..at + 10 + length)
                .context(short)?
                .to_vec(),
        });
        at += 10 + length;
    }
    ensure!(at == packet.len(), "something follows");
    Ok(records)
}

/// A name, and where it ends.
fn name_at(packet: &[u8], mut at: usize) -> Result<(String, usize)> {
    let (mut name, mut end) = (String::new(), None);
    loop {
        let length = usize::from(*packet.get(at).context("a name is cut short")?);
        if length >= 0xc0 {
            end = end.or(Some(at + 2));
            at = (length & 0x3f) << 8 | usize::from(packet[at + 1]);
        } else if length == 0 {
            return Ok((name, end.unwrap_or(at + 1)));
        } else {
            name += &packet[at + 1..=at + length].escape_ascii().to_string();
            name.push('.');
            at += 1 + length;
        }
    }
}
