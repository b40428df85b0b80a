//! What a person sees while waiting: a spinner on a terminal, one line elsewhere, nothing within the first second.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Shorter waits need no explanation.
const PATIENCE: Duration = Duration::from_secs(1);
const FRAMES: [char; 4] = ['|', '/', '-', '\\'];

/// A wait for something; what was drawn goes away with it.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    started: Instant,
    terminal: bool,
    drawn: usize,
}

impl Progress {
    /// `what` completes "waiting for".
    pub(crate) fn new(what: String) -> Self {
        Self {
            what,
            started: Instant::now(),
            terminal: io::stderr().is_terminal(),
            drawn: 0,
        }
    }

    /// To be called a few times each second.
    pub(crate) fn tick(&mut self) {
        let waited = self.started.elapsed();
        if waited < PATIENCE || (!self.terminal && self.drawn > 0) {
            return;
        }
        let frame = FRAMES[self.drawn % FRAMES.len()];
        self.drawn += 1;
        // Nobody depends on it.
        let _ = if self.terminal {
            write!(
                io::stderr(),
                "\r{frame} waiting for {}, {} s ",
                self.what,
                waited.as_secs()
            )
        } else {
            writeln!(io::stderr(), "waiting for {}", self.what)
        };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.drawn > 0 {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
