//! What `meshctl ping` prints.

use std::time::Duration;

use mesh_bus::{PathKind, Pong};

use super::units::{latency, round_trip};

/// One line for one ping; scripts read it.
pub(crate) fn pong(pong: &Pong, waited: Duration) -> String {
    let (name, address) = (&pong.name, pong.address);
    let Some(answer) = &pong.answer else {
        return format!(
            "no answer from {name} ({address}) within {} s",
            waited.as_secs_f64()
        );
    };
    let via = match answer.kind {
        PathKind::Direct => answer.via.clone(),
        PathKind::Relay => format!("relay {}", answer.via),
    };
    format!(
        "pong from {name} ({address}) via {via} in {}",
        round_trip(answer.rtt_ms)
    )
}

/// The statistics at the end, as ping(8) shows them.
pub(crate) fn ping_summary(peer: &str, sent: u32, rtts: &[f64]) -> String {
    let answered = rtts.len();
    let lost = u64::from(sent).saturating_sub(answered as u64) * 100 / u64::from(sent.max(1));
    let mut text = format!("--- {peer} ---\n{sent} sent, {answered} answered, {lost}% lost");
    if answered > 0 {
        let least = rtts.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rtts.iter().copied().fold(0.0, f64::max);
        let mean = rtts.iter().sum::<f64>() / answered as f64;
        text.push_str(&format!(
            "; round trip min {}, avg {}, max {}",
            latency(least),
            latency(mean),
            latency(most)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use mesh_bus::Answer;

    use super::*;

    fn line(kind: PathKind, via: &str, rtt_ms: f64) -> String {
        let document = Pong {
            network: "home".to_owned(),
            id: "id".to_owned(),
            name: "bob".to_owned(),
            address: [10, 77, 0, 2].into(),
            answer: Some(Answer {
                rtt_ms,
                kind,
                via: via.to_owned(),
            }),
        };
        pong(&document, Duration::from_secs(5))
    }

    #[test]
    fn each_answer_names_its_path() {
        assert_eq!(
            line(PathKind::Direct, "203.0.113.7:41820", 12.2),
            "pong from bob (10.77.0.2) via 203.0.113.7:41820 in 12 ms"
        );
        assert_eq!(
            line(PathKind::Relay, "203.0.113.9:443", 0.42),
            "pong from bob (10.77.0.2) via relay 203.0.113.9:443 in 0.4 ms"
        );
    }

    #[test]
    fn silence_is_a_line_too() {
        let silent = Pong {
            network: "home".to_owned(),
            id: "id".to_owned(),
            name: "bob".to_owned(),
            address: [10, 77, 0, 2].into(),
            answer: None,
        };
        assert_eq!(
            pong(&silent, Duration::from_millis(500)),
            "no answer from bob (10.77.0.2) within 0.5 s"
        );
    }

    #[test]
    fn the_summary_counts_what_was_lost() {
        assert_eq!(
            ping_summary("bob", 3, &[12.0, 10.0]),
            "--- bob ---\n3 sent, 2 answered, 33% lost; round trip min 10.0 ms, avg 11.0 ms, max 12.0 ms"
        );
        assert_eq!(
            ping_summary("bob", 1, &[]),
            "--- bob ---\n1 sent, 0 answered, 100% lost"
        );
        assert_eq!(
            ping_summary("bob", 0, &[]),
            "--- bob ---\n0 sent, 0 answered, 0% lost"
        );
    }
}
