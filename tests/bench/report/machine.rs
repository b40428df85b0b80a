//! What it was measured on.

use std::process::Command;

use crate::args::Args;

/// The machine and the run.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// In UTC, such as 2026-01-31.
    pub(crate) date: String,
    pub(crate) iperf3: String,
    /// Runnable processes of others in the last minute before the run: above 0.5 or so, figures suffer.
    pub(crate) load: String,
    /// Of the TCP connections.
    pub(crate) congestion_control: String,
    pub(crate) runs: u32,
    pub(crate) seconds: u32,
}

impl Machine {
    /// Looks at this one. What cannot be found out is named `unknown`.
    pub(crate) fn new(args: &Args) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let cores = std::thread::available_parallelism();
        Self {
            cpu: cpu_model(&info).unwrap_or("unknown").to_owned(),
            cores: cores.map_or(0, Into::into),
            kernel: format!("Linux {}", kernel.trim()),
            date: first_line("date", &["-u", "+%F"]),
            iperf3: first_line("iperf3", &["--version"]),
            load: load.split(' ').next().unwrap_or("unknown").to_owned(),
            congestion_control: args.congestion_control.clone(),
            runs: args.runs(),
            seconds: args.seconds(),
        }
    }

    /// One sentence.
    pub(crate) fn text(&self) -> String {
        format!(
            "{}, {} cores, {}, {}, load average before {}; {} repetitions, TCP ({}) for {} s each",
            self.cpu,
            self.cores,
            self.kernel,
            self.date,
            self.load,
            self.runs,
            self.congestion_control,
            self.seconds
        )
    }
}

fn cpu_model(info: &str) -> Option<&str> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    let (_, model) = lines.find(|(name, _)| name.trim() == "model name")?;
    Some(model.trim())
}

fn first_line(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text.unwrap_or_default().lines().next().map(str::to_owned);
    line.unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_the_first_cpu_is_found() {
        let info = "processor\t: 0\nmodel\t\t: 2\nmodel name\t: A B: C\n\nmodel name\t: D\n";
        assert_eq!(cpu_model(info), Some("A B: C"));
        assert_eq!(cpu_model(""), None);
    }
}
