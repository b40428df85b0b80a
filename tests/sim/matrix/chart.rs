//! The matrix as a picture: one square for each pair, coloured by what opened the path.

use std::fmt::Write as _;

use super::edges::{Edge, awkward, distinct, faces, open};
use super::run::{End, Means};
use super::sweep::Result;
use super::times::{Times, shown};

const CELL: usize = 17;
/// Room for the names of rows, and for the slanted names of columns.
const LEFT: usize = 280;
const NAMES: usize = 130;
const TOP: usize = 84;
const RIGHT: usize = 110;
const GAP: usize = 24;
const BOTTOM: usize = 20;

/// Colours for a light and for a dark screen. The background is its own, since a page may be dark on a light screen.
const STYLE: &str = "
  .page { fill: #ffffff }
  text { font-family: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328; font-size: 11px }
  .title { font-size: 18px; font-weight: 600 }
  .note { font-size: 12px; fill: #59636e }
  .plain { fill: #1f6feb }
  .prediction { fill: #2da44e }
  .birthday { fill: #d4a72c }
  .relay { fill: #d1d9e0 }
  .nothing { fill: #57606a }
  .missed { fill: none; stroke: #cf222e; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 }
    text { fill: #e6edf3 }
    .note { fill: #9198a1 }
    .plain { fill: #4493f8 }
    .prediction { fill: #3fb950 }
    .birthday { fill: #d29922 }
    .relay { fill: #3d444d }
    .nothing { fill: #21262d }
    .missed { stroke: #ff7b72 }
  }
";

/// The chart of these results; what was not run stays empty.
pub(super) fn svg(results: &[Result]) -> String {
    let plain: Vec<Edge> = open().into_iter().chain(distinct()).collect();
    let mut others = awkward();
    others.push(Edge::Blocked);
    let second = TOP + NAMES + CELL * plain.len() + GAP;
    let width = LEFT + CELL * plain.len() + RIGHT;
    let height = second + NAMES + CELL * others.len() + BOTTOM;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" aria-label=\"How two hosts reach each other, by their NATs\">\n\
         <style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n\
         <text class=\"title\" x=\"16\" y=\"30\">How two hosts reach each other, by their NATs</text>\n"
    );
    legend(&mut text);
    grid(&mut text, TOP, &plain, &plain, results);
    grid(&mut text, second, &others, &faces(), results);
    text.push_str("</svg>\n");
    text
}

fn legend(text: &mut String) {
    let mut x = 16;
    let kinds = Means::ALL.map(|means| (class_of(means), means.as_str()));
    let others = [
        ("relay", "relay"),
        ("nothing", "nothing: no relay without UDP yet"),
    ];
    for (class, name) in kinds.into_iter().chain(others) {
        let _ = writeln!(
            text,
            "<rect class=\"{class}\" x=\"{x}\" y=\"47\" width=\"12\" height=\"12\"/>\
             <text class=\"note\" x=\"{}\" y=\"57\">{name}</text>",
            x + 17
        );
        x += 40 + 7 * name.len();
    }
    let _ = writeln!(
        text,
        "<rect class=\"missed\" x=\"{x}\" y=\"47\" width=\"12\" height=\"12\"/>\
         <text class=\"note\" x=\"{}\" y=\"57\">goal missed</text>",
        x + 17
    );
}

fn grid(text: &mut String, top: usize, rows: &[Edge], columns: &[Edge], results: &[Result]) {
    let first = top + NAMES;
    for (at, column) in columns.iter().enumerate() {
        let (x, y) = (LEFT + CELL * at + CELL / 2, first - 6);
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"{y}\" transform=\"rotate(-60 {x} {y})\">{column}</text>"
        );
    }
    for (at, row) in rows.iter().enumerate() {
        let y = first + CELL * at;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{row}</text>",
            LEFT - 7,
            y + 12
        );
        for (at, column) in columns.iter().enumerate() {
            let of_cell = |one: &&Result| {
                let cell = one.cell;
                (cell.a, cell.b) == (*row, *column) || (cell.a, cell.b) == (*column, *row)
            };
            if let Some(result) = results.iter().find(of_cell) {
                square(text, LEFT + CELL * at, y, result);
            }
        }
    }
}

fn square(text: &mut String, x: usize, y: usize, result: &Result) {
    let class = match (result.means(), result.most()) {
        (Some(means), _) => class_of(means),
        (None, Some(End::Nothing) | None) => "nothing",
        (None, _) => "relay",
    };
    let times = Times::of(result.times()).map_or_else(String::new, |times| {
        format!(
            ", median {}, worst {}",
            shown(times.median),
            shown(times.worst)
        )
    });
    let _ = writeln!(
        text,
        "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{side}\" height=\"{side}\">\
         <title>{}: {} of {} direct{times}</title></rect>",
        x + 1,
        y + 1,
        result.cell,
        result.direct(),
        result.runs.len(),
        side = CELL - 2
    );
    if result.complaint().is_some() {
        let _ = writeln!(
            text,
            "<rect class=\"missed\" x=\"{}\" y=\"{}\" width=\"{side}\" height=\"{side}\"/>",
            x + 2,
            y + 2,
            side = CELL - 4
        );
    }
}

const fn class_of(means: Means) -> &'static str {
    match means {
        Means::Plain => "plain",
        Means::Prediction => "prediction",
        Means::Birthday => "birthday",
    }
}
