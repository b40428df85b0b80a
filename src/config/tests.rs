use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::identity::Identity;
use crate::limits;

const A: &str = "rkeohxlubhyzl7ks3mwtzos5olfgocn7dwkbeg7toseadnapn5oa";
const B: &str = "qe4xodvipulv6vvdkrtmgtd6ztfy3curwtxdpis56yhvxd6jwoka";
const C: &str = "5vesrrri2hbmn2xjam4jawmvmeuvsjz2lrr7snrwyfdbjlehg7iq";
/// The X25519 form of A.
const A_WIREGUARD: &str = "GxtY3VDqFLYNoXt5DNAnVNlwybq4ZOuzwPMBb+UdP1c=";
const DEVICE: &str = "kOaL6HjHyuJgI08k+XRXlNFgXVoTwO7JcWleRFV7WAA=";
const RELAY: &str = "mesh://zkj2yfyfdbyhdvt3qpd76dx6qeeor3cfgblv25zgq6jthw62xz6a@r.example:443";
const RELAY_2: &str =
    "mesh://nz5bzxjjwc3y7uj26tcvtd7p6txsvfywny6kn4xe7p6m3acqlpyq@[2001:db8::1]:443";
const EXAMPLE: &str = include_str!("../../config.example.toml");

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, Path::new("mesh.toml"))
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Asserts that `text` has exactly these problems; `mesh.toml:` is left out of each.
#[track_caller]
fn bad(text: &str, expected: &[&str]) {
    let errors = parse(text).expect_err("it has mistakes").to_string();
    let shown: Vec<_> = errors
        .lines()
        .map(|line| line.strip_prefix("mesh.toml:").unwrap_or(line))
        .collect();
    assert_eq!(shown, expected, "{text}");
}

/// A network `home` whose one peer has this line beside its ID; the line is the fourth.
#[track_caller]
fn bad_peer(line: &str, expected: &str) {
    bad(
        &format!("[network.home]\n[[network.home.peer]]\nid = \"{A}\"\n{line}"),
        &[&format!("4: network.home.peer.{expected}")],
    );
}

/// A network `home` with this line; the line is the second.
#[track_caller]
fn bad_network(line: &str, expected: &str) {
    bad(
        &format!("[network.home]\n{line}"),
        &[&format!("2: network.home.{expected}")],
    );
}

#[test]
fn an_empty_file_is_the_default() {
    for text in ["", "\n\n", "# nothing\n", "network = {}"] {
        assert_eq!(good(text), Config::default());
    }
    assert_eq!(Config::default().listen_port, 41_820);
}

#[test]
fn a_network_needs_nothing_but_its_name() {
    let config = good("[network.a-very-long-network-name]");
    let network = &config.networks[0];
    assert_eq!(network.name, "a-very-long-network-name");
    assert_eq!(network.interface, "mesh-a-very-lon");
    assert_eq!(network.id, NetworkId::from_name("a-very-long-network-name"));
    assert!(network.autostart);
    assert!(network.relays.is_empty() && network.peers.is_empty());
}

#[test]
fn every_key_is_read() {
    let config = good(&format!(
        r#"
        listen_port = 0
        [network.work]
        [network.home]
        interface = "wg7"
        id = "{A}"
        autostart = false
        relays = ["{RELAY}", "{RELAY_2}"]
        address = ["10.77.0.1/24", "fd12::1/128"]
        identity_file = "/etc/home.key"
        [[network.home.peer]]
        id = "{B}"
        name = "bob"
        address = ["10.77.0.2", "10.77.0.3/32", "fd12::2/128"]
        routes = ["192.168.50.0/24"]
        psk_file = "/etc/bob.psk"
        endpoints = ["203.0.113.7:41820", "[2001:db8::7]:1", "[::ffff:192.0.2.1]:5"]
        [[network.home.peer]]
        id = "{DEVICE}"
        wireguard = true
        endpoints = ["192.0.2.9:51820"]
        routes = ["192.168.51.0/24"]
        "#
    ));
    assert_eq!(config.listen_port, 0);
    let names: Vec<_> = config.networks.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["work", "home"], "in the order of the file");
    let home = &config.networks[1];
    assert_eq!(home.interface, "wg7");
    assert_eq!(home.id, A.parse().unwrap());
    assert!(!home.autostart);
    assert_eq!(
        home.relays,
        [RELAY.parse().unwrap(), RELAY_2.parse().unwrap()]
    );
    assert_eq!(
        home.addresses,
        [
            "10.77.0.1/24".parse::<IpNet>().unwrap(),
            "fd12::1/128".parse().unwrap()
        ]
    );
    assert_eq!(
        home.identity_file.as_deref(),
        Some(Path::new("/etc/home.key"))
    );
    let bob = &home.peers[0];
    assert_eq!(bob.key, PeerKey::Mesh(B.parse().unwrap()));
    assert_eq!(bob.name, "bob");
    assert_eq!(
        bob.addresses,
        [
            "10.77.0.2".parse::<IpAddr>().unwrap(),
            "10.77.0.3".parse().unwrap(),
            "fd12::2".parse().unwrap()
        ]
    );
    assert_eq!(bob.routes, ["192.168.50.0/24".parse::<IpNet>().unwrap()]);
    assert_eq!(bob.psk_file.as_deref(), Some(Path::new("/etc/bob.psk")));
    assert_eq!(
        bob.endpoints,
        [
            "203.0.113.7:41820".parse::<SocketAddr>().unwrap(),
            "[2001:db8::7]:1".parse().unwrap(),
            "192.0.2.1:5".parse().unwrap()
        ]
    );
    let device = &home.peers[1];
    assert!(matches!(device.key, PeerKey::WireGuard(_)));
    assert_eq!(device.name, &DEVICE[..10]);
    assert_eq!(
        bob.wireguard_key(),
        B.parse::<NodeId>().unwrap().to_wireguard()
    );
}

