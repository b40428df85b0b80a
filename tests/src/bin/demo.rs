//! `make demo`: two hosts behind two different NATs, in namespaces, with the programs as they are shipped.
//!
//! Ends with 0 only if the first ping was answered over the relay, later ones directly, and none was lost after the first answer.

use std::io::{BufRead, BufReader, IsTerminal};
use std::net::IpAddr;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::{Lab, Nat, Node, Relay, TwoNats, pong_path};

/// Time from one site to another: half of what a ping over an ordinary access line takes.
const ONE_WAY: Duration = Duration::from_millis(15);
/// Longest that anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);
/// ICMP echo requests that run across the change of paths.
const ECHOES: u32 = 150;

fn main() -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("demo: namespaces and TUN devices need root; run `sudo make demo`");
        return ExitCode::FAILURE;
    }
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("demo: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let screen = Screen::new();
    let outcome = run(&lab, &screen).and_then(|()| lab.check());
    if let Err(error) = outcome {
        eprintln!("{}", lab.log_tails());
        eprintln!("{} {error:#}", screen.paint("31;1", "FAILED:"));
        eprintln!("logs are kept in {}", lab.dir().display());
        return ExitCode::FAILURE;
    }
    lab.remove();
    ExitCode::SUCCESS
}

/// Prints lines with the time since the start.
struct Screen {
    colour: bool,
    started: Instant,
}

impl Screen {
    fn new() -> Self {
        Self {
            colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            started: Instant::now(),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn say(&self, text: &str) {
        self.say_at(Instant::now(), text);
    }

    fn say_at(&self, when: Instant, text: &str) {
        let time = when.saturating_duration_since(self.started);
        let time = format!("{:6.2} s", time.as_secs_f32());
        println!("{}  {text}", self.paint("2", &time));
    }

    fn command(&self, when: Instant, line: &str, output: &str) {
        self.say_at(when, &self.paint("1", &format!("a$ {line}")));
        for line in output.lines() {
            println!("          {line}");
        }
    }
}

fn run(lab: &Lab, screen: &Screen) -> Result<()> {
    let mut net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
    net.internet.delay(ONE_WAY)?;
    println!(
        "\n   a ── NAT {} ──┐\n                         ├── internet, {} ms across ── relay {}\n   b ── NAT {} ──┘\n",
        net.nat_a.wan,
        ONE_WAY.as_millis(),
        net.relay_address,
        net.nat_b.wan
    );
    let relay = Relay::start(lab, &net.relay, net.relay_address)?;
    let (a, b) = Node::pair(lab, &net.a, &net.b, &[&relay.url])?;
    let (mut a, mut b) = (a.quiet(), b.quiet());
    a.start()?;
    b.start()?;
    a.wait_relay(PATIENCE)?;
    b.wait_relay(PATIENCE)?;
    screen.say("relay, a and b are up; neither host has heard of the other's address");
    let overlay = IpAddr::V6(b.overlay()?);

    // The change takes about a tenth of a second: somebody has to look all the time to see the state before it.
    let asked = Instant::now();
    let (pings, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&a));
        let pings = first_pings(&a, overlay);
        (pings, watcher.join().expect("the watcher does not panic"))
    });
    let (first, seen) = (pings?, seen?);
    screen.command(asked, "meshctl ping b --until-direct", &first.pongs);
    println!();
    if let Some((when, table)) = &seen.relayed {
        screen.command(*when, "meshctl status", table);
        println!();
    }
    screen.command(seen.direct.0, "meshctl status", &seen.direct.1);
    println!();
    screen.command(
        first.answered,
        &format!("ping -i 0.01 -c {ECHOES} {overlay}    # since the first answer"),
        &first.echoes,
    );

    println!();
    let asked = Instant::now();
    let output = a.ctl_ok(&["ping", "b", "-c", "3"])?;
    screen.command(asked, "meshctl ping b -c 3", &output);
    let later: Vec<String> = output.lines().filter_map(pong_path).collect();
    let stopped = (a.stop(), b.stop());
    stopped.0?;
    stopped.1?;

    println!();
    ensure!(
        first.path.starts_with("relay"),
        "the first ping was answered via {}, not over the relay",
        first.path
    );
    ensure!(
        later.len() == 3,
        "{} of 3 later pings were answered",
        later.len()
    );
    let direct = format!("{}:", net.nat_b.wan);
    ensure!(
        later.iter().all(|path| path.starts_with(&direct)),
        "later pings came via {later:?}, not {direct}…"
    );
    ensure!(
        first.lost == 0,
        "{} of {ECHOES} pings were lost after the first answer",
        first.lost
    );
    let until_direct = seen.direct.0.saturating_duration_since(first.answered);
    screen.say(&format!(
        "{} first ping over the relay, direct {} ms later, {} of {ECHOES} lost on the way",
        screen.paint("32;1", "OK:"),
        until_direct.as_millis(),
        first.lost
    ));
    Ok(())
}

