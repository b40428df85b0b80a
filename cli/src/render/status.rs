//! What `meshctl status` prints.

use std::net::IpAddr;

use comfy_table::{Table, presets};
use mesh_bus::{Network, NetworkState, Path, PathKind, Peer, PeerState, Status};

use super::style::{Painter, Style};
use super::units::{age, bytes, latency};

/// The networks, each with its peers, and then what is wrong.
pub(crate) fn status(status: &Status, colours: bool) -> String {
    let painter = Painter { colours };
    if status.networks.is_empty() {
        return first_steps(&status.config);
    }
    let mut text = String::new();
    for network in &status.networks {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&network_text(network, painter));
    }
    let ill: Vec<String> = status
        .networks
        .iter()
        .flat_map(|network| {
            network
                .health
                .iter()
                .map(|line| format!("{}: {line}", network.name))
        })
        .collect();
    if !ill.is_empty() {
        text.push_str(&format!("\n{}\n", painter.paint(Style::Bold, "# Health")));
        for line in ill {
            text.push_str(&painter.paint(Style::Yellow, &line));
            text.push('\n');
        }
    }
    text
}

fn network_text(network: &Network, painter: Painter) -> String {
    let Network {
        name,
        interface,
        this,
        state,
        ..
    } = network;
    let (style, remedy) = match state {
        NetworkState::Up => (Style::Green, String::new()),
        NetworkState::Starting => (Style::Yellow, String::new()),
        NetworkState::Down => (Style::Red, format!("; bring it up with: meshctl up {name}")),
    };
    let mut text = format!(
        "{} ({interface}) is {}{remedy}\n",
        painter.paint(Style::Bold, name),
        painter.paint(style, state.as_str())
    );
    let mut line = |label: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("  {label:<10} {value}\n"));
        }
    };
    line("name", this.name.clone());
    line("node ID", this.id.clone());
    line("addresses", addresses(&this.addresses));
    let endpoints: Vec<String> = this.endpoints.iter().map(ToString::to_string).collect();
    line("endpoints", endpoints.join(", "));
    line("relay", this.home_relay.clone().unwrap_or_default());
    text.push('\n');
    if network.peers.is_empty() {
        text.push_str("no peers to show\n");
    } else {
        text.push_str(&peers(&network.peers, painter));
        for line in network.peers.iter().filter_map(relayed) {
            text.push_str(&line);
        }
    }
    text
}

/// Since when and why a peer in use is reached by a relay.
fn relayed(peer: &Peer) -> Option<String> {
    let path = peer.path.as_ref()?;
    let told =
        path.kind == PathKind::Relay && peer.state == PeerState::Active && !path.reason.is_empty();
    told.then(|| {
        let Peer { name, .. } = peer;
        format!(
            "{name} is relayed for {}: {}\n",
            age(path.since_s),
            path.reason
        )
    })
}

