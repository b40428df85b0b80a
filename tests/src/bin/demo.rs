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
        let time = format!("{:6.2} s", self.started.elapsed().as_secs_f32());
        println!("{}  {text}", self.paint("2", &time));
    }

    fn command(&self, line: &str, output: &str) {
        self.say(&self.paint("1", &format!("a$ {line}")));
        for line in output.lines() {
            println!("          {line}");
        }
    }
}

fn run(lab: &Lab, screen: &Screen) -> Result<()> {
    let mut net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
    net.internet.delay(ONE_WAY)?;
    println!(
        "\n   a ── NAT {} ──┐\n                        ├── internet, {} ms across ── relay {}\n   b ── NAT {} ──┘\n",
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
    let first = std::thread::scope(|scope| -> Result<FirstPings> {
        let watcher = scope.spawn(|| watch(&a));
        let pings = first_pings(&a, overlay, screen);
        let seen = watcher.join().expect("the watcher does not panic");
        let pings = pings?;
        let (relayed, direct) = seen?;
        screen.command("meshctl status", &relayed.1);
        screen.say(&format!("   (as it was {})", ago(relayed.0)));
        println!();
        screen.command("meshctl status", &direct.1);
        screen.say(&format!("   (as it was {})", ago(direct.0)));
        Ok(pings)
    })?;

    let output = a.ctl_ok(&["ping", "b", "-c", "3"])?;
    println!();
    screen.command("meshctl ping b -c 3", &output);
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
        "{} of {} pings were lost after the first answer",
        first.lost,
        first.sent
    );
    screen.say(&format!(
        "{} first ping over the relay, direct {} ms later, {} of {} lost on the way",
        screen.paint("32;1", "OK:"),
        first.until_direct.as_millis(),
        first.lost,
        first.sent
    ));
    Ok(())
}

fn ago(when: Instant) -> String {
    format!("{} ms ago", when.elapsed().as_millis())
}

/// The first `meshctl status` that shows a relayed path, and the first that shows a direct one.
type Seen = ((Instant, String), (Instant, String));

fn watch(a: &Node) -> Result<Seen> {
    let started = Instant::now();
    let mut relayed = None;
    while started.elapsed() < PATIENCE {
        // The table, as a person would see it; the JSON only says which one it is.
        let text = a.ctl_ok(&["status"])?;
        let has = |kind: &str| {
            text.lines()
                .filter(|line| line.starts_with("b ")) // the peer's row, not the line of our home relay
                .any(|line| line.split_whitespace().any(|word| word == kind))
        };
        if has("direct") {
            let relayed = relayed.context("the path was direct at once, never relayed")?;
            return Ok((relayed, (Instant::now(), text)));
        }
        if has("relay") && relayed.is_none() {
            relayed = Some((Instant::now(), text));
        }
    }
    bail!("b was not reached directly within {} s", PATIENCE.as_secs())
}

struct FirstPings {
    path: String,
    until_direct: Duration,
    sent: u32,
    lost: u32,
}

/// `meshctl ping --until-direct`, with ICMP echoes beside it from its first answer on.
fn first_pings(a: &Node, overlay: IpAddr, screen: &Screen) -> Result<FirstPings> {
    let line = "ping b --until-direct";
    screen.say(&screen.paint("1", &format!("a$ meshctl {line}")));
    let mut ctl = Command::new(Lab::binary("meshctl")?);
    ctl.arg("--socket")
        .arg(a.socket_path())
        .args(line.split(' '));
    let (mut child, lines) = start(ctl)?;
    let mut first: Option<(String, Instant)> = None;
    let mut until_direct = None;
    let mut echo = None;
    for line in lines.lines() {
        let line = line?;
        println!("          {line}");
        let Some(path) = pong_path(&line) else {
            continue;
        };
        if let Some((_, since)) = &first {
            until_direct.get_or_insert_with(|| since.elapsed());
        } else {
            first = Some((path, Instant::now()));
            let mut ping = a.ns.command("ping");
            ping.args(["-n", "-i", "0.01", "-W", "2", "-c", &ECHOES.to_string()])
                .arg(overlay.to_string());
            echo = Some(start(ping)?);
        }
    }
    let status = child.wait()?;
    let (path, since) = first.context("no ping was answered")?;
    ensure!(status.success(), "meshctl {line} ended with {status}");
    let (mut child, lines) = echo.context("no ICMP ping ran")?;
    let text = lines.lines().collect::<Result<Vec<_>, _>>()?.join("\n");
    child.wait()?;
    let answered = text
        .lines()
        .filter(|line| line.contains("bytes from"))
        .count();
    let summary = text
        .lines()
        .skip_while(|line| !line.contains("packets transmitted"));
    println!();
    screen.command(
        &format!("ping -i 0.01 -c {ECHOES} {overlay}    # since the first answer above"),
        &summary.collect::<Vec<_>>().join("\n"),
    );
    println!();
    let answered = u32::try_from(answered)?;
    Ok(FirstPings {
        path,
        until_direct: until_direct.unwrap_or_else(|| since.elapsed()),
        sent: ECHOES,
        lost: ECHOES.saturating_sub(answered),
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