#[test]
fn peers_may_be_inline_tables() {
    let config = good(&format!(
        "network.home.peer = [{{ id = \"{A}\" }},\n{{ id = \"{B}\" }}]"
    ));
    assert_eq!(config.networks[0].peers.len(), 2);
    assert_eq!(config.networks[0].peers[0].name, &A[..10]);
}

#[test]
fn moving_lines_changes_no_network() {
    let text = format!("[network.home]\n[[network.home.peer]]\nid = \"{A}\"");
    assert_eq!(good(&text), good(&format!("# a comment\n\n{text}\n")));
}

#[test]
fn the_example_is_inert() {
    assert_eq!(good(EXAMPLE), Config::default());
}

#[test]
fn the_example_is_true_once_uncommented() {
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let config = good(&uncommented);
    let home = &config.networks[0];
    // What the example shows as defaults are the defaults.
    let default = good("[network.home]");
    assert_eq!(config.listen_port, default.listen_port);
    assert_eq!(home.interface, default.networks[0].interface);
    assert_eq!(home.id, default.networks[0].id);
    assert_eq!(home.autostart, default.networks[0].autostart);
    assert_eq!(home.peers.len(), 2);
    let keys = [&document::TOP, &document::NETWORK, &peer::PEER];
    for key in keys.iter().flat_map(|keys| keys.known) {
        let shown = uncommented.contains(&format!("\n{} = ", key.name));
        let is_table = matches!(key.name, "network" | "peer");
        assert!(shown || is_table, "{} is not in the example", key.name);
    }
}

#[test]
fn broken_toml_names_the_line() {
    bad(
        "listen_port = 1\n\n[network.home\ninterface = \"x\"",
        &["3: not TOML: unclosed table, expected `]`; correct this line"],
    );
    bad(
        "listen_port = \"1\nlisten_port = 2",
        &[
            "1: not TOML: invalid basic string, expected `\"`; correct this line",
            "2: not TOML: duplicate key; correct this line",
        ],
    );
}

#[test]
fn lan_discovery_is_on_unless_the_file_says_no() {
    let discovery = |text: &str| parse(text).unwrap().lan_discovery;
    assert!(discovery(""));
    assert!(discovery("lan_discovery = true"));
    assert!(!discovery("lan_discovery = false"));
    bad(
        "lan_discovery = \"no\"",
        &["1: lan_discovery: must be true or false, not a string; write lan_discovery = true"],
    );
    bad_network(
        "lan_discovery = false",
        "lan_discovery: unknown key here; it belongs below the first table, at the top of the file",
    );
}

#[test]
fn all_problems_are_reported_by_line() {
    bad(
        "listen_port = -1\nfoo = 1\n[network.home]\nautostart = 1\nrelays = [1, 2]\ninterface = \"/\"",
        &[
            "1: listen_port: -1 is not a port; use 0 (any free port) to 65535",
            "2: foo: unknown key; known here: listen_port, lan_discovery, metrics, network",
            "4: network.home.autostart: must be true or false, not a number; write autostart = true",
            "5: network.home.relays: must be a string, not a number; \
             write relays = [\"mesh://<relay-id>@relay.example.org:443\"]",
            "5: network.home.relays: must be a string, not a number; \
             write relays = [\"mesh://<relay-id>@relay.example.org:443\"]",
            "6: network.home.interface: \"/\" is not a name of a network device; \
             use 1 to 15 characters without spaces, /, : and %",
        ],
    );
}

#[test]
fn a_hundred_problems_are_enough() {
    let mut text = String::from("[network.home]\n");
    for index in 0..250 {
        text.push_str(&format!("x{index} = 1\n"));
    }
    let errors = parse(&text).expect_err("unknown keys");
    assert_eq!(errors.iter().count(), 100);
    assert!(errors.to_string().ends_with("\n… and 150 more"));
}

#[test]
fn unknown_keys_name_the_nearest() {
    bad(
        "listenport = 1",
        &["1: listenport: unknown key; did you mean listen_port?"],
    );
    bad(
        "[networks.home]",
        &["1: networks: unknown key; did you mean network?"],
    );
    bad_network("adress = []", "adress: unknown key; did you mean address?");
    bad_network("peers = []", "peers: unknown key; did you mean peer?");
    bad_peer(
        "endpoint = []",
        "endpoint: unknown key; did you mean endpoints?",
    );
    bad_peer(
        "colour = 1",
        "colour: unknown key; \
         known here: id, name, address, routes, psk_file, wireguard, endpoints",
    );
    bad_network(
        "\"a\\nb\" = 1",
        "\"a\\nb\": unknown key; \
         known here: interface, id, autostart, mtu, relays, address, identity_file, peer",
    );
}

