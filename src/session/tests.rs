//! Sessions with each other, and with boringtun, which has the protocol from other hands.

use std::net::SocketAddr;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use super::*;
use crate::limits::{HANDSHAKES_PER_SECOND, HANDSHAKES_WITH_COOKIE_PER_SECOND};

const START: Instant = Instant::from_boot(Duration::from_secs(1_000));
const UNIX: Duration = Duration::from_secs(1_800_000_000);
const SOURCE: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    9,
);

fn secret(seed: u8) -> Zeroizing<[u8; 32]> {
    Zeroizing::new([seed; 32])
}

/// One end: what the engine keeps for one peer.
struct End {
    local: LocalKey,
    indices: Indices,
    rng: Random,
    session: Session,
    now: Instant,
}

impl End {
    fn new(own: u8, peer: u8, psk: Option<[u8; 32]>) -> Self {
        let local = LocalKey::new(&secret(own), START);
        let remote = LocalKey::new(&secret(peer), START).public();
        let session = Session::new(&local, PeerIndex(7), remote, psk.as_ref()).unwrap();
        Self {
            local,
            session,
            indices: Indices::default(),
            rng: Random::from_seed([own; 32]),
            now: START,
        }
    }

    fn with<R>(&mut self, run: impl FnOnce(&mut Session, &mut Context<'_>) -> R) -> R {
        let Self {
            local,
            indices,
            rng,
            session,
            now,
        } = self;
        let mut context = Context {
            local,
            indices,
            rng,
            now: *now,
        };
        run(session, &mut context)
    }

    fn initiate(&mut self) -> Vec<u8> {
        let unix = UNIX + self.now.since(START);
        self.with(|session, context| session.initiate(context, unix))
            .unwrap()
            .to_vec()
    }

    fn admit(&mut self, message: &[u8]) -> Result<Admitted, Refused> {
        self.local.admit(SOURCE, message, self.now, &mut self.rng)
    }

    fn respond(&mut self, initiation: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        let Ok(Admitted::Initiation(introduction)) = self.admit(initiation) else {
            panic!("not admitted");
        };
        self.with(|session, context| session.accept_initiation(context, introduction, initiation))
            .map(|answer| answer.to_vec())
    }

    fn finish(&mut self, response: &[u8]) -> Result<(), HandshakeError> {
        assert!(matches!(self.admit(response), Ok(Admitted::Response)));
        self.with(|session, context| session.accept_response(context, response))
    }

    fn seal(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; 2_048];
        let length = self
            .session
            .seal(self.now, Kernel::Ring, packet, &mut out)?;
        out.truncate(length);
        Some(out)
    }

    /// What the engine does with a data message: the packet with its padding, or `None`.
    fn open(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let receiver = number(message, 4)?;
        self.indices.get(receiver)?;
        let key = Arc::clone(self.session.opening(self.now, receiver)?);
        let mut data = message[HEADER..].to_vec();
        let counter = counter(message)?;
        let mut jobs = [cipher::Job {
            counter,
            data: &mut data,
        }];
        if cipher::open(Kernel::Ring, &key, &mut jobs) == 0
            || !self.session.receiving(receiver)?.accept(counter)
        {
            return None;
        }
        data.truncate(data.len() - cipher::TAG);
        self.session
            .received(self.now, receiver, !data.is_empty(), &mut self.indices);
        Some(data)
    }

    fn wait(&mut self, pause: Duration) -> Due {
        self.now = self.now + pause;
        self.session.handle_timeout(self.now, &mut self.indices)
    }
}

/// A complete handshake; the first of the two began it and has confirmed it.
fn established() -> (End, End) {
    let (mut a, mut b) = (End::new(1, 2, None), End::new(2, 1, None));
    handshake(&mut a, &mut b);
    (a, b)
}

fn handshake(a: &mut End, b: &mut End) {
    let response = b.respond(&a.initiate()).unwrap();
    a.finish(&response).unwrap();
    let confirmation = a.seal(&[]).unwrap();
    assert_eq!(b.open(&confirmation), Some(vec![]));
}

#[test]
fn packets_cross_after_a_handshake_and_a_copy_is_a_replay() {
    let (mut a, mut b) = established();
    for count in 0..3 {
        let sealed = a.seal(&[count; 20]).unwrap();
        let mut padded = vec![count; 20];
        padded.resize(32, 0);
        assert_eq!(sealed.len(), 32 + OVERHEAD);
        assert_eq!(b.open(&sealed), Some(padded));
        assert_eq!(b.open(&sealed), None);
        let mut changed = b.seal(&[count; 16]).unwrap();
        changed[20] ^= 1;
        assert_eq!(a.open(&changed), None);
        changed[20] ^= 1;
        assert_eq!(a.open(&changed), Some(vec![count; 16]));
    }
}

