//! Every bound of the core in one place: what can be sent to us, and what we keep, never grows past these.

use std::time::Duration;

/// Largest datagram that we send: room for a 9,000-byte inner packet with its headers.
pub const MAX_DATAGRAM: usize = 9_216;
/// Bytes of datagrams that are collected before they are sealed and handed to the kernel: several bursts of UDP GSO (64
/// KiB each), and still in a CPU's second cache.
pub const SEND_BATCH_BYTES: usize = 256 * 1024;
/// Room beyond that for one more super-packet: 64 KiB in segments of 36 bytes, which is what Linux's smallest MSS leaves,
/// each with up to 100 bytes of headers of its own and 72 of ours.
pub const SUPER_PACKET_ROOM: usize = 384 * 1024;
/// Segments in one UDP GSO send. Linux takes 64 up to 6.8 and 128 since; 64 works everywhere.
pub const MAX_GSO_SEGMENTS: usize = 64;
/// Bytes in one UDP GSO send: 65,535 less the IPv6 and UDP headers.
pub const MAX_GSO_BYTES: usize = 65_487;
/// Room for one received message: the kernel coalesces up to 64 KiB of datagrams of one flow (UDP GRO).
pub const MESSAGE_BYTES: usize = 65_536;

/// Inner MTU: carried by every link that IPv6 allows (1,280) with no knowledge of the path.
pub const INNER_MTU: u16 = 1_280;

/// Largest inner MTU: what a link with the usual jumbo frames of 9,000 bytes could carry, headers not counted.
pub const MAX_INNER_MTU: u16 = 9_000;
/// ICMP messages per second that tell this host's applications of packets that are too large.
pub const TOO_BIG_PER_SECOND: u64 = 200;

/// Networks in one daemon.
pub const MAX_NETWORKS: usize = 64;
/// Peers in one network.
pub const MAX_PEERS: usize = 16_384;
/// Relays in one network; each costs a warm connection.
pub const MAX_RELAYS: usize = 8;
/// Overlay addresses of one node beside the derived one.
pub const MAX_ADDRESSES: usize = 16;
/// Prefixes behind one peer.
pub const MAX_ROUTES: usize = 256;

/// Inner packets that wait for one peer's session: a TCP start with its retransmissions.
pub const QUEUED_PACKETS: usize = 32;
/// Memory that one peer may take under any load, in bytes: keys with full replay windows, every path, and a full queue of
/// the largest packets, which is most of it. A peer that is only configured takes less than a hundredth.
pub const PEER_BYTES: usize = 512 * 1024;
/// Handshake messages per second and network that are answered without asking for a cookie. WireGuard's own limit is
/// load-dependent; a mesh host has few peers that start at once.
pub const HANDSHAKES_PER_SECOND: u64 = 200;
/// And with a valid cookie, so from an address that receives; each costs up to four key agreements of some 40 µs.
pub const HANDSHAKES_WITH_COOKIE_PER_SECOND: u64 = 1_000;
/// Our initiations to one peer whose answers are waited for: those of the first second on a path of any length.
pub const HANDSHAKES_IN_FLIGHT: usize = 4;
/// Answers to one peer's initiations that it has not used yet.
pub const UNCONFIRMED_SESSIONS: usize = 4;
/// Packets that may overtake another without its being taken for a replay: at first, after some hundred packets, and
/// after some thousand. 2^17 packets are 1.6 s at 80,000 packets/s, which is more than two paths differ.
pub const REPLAY_WINDOWS: [u64; 3] = [1 << 10, 1 << 13, 1 << 17];