#[test]
fn misplaced_keys_name_their_table() {
    bad(
        "relays = []",
        &["1: relays: unknown key here; it belongs below [network.NAME]"],
    );
    bad_network(
        "endpoints = []",
        "endpoints: unknown key here; it belongs below [[network.NAME.peer]]",
    );
    bad_peer(
        "listen_port = 1",
        "listen_port: unknown key here; it belongs below the first table, at the top of the file",
    );
}

#[test]
fn keys_of_later_versions_are_refused() {
    bad(
        "\n[relay]\nserve = true",
        &["2: relay: not supported by this version; remove it"],
    );
}

#[test]
fn metrics_are_at_an_address_with_a_port_and_nowhere_by_default() {
    let metrics = |text: &str| good(text).metrics.map(|address| address.to_string());
    assert_eq!(metrics(""), None);
    for (text, parsed) in [
        ("127.0.0.1:9586", "127.0.0.1:9586"),
        ("[::1]:1", "[::1]:1"),
        ("0.0.0.0:9586", "0.0.0.0:9586"),
        ("[::ffff:10.0.0.1]:9586", "10.0.0.1:9586"),
    ] {
        let text = format!("metrics = \"{text}\"");
        assert_eq!(metrics(&text).as_deref(), Some(parsed));
    }
    for (wrong, why) in [
        (
            "\"localhost:9586\"",
            "\"localhost:9586\" is not an address with a port; write it like \"127.0.0.1:9586\" or \"[::1]:9586\"",
        ),
        (
            "\"127.0.0.1:0\"",
            "127.0.0.1:0 has no port, which whoever fetches the metrics has to know; choose one",
        ),
        (
            "\"[ff02::1]:9586\"",
            "[ff02::1]:9586 is no host's address; use one of this host",
        ),
        (
            "9586",
            "must be a string, not a number; write metrics = \"127.0.0.1:9586\"",
        ),
    ] {
        let text = format!("metrics = {wrong}");
        bad(&text, &[&format!("1: metrics: {why}")]);
    }
}

#[test]
fn an_mtu_is_one_that_every_link_carries_or_more() {
    let mtu = |text: &str| good(&format!("[network.home]\n{text}")).networks[0].mtu;
    assert_eq!(mtu(""), limits::MAX_INNER_MTU);
    assert_eq!(mtu("mtu = 1280"), 1_280);
    assert_eq!(mtu("mtu = 9000"), 9_000);
    for wrong in ["1279", "9001", "0", "-1", "70000"] {
        bad_network(
            &format!("mtu = {wrong}"),
            &format!("mtu: {wrong} is no possible MTU; use 1280 to 9000"),
        );
    }
    bad_network(
        "mtu = \"1400\"",
        "mtu: must be a number, not a string; write mtu = 9000",
    );
}

#[test]
fn values_of_a_wrong_type_are_refused() {
    bad(
        "listen_port = \"41820\"",
        &["1: listen_port: must be a number, not a string; write listen_port = 41820"],
    );
    bad(
        "listen_port = 1.5",
        &[
            "1: listen_port: must be a number, not a number with a fraction; write listen_port = 41820",
        ],
    );
    bad(
        "network = 1",
        &["1: network: must be a table, not a number; write [network.home]"],
    );
    bad(
        "[[network]]\n",
        &["1: network: must be a table, not a list; write [network.home]"],
    );
    bad(
        "[network]\nhome = true",
        &["2: network.home: must be a table, not a boolean; write [network.home]"],
    );
    bad_network(
        "interface = 1979-05-27",
        "interface: must be a string, not a date or time; write interface = \"mesh-home\"",
    );
    bad_network(
        "id = 1",
        "id: must be a string, not a number; write id = \"<network id>\"",
    );
    bad_network(
        "relays = \"x\"",
        "relays: must be a list, not a string; write relays = [\"mesh://<relay-id>@relay.example.org:443\"]",
    );
    bad_network(
        "address = \"10.77.0.1/32\"",
        "address: must be a list, not a string; write address = [\"10.77.0.1/32\"]",
    );
    bad_network(
        "identity_file = []",
        "identity_file: must be a string, not a list; \
         write identity_file = \"/run/credentials/meshd.service/home.key\"",
    );
    bad_network(
        "peer = {}",
        "peer: must be a list of tables, not a table; write [[network.home.peer]]",
    );
    bad_network(
        "peer = [1]",
        "peer: must be a table, not a number; write [[network.home.peer]]",
    );
    bad_peer(
        "name = 1",
        "name: must be a string, not a number; write name = \"bob\"",
    );
    bad_peer(
        "wireguard = \"yes\"",
        "wireguard: must be true or false, not a string; write wireguard = true",
    );
    bad_peer(
        "address = [7]",
        "address: must be a string, not a number; write address = [\"10.77.0.2\"]",
    );
    bad_peer(
        "routes = {}",
        "routes: must be a list, not a table; write routes = [\"192.168.50.0/24\"]",
    );
    bad_peer(
        "endpoints = [[]]",
        "endpoints: must be a string, not a list; write endpoints = [\"203.0.113.7:41820\"]",
    );
}

