//! The matrix in words and figures.

use std::fmt::Write as _;

use super::goals::Goal;
use super::run::{End, Means};
use super::sweep::Result;
use super::times::Times;

/// The page, without what is wrong: that is for who runs it.
pub(super) fn page(results: &[Result]) -> String {
    let mut text = String::from(
        "# Who reaches whom through which NAT\n\n\
         Written by `make nat-matrix-docs`; `make nat-matrix` runs the same and writes nothing. Two real engines and a real \
         relay server\nrun in virtual time behind modelled routers (`tests/src/sim`): lines of 10 ms, which makes a round \
         trip of 40 ms from host to\nhost. A cell is a pair of routers; a run is one seed. Terms are RFC 4787's: mapping / \
         filtering, and, where the mapping depends\non the destination, how external ports are chosen. Times are from the \
         first answer, which comes over the relay, until both ends\nsend directly.\n\n\
         ![How each pair ends](nat-matrix.svg)\n\n\
         ## By goal\n\n\
         | goal | cells | runs | direct | relayed | median | worst | most mappings of one router |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for goal in Goal::ALL {
        let of_goal: Vec<&Result> = results.iter().filter(|one| one.cell.goal == goal).collect();
        if !of_goal.is_empty() {
            summary(&mut text, goal, &of_goal);
        }
    }
    text.push_str(
        "\n## By what opened the path\n\n| means | runs | median | worst |\n|---|--:|--:|--:|\n",
    );
    for means in Means::ALL {
        by_means(&mut text, means, results);
    }
    for (goal, title) in [
        (Goal::Birthday, "Pairs that chance opens"),
        (Goal::Prediction, "Pairs that a prediction opens"),
    ] {
        let _ = write!(
            text,
            "\n## {title}\n\n| pair | runs | direct | by | median | worst |\n|---|--:|--:|---|--:|--:|\n"
        );
        for result in results.iter().filter(|one| one.cell.goal == goal) {
            line(&mut text, result);
        }
    }
    text
}

fn summary(text: &mut String, goal: Goal, results: &[&Result]) {
    let runs: usize = results.iter().map(|one| one.runs.len()).sum();
    let ended = |end| {
        let runs = results.iter().flat_map(|one| one.outcomes());
        runs.filter(|run| run.end == end).count()
    };
    let times = Times::of(results.iter().flat_map(|one| one.times()));
    let mappings = results.iter().flat_map(|one| one.outcomes());
    let mappings = mappings.flat_map(|run| run.mappings).max();
    let _ = writeln!(
        text,
        "| {goal} | {} | {runs} | {} | {} | {} | {} |",
        results.len(),
        ended(End::Direct),
        ended(End::Relay),
        Times::columns(times),
        mappings.unwrap_or(0)
    );
}

fn by_means(text: &mut String, means: Means, results: &[Result]) {
    let outcomes = results.iter().flat_map(Result::outcomes);
    let runs: Vec<_> = outcomes.filter(|run| run.means == Some(means)).collect();
    let times = Times::of(runs.iter().filter_map(|run| run.took));
    let _ = writeln!(
        text,
        "| {means} | {} | {} |",
        runs.len(),
        Times::columns(times)
    );
}

fn line(text: &mut String, result: &Result) {
    let runs = result.runs.len();
    let share = 100.0 * result.direct() as f64 / runs.max(1) as f64;
    let by = result.means().map_or("–", Means::as_str);
    let times = Times::columns(Times::of(result.times()));
    let _ = writeln!(
        text,
        "| {} | {runs} | {share:.1} % | {by} | {times} |",
        result.cell
    );
}