#[test]
fn the_responder_sends_nothing_before_the_initiator_has_confirmed() {
    let (mut a, mut b) = (End::new(1, 2, None), End::new(2, 1, None));
    let response = b.respond(&a.initiate()).unwrap();
    assert!(!b.session.is_ready() && b.seal(&[]).is_none());
    a.finish(&response).unwrap();
    let confirmation = a.seal(&[]).unwrap();
    b.open(&confirmation).unwrap();
    assert!(b.session.is_ready());
}

#[test]
fn a_preshared_key_has_to_match() {
    for (ours, theirs, fits) in [
        (Some([1; 32]), Some([1; 32]), true),
        (Some([1; 32]), Some([2; 32]), false),
        (Some([1; 32]), None, false),
    ] {
        let (mut a, mut b) = (End::new(1, 2, ours), End::new(2, 1, theirs));
        let response = b.respond(&a.initiate()).unwrap();
        assert_eq!(a.finish(&response).is_ok(), fits);
    }
}

#[test]
fn a_copied_or_changed_handshake_message_is_refused() {
    let (mut a, mut b) = (End::new(1, 2, None), End::new(2, 1, None));
    let initiation = a.initiate();
    let response = b.respond(&initiation).unwrap();
    b.now = b.now + Duration::from_secs(1);
    assert_eq!(b.respond(&initiation), Err(HandshakeError::Replayed));
    let later = a.initiate();
    for at in [4, 20, 60, 100, 120] {
        let mut changed = later.clone();
        changed[at] ^= 1;
        assert!(matches!(b.admit(&changed), Err(Refused::NotOurs)), "{at}");
    }
    // Whoever knows our public key can make the MAC, but not what is under it.
    let mut changed = response.clone();
    changed[50] ^= 1;
    sign(&a.local.public(), None, &mut changed);
    assert_eq!(a.finish(&changed), Err(HandshakeError::Unauthentic));
    a.finish(&response).unwrap();
    assert_eq!(a.finish(&response), Err(HandshakeError::Unknown));
}

/// On a path that is slower than the pause between attempts the answers come in after later attempts were sent.
#[test]
fn answers_to_several_attempts_all_lead_to_keys_that_both_have() {
    let (mut a, mut b) = (End::new(1, 2, None), End::new(2, 1, None));
    let mut responses = Vec::new();
    for _ in 0..3 {
        let initiation = a.initiate();
        a.now = a.now + Duration::from_millis(250);
        b.now = a.now;
        responses.push(b.respond(&initiation).unwrap());
    }
    // The first answer arrives, then the last; the second is lost.
    a.finish(&responses[0]).unwrap();
    let first = a.seal(b"0123456789abcdef").unwrap();
    a.finish(&responses[2]).unwrap();
    let second = a.seal(b"0123456789abcdef").unwrap();
    assert!(b.open(&first).is_some() && b.open(&second).is_some());
    let answer = b.seal(b"0123456789abcdef").unwrap();
    assert!(a.open(&answer).is_some());
    assert_eq!((a.indices.len(), b.indices.len()), (2, 2));
}

#[test]
fn two_that_begin_at_the_same_time_understand_each_other() {
    let (mut a, mut b) = (End::new(1, 2, None), End::new(2, 1, None));
    let (from_a, from_b) = (a.initiate(), b.initiate());
    let (to_a, to_b) = (b.respond(&from_a).unwrap(), a.respond(&from_b).unwrap());
    a.finish(&to_a).unwrap();
    b.finish(&to_b).unwrap();
    for _ in 0..3 {
        let (from_a, from_b) = (a.seal(&[1; 16]).unwrap(), b.seal(&[2; 16]).unwrap());
        assert_eq!(b.open(&from_a), Some(vec![1; 16]));
        assert_eq!(a.open(&from_b), Some(vec![2; 16]));
    }
}

#[test]
fn keys_are_renewed_by_the_initiator_and_if_need_be_by_the_responder() {
    let (mut a, mut b) = established();
    for (end, from, to) in [(&mut a, 120, 125), (&mut b, 150, 155)] {
        assert_eq!(end.wait(Duration::from_secs(from - 1)), Due::default());
        end.seal(&[1]).unwrap();
        assert_eq!(end.wait(Duration::ZERO), Due::default());
        end.wait(Duration::from_secs(to - from + 1));
        assert!(
            !end.session
                .handle_timeout(end.now, &mut end.indices)
                .handshake,
            "not while idle"
        );
        end.seal(&[1]).unwrap();
        assert!(end.session.deadline().unwrap() <= end.now);
        assert!(end.wait(Duration::ZERO).handshake);
    }
}