#[test]
fn ports_out_of_range_are_refused() {
    for (text, shown) in [
        ("65536", "65536"),
        ("-1", "-1"),
        ("99999999999999999999", "99999999999999999999"),
    ] {
        bad(
            &format!("listen_port = {text}"),
            &[&format!(
                "1: listen_port: {shown} is not a port; use 0 (any free port) to 65535"
            )],
        );
    }
    assert_eq!(good("listen_port = 0xffff").listen_port, 65_535);
}

#[test]
fn bad_network_names_are_refused() {
    let long = "a".repeat(64);
    for name in ["Home", "ho me", "a.b", "..", "-a", "", "ä", "a/b", &long] {
        let path = section::quoted(name);
        bad(
            &format!("\n[network.{path}]"),
            &[&format!(
                "2: network.{path}: a network's name has 1 to 63 characters a-z, 0-9, - and _, \
                 and starts with a letter or digit; rename it"
            )],
        );
    }
}

#[test]
fn bad_interface_names_are_refused() {
    for name in [
        "",
        "sixteen-letters-",
        "a b",
        "a/b",
        "a:b",
        "tun%d",
        "ä",
        "a\tb",
    ] {
        let quoted = format!("{name:?}");
        bad_network(
            &format!("interface = {quoted}"),
            &format!(
                "interface: {quoted} is not a name of a network device; \
                 use 1 to 15 characters without spaces, /, : and %"
            ),
        );
    }
    for name in [".", "..", "lo", "all", "default"] {
        bad_network(
            &format!("interface = \"{name}\""),
            &format!("interface: \"{name}\" is reserved by Linux; choose another name"),
        );
    }
}

#[test]
fn networks_with_one_interface_are_refused() {
    bad(
        "[network.home-office-1]\n[network.home-office-2]",
        &[
            "2: network.home-office-2.interface: mesh-home-offic is already the interface of network \
           home-office-1; set interface to another name",
        ],
    );
    bad(
        "[network.a]\n[network.b]\ninterface = \"mesh-a\"",
        &[
            "3: network.b.interface: mesh-a is already the interface of network a; \
           set interface to another name",
        ],
    );
}

#[test]
fn networks_with_one_id_or_key_are_refused() {
    bad(
        &format!("[network.a]\nid = \"{A}\"\n[network.b]\nid = \"{A}\""),
        &[
            "4: network.b.id: network a has the same ID, or one with the same addresses; \
           give one of the two another",
        ],
    );
    bad(
        "[network.a]\nidentity_file = \"/k\"\n[network.b]\nidentity_file = \"/k\"",
        &[
            "4: network.b.identity_file: network a has the same; each network needs a key of its own",
        ],
    );
}

#[test]
fn bad_ids_are_refused() {
    bad_network(
        "id = \"abc\"",
        "id: an ID has 52 characters, this has 3; copy the whole ID",
    );
    let peer = |id: &str, expected: &str| {
        bad(
            &format!("[network.home]\n[[network.home.peer]]\nid = \"{id}\""),
            &[&format!("3: network.home.peer.id: {expected}")],
        );
    };
    peer(
        &A.to_uppercase(),
        "character 1 is not one of a-z and 2-7; an ID is written in lower case, without spaces",
    );
    peer(
        &format!("{}b", &A[..51]),
        "the last character is wrong; copy the ID again",
    );
    peer(
        &"a".repeat(52),
        "it is a weak key (of small order), which no node has; do not trust where it came from",
    );
    peer(
        A_WIREGUARD,
        "is a WireGuard key, not a node's ID; add wireguard = true for a stock WireGuard device",
    );
}

#[test]
fn a_peer_without_id_is_refused() {
    bad(
        "[network.home]\n[[network.home.peer]]\nname = \"bob\"",
        &["2: network.home.peer.id: is missing; write id = \"<node id>\""],
    );
}

#[test]
fn bad_wireguard_keys_are_refused() {
    let peer = |id: &str, expected: &str| {
        bad(
            &format!(
                "[network.home]\n[[network.home.peer]]\nid = \"{id}\"\nwireguard = true\naddress = [\"10.1.1.1\"]"
            ),
            &[&format!("3: network.home.peer.id: {expected}")],
        );
    };
    peer(
        "abc",
        "a WireGuard public key is 44 characters of base64; copy the output of `wg pubkey`",
    );
    peer(
        &format!("{}=", "A".repeat(43)),
        "it is a weak key (of small order), which no device has; do not trust where it came from",
    );
    peer(
        A,
        "is the ID of a node that runs meshd; remove wireguard = true",
    );
}