fn peers(peers: &[Peer], painter: Painter) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let titles = [
        "PEER",
        "ADDRESSES",
        "STATE",
        "PATH",
        "SENT",
        "RECEIVED",
        "HANDSHAKE",
    ];
    table.set_header(titles.map(|title| painter.paint(Style::Bold, title)));
    for peer in peers {
        table.add_row(row(peer, painter));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(peer: &Peer, painter: Painter) -> [String; 7] {
    let state = match peer.state {
        PeerState::Active => Style::Green,
        PeerState::Idle => Style::Dim,
        PeerState::Offline => Style::Red,
    };
    let way = match &peer.path {
        Some(Path {
            kind: PathKind::Direct,
            ..
        }) => Style::Green,
        Some(Path {
            kind: PathKind::Relay,
            ..
        }) => Style::Yellow,
        None => Style::Dim,
    };
    let plain = |text: String| painter.paint(Style::Plain, &text);
    let mut reach = addresses(&peer.addresses);
    for route in &peer.routes {
        reach.push_str(", ");
        reach.push_str(route);
    }
    let handshake = peer
        .last_handshake_s
        .map(|seconds| format!("{} ago", age(seconds)));
    [
        painter.paint(Style::Bold, &peer.name),
        plain(reach),
        painter.paint(state, peer.state.as_str()),
        painter.paint(way, &peer.path.as_ref().map_or("-".to_owned(), path)),
        plain(bytes(peer.tx_bytes)),
        plain(bytes(peer.rx_bytes)),
        plain(handshake.unwrap_or_else(|| "-".to_owned())),
    ]
}

/// `direct 203.0.113.7:41820 12.3 ms`
fn path(path: &Path) -> String {
    let rtt = path
        .rtt_ms
        .map(|rtt| format!(" {}", latency(rtt)))
        .unwrap_or_default();
    format!("{} {}{rtt}", path.kind, path.remote)
}

/// Those that somebody chose before the derived one, which is long and comes first from meshd.
fn addresses(addresses: &[IpAddr]) -> String {
    let (derived, chosen) = match addresses {
        [derived, chosen @ ..] if !chosen.is_empty() => (Some(derived), chosen),
        all => (None, all),
    };
    let all: Vec<String> = chosen
        .iter()
        .chain(derived)
        .map(ToString::to_string)
        .collect();
    all.join(", ")
}

/// What to do on a host that has no network yet.
fn first_steps(config: &str) -> String {
    format!(
        "\
meshd is running, but no network is configured.

1. Give this host's node ID to the others, and get theirs:

   sudo meshd --print-id home

2. Write {config}, on each host with the others as peers:

   [network.home]
   relays = [\"mesh://<relay id>@relay.example.org:443\"]
   address = [\"10.77.0.1/32\"]

   [[network.home.peer]]
   id = \"<node ID of bob>\"
   name = \"bob\"
   address = [\"10.77.0.2\"]

3. Apply it, and look again:

   sudo meshctl reload
   meshctl status
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Status {
        serde_json::from_value(serde_json::json!({
            "version": "0.1.0",
            "config": "/etc/meshd/config.toml",
            "networks": [{
                "name": "home", "id": "nnn", "state": "up", "interface": "mesh-home",
                "self": {
                    "id": "aaa", "name": "alice", "addresses": ["fd00::1", "10.77.0.1"],
                    "home_relay": "mesh://rrr@203.0.113.9:443", "endpoints": ["203.0.113.7:41820"]
                },
                "peers": [{
                    "id": "bbb", "name": "bob", "addresses": ["fd00::2", "10.77.0.2"],
                    "routes": ["192.168.50.0/24"], "state": "active",
                    "path": {
                        "kind": "direct", "local": null, "remote": "198.51.100.4:41820",
                        "relay": null, "rtt_ms": 12.34, "mtu": 1420, "since_s": 63.0
                    },
                    "tx_bytes": 1_300_000, "rx_bytes": 200, "last_handshake_s": 12.0, "last_rx_s": 0.2
                }, {
                    "id": "ccc", "name": "carol", "addresses": ["fd00::3"],
                    "routes": [], "state": "idle",
                    "path": {
                        "kind": "relay", "local": null, "remote": "203.0.113.9:443",
                        "relay": "mesh://rrr@203.0.113.9:443", "rtt_ms": null, "mtu": 1280, "since_s": 3.0
                    },
                    "tx_bytes": 0, "rx_bytes": 0, "last_handshake_s": 150.0, "last_rx_s": 20.0
                }, {
                    "id": "ddd", "name": "dave", "addresses": ["fd00::4"],
                    "routes": [], "state": "offline", "path": null,
                    "tx_bytes": 0, "rx_bytes": 0, "last_handshake_s": null, "last_rx_s": null
                }],
                "health": ["no relay answers; check that UDP may leave this host"]
            }, {
                "name": "work", "id": "www", "state": "down", "interface": "mesh-work",
                "self": {"id": "eee", "name": "alice", "addresses": ["fd01::1"], "home_relay": null, "endpoints": []},
                "peers": [], "health": []
            }]
        }))
        .unwrap()
    }

    #[test]
    fn a_status_is_readable() {
        let expected = "\
home (mesh-home) is up
  name       alice
  node ID    aaa
  addresses  10.77.0.1, fd00::1
  endpoints  203.0.113.7:41820
  relay      mesh://rrr@203.0.113.9:443

PEER   ADDRESSES                            STATE    PATH                               SENT     RECEIVED  HANDSHAKE
bob    10.77.0.2, fd00::2, 192.168.50.0/24  active   direct 198.51.100.4:41820 12.3 ms  1.2 MiB  200 B     12 s ago
carol  fd00::3                              idle     relay 203.0.113.9:443              0 B      0 B       2 min ago
dave   fd00::4                              offline  -                                  0 B      0 B       -

work (mesh-work) is down; bring it up with: meshctl up work
  name       alice
  node ID    eee
  addresses  fd01::1

no peers to show

# Health
home: no relay answers; check that UDP may leave this host
";
        assert_eq!(status(&document(), false), expected);
    }

    #[test]
    fn a_relayed_peer_in_use_has_a_line_that_says_why() {
        let mut document = document();
        let carol = &mut document.networks[0].peers[1];
        carol.state = PeerState::Active;
        if let Some(path) = &mut carol.path {
            path.reason = "it did not answer after the network changed".to_owned();
        }
        let text = status(&document, false);
        let line = "carol is relayed for 3 s: it did not answer after the network changed\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let painted = status(&document(), true);
        assert!(painted.contains("\x1b[32mactive\x1b[0m"));
        let mut plain = String::new();
        let mut rest = painted.as_str();
        while let Some(start) = rest.find('\x1b') {
            plain.push_str(&rest[..start]);
            rest = &rest[start..];
            rest = &rest[rest.find('m').unwrap() + 1..];
        }
        plain.push_str(rest);
        let trimmed: Vec<&str> = plain.lines().map(str::trim_end).collect();
        let expected = status(&document(), false);
        assert_eq!(trimmed, expected.lines().collect::<Vec<_>>());
    }

    #[test]
    fn without_networks_it_says_what_to_do() {
        let mut empty = document();
        empty.networks.clear();
        let text = status(&empty, true);
        for step in [
            "/etc/meshd/config.toml",
            "meshd --print-id home",
            "[network.home]",
            "meshctl reload",
        ] {
            assert!(text.contains(step), "{step}");
        }
    }
}
