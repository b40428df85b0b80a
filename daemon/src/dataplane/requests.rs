//! Pings and netchecks that wait for the engine's answer.

use std::collections::HashMap;

use mesh_core::engine::{NetcheckReport, PongInfo};
use tokio::sync::oneshot;

/// Requests of one kind under way at the same time; more are refused.
const MAX_PENDING: usize = 256;

/// Requests under way, by the token that the engine knows them by.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    last: u64,
    pings: Pending<Option<PongInfo>>,
    netchecks: Pending<NetcheckReport>,
}

impl Requests {
    /// Token for a ping, or `None` when there are too many; the caller's end is closed then.
    pub(crate) fn add_ping(&mut self, reply: oneshot::Sender<Option<PongInfo>>) -> Option<u64> {
        self.last += 1;
        self.pings.add(self.last, reply)
    }

    /// Token for a netcheck, or `None` when there are too many; the caller's end is closed then.
    pub(crate) fn add_netcheck(&mut self, reply: oneshot::Sender<NetcheckReport>) -> Option<u64> {
        self.last += 1;
        self.netchecks.add(self.last, reply)
    }

    /// Answers a ping.
    pub(crate) fn pong(&mut self, token: u64, answer: Option<PongInfo>) {
        self.pings.answer(token, answer);
    }

    /// Answers a netcheck.
    pub(crate) fn netcheck(&mut self, token: u64, report: NetcheckReport) {
        self.netchecks.answer(token, report);
    }
}

#[derive(Debug)]
struct Pending<T>(HashMap<u64, oneshot::Sender<T>>);

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Pending<T> {
    fn add(&mut self, token: u64, reply: oneshot::Sender<T>) -> Option<u64> {
        if self.0.len() >= MAX_PENDING {
            // Whoever gave up waiting makes room: the engine need not answer for that, say when a network is removed.
            self.0.retain(|_, reply| !reply.is_closed());
        }
        if self.0.len() >= MAX_PENDING {
            return None;
        }
        self.0.insert(token, reply);
        Some(token)
    }

    fn answer(&mut self, token: u64, value: T) {
        if let Some(reply) = self.0.remove(&token) {
            // Whoever asked may have given up.
            let _ = reply.send(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_to_who_asked() {
        let mut requests = Requests::default();
        let (first, mut first_answer) = oneshot::channel();
        let (second, mut second_answer) = oneshot::channel();
        let first = requests.add_ping(first).unwrap();
        let second = requests.add_ping(second).unwrap();
        assert_ne!(first, second);
        requests.pong(second, None);
        assert_eq!(second_answer.try_recv(), Ok(None));
        assert!(first_answer.try_recv().is_err());
        requests.pong(second, None);
        requests.pong(first, None);
        assert_eq!(first_answer.try_recv(), Ok(None));
    }

    #[test]
    fn too_many_are_refused_until_someone_gives_up() {
        let mut requests = Requests::default();
        let mut waiting: Vec<_> = (0..MAX_PENDING)
            .map(|_| {
                let (reply, answer) = oneshot::channel();
                requests.add_ping(reply).unwrap();
                answer
            })
            .collect();
        let (reply, mut answer) = oneshot::channel();
        assert_eq!(requests.add_ping(reply), None);
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        waiting.pop();
        let (reply, _answer) = oneshot::channel();
        assert!(requests.add_ping(reply).is_some());
    }
}