#[test]
fn wireguard_peers_need_a_way_to_meet() {
    let text = format!(
        "listen_port = 0\n[network.home]\n[[network.home.peer]]\nwireguard = true\nid = \"{DEVICE}\"\n\
         address = [\"10.77.0.9\"]\n"
    );
    bad(
        &text,
        &[
            "5: network.home.peer.endpoints: neither side would know where the other is, \
           as listen_port is 0; give the device's endpoints, or a fixed listen_port",
        ],
    );
    good(&format!("{text}endpoints = [\"192.0.2.1:51820\"]"));
    good(&text.replace("listen_port = 0", "listen_port = 51820"));
}

#[test]
fn wireguard_peers_need_an_address() {
    bad(
        &format!("[network.home]\n[[network.home.peer]]\nwireguard = true\nid = \"{DEVICE}\""),
        &[
            "4: network.home.peer.address: a WireGuard device has no derived address; \
           give the address that is set on it",
        ],
    );
}

#[test]
fn unusable_relays_are_refused() {
    bad_network(
        "relays = [\"https://r.example\"]",
        "relays: \"https://r.example\": a relay's address starts with mesh://; \
         copy the line that mesh-relay printed",
    );
    bad_network(
        "relays = [\"mesh://abc@r.example:443\"]",
        "relays: \"mesh://abc@r.example:443\": the relay's ID is wrong: \
         an ID has 52 characters, this has 3; copy the whole ID",
    );
    bad_network(
        &format!("relays = [\"mesh://{A}@r.example:0\"]"),
        &format!("relays: \"mesh://{A}@r.example:0\": the port is not a number from 1 to 65535"),
    );
    bad(
        &format!("[network.home]\nrelays = [\n\"{RELAY}\",\n\"{RELAY_2}\",\n\"{RELAY}\"]"),
        &[&format!(
            "5: network.home.relays: {RELAY} is given twice; remove one of the two"
        )],
    );
    let other = RELAY.replace("r.example", "192.0.2.1");
    bad_network(
        &format!("relays = [\"{RELAY}\", \"{other}\"]"),
        &format!(
            "relays: {RELAY} and {other} are one relay, because they have one ID; remove one of the two"
        ),
    );
}

#[test]
fn too_many_entries_are_refused() {
    let relays: Vec<_> = (0..=limits::MAX_RELAYS as u8)
        .map(|seed| {
            let id = Identity::from_seed(Zeroizing::new([seed; 32])).id();
            format!("\"mesh://{id}@r.example:443\"")
        })
        .collect();
    bad_network(
        &format!("relays = [{}]", relays.join(",")),
        "relays: has 9 entries; leave at most 8",
    );
    let list = |count: usize, suffix: &str| {
        let items: Vec<_> = (1..=count)
            .map(|i| format!("\"10.{}.{}.0{suffix}\"", i / 256, i % 256))
            .collect();
        items.join(",")
    };
    bad_network(
        &format!("address = [{}]", list(17, "/8").replace(".0/8", ".1/32")),
        "address: has 17 entries; leave at most 16",
    );
    bad_peer(
        &format!("address = [{}]", list(17, "")),
        "address: has 17 entries; leave at most 16",
    );
    bad_peer(
        &format!("routes = [{}]", list(257, "/24")),
        "routes: has 257 entries; leave at most 256",
    );
    bad_peer(
        &format!("endpoints = [{}]", list(5, ":1")),
        "endpoints: has 5 entries; leave at most 4",
    );
    let networks: String = (0..65).map(|i| format!("[network.n{i}]\n")).collect();
    bad(
        &networks,
        &["65: network: 65 networks are too many; leave at most 64"],
    );
}

#[test]
fn too_many_peers_are_refused() {
    let peers: String = (0..=limits::MAX_PEERS)
        .map(|_| "[[network.home.peer]]\n")
        .collect();
    let errors = parse(&peers).expect_err("one too many");
    // Each of them lacks its ID as well; this problem is the last, beyond what is shown.
    assert!(errors.to_string().ends_with("… and 16285 more"));
    let inline = format!(
        "network.home.peer = [{}]",
        "1,".repeat(limits::MAX_PEERS + 1)
    );
    let errors = parse(&inline).expect_err("one too many");
    let first = errors.iter().next().expect("a problem");
    assert_eq!(
        first.to_string(),
        "mesh.toml:1: network.home.peer: 16385 peers are too many; leave at most 16384"
    );
}

#[test]
fn relative_paths_are_refused() {
    bad_network(
        "identity_file = \"home.key\"",
        "identity_file: \"home.key\" is not an absolute path; start it with /",
    );
    bad_peer(
        "psk_file = \"\"",
        "psk_file: \"\" is not an absolute path; start it with /",
    );
    bad_peer(
        "psk_file = \"/a\\u0000b\"",
        "psk_file: \"/a\\0b\" contains a zero byte; remove it",
    );
}

#[test]
fn bad_peer_names_are_refused() {
    let long = "a".repeat(64);
    for name in ["", "a b", "-a", ".a", "ä", "a/b", &long] {
        bad_peer(
            &format!("name = {name:?}"),
            &format!(
                "name: {name:?} is not a name; use 1 to 63 characters a-z, A-Z, 0-9, ., - and _, \
                 the first a letter or digit"
            ),
        );
    }
    bad_peer(
        "name = \"10.0.0.1\"",
        "name: 10.0.0.1 is an address, not a name; put it below address",
    );
}

