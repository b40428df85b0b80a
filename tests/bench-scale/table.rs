//! Figures beside their goals.

use std::fmt;

/// Median, smallest and largest of some figures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Of at least one figure.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let median = if figures.len().is_multiple_of(2) {
            f64::midpoint(figures[middle - 1], figures[middle])
        } else {
            figures[middle]
        };
        Self {
            median,
            low: figures[0],
            high: figures[figures.len() - 1],
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        write!(
            f,
            "{:.digits$} ({:.digits$}–{:.digits$})",
            self.median, self.low, self.high
        )
    }
}

/// What a figure has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// For information.
    None,
}

impl Goal {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(least) => figure >= least,
            Self::AtMost(most) => figure <= most,
            Self::None => true,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
            Self::None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Row {
    what: String,
    unit: &'static str,
    figure: Spread,
    goal: Goal,
}

/// All figures of a run of the program.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    /// Adds a figure, whose median counts, and shows it at once.
    pub(crate) fn add(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        figure: Spread,
        goal: Goal,
    ) {
        let row = Row {
            what: what.into(),
            unit,
            figure,
            goal,
        };
        println!("{row}");
        self.0.push(row);
    }

    pub(crate) fn holds(&self) -> bool {
        self.0.iter().all(Row::holds)
    }
}

impl Row {
    fn holds(&self) -> bool {
        self.goal.holds(self.figure.median)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.goal {
            Goal::None => "",
            _ if self.holds() => "pass",
            _ => "MISSED",
        };
        write!(
            f,
            "{:<52} {:>26} {:<12} {:>8} {verdict}",
            self.what,
            self.figure.to_string(),
            self.unit,
            self.goal.to_string()
        )
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<52} {:>26} {:<12} {:>8}",
            "", "median (range)", "", "goal"
        )?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}