/// Addresses in one list of candidates, ours or a peer's.
pub const MAX_CANDIDATES: usize = 16;
/// Paths kept for one peer: all candidates of a punch, each relay, and some to spare.
pub const MAX_PATHS: usize = 28;
/// Configured endpoints that handshakes go to.
pub const MAX_ENDPOINTS: usize = 4;
/// Probes that wait for an answer on one path: a punch sends seven within the first second.
pub const PROBES_IN_FLIGHT: usize = 8;
/// Who receives data tells its sender so within this time, or within half a round trip if that is longer.
pub const ALIVE_DELAY: Duration = Duration::from_millis(100);
/// How long the last data on a path is reported: twenty alives may get lost.
pub const ALIVE_MEMORY: Duration = Duration::from_secs(2);
/// Bytes a second of data that is sent on a second path while the first is in doubt: 2 Mb/s, what interactive use and
/// the retransmissions of stalled streams need.
pub const DUPLICATE_RATE: u64 = 250_000;
/// And how many at once, in bytes: 100 ms of that.
pub const DUPLICATE_BURST: u64 = 25_000;
/// How long that is done at most. By then the path has been proved, or left.
pub const DUPLICATE_TIME: Duration = Duration::from_secs(2);

/// A timeout that comes later than this shows that the process was not running: no load delays it by so much.
pub const MAX_LATENESS: Duration = Duration::from_secs(3);

/// Addresses of relays, beside that of the one that is asked, that a measurement of the NAT compares with.
pub const SURVEY_RELAYS: usize = 3;
/// Requests of one measurement of the NAT.
pub const SURVEY_REQUESTS: usize = 64;
/// Sockets that are opened towards a NAT with random ports: with as many, 1,024 probes hit one in 98 of 100 cases.
pub const SPRAY_SOCKETS: usize = 256;
/// Sockets that are opened towards a NAT that counts: one for the port that was foretold, twenty steps on, and others for
/// ports that somebody else takes meanwhile.
pub const ROW_SOCKETS: usize = 25;
/// Probes of one attempt to get through a hard NAT.
pub const SPRAY_PROBES: usize = 2_048;
/// Sockets that are asked for their external address behind a NAT that gives out several, until one has the address that
/// the peer knows: of two, all miss it once in 256 times.
pub const POOL_SOCKETS: usize = 8;
/// External addresses of our NAT that are remembered and told.
pub const POOL_ADDRESSES: usize = 8;
/// Addresses of a peer at which its ports are searched: those that relays see it at.
pub const SEARCHED_ADDRESSES: usize = 4;
/// How long such an attempt lasts at most.
pub const SPRAY_TIME: Duration = Duration::from_secs(25);
/// Sprays a day from one network to one peer at one address.
pub const SPRAYS_PER_PAIR: usize = 3;
/// Sprays a day to one address, whoever is there.
pub const SPRAYS_PER_DESTINATION: usize = 6;
/// Sprays a day in all.
pub const SPRAYS_A_DAY: usize = 256;
/// ICMP errors after which a spray ends: somebody on the way does not want it.
pub const SPRAY_ICMP_ERRORS: u32 = 32;
/// Public addresses of our own that are remembered as ones behind which hosts reach each other by the outside.
pub const HAIRPINS: usize = 16;
/// Places, by gateway and public address, whose NATs' memory is known.
pub const LIFETIMES: usize = 16;
/// Spare sockets: one spray, one row with its sample, one measurement, and paths of so many peers that were won with one.
pub const SPARE_SOCKETS: usize = 1_024;
/// What is remembered of attempts to reach one peer directly.
pub const ATTEMPTS: usize = 32;

/// Gateways that we have left and that are being given back what they mapped for us, which takes half a second each.
pub const LEFT_GATEWAYS: usize = 4;
/// Gateways that are asked with what they were asked before when we come back: those of some days of a laptop.
pub const KNOWN_GATEWAYS: usize = 16;

/// Addresses of ours on links where peers are looked for: some interfaces with some addresses each.
pub const LAN_ADDRESSES: usize = 16;
/// Peers that are looked for there at the same time.
pub const LAN_WANTED: usize = MAX_PEERS;
/// Packets of hosts on our links that are looked into in a second. A network of a hundred hosts that all come at once says
/// two hundred things in two seconds, and says them again when it is asked.
pub const LAN_PACKETS_PER_SECOND: u64 = 100;
/// Tags computed in a second to recognise peers in them: one for each peer that is wanted, some 0.5 µs. All peers of one
/// network at once fit.
pub const LAN_TAGS_PER_SECOND: u64 = 4 * MAX_PEERS as u64;
/// Addresses on our links where one peer may be: one IPv4 and one IPv6 address on two links. At most so many at once,
/// then one a second, cause a handshake or a probe.
pub const LAN_HINTS: usize = 4;