/// A network with two peers, A on line 3 and B on line 6, each with a line of its own after its ID.
fn two_peers(first: &str, second: &str) -> String {
    format!(
        "[network.home]\n[[network.home.peer]]\nid = \"{A}\"\n{first}\n[[network.home.peer]]\nid = \"{B}\"\n{second}"
    )
}

#[test]
fn duplicate_peer_names_are_refused() {
    bad(
        &two_peers("name = \"bob\"", "name = \"Bob\""),
        &[
            "7: network.home.peer.name: Bob is also the name of the peer on line 4; rename one of the two",
        ],
    );
    // The default name of A.
    bad(
        &two_peers("", &format!("name = \"{}\"", &A[..10])),
        &[
            "7: network.home.peer.name: rkeohxlubh is also the name of the peer on line 3; rename one of the two",
        ],
    );
}

#[test]
fn duplicate_peers_are_refused() {
    let peers = |second: &str| {
        format!(
            "[network.home]\n[[network.home.peer]]\nid = \"{A}\"\nname = \"a\"\n\n[[network.home.peer]]\n\
             name = \"b\"\naddress = [\"10.1.1.1\"]\n{second}"
        )
    };
    bad(
        &peers(&format!("id = \"{A}\"")),
        &[
            "9: network.home.peer.id: is also the id of peer a (line 3); remove one of the two peers",
        ],
    );
    bad(
        &peers(&format!("id = \"{A_WIREGUARD}\"\nwireguard = true")),
        &[
            "9: network.home.peer.id: has the same WireGuard key as the id of peer a (line 3); \
           remove one of the two peers",
        ],
    );
    // The negative of A's key: another ID, but the same WireGuard key.
    let mut bytes = *A.parse::<NodeId>().unwrap().as_bytes();
    bytes[31] ^= 0x80;
    let negative = NodeId::from_bytes(&bytes).unwrap();
    bad(
        &peers(&format!("id = \"{negative}\"")),
        &[
            "9: network.home.peer.id: has the same WireGuard key as the id of peer a (line 3); \
           remove one of the two peers",
        ],
    );
}

#[test]
fn one_peer_may_be_in_two_networks() {
    let peer = |network: &str| format!("[[network.{network}.peer]]\nid = \"{A}\"\nname = \"a\"\n");
    good(&format!("{}{}", peer("home"), peer("work")));
}

#[test]
fn own_addresses_that_cannot_be_are_refused() {
    for (text, expected) in [
        (
            "10.77.0.1",
            "\"10.77.0.1\" lacks the length of its prefix; write \"10.77.0.1/32\"",
        ),
        (
            "fd12::1",
            "\"fd12::1\" lacks the length of its prefix; write \"fd12::1/128\"",
        ),
        (
            "10.77.0.1/33",
            "\"10.77.0.1/33\" is not an address with the length of its prefix; write address = [\"10.77.0.1/32\"]",
        ),
        (
            "10.77.0.0/24",
            "\"10.77.0.0/24\" is a network, not an address of this host; write an address inside it",
        ),
        (
            "10.77.0.255/24",
            "\"10.77.0.255/24\" is the broadcast address of its prefix; write another address inside it",
        ),
        (
            "10.77.0.1/0",
            "\"10.77.0.1/0\" would take all traffic; give a longer prefix",
        ),
        (
            "127.0.0.1/32",
            "127.0.0.1 lies in 127.0.0.0/8 (loopback); \
             choose an address from a private range, like 10.0.0.0/8",
        ),
        (
            "fe80::1/64",
            "fe80::1 lies in fe80::/10 (link-local); \
             choose an address from a private range, like 10.0.0.0/8",
        ),
    ] {
        bad_network(
            &format!("address = [\"{text}\"]"),
            &format!("address: {expected}"),
        );
    }
    good("[network.home]\naddress = [\"10.77.0.0/31\", \"10.78.0.0/32\", \"fd12::/127\"]");
}

#[test]
fn peer_addresses_that_cannot_be_are_refused() {
    for (text, expected) in [
        (
            "bob",
            "\"bob\" is not an IP address; write address = [\"10.77.0.2\"]",
        ),
        (
            "10.77.0.2/24",
            "\"10.77.0.2/24\" is a prefix; write the address alone here, and networks behind the peer below routes, \
             as in routes = [\"10.77.0.0/24\"]",
        ),
        (
            "255.255.255.255",
            "255.255.255.255 lies in 255.255.255.255/32 (broadcast); \
             choose an address from a private range, like 10.0.0.0/8",
        ),
        (
            "::",
            ":: lies in ::/128 (unspecified); choose an address from a private range, like 10.0.0.0/8",
        ),
        (
            "::ffff:10.0.0.1",
            "::ffff:10.0.0.1 lies in ::ffff:0.0.0.0/96 (IPv4-mapped); \
             choose an address from a private range, like 10.0.0.0/8",
        ),
    ] {
        bad_peer(
            &format!("address = [\"{text}\"]"),
            &format!("address: {expected}"),
        );
    }
}