/// A `meshctl status` and when it was printed.
type Look = (Instant, String);

/// The first `meshctl status` that shows a relayed path, if a look fell into that time, and the first that shows a direct one.
struct Seen {
    relayed: Option<Look>,
    direct: Look,
}

fn watch(a: &Node) -> Result<Seen> {
    let started = Instant::now();
    let mut relayed = None;
    while started.elapsed() < PATIENCE {
        let text = a.ctl_ok(&["status"])?;
        // The peer's row, not the line of our home relay.
        let row = text.lines().find(|line| line.starts_with("b "));
        let has =
            |kind: &str| row.is_some_and(|row| row.split_whitespace().any(|word| word == kind));
        if has("direct") {
            let direct = (Instant::now(), text);
            return Ok(Seen { relayed, direct });
        }
        if has("relay") && relayed.is_none() {
            relayed = Some((Instant::now(), text));
        }
    }
    bail!("b was not reached directly within {} s", PATIENCE.as_secs())
}

struct FirstPings {
    /// What `meshctl` printed.
    pongs: String,
    /// The way of the first answer.
    path: String,
    /// When that came.
    answered: Instant,
    /// The summary of `ping`.
    echoes: String,
    lost: u32,
}

/// `meshctl ping --until-direct`, with ICMP echoes beside it from its first answer on.
fn first_pings(a: &Node, overlay: IpAddr) -> Result<FirstPings> {
    let mut ctl = Command::new(Lab::binary("meshctl")?);
    ctl.arg("--socket")
        .arg(a.socket_path())
        .args(["ping", "b", "--until-direct"]);
    let (mut child, lines) = start(ctl)?;
    let mut pongs = String::new();
    let mut first = None;
    for line in lines.lines() {
        let line = line?;
        pongs += &format!("{line}\n");
        if let (Some(path), None) = (pong_path(&line), &first) {
            let mut ping = a.ns.command("ping");
            ping.args(["-n", "-i", "0.01", "-W", "2", "-c", &ECHOES.to_string()])
                .arg(overlay.to_string());
            first = Some((path, Instant::now(), start(ping)?));
        }
    }
    let status = child.wait()?;
    ensure!(
        status.success(),
        "meshctl ping ended with {status}:\n{pongs}"
    );
    let (path, answered, (mut child, lines)) = first.context("no ping was answered")?;
    let lines = lines.lines().collect::<Result<Vec<_>, _>>()?;
    child.wait()?;
    let echoes = lines.iter().filter(|line| line.contains("bytes from"));
    let lost = ECHOES.saturating_sub(u32::try_from(echoes.count())?);
    let summary = lines
        .iter()
        .skip_while(|line| !line.contains("packets transmitted"));
    Ok(FirstPings {
        pongs,
        path,
        answered,
        echoes: summary.map(|line| format!("{line}\n")).collect(),
        lost,
    })
}

fn start(mut command: Command) -> Result<(Child, BufReader<ChildStdout>)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().context("a pipe")?;
    Ok((child, BufReader::new(stdout)))
}
