//! `meshctl ping`.

use std::time::Duration;

use mesh_bus::{PathKind, Pong};
use tokio::time::{Instant, sleep_until};

use crate::args::Global;
use crate::client::{Client, document};
use crate::exit::Failure;
use crate::{output, render};

/// What was asked for.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) peer: String,
    /// 0 for no end.
    pub(super) count: u32,
    pub(super) wait: Duration,
    pub(super) interval: Duration,
    pub(super) until_direct: bool,
}

pub(super) async fn run(client: &Client, global: &Global, plan: Plan) -> Result<(), Failure> {
    let mut tally = Tally::default();
    let interrupted = tokio::select! {
        result = pings(client, global, &plan, &mut tally) => {
            result?;
            false
        }
        _ = tokio::signal::ctrl_c() => true,
    };
    if !global.json {
        output::text(&tally.summary(&plan.peer))?;
    }
    tally.verdict(&plan, interrupted)
}

async fn pings(
    client: &Client,
    global: &Global,
    plan: &Plan,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let network = global.network.as_deref().unwrap_or_default();
    let millis = plan.wait.as_millis().clamp(1, 60_000) as u32;
    let mut next = Instant::now();
    while plan.count == 0 || tally.sent < plan.count {
        sleep_until(next).await;
        next = Instant::now() + plan.interval;
        let pong: Pong = document(client.mesh().ping(network, &plan.peer, millis)).await?;
        if global.json {
            output::document_line(&pong)?;
        } else {
            output::text(&render::pong(&pong, plan.wait))?;
        }
        tally.sent += 1;
        tally.count(&pong);
        if plan.until_direct && tally.direct {
            break;
        }
    }
    Ok(())
}

/// What came of the pings.
#[derive(Debug, Default)]
struct Tally {
    sent: u32,
    rtts: Vec<f64>,
    direct: bool,
}

impl Tally {
    fn count(&mut self, pong: &Pong) {
        if let Some(answer) = &pong.answer {
            // Without an end, the statistics are of the first ones.
            if self.rtts.len() < 1 << 20 {
                self.rtts.push(answer.rtt_ms);
            }
            self.direct |= answer.kind == PathKind::Direct;
        }
    }

    fn summary(&self, peer: &str) -> String {
        render::ping_summary(peer, self.sent, &self.rtts)
    }

    fn verdict(&self, plan: &Plan, interrupted: bool) -> Result<(), Failure> {
        let peer = &plan.peer;
        if self.rtts.is_empty() {
            return Err(match self.sent {
                0 => Failure::failed("interrupted before the first ping was over; try again"),
                _ => Failure::failed(format!("{peer} did not answer; see: meshctl status")),
            });
        }
        if plan.until_direct && !self.direct {
            let until = if interrupted {
                "until now".to_owned()
            } else {
                format!("within {} pings", self.sent)
            };
            return Err(Failure::failed(format!(
                "{peer} answered, but over no direct path {until}; see: meshctl netcheck"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mesh_bus::Answer;

    use super::*;

    fn pong(kind: Option<PathKind>) -> Pong {
        Pong {
            network: "home".to_owned(),
            id: "id".to_owned(),
            name: "bob".to_owned(),
            address: [10, 77, 0, 2].into(),
            answer: kind.map(|kind| Answer {
                rtt_ms: 12.0,
                kind,
                via: "203.0.113.7:41820".to_owned(),
            }),
        }
    }

    fn verdict(until_direct: bool, answers: &[Option<PathKind>]) -> Result<(), Failure> {
        let plan = Plan {
            peer: "bob".to_owned(),
            count: 10,
            wait: Duration::from_secs(5),
            interval: Duration::from_secs(1),
            until_direct,
        };
        let mut tally = Tally::default();
        for answer in answers {
            tally.sent += 1;
            tally.count(&pong(*answer));
        }
        tally.verdict(&plan, false)
    }

    #[test]
    fn one_answer_is_enough() {
        assert_eq!(verdict(false, &[None, Some(PathKind::Relay), None]), Ok(()));
        assert!(verdict(false, &[None, None]).is_err());
    }

    #[test]
    fn until_direct_takes_a_direct_answer() {
        assert_eq!(
            verdict(true, &[Some(PathKind::Relay), Some(PathKind::Direct)]),
            Ok(())
        );
        assert!(verdict(true, &[Some(PathKind::Relay)]).is_err());
    }
}