#[test]
fn packets_under_the_old_keys_still_arrive_after_new_ones_are_there() {
    let (mut a, mut b) = established();
    let late = [a.seal(&[1; 16]).unwrap(), a.seal(&[2; 16]).unwrap()];
    let back = b.seal(&[3; 16]).unwrap();
    a.now = a.now + Duration::from_secs(100);
    b.now = a.now;
    handshake(&mut a, &mut b);
    assert!(late.iter().all(|message| b.open(message).is_some()));
    assert!(a.open(&back).is_some());
    a.now = a.now + REKEY_TIMEOUT;
    b.now = a.now;
    let older = b.seal(&[4; 16]).unwrap();
    handshake(&mut a, &mut b);
    handshake_later(&mut a, &mut b);
    assert_eq!(a.open(&older), None, "two generations are enough");
}

fn handshake_later(a: &mut End, b: &mut End) {
    a.now = a.now + REKEY_TIMEOUT;
    b.now = a.now;
    handshake(a, b);
}

#[test]
fn keys_are_gone_after_three_minutes_and_their_numbers_with_them() {
    let (mut a, mut b) = established();
    let sealed = b.seal(&[1]).unwrap();
    a.now = a.now + Duration::from_secs(180);
    assert!(a.seal(&[1]).is_none() && a.open(&sealed).is_none());
    for end in [&mut a, &mut b] {
        end.now = START;
        assert!(!end.wait(Duration::from_secs(180)).keepalive);
        assert!(!end.session.is_ready());
        assert_eq!((end.indices.len(), end.session.deadline()), (0, None));
    }
}

#[test]
fn a_packet_is_answered_in_ten_seconds_and_silence_noticed_in_fifteen() {
    let (mut a, mut b) = established();
    a.session.reserve(a.now, 1, true).unwrap();
    let sealed = a.seal(&[1]).unwrap();
    b.open(&sealed).unwrap();
    assert_eq!(b.session.deadline(), Some(START + Duration::from_secs(10)));
    assert!(!b.wait(Duration::from_secs(9)).keepalive);
    assert_eq!(
        b.wait(Duration::from_secs(1)),
        Due {
            keepalive: true,
            handshake: false
        }
    );
    assert_eq!(b.wait(Duration::ZERO), Due::default(), "once");
    assert_eq!(a.session.deadline(), Some(START + Duration::from_secs(15)));
    assert_eq!(
        a.wait(Duration::from_secs(15)),
        Due {
            keepalive: false,
            handshake: true
        }
    );
    // What is only about paths is not waited for.
    let (mut a, _) = established();
    a.seal(&[1]).unwrap();
    assert!(!a.wait(Duration::from_secs(20)).handshake);
}

#[test]
fn handshakes_in_flight_and_unconfirmed_sessions_are_bounded() {
    let (mut a, mut b) = (End::new(1, 2, None), End::new(2, 1, None));
    for _ in 0..50 {
        a.now = a.now + INITIATION_INTERVAL;
        b.now = a.now;
        let initiation = a.initiate();
        b.respond(&initiation).unwrap();
    }
    assert_eq!(a.indices.len(), limits::HANDSHAKES_IN_FLIGHT);
    assert_eq!(b.indices.len(), limits::UNCONFIRMED_SESSIONS);
    a.session.release(&mut a.indices);
    b.session.release(&mut b.indices);
    assert_eq!((a.indices.len(), b.indices.len()), (0, 0));
}

#[test]
fn initiations_are_newer_than_each_other_even_if_the_clock_stands_still() {
    let (mut a, mut b) = (End::new(1, 2, None), End::new(2, 1, None));
    for _ in 0..3 {
        let unix = UNIX;
        let initiation = a
            .with(|session, context| session.initiate(context, unix))
            .unwrap();
        b.now = b.now + INITIATION_INTERVAL;
        assert!(b.respond(&initiation).is_ok());
    }
    assert_eq!(
        later_stamp(&[0; 12], Duration::from_nanos(1_000_000_002))[..8],
        0x4000_0000_0000_000b_u64.to_be_bytes()
    );
    assert!(later_stamp(&[0x50; 12], UNIX) > [0x50; 12]);
}

