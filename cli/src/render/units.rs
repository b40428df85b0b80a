//! Numbers for people.

/// `0.4 ms`, `12 ms`: nobody counts the tenths of a long way.
pub(super) fn round_trip(ms: f64) -> String {
    // 0.96 would be shown as 1.0.
    if ms < 0.95 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// `12.3 ms`, where round trips are compared.
pub(super) fn latency(ms: f64) -> String {
    format!("{ms:.1} ms")
}

/// `1.2 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// `12 s`, `3 min`, `5 h`, `2 d`.
pub(super) fn age(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (ms, text) in [
            (0.04, "0.0 ms"),
            (0.44, "0.4 ms"),
            (0.96, "1 ms"),
            (11.6, "12 ms"),
            (1_234.0, "1234 ms"),
        ] {
            assert_eq!(round_trip(ms), text);
        }
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 KiB"),
            (1_024 * 1_023, "1.0 MiB"),
            (150 << 20, "150 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [
            (-1.0, "0 s"),
            (119.9, "119 s"),
            (120.0, "2 min"),
            (7_200.0, "2 h"),
            (1e6, "11 d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
