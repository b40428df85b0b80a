use super::*;

fn knock(world: &mut World, conn: ConnId, port: u16) {
    let txn = [5; 12];
    world.say(conn, ClientMessage::Knock { port, txn });
}

#[test]
fn a_knock_goes_to_the_address_that_the_client_has_proved_and_to_no_other() {
    let mut world = World::open();
    let a = world.client(1, 1, A);
    // Its packets come from elsewhere now, which may be a forgery, and is not proved yet.
    world.server.handle_address(world.now, a, address(B));
    world.drain();
    knock(&mut world, a, 40_000);
    let to = SocketAddr::new(address(A).ip(), 40_000);
    let (txn, mapped) = ([5; 12], to);
    let [(sent_to, payload)] = &world.knocks[..] else {
        panic!("{:?}", world.knocks);
    };
    assert_eq!(*sent_to, to);
    assert_eq!(
        stun::parse(payload),
        Ok(stun::Message::Response { txn, mapped })
    );
    let nonce = world.challenges[0].1;
    world.say(a, ClientMessage::ProveAddress { nonce });
    knock(&mut world, a, 40_001);
    assert_eq!(world.knocks[1].0, SocketAddr::new(address(B).ip(), 40_001));
}

#[test]
fn who_was_not_admitted_cannot_make_the_relay_knock() {
    let mut world = World::open();
    let stranger = ConnId(9);
    world
        .server
        .handle_connected(START, stranger, node(9), address(A));
    knock(&mut world, stranger, 40_000);
    knock(&mut world, ConnId(77), 40_000);
    assert_eq!(world.knocks, []);
    assert_eq!(world.closed, [(stranger, CloseReason::Protocol)]);
}

#[test]
fn knocks_are_no_larger_than_what_asks_for_them_and_limited_together_with_answers_from_other_ports()
{
    let mut world = World::open();
    let a = world.client(1, 1, A);
    let mut asked = Vec::new();
    let (port, txn) = (40_000, [5; 12]);
    ClientMessage::Knock { port, txn }.encode(&mut asked);
    for _ in 0..100 {
        knock(&mut world, a, 40_000);
    }
    assert_eq!(world.knocks.len() as u64, limits::RELAY_KNOCKS.1);
    assert!(
        world
            .knocks
            .iter()
            .all(|(_, payload)| payload.len() <= asked.len())
    );
    let dropped = Verdict::Dropped(DropReason::StunLimit);
    assert_eq!(world.stun(Socket::Main, A, Change::Port), dropped);
    world.wait(Duration::from_secs(1));
    let before = world.knocks.len() as u64;
    for _ in 0..100 {
        knock(&mut world, a, 40_000);
    }
    assert_eq!(world.knocks.len() as u64, before + limits::RELAY_KNOCKS.0);
}
