//! The text format in which Prometheus reads metrics, version 0.0.4.

use std::fmt::{self, Write as _};
use std::time::Duration;

/// Its media type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the program starts anew. Its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// A value of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A count.
    Count(u64),
    /// A time in seconds, the base unit.
    Seconds(f64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Seconds(seconds) => seconds.fmt(f),
        }
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Count(yes.into())
    }
}

impl From<Duration> for Value {
    fn from(time: Duration) -> Self {
        Self::Seconds(time.as_secs_f64())
    }
}

/// A text with metrics that grows.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// One metric; its samples differ in their labels.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Exposition {
    /// Begins a metric. Each has a name of its own, and all its samples follow it at once.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        debug_assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
        let text = &mut self.text;
        text.push_str("# HELP ");
        text.push_str(name);
        text.push(' ');
        escape(text, help, false);
        // Writing to a string cannot fail.
        let _ = write!(text, "\n# TYPE {name} {}\n", kind.as_str());
        Family { text, name }
    }

    /// A metric with one sample and no labels.
    pub fn single(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Into<Value>) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// Adds a sample; no two have the same labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) {
        let text = &mut *self.text;
        text.push_str(self.name);
        for (at, (name, content)) in labels.iter().enumerate() {
            text.push(if at == 0 { '{' } else { ',' });
            text.push_str(name);
            text.push_str("=\"");
            escape(text, content, true);
            text.push('"');
        }
        if !labels.is_empty() {
            text.push('}');
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, " {}", value.into());
    }
}

fn escape(text: &mut String, content: &str, quoted: bool) {
    for character in content.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quoted => text.push_str("\\\""),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_help_type_and_samples() {
        let mut out = Exposition::default();
        let mut drops = out.family("x_drops_total", Kind::Counter, "Packets dropped.");
        drops.sample(&[("reason", "too_big"), ("network", "home")], 7_u64);
        drops.sample(&[("reason", "replayed")], 0_usize);
        out.single(
            "x_rtt_seconds",
            Kind::Gauge,
            "Time.",
            Duration::from_micros(1_500),
        );
        out.single("x_up", Kind::Gauge, "Up.", true);
        assert_eq!(
            out.finish(),
            "# HELP x_drops_total Packets dropped.\n# TYPE x_drops_total counter\n\
             x_drops_total{reason=\"too_big\",network=\"home\"} 7\nx_drops_total{reason=\"replayed\"} 0\n\
             # HELP x_rtt_seconds Time.\n# TYPE x_rtt_seconds gauge\nx_rtt_seconds 0.0015\n\
             # HELP x_up Up.\n# TYPE x_up gauge\nx_up 1\n"
        );
    }

    #[test]
    fn labels_cannot_break_out_of_their_line() {
        let mut out = Exposition::default();
        let mut odd = out.family("x", Kind::Gauge, "A\\B\n\"C\"");
        odd.sample(&[("name", "a\"} 1\nb\\n\u{e9}")], 1_u64);
        assert_eq!(
            out.finish(),
            "# HELP x A\\\\B\\n\"C\"\n# TYPE x gauge\nx{name=\"a\\\"} 1\\nb\\\\n\u{e9}\"} 1\n"
        );
    }

    #[test]
    fn times_are_plain_numbers_however_long_or_short() {
        let shown = |time: Duration| Value::from(time).to_string();
        assert_eq!(shown(Duration::ZERO), "0");
        assert_eq!(shown(Duration::from_nanos(100)), "0.0000001");
        assert_eq!(shown(Duration::from_secs(1 << 40)), "1099511627776");
    }
}