#[test]
fn under_load_a_cookie_is_asked_for_and_works_from_its_address_only() {
    let (mut a, mut b) = (End::new(1, 2, None), End::new(2, 1, None));
    let initiation = a.initiate();
    for _ in 0..HANDSHAKES_PER_SECOND {
        assert!(matches!(b.admit(&initiation), Ok(Admitted::Initiation(_))));
    }
    let Ok(Admitted::Cookie(reply)) = b.admit(&initiation) else {
        panic!("not under load");
    };
    let mut changed = reply;
    changed[40] ^= 1;
    assert_eq!(
        a.session.accept_cookie(START, &changed),
        Err(HandshakeError::Unauthentic)
    );
    assert_eq!(a.session.accept_cookie(START, &reply), Ok(()));
    let signed = a.initiate();
    assert!(matches!(b.admit(&signed), Ok(Admitted::Initiation(_))));
    let elsewhere = SocketAddr::new(SOURCE.ip(), SOURCE.port() + 1);
    assert!(matches!(
        b.local.admit(elsewhere, &signed, START, &mut b.rng),
        Ok(Admitted::Cookie(_))
    ));
    for _ in 1..HANDSHAKES_WITH_COOKIE_PER_SECOND {
        assert!(b.admit(&signed).is_ok());
    }
    assert!(matches!(b.admit(&signed), Err(Refused::Overloaded)));
    b.now = b.now + Duration::from_secs(1);
    assert!(
        matches!(b.admit(&initiation), Ok(Admitted::Initiation(_))),
        "a second later"
    );
}

/// boringtun at the other end.
struct Boring(Tunn);

impl Boring {
    fn new(own: u8, peer: u8, psk: Option<[u8; 32]>) -> Self {
        let peer = PublicKey::from(LocalKey::new(&secret(peer), START).public());
        Self(Tunn::new(
            StaticSecret::from(*secret(own)),
            peer,
            psk,
            None,
            5,
            None,
        ))
    }

    /// What it has to say to a message: `Ok` goes to the network, `Err` to the user.
    fn take(&mut self, message: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let mut out = vec![0; 2_048];
        match self.0.decapsulate(None, message, &mut out) {
            TunnResult::WriteToNetwork(answer) => Ok(answer.to_vec()),
            TunnResult::WriteToTunnelV4(packet, _) => Err(packet.to_vec()),
            TunnResult::Done => Err(vec![]),
            other => panic!("{other:?}"),
        }
    }

    fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 2_048];
        match self.0.encapsulate(packet, &mut out) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    }
}

/// An IPv4 packet of this length; boringtun takes nothing else.
fn packet(length: u16) -> Vec<u8> {
    let mut packet = vec![length as u8; usize::from(length)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet
}

fn exchange(ours: &mut End, theirs: &mut Boring) {
    for length in [20, 21, 35, 36, 100, 576, 1_279, 1_280, 1_420] {
        let message = ours.seal(&packet(length)).unwrap();
        assert_eq!(theirs.take(&message), Err(packet(length)));
        let opened = ours.open(&theirs.seal(&packet(length))).unwrap();
        assert_eq!(opened[..usize::from(length)], packet(length));
    }
}

#[test]
fn as_initiator_we_understand_boringtun() {
    for psk in [None, Some([9; 32])] {
        let (mut ours, mut theirs) = (End::new(1, 2, psk), Boring::new(2, 1, psk));
        for _ in 0..3 {
            ours.now = ours.now + REKEY_TIMEOUT;
            let response = theirs.take(&ours.initiate()).unwrap();
            ours.finish(&response).unwrap();
            let confirmation = ours.seal(&[]).unwrap();
            assert_eq!(theirs.take(&confirmation), Err(vec![]));
            exchange(&mut ours, &mut theirs);
        }
    }
}

#[test]
fn as_responder_we_understand_boringtun() {
    for psk in [None, Some([9; 32])] {
        let (mut ours, mut theirs) = (End::new(1, 2, psk), Boring::new(2, 1, psk));
        for _ in 0..3 {
            ours.now = ours.now + REKEY_TIMEOUT;
            let mut out = vec![0; 2_048];
            let TunnResult::WriteToNetwork(initiation) =
                theirs.0.format_handshake_initiation(&mut out, true)
            else {
                panic!("no initiation");
            };
            let response = ours.respond(initiation).unwrap();
            let confirmation = theirs.take(&response).unwrap();
            assert_eq!(ours.open(&confirmation), Some(vec![]));
            exchange(&mut ours, &mut theirs);
        }
    }
}

#[test]
fn boringtun_takes_our_cookie() {
    let (mut ours, mut theirs) = (End::new(1, 2, None), Boring::new(2, 1, None));
    let mut out = vec![0; 2_048];
    let TunnResult::WriteToNetwork(initiation) =
        theirs.0.format_handshake_initiation(&mut out, true)
    else {
        panic!("no initiation");
    };
    let initiation = initiation.to_vec();
    for _ in 0..HANDSHAKES_PER_SECOND {
        let _ = ours.admit(&initiation);
    }
    let Ok(Admitted::Cookie(reply)) = ours.admit(&initiation) else {
        panic!("no cookie");
    };
    assert_eq!(theirs.take(&reply), Err(vec![]));
    let TunnResult::WriteToNetwork(signed) = theirs.0.format_handshake_initiation(&mut out, true)
    else {
        panic!("no initiation");
    };
    assert!(matches!(ours.admit(signed), Ok(Admitted::Initiation(_))));
}
