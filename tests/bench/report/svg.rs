//! The chart: bars of TCP throughput, whiskers from the smallest to the largest figure.

use std::fmt::Write as _;

use super::machine::Machine;
use crate::contenders::{MESHD, RAW};
use crate::metric::{Load, Metric};
use crate::results::Results;
use crate::stats::Spread;
use crate::topology::Profile;

const METRIC: Metric = Metric::Tcp(Profile::Plain, Load::One);
const WIDTH: f64 = 760.0;
/// Where names end and bars begin.
const LEFT: f64 = 150.0;
/// Room for the figure behind the longest bar.
const RIGHT: f64 = 150.0;
const TOP: f64 = 84.0;
const ROW: f64 = 34.0;
const BAR: f64 = 18.0;
const BOTTOM: f64 = 30.0;

/// Colours for a light and for a dark screen. The background is its own, since a page may be dark on a light screen.
const STYLE: &str = "
  .page { fill: #ffffff }
  text { font-family: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328; font-size: 14px }
  .title { font-size: 18px; font-weight: 600 }
  .note { font-size: 12px; fill: #59636e }
  .bar { fill: #9aa4af }
  .own { fill: #1f6feb }
  .limit { fill: none; stroke: #9aa4af; stroke-dasharray: 4 3 }
  .whisker { stroke: #1f2328; stroke-width: 1.5; fill: none }
  .axis { stroke: #d1d9e0 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 }
    text { fill: #e6edf3 }
    .note { fill: #9198a1 }
    .bar { fill: #6e7681 }
    .own { fill: #4493f8 }
    .limit { stroke: #6e7681 }
    .whisker { stroke: #e6edf3 }
    .axis { stroke: #3d444d }
  }
";

/// The chart, or nothing when nobody has a figure.
pub(super) fn svg(results: &Results, machine: &Machine) -> Option<String> {
    let bars: Vec<(&str, Spread)> = results
        .rows
        .iter()
        .filter_map(|row| Some((row.name.as_str(), row.spread(METRIC)?)))
        .collect();
    let most = bars
        .iter()
        .map(|(_, spread)| spread.max)
        .max_by(f64::total_cmp)?;
    let height = TOP + ROW * bars.len() as f64 + BOTTOM;
    let scale = (WIDTH - LEFT - RIGHT) / most;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-label=\"TCP throughput of one stream, by tunnel\">\n\
         <style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n\
         <text class=\"title\" x=\"16\" y=\"30\">One TCP stream through a tunnel, Gb/s</text>\n\
         <text class=\"note\" x=\"16\" y=\"50\">{}</text>\n\
         <text class=\"note\" x=\"16\" y=\"66\">Both ends share these cores. Median of {} runs; \
         whiskers: smallest and largest.</text>\n",
        escape(&format!(
            "{}, {} cores, {}, {}",
            machine.cpu, machine.cores, machine.kernel, machine.date
        )),
        machine.runs
    );
    for (number, (name, spread)) in bars.iter().enumerate() {
        bar(&mut text, TOP + ROW * number as f64, name, spread, scale);
    }
    let bottom = height - BOTTOM + 4.0;
    let _ = writeln!(
        text,
        "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{TOP}\" x2=\"{LEFT}\" y2=\"{bottom}\"/>"
    );
    if results.row(RAW).is_some() {
        let _ = writeln!(
            text,
            "<text class=\"note\" x=\"16\" y=\"{:.0}\">raw: the link itself, without any tunnel</text>",
            height - 8.0
        );
    }
    text.push_str("</svg>\n");
    Some(text)
}

fn bar(text: &mut String, top: f64, name: &str, spread: &Spread, scale: f64) {
    let Spread { median, min, max } = *spread;
    let class = match name {
        RAW => "limit",
        _ if name.starts_with(MESHD) => "bar own",
        _ => "bar",
    };
    let at = |figure: f64| LEFT + figure * scale;
    let (width, middle) = (median * scale, top + BAR / 2.0);
    let baseline = middle + 5.0;
    let _ = writeln!(
        text,
        "<text x=\"{:.1}\" y=\"{baseline:.1}\" text-anchor=\"end\">{}</text>\n\
         <rect class=\"{class}\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{BAR}\"/>",
        LEFT - 8.0,
        escape(name)
    );
    let (low, high, tick) = (at(min), at(max), 4.0);
    let _ = writeln!(
        text,
        "<path class=\"whisker\" d=\"M{low:.1} {:.1}v{:.1}M{high:.1} {:.1}v{:.1}M{low:.1} {middle:.1}H{high:.1}\"/>\n\
         <text x=\"{:.1}\" y=\"{baseline:.1}\">{median:.2}<tspan class=\"note\" dx=\"6\">({min:.2}–{max:.2})</tspan></text>",
        middle - tick,
        2.0 * tick,
        middle - tick,
        2.0 * tick,
        high + 8.0
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Row;

    fn machine() -> Machine {
        Machine {
            cpu: "A & B".into(),
            cores: 2,
            kernel: "Linux 6".into(),
            date: "2026-01-31".into(),
            iperf3: "iperf 3".into(),
            congestion_control: "cubic".into(),
            load: "0.1".into(),
            runs: 5,
            seconds: 3,
        }
    }

    #[test]
    fn names_cannot_break_the_markup() {
        assert_eq!(
            escape("<a href=\"x\">&"),
            "&lt;a href=&quot;x&quot;&gt;&amp;"
        );
        let mut row = Row {
            name: "<script>".into(),
            ..Row::default()
        };
        row.add(&[], Ok(vec![(METRIC, 2.0)]));
        let text = svg(&Results { rows: vec![row] }, &machine()).unwrap();
        assert!(text.contains("&lt;script&gt;") && text.contains("A &amp; B"));
        assert!(!text.contains("<script>"));
    }

    #[test]
    fn without_figures_there_is_no_chart() {
        assert_eq!(svg(&Results::default(), &machine()), None);
    }
}