#[test]
fn routes_that_cannot_be_are_refused() {
    for (text, expected) in [
        (
            "all",
            "\"all\" is not a prefix; write routes = [\"192.168.50.0/24\"]",
        ),
        (
            "192.168.50.0",
            "\"192.168.50.0\" lacks the length of its prefix; write \"192.168.50.0/32\"",
        ),
        (
            "192.168.50.1/24",
            "\"192.168.50.1/24\" is an address inside a prefix; write \"192.168.50.0/24\"",
        ),
        (
            "0.0.0.0/0",
            "\"0.0.0.0/0\" would take all traffic, and exit nodes are not supported by this version; \
             list the prefixes behind the peer",
        ),
        (
            "0.0.0.0/1",
            "\"0.0.0.0/1\" overlaps 0.0.0.0/8 (this network); route something else",
        ),
        (
            "128.0.0.0/1",
            "\"128.0.0.0/1\" overlaps 169.254.0.0/16 (link-local); route something else",
        ),
        (
            "8000::/1",
            "\"8000::/1\" overlaps fe80::/10 (link-local); route something else",
        ),
    ] {
        bad_peer(
            &format!("routes = [\"{text}\"]"),
            &format!("routes: {expected}"),
        );
    }
}

#[test]
fn endpoints_that_cannot_be_are_refused() {
    for (text, expected) in [
        (
            "bob.example:41820",
            "\"bob.example:41820\" is not an IP address with a port (an IPv6 address goes in brackets); \
             write endpoints = [\"203.0.113.7:41820\"]",
        ),
        (
            "203.0.113.7",
            "\"203.0.113.7\" is not an IP address with a port (an IPv6 address goes in brackets); \
             write endpoints = [\"203.0.113.7:41820\"]",
        ),
        (
            "203.0.113.7:0",
            "\"203.0.113.7:0\" has port 0; give the port that the peer listens on",
        ),
        (
            "0.0.0.0:41820",
            "\"0.0.0.0:41820\" is not the address of one host; give the peer's own address",
        ),
        (
            "[fe80::1]:41820",
            "\"[fe80::1]:41820\" is a link-local address, which means another host on each link; \
             give another address",
        ),
    ] {
        bad_peer(
            &format!("endpoints = [\"{text}\"]"),
            &format!("endpoints: {expected}"),
        );
    }
    bad_peer(
        "endpoints = [\"192.0.2.1:5\", \"[::ffff:192.0.2.1]:5\"]",
        "endpoints: 192.0.2.1:5 is given twice; remove one of the two",
    );
}

#[test]
fn overlapping_peers_are_refused() {
    bad(
        &two_peers("address = [\"10.77.0.2\"]", "address = [\"10.77.0.2\"]"),
        &[
            "7: network.home.peer.address: 10.77.0.2 is also the address 10.77.0.2 of peer rkeohxlubh (line 4); \
           change one of the two",
        ],
    );
    bad(
        &two_peers("routes = [\"10.77.0.0/24\"]", "address = [\"10.77.0.2\"]"),
        &[
            "7: network.home.peer.address: 10.77.0.2 overlaps the route 10.77.0.0/24 of peer rkeohxlubh (line 4); \
           change one of the two",
        ],
    );
    bad(
        &two_peers("address = [\"10.77.0.2\"]", "routes = [\"10.0.0.0/8\"]"),
        &[
            "7: network.home.peer.routes: 10.0.0.0/8 overlaps the address 10.77.0.2 of peer rkeohxlubh (line 4); \
           change one of the two",
        ],
    );
    bad(
        &two_peers("routes = [\"fd12::/16\"]", "routes = [\"fd12:1::/32\"]"),
        &[
            "7: network.home.peer.routes: fd12:1::/32 overlaps the route fd12::/16 of peer rkeohxlubh (line 4); \
           change one of the two",
        ],
    );
}

#[test]
fn peers_that_overlap_this_host_are_refused() {
    let text = |peer: &str| {
        format!(
            "[network.home]\naddress = [\"10.77.0.1/24\"]\n[[network.home.peer]]\nid = \"{A}\"\n{peer}"
        )
    };
    bad(
        &text("address = [\"10.77.0.1\"]"),
        &[
            "5: network.home.peer.address: 10.77.0.1 is also this host's address 10.77.0.1 (line 2); \
           change one of the two",
        ],
    );
    bad(
        &text("routes = [\"10.77.0.0/16\"]"),
        &[
            "5: network.home.peer.routes: 10.77.0.0/16 overlaps this host's address 10.77.0.1 (line 2); \
           change one of the two",
        ],
    );
    // The rest of our prefix is for peers.
    good(&text(
        "address = [\"10.77.0.2\"]\nroutes = [\"10.77.0.128/25\"]",
    ));
}

#[test]
fn entries_given_twice_are_refused() {
    bad_network(
        "address = [\"10.77.0.1/32\", \"10.77.0.1/24\"]",
        "address: 10.77.0.1 is given twice; remove one of the two",
    );
    bad(
        &two_peers(
            "address = [\"10.77.0.1\"]",
            "address = [\"10.77.0.9\"]\nroutes = [\"10.77.0.9/32\"]",
        ),
        &["8: network.home.peer.routes: 10.77.0.9 is given twice; remove one of the two"],
    );
}

