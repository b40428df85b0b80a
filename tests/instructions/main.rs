//! `make test-instructions`: counts the instructions of the core's hot paths under callgrind and compares them with
//! `baseline.txt`. Instructions are no time, but they are the same at every run, so that a change shows at once.

#[cfg(feature = "instructions")]
mod cases;
mod compare;
mod valgrind;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;

use compare::{Counts, Verdict, compare};

#[derive(Parser)]
struct Args {
    /// File with the counts to compare with.
    #[arg(long, default_value = "tests/instructions/baseline.txt")]
    baseline: PathBuf,
    /// Write the counts to that file instead.
    #[arg(long)]
    accept: bool,
    /// Do the work of one case and count nothing: what valgrind runs.
    #[arg(long, conflicts_with = "accept")]
    case: Option<String>,
}

/// Name and work of each case.
type Case = (&'static str, fn());

#[cfg(feature = "instructions")]
const CASES: &[Case] = &cases::CASES;
/// The cases need a build of the core that others must not get.
#[cfg(not(feature = "instructions"))]
const CASES: &[Case] = &[];

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.case {
        Some(name) => run(name).map(|()| true),
        None => gate(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str) -> Result<()> {
    let case = CASES.iter().find(|(case, _)| *case == name);
    let (_, work) = case.with_context(|| format!("there is no case {name:?}"))?;
    work();
    Ok(())
}

/// True if no case takes too many instructions.
fn gate(args: &Args) -> Result<bool> {
    if CASES.is_empty() {
        bail!("this build has no cases; use `make test-instructions`");
    }
    if !cfg!(target_arch = "x86_64") {
        println!("instructions: SKIPPED, the baseline is for x86-64");
        return Ok(true);
    }
    let counts = count_all()?;
    let remark = remark();
    if args.accept {
        let text = compare::format(&counts, &remark);
        std::fs::write(&args.baseline, text)
            .with_context(|| format!("cannot write {}", args.baseline.display()))?;
        println!("instructions: {} is written", args.baseline.display());
        return Ok(true);
    }
    let text = std::fs::read_to_string(&args.baseline)
        .with_context(|| format!("cannot read {}", args.baseline.display()))?;
    let baseline = compare::parse(&text).map_err(anyhow::Error::msg)?;
    Ok(report(&baseline, &counts, &text, &remark))
}

fn count_all() -> Result<Counts> {
    let program = std::env::current_exe().context("this program has no path")?;
    let scratch = Scratch::new()?;
    let count = |(case, _): &Case| {
        let count = valgrind::count(&program, case, &scratch.0)?;
        Ok(((*case).to_owned(), count))
    };
    CASES.iter().map(count).collect()
}

/// Prints the table; true if nothing fails.
fn report(baseline: &Counts, counts: &Counts, text: &str, remark: &str) -> bool {
    println!(
        "{:<26} {:>12} {:>12} {:>10}",
        "case", "baseline", "now", "change"
    );
    let rows = compare(baseline, counts);
    for row in &rows {
        println!("{row}");
    }
    let verdicts: Vec<Verdict> = rows.iter().map(compare::Row::verdict).collect();
    let good = !verdicts.iter().any(|verdict| verdict.fails());
    if !good || verdicts.contains(&Verdict::Below) {
        println!(
            "instructions: if this is meant, `make test-instructions ACCEPT=1` makes it the new baseline"
        );
    }
    if !text.contains(remark) {
        println!("instructions: the baseline was made otherwise than with {remark}");
    }
    good
}

/// What else the counts depend on: the compiler, and what valgrind and the C library do for a CPU. Valgrind shows programs
/// one and the same CPU on all that have AVX2, and another one on the others.
fn remark() -> String {
    let tools: [(&str, &[&str]); 3] = [
        ("rustc", &["--version"]),
        ("valgrind", &["--version"]),
        ("getconf", &["GNU_LIBC_VERSION"]),
    ];
    let mut parts: Vec<String> = tools
        .iter()
        .map(|(tool, args)| said(tool, args).unwrap_or_else(|| format!("no {tool}")))
        .collect();
    parts.push(if avx2() { "AVX2" } else { "no AVX2" }.to_owned());
    parts.join(", ")
}

fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

#[cfg(not(target_arch = "x86_64"))]
fn avx2() -> bool {
    false
}

/// A directory of our own that goes with us.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("mesh-instructions-{}", std::process::id()));
        // Fails if it is there: it would be somebody else's.
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // At worst something stays behind in /tmp.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
