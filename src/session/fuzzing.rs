//! What the fuzzer does with the messages of WireGuard: it changes real ones, and the MAC that everybody can make is made
//! anew, so that its changes get as far as the cryptography. There, any change at all has to be found.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::cipher::{self, Job, Kernel};
use super::front_door::{Admitted, LocalKey, cookie_reply, sign};
use super::{Context, HEADER, HandshakeError, Indices, Session, number};
use crate::peer::PeerIndex;
use crate::rng::Random;
use crate::time::Instant;

const NOW: Instant = Instant::from_boot(Duration::from_secs(1_000));
const UNIX: Duration = Duration::from_secs(1_800_000_000);
const MACS: usize = 32;

struct End {
    local: LocalKey,
    indices: Indices,
    rng: Random,
    session: Session,
}

impl End {
    fn new(own: u8, peer: u8) -> Option<Self> {
        let key = |seed| LocalKey::new(&Zeroizing::new([seed; 32]), NOW);
        let (local, remote) = (key(own), key(peer).public());
        Some(Self {
            session: Session::new(&local, PeerIndex(0), remote, None)?,
            local,
            indices: Indices::default(),
            rng: Random::from_seed([own; 32]),
        })
    }

    fn with<R>(&mut self, run: impl FnOnce(&mut Session, &mut Context<'_>) -> R) -> R {
        let (local, indices, rng) = (&self.local, &mut self.indices, &mut self.rng);
        let mut context = Context {
            local,
            indices,
            rng,
            now: NOW,
        };
        run(&mut self.session, &mut context)
    }

    fn admit(&mut self, message: &[u8]) -> Option<Admitted> {
        let source = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        self.local.admit(source, message, NOW, &mut self.rng).ok()
    }

    fn respond(&mut self, message: &[u8]) -> Option<Result<Vec<u8>, HandshakeError>> {
        let Some(Admitted::Initiation(introduction)) = self.admit(message) else {
            return None;
        };
        let taken =
            self.with(|session, context| session.accept_initiation(context, introduction, message));
        Some(taken.map(|answer| answer.to_vec()))
    }
}

/// Changes `message` by `data`; true if that made a difference before `end`.
fn change(message: &mut [u8], data: &[u8], end: usize) -> bool {
    let mut changed = false;
    for (at, (byte, change)) in message.iter_mut().zip(data).enumerate() {
        *byte ^= change;
        changed |= *change != 0 && at < end;
    }
    changed
}

/// A changed initiation is accepted only if the change is in what is not authenticated: type and MACs are made anew, and
/// the sender's index is no secret of anybody's.
pub fn initiation(data: &[u8]) {
    let (Some(mut a), Some(mut b)) = (End::new(1, 2), End::new(2, 1)) else {
        return;
    };
    let Some(mut message) = a.with(|session, context| session.initiate(context, UNIX)) else {
        return;
    };
    let body = message.len() - MACS;
    let changed = change(&mut message[8..], data, body - 8);
    sign(&b.local.public(), None, &mut message);
    let accepted = b.respond(&message).is_some_and(|taken| taken.is_ok());
    assert_eq!(accepted, !changed);
}

/// As [`initiation`], for the answer to it.
pub fn response(data: &[u8]) {
    let (Some(mut a), Some(mut b)) = (End::new(1, 2), End::new(2, 1)) else {
        return;
    };
    let initiation = a.with(|session, context| session.initiate(context, UNIX));
    let answer = initiation.and_then(|message| b.respond(&message)?.ok());
    let Some(mut message) = answer else { return };
    let body = message.len() - MACS;
    let changed = change(&mut message[12..], data, body - 12);
    sign(&a.local.public(), None, &mut message);
    if !matches!(a.admit(&message), Some(Admitted::Response)) {
        return;
    }
    let taken = a.with(|session, context| session.accept_response(context, &message));
    assert_eq!(taken.is_ok(), !changed);
}

/// A cookie reply is authenticated from its nonce on.
pub fn cookie(data: &[u8]) {
    let (Some(mut a), Some(mut b)) = (End::new(1, 2), End::new(2, 1)) else {
        return;
    };
    let Some(message) = a.with(|session, context| session.initiate(context, UNIX)) else {
        return;
    };
    let mac1 = &message[message.len() - MACS..][..16];
    let public = b.local.public();
    let mut reply = cookie_reply(&public, &[7; 16], &message, mac1, &mut b.rng);
    let end = reply.len() - 8;
    let changed = change(&mut reply[8..], data, end);
    let taken = a.session.accept_cookie(NOW, &reply);
    assert_eq!(taken.is_ok(), !changed);
}

/// A data message: the receiver's index says which session, everything from the counter on is authenticated.
pub fn data(data: &[u8]) {
    let (Some(mut a), Some(mut b)) = (End::new(1, 2), End::new(2, 1)) else {
        return;
    };
    let initiation = a.with(|session, context| session.initiate(context, UNIX));
    let answer = initiation.and_then(|message| b.respond(&message)?.ok());
    let done =
        answer.map(|answer| a.with(|session, context| session.accept_response(context, &answer)));
    let mut message = [0; 256];
    let sealed = a
        .session
        .seal(NOW, Kernel::best(), &[0x45; 100], &mut message);
    let (Some(Ok(())), Some(length)) = (done, sealed) else {
        return;
    };
    let message = &mut message[..length];
    let changed = change(&mut message[8..], data, length - 8);
    let receiver = number(message, 4).unwrap_or_default();
    let Some(key) = b.session.opening(NOW, receiver).map(Arc::clone) else {
        return;
    };
    let counter = super::counter(message).unwrap_or_default();
    let data = &mut message[HEADER..];
    let opened = cipher::open(Kernel::best(), &key, &mut [Job { counter, data }]);
    assert_eq!(opened == 1, !changed);
}