#[test]
fn derived_prefixes_are_not_for_others() {
    let prefix = "fdea:b852:fe6a::/64";
    assert_eq!(
        crate::identity::overlay_prefix(&NetworkId::from_name("home")).to_string(),
        prefix
    );
    bad_network(
        "address = [\"fdea:b852:fe6a::1/128\"]",
        "address: fdea:b852:fe6a::1 overlaps fdea:b852:fe6a::/64, \
         where the derived addresses of network home are; choose another",
    );
    bad_peer(
        "routes = [\"fdea:b852::/32\"]",
        "routes: fdea:b852::/32 overlaps fdea:b852:fe6a::/64, \
         where the derived addresses of network home are; choose another",
    );
    bad(
        "[network.work]\naddress = [\"fdea:b852:fe6a::1/64\"]\n[network.home]",
        &[
            "2: network.work.address: fdea:b852:fe6a::/64 is also fdea:b852:fe6a::/64, \
           where the derived addresses of network home are; choose another",
        ],
    );
}

#[test]
fn networks_that_overlap_are_refused() {
    bad(
        "[network.home]\naddress = [\"10.77.0.1/24\"]\n[network.work]\naddress = [\"10.77.0.9/32\"]",
        &[
            "4: network.work.address: 10.77.0.9 overlaps this host's address 10.77.0.0/24 in network home (line 2); \
           change one of the two",
        ],
    );
    let text = |home: &str, work: &str| {
        format!(
            "[[network.home.peer]]\nid = \"{A}\"\n{home}\n[[network.work.peer]]\nid = \"{C}\"\nname = \"carol\"\n{work}"
        )
    };
    bad(
        &text(
            "routes = [\"192.168.50.0/24\"]",
            "routes = [\"192.168.0.0/16\"]",
        ),
        &[
            "7: network.work.peer.routes: 192.168.0.0/16 overlaps the route 192.168.50.0/24 of peer rkeohxlubh \
           in network home (line 3); change one of the two",
        ],
    );
    good(&text(
        "routes = [\"192.168.50.0/24\"]",
        "routes = [\"192.168.51.0/24\"]",
    ));
}

#[test]
fn an_owner_may_nest_its_own_prefixes() {
    good(&two_peers(
        "address = [\"10.77.0.2\"]\nroutes = [\"10.77.0.0/24\", \"10.77.0.0/25\"]",
        "address = [\"10.77.1.2\"]",
    ));
}

#[test]
fn this_host_is_not_its_own_peer() {
    let config = good(&two_peers("", ""));
    let network = &config.networks[0];
    let own: NodeId = B.parse().unwrap();
    let error = network.check_identity(&own).expect_err("B is a peer");
    assert_eq!(
        error.to_string(),
        "mesh.toml:6: network.home.peer.id: this is the key of this host itself; \
         remove this peer from this host's file"
    );
    assert_eq!(network.check_identity(&C.parse().unwrap()), Ok(()));
}

#[test]
fn long_texts_are_cut_in_messages() {
    bad_network(
        &format!("interface = \"{}\"", "x".repeat(10_000)),
        &format!(
            "interface: \"{}\"… is not a name of a network device; \
             use 1 to 15 characters without spaces, /, : and %",
            "x".repeat(80)
        ),
    );
}

/// What may stand in a configuration, in any order.
fn fragment() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "[network.home]",
        "[network.work]",
        "[[network.home.peer]]",
        "[network]",
        "[[network]]",
        "\n",
        "\n",
        "\n",
        " = ",
        "id",
        "name",
        "address",
        "routes",
        "relays",
        "endpoints",
        "wireguard",
        "listen_port",
        "interface",
        "true",
        "0",
        "[",
        "]",
        "{",
        "}",
        ",",
        "\"10.77.0.1/24\"",
        "\"10.77.0.2\"",
        "\"fd12::/16\"",
        "\"bob\"",
        "é",
    ]);
    prop_oneof![
        4 => word.prop_map(str::to_owned),
        1 => Just(format!("id = \"{A}\"\n")),
        1 => Just(format!("id = \"{B}\"\n")),
        1 => Just(format!("relays = [\"{RELAY}\"]\n")),
        1 => Just(format!("id = \"{DEVICE}\"\nwireguard = true\n")),
        1 => "address = \\[\"10.77.0.[0-3]{1,2}(/[1-3][0-9])?\"\\]\n",
        1 => "routes = \\[\"10.[0-9].0.0/[1-3][0-9]\"\\]\n",
    ]
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn any_near_configuration_is_parsed_or_refused(parts in prop::collection::vec(fragment(), 0..40)) {
        let text = parts.concat();
        if let Err(errors) = parse(&text) {
            let lines = text.lines().count().max(1);
            for error in errors.iter() {
                prop_assert!((1..=lines + 1).contains(&error.line), "{}", error);
                prop_assert!(!error.to_string().contains('\n'), "{}", error);
            }
            prop_assert!(errors.iter().count() > 0);
        }
    }
}