/// Peers that have series of their own in the metrics, of all networks together: some 10,000 lines, or 1 MB a scrape.
pub const METRICS_PEERS: usize = 1_000;
/// Bytes of a request for the metrics; Prometheus sends some hundred.
pub const METRICS_REQUEST: usize = 8 * 1024;
/// Connections to the metrics that are served at once; others wait.
pub const METRICS_CONNECTIONS: usize = 8;
/// How long one of them may take, from its first byte to the last one of the answer: as long as Prometheus waits.
pub const METRICS_TIME: Duration = Duration::from_secs(10);

/// Longest wait for the answer to an overlay ping.
pub const MAX_PING_TIMEOUT: Duration = Duration::from_secs(60);
/// Overlay pings that wait for one peer.
pub const MAX_PINGS: usize = 16;
/// `netcheck` commands that wait.
pub const MAX_NETCHECKS: usize = 16;
/// QUIC datagrams handed over in one batch.
pub const MAX_QUIC_BATCH: usize = 256;
/// Answers per second to what a relay's address asks without authentication (challenges, rebinds).
pub const RELAY_ANSWERS_PER_SECOND: u32 = 10;

/// How long an answer to anything inside the tunnel is waited for at most.
pub const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of one message on a relay's control stream: a WireGuard packet of the smallest MTU fits, a large one need not.
pub const MAX_RELAY_MESSAGE: usize = 2_048;

/// Clients of one relay. Each costs a QUIC connection of some 50 KiB, so this fits a machine with 1 GiB.
pub const RELAY_CLIENTS: usize = 16_384;
/// Connections to a relay that have not said hello yet.
pub const RELAY_NEWCOMERS: usize = 1_024;
/// How long a connection to a relay may take to say hello.
pub const RELAY_HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Channels of one client of a relay; a channel is needed for each peer that is not reached directly.
pub const RELAY_CHANNELS_PER_CLIENT: usize = 1_024;
/// Ends of channels of one relay: what fits the 20 bits that a channel number has for them.
pub const RELAY_CHANNEL_ENDS: usize = 1 << 20;
/// Bytes a second that a relay forwards for one client unless configured otherwise: 100 Mbit/s.
pub const RELAY_RATE: u64 = 12_500_000;
/// How long a client of a relay may exceed its rate after a pause.
pub const RELAY_BURST: Duration = Duration::from_millis(100);
/// The least burst in bytes, for low rates: two UDP GSO bursts, so that no single burst is cut.
pub const RELAY_MIN_BURST: u64 = 128 * 1024;
/// What a small frame counts as towards the rate, in bytes, which bounds the packets a second as well.
pub const RELAY_MIN_CHARGE: u64 = 256;
/// Messages a second on one control stream, and how many at once; what exceeds it is dropped.
pub const RELAY_MESSAGES: (u64, u64) = (200, 1_000);
/// `Rebind` answers a second of one relay, and how many at once. Nobody waits for more than one of them.
pub const RELAY_REBINDS: (u64, u64) = (2_000, 500);
/// STUN answers from the other port or address, and knocks, that one client may cause a second, and at once: a measurement
/// of a NAT's filter asks one relay twelve times at most, all ports of the client's IP address together.
pub const RELAY_KNOCKS: (u64, u64) = (4, 24);
/// Clients at one IP address whose allowances for that are looked at.
pub const RELAY_KNOCKERS: usize = 16;
/// Bytes waiting for one slow client of a relay. Packets are dropped beyond it.
pub const RELAY_QUEUE_BYTES: usize = 64 * 1024;
/// Waits before a client's new address is challenged again; after the last one the client has to speak up first.
pub const RELAY_CHALLENGE_WAITS: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// Bytes waiting for all clients of a relay together. Packets are dropped beyond it.
pub const RELAY_TOTAL_QUEUE_BYTES: usize = 64 * 1024 * 1024;
