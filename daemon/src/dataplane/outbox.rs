//! The bounded queue from the data thread to the rest of the daemon.

use std::collections::HashMap;

use mesh_core::engine::{Event, LanAction, NetworkIndex, PortMapAction, RelayAction, RelayHandle};
use mesh_core::limits;
use tokio::sync::mpsc;

use super::{DialId, FromData};

/// Places kept for what must not be lost: a dial and a hangup for each possible relay connection.
const RESERVED: usize = 2 * limits::MAX_NETWORKS * limits::MAX_RELAYS;
/// Places in all.
const CAPACITY: usize = RESERVED + 3_072;

/// The message did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// The sending end; never waits.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: mpsc::Sender<FromData>,
    /// The dial that is in force for each connection; none after a hangup.
    dials: HashMap<RelayHandle, u64>,
    last_dial: u64,
}

impl Outbox {
    /// The two ends.
    pub(crate) fn new() -> (Self, mpsc::Receiver<FromData>) {
        let (queue, receiver) = mpsc::channel(CAPACITY);
        let outbox = Self {
            queue,
            dials: HashMap::new(),
            last_dial: 0,
        };
        (outbox, receiver)
    }

    /// True if the engine still wants to hear of this dial.
    pub(crate) fn is_current(&self, id: DialId) -> bool {
        self.dials.get(&id.relay) == Some(&id.dial)
    }

    /// Passes on what the engine wants done about a relay connection.
    ///
    /// A dial that is refused is forgotten: the engine has to be told that it failed.
    pub(crate) fn relay(&mut self, relay: RelayHandle, action: RelayAction) -> Result<(), Full> {
        let dial = match action {
            RelayAction::Dial { .. } => {
                self.last_dial += 1;
                self.dials.insert(relay, self.last_dial);
                Some(self.last_dial)
            }
            RelayAction::Send(_) | RelayAction::Hasten(_) => self.dials.get(&relay).copied(),
            RelayAction::Hangup => self.dials.remove(&relay),
        };
        // Nothing to say to a connection that was never dialled.
        let Some(dial) = dial else { return Ok(()) };
        let id = DialId { relay, dial };
        if matches!(action, RelayAction::Send(_) | RelayAction::Hasten(_)) {
            return self.push_if_room(FromData::Relay(id, action));
        }
        let is_dial = matches!(action, RelayAction::Dial { .. });
        self.push(FromData::Relay(id, action)).inspect_err(|_| {
            if is_dial {
                self.dials.remove(&relay);
            }
        })
    }

    /// Passes on what the engine has to say to a router; may be lost, but for whether there is something to give back.
    pub(crate) fn port_map(&mut self, action: PortMapAction) -> Result<(), Full> {
        match action {
            PortMapAction::Held(_) => self.push(FromData::PortMap(action)),
            _ => self.push_if_room(FromData::PortMap(action)),
        }
    }

    /// Passes on what is to be said on our links, which may be lost, and where to listen.
    pub(crate) fn lan(&mut self, action: LanAction) -> Result<(), Full> {
        match action {
            LanAction::Listen(_) => self.push(FromData::Lan(action)),
            LanAction::Send { .. } => self.push_if_room(FromData::Lan(action)),
        }
    }

    /// Passes on an event; may be lost.
    pub(crate) fn event(&mut self, event: Event) -> Result<(), Full> {
        self.push_if_room(FromData::Event(event))
    }

    /// Reports that a network has lost its device.
    pub(crate) fn tun_lost(&mut self, network: NetworkIndex) -> Result<(), Full> {
        self.push(FromData::TunLost(network))
    }

    fn push_if_room(&mut self, message: FromData) -> Result<(), Full> {
        if self.queue.capacity() <= RESERVED {
            return Err(Full);
        }
        self.push(message)
    }

    fn push(&mut self, message: FromData) -> Result<(), Full> {
        match self.queue.try_send(message) {
            Ok(()) => Ok(()),
            // The daemon is on its way out.
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Full),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::identity::{Identity, RelayUrl};
    use mesh_core::wire::relay::ClientMessage;

    use super::*;

    const RELAY: RelayHandle = RelayHandle(7);

    fn dial() -> RelayAction {
        RelayAction::Dial {
            network: NetworkIndex(0),
            url: RelayUrl {
                id: Identity::from_seed([1; 32].into()).id(),
                host: "192.0.2.1".to_owned(),
                port: 443,
            },
        }
    }

    fn ping() -> RelayAction {
        RelayAction::Send(ClientMessage::Ping { nonce: 1 })
    }

    #[test]
    fn a_dial_and_a_hangup_fit_when_messages_no_longer_do() {
        let (mut outbox, mut receiver) = Outbox::new();
        outbox.relay(RELAY, dial()).unwrap();
        while outbox.relay(RELAY, ping()).is_ok() {}
        assert_eq!(
            outbox.event(Event::HealthChanged {
                network: NetworkIndex(0)
            }),
            Err(Full)
        );
        assert_eq!(outbox.relay(RELAY, RelayAction::Hangup), Ok(()));
        assert_eq!(outbox.relay(RELAY, dial()), Ok(()));
        let mut last = None;
        while let Ok(message) = receiver.try_recv() {
            last = Some(message);
        }
        assert!(matches!(
            last,
            Some(FromData::Relay(_, RelayAction::Dial { .. }))
        ));
    }

    #[test]
    fn a_refused_dial_is_forgotten() {
        let (mut outbox, _receiver) = Outbox::new();
        for handle in 0..CAPACITY as u32 {
            outbox.relay(RelayHandle(handle), dial()).unwrap();
        }
        let last = RelayHandle(CAPACITY as u32);
        assert_eq!(outbox.relay(last, dial()), Err(Full));
        assert!(!outbox.dials.contains_key(&last));
    }

    #[test]
    fn news_of_an_earlier_dial_is_told_apart() {
        let (mut outbox, mut receiver) = Outbox::new();
        let mut id_of_next = || match receiver.try_recv() {
            Ok(FromData::Relay(id, _)) => id,
            other => panic!("{other:?}"),
        };
        outbox.relay(RELAY, dial()).unwrap();
        let first = id_of_next();
        assert!(outbox.is_current(first));
        outbox.relay(RELAY, RelayAction::Hangup).unwrap();
        assert_eq!(id_of_next(), first);
        assert!(!outbox.is_current(first));
        outbox.relay(RELAY, dial()).unwrap();
        let second = id_of_next();
        assert!(outbox.is_current(second) && !outbox.is_current(first));
    }

    #[test]
    fn messages_without_a_connection_go_nowhere() {
        let (mut outbox, mut receiver) = Outbox::new();
        outbox.relay(RELAY, ping()).unwrap();
        outbox.relay(RELAY, RelayAction::Hangup).unwrap();
        assert!(receiver.try_recv().is_err());
    }
}
