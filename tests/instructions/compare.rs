//! Counts beside their baseline.

use std::collections::BTreeMap;
use std::fmt;

/// A count that is so much above its baseline, in percent, fails. Compilers and C libraries of one year differ by less.
const TOLERANCE: f64 = 10.0;

/// Instructions by case.
pub(crate) type Counts = BTreeMap<String, u64>;

/// What became of one case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// More instructions than allowed.
    Above,
    /// So few that the baseline no longer says anything.
    Below,
    /// There is no baseline.
    New,
    /// There is a baseline, and no count.
    Missing,
}

impl Verdict {
    pub(crate) fn fails(self) -> bool {
        matches!(self, Self::Above | Self::New | Self::Missing)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Good => "",
            Self::Above => "TOO MANY",
            Self::Below => "far fewer: lower the baseline",
            Self::New => "NO BASELINE",
            Self::Missing => "NOT COUNTED",
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    case: String,
    baseline: Option<u64>,
    now: Option<u64>,
}

impl Row {
    /// In percent of the baseline.
    fn change(&self) -> Option<f64> {
        let (baseline, now) = (self.baseline? as f64, self.now? as f64);
        Some((now - baseline) / baseline.max(1.0) * 100.0)
    }

    pub(crate) fn verdict(&self) -> Verdict {
        match (self.change(), self.now) {
            (Some(change), _) if change > TOLERANCE => Verdict::Above,
            (Some(change), _) if change < -TOLERANCE => Verdict::Below,
            (Some(_), _) => Verdict::Good,
            (None, Some(_)) => Verdict::New,
            (None, None) => Verdict::Missing,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
        let change = self
            .change()
            .map_or("-".to_owned(), |change| format!("{change:+.2} %"));
        let line = format!(
            "{:<26} {:>12} {:>12} {:>10}  {}",
            self.case,
            number(self.baseline),
            number(self.now),
            change,
            self.verdict().as_str()
        );
        f.write_str(line.trim_end())
    }
}

/// Every case of either side.
pub(crate) fn compare(baseline: &Counts, now: &Counts) -> Vec<Row> {
    let mut cases: Vec<&String> = baseline.keys().chain(now.keys()).collect();
    cases.sort();
    cases.dedup();
    let row = |case: &String| Row {
        case: case.clone(),
        baseline: baseline.get(case).copied(),
        now: now.get(case).copied(),
    };
    cases.into_iter().map(row).collect()
}

/// Reads a baseline: a case and its count in each line, `#` before remarks.
pub(crate) fn parse(text: &str) -> Result<Counts, String> {
    let mut counts = Counts::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (case, count) = match fields[..] {
            [] => continue,
            [case, count] => (case, count.parse::<u64>().ok()),
            _ => (line, None),
        };
        let known = counts.contains_key(case);
        match count {
            Some(count) if count > 0 && !known => counts.insert(case.to_owned(), count),
            _ => {
                let line = number + 1;
                return Err(format!("line {line}: want a case, once, and its count"));
            }
        };
    }
    Ok(counts)
}

/// A baseline that [`parse`] reads; `remark` says how it came about.
pub(crate) fn format(counts: &Counts, remark: &str) -> String {
    let mut text = format!("# {remark}\n");
    for (case, count) in counts {
        text += &format!("{case} {count}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(cases: &[(&str, u64)]) -> Counts {
        let owned = |(case, count): &(&str, u64)| ((*case).to_owned(), *count);
        cases.iter().map(owned).collect()
    }

    #[track_caller]
    fn verdict(baseline: &[(&str, u64)], now: &[(&str, u64)]) -> Verdict {
        let rows = compare(&counts(baseline), &counts(now));
        assert_eq!(rows.len(), 1);
        rows[0].verdict()
    }

    #[test]
    fn a_case_fails_from_more_than_ten_percent_above_its_baseline() {
        assert_eq!(verdict(&[("a", 1_000)], &[("a", 1_000)]), Verdict::Good);
        assert_eq!(verdict(&[("a", 1_000)], &[("a", 1_100)]), Verdict::Good);
        assert_eq!(verdict(&[("a", 1_000)], &[("a", 1_101)]), Verdict::Above);
        assert!(Verdict::Above.fails() && !Verdict::Good.fails());
    }

    #[test]
    fn a_case_far_below_its_baseline_is_told_and_does_not_fail() {
        assert_eq!(verdict(&[("a", 1_000)], &[("a", 900)]), Verdict::Good);
        assert_eq!(verdict(&[("a", 1_000)], &[("a", 899)]), Verdict::Below);
        assert!(!Verdict::Below.fails());
        let rows = compare(&counts(&[("a", 1_000)]), &counts(&[("a", 500)]));
        let line = rows[0].to_string();
        assert!(
            line.ends_with("-50.00 %  far fewer: lower the baseline"),
            "{line}"
        );
    }

    #[test]
    fn a_case_on_one_side_only_fails() {
        assert_eq!(verdict(&[], &[("a", 1)]), Verdict::New);
        assert_eq!(verdict(&[("a", 1)], &[]), Verdict::Missing);
        assert!(Verdict::New.fails() && Verdict::Missing.fails());
    }

    #[test]
    fn each_case_is_judged_by_its_own_baseline() {
        let rows = compare(
            &counts(&[("a", 1_000), ("b", 10), ("gone", 5)]),
            &counts(&[("a", 1_050), ("b", 1_050), ("new", 5)]),
        );
        let verdicts: Vec<_> = rows
            .iter()
            .map(|row| (row.case.as_str(), row.verdict()))
            .collect();
        let expected = [
            ("a", Verdict::Good),
            ("b", Verdict::Above),
            ("gone", Verdict::Missing),
            ("new", Verdict::New),
        ];
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let counts = counts(&[("a", 1), ("b-2", 18_000_000_000)]);
        assert_eq!(parse(&format(&counts, "made by hand")), Ok(counts));
    }

    #[test]
    fn a_baseline_with_a_mistake_is_refused_with_its_line() {
        for bad in ["a", "a b", "a 1 2", "a 0", "a -1", "a 1\na 1"] {
            let line = bad.lines().count() + 1;
            let error = parse(&format!("# remark\n{bad}\n")).unwrap_err();
            assert!(error.starts_with(&format!("line {line}:")), "{error}");
        }
    }
}
