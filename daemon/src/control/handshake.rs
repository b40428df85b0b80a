//! The server's side of D-Bus authentication (D-Bus Specification, "Authentication Protocol"), mechanism EXTERNAL only.
//!
//! The kernel has told who is there; the client may only claim the same. It is a state machine over bytes: it does no
//! I/O, it takes at most [`MAX_BYTES`], and it never panics, whatever the client sends.

/// Bytes that a client may send before `BEGIN`: an honest one needs about 60.
const MAX_BYTES: usize = 1_024;

/// What the client is, and how far it got.
#[derive(Debug)]
pub(super) struct Handshake {
    uid: u32,
    guid: String,
    buffer: Vec<u8>,
    taken: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The NUL byte that starts every connection.
    Nul,
    /// A mechanism.
    Auth,
    /// Who the client claims to be, after `AUTH EXTERNAL` without it.
    Data,
    /// `BEGIN`.
    Begin,
}

/// What to do after a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send what [`Handshake::receive`] wrote, then read on.
    More,
    /// Send what it wrote; the client is who it claims to be, and these bytes belong to its first message.
    Done(Vec<u8>),
}

/// What came is not the authentication protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a D-Bus client")]
pub(super) struct Garbage;

impl Handshake {
    /// For a client that the kernel says is `uid`; `guid` is the server's.
    pub(super) fn new(uid: u32, guid: &str) -> Self {
        Self {
            uid,
            guid: guid.to_owned(),
            buffer: Vec::new(),
            taken: 0,
            state: State::Nul,
        }
    }

    /// Takes bytes from the client, appends the answer to `answer`.
    ///
    /// # Errors
    ///
    /// Then the connection is to be closed without any answer.
    pub(super) fn receive(&mut self, bytes: &[u8], answer: &mut Vec<u8>) -> Result<Step, Garbage> {
        self.buffer.extend_from_slice(bytes);
        if self.state == State::Nul {
            match self.buffer.first() {
                None => return Ok(Step::More),
                Some(0) => drop(self.buffer.drain(..1)),
                Some(_) => return Err(Garbage),
            }
            self.state = State::Auth;
        }
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            self.taken += line.len();
            if self.taken > MAX_BYTES {
                return Err(Garbage);
            }
            let line = line.strip_suffix(b"\r\n").ok_or(Garbage)?;
            let line = std::str::from_utf8(line).map_err(|_| Garbage)?;
            if self.command(line, answer)? {
                return Ok(Step::Done(std::mem::take(&mut self.buffer)));
            }
        }
        if self.taken + self.buffer.len() > MAX_BYTES {
            return Err(Garbage);
        }
        Ok(Step::More)
    }

    /// One line; true after `BEGIN`.
    fn command(&mut self, line: &str, answer: &mut Vec<u8>) -> Result<bool, Garbage> {
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        match (self.state, command) {
            (State::Auth, "AUTH") => match argument.split_once(' ').unwrap_or((argument, "")) {
                ("EXTERNAL", "") => {
                    self.state = State::Data;
                    answer.extend_from_slice(b"DATA\r\n");
                }
                ("EXTERNAL", claim) => self.judge(claim, answer),
                _ => self.reject(answer),
            },
            (State::Data, "DATA") => self.judge(argument, answer),
            (State::Begin, "BEGIN") => return Ok(true),
            (State::Auth | State::Data | State::Begin, "CANCEL" | "ERROR") => self.reject(answer),
            // A client may ask for what we do not have; file descriptors, for example.
            (State::Auth | State::Data | State::Begin, "NEGOTIATE_UNIX_FD" | "AUTH" | "DATA") => {
                answer.extend_from_slice(b"ERROR\r\n");
            }
            _ => return Err(Garbage),
        }
        Ok(false)
    }

    /// Nothing claimed means: whoever the kernel says.
    fn judge(&mut self, claim: &str, answer: &mut Vec<u8>) {
        if claim.is_empty() || claim == hexadecimal(&self.uid.to_string()) {
            self.state = State::Begin;
            answer.extend_from_slice(format!("OK {}\r\n", self.guid).as_bytes());
        } else {
            self.reject(answer);
        }
    }

    fn reject(&mut self, answer: &mut Vec<u8>) {
        self.state = State::Auth;
        answer.extend_from_slice(b"REJECTED EXTERNAL\r\n");
    }
}

fn hexadecimal(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "0123456789abcdef0123456789abcdef";

    fn talk(pieces: &[&[u8]]) -> (Result<Step, Garbage>, String) {
        let mut handshake = Handshake::new(1_000, GUID);
        let mut answer = Vec::new();
        let mut last = Ok(Step::More);
        for piece in pieces {
            last = handshake.receive(piece, &mut answer);
            if last != Ok(Step::More) {
                break;
            }
        }
        (last, String::from_utf8(answer).unwrap())
    }

    #[test]
    fn a_pipelining_client_is_let_in_with_its_first_message() {
        let (step, answer) =
            talk(&[b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\nl\x01\n"]);
        assert_eq!(step, Ok(Step::Done(b"l\x01\n".to_vec())));
        assert_eq!(answer, format!("OK {GUID}\r\nERROR\r\n"));
    }

    #[test]
    fn a_client_that_sends_byte_by_byte_is_let_in() {
        let all = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";
        let pieces: Vec<&[u8]> = all.chunks(1).collect();
        let (step, answer) = talk(&pieces);
        assert_eq!(step, Ok(Step::Done(Vec::new())));
        assert_eq!(answer, format!("DATA\r\nOK {GUID}\r\n"));
    }

    #[test]
    fn a_client_that_claims_to_be_another_user_is_rejected() {
        let (step, answer) = talk(&[b"\0AUTH EXTERNAL 30\r\n"]);
        assert_eq!(
            (step, answer.as_str()),
            (Ok(Step::More), "REJECTED EXTERNAL\r\n")
        );
        let (step, _) = talk(&[b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n"]);
        assert_eq!(step, Err(Garbage));
    }

    #[test]
    fn other_mechanisms_are_rejected() {
        for line in ["AUTH", "AUTH ANONYMOUS", "AUTH DBUS_COOKIE_SHA1 726f6f74"] {
            let (step, answer) = talk(&[b"\0", line.as_bytes(), b"\r\n"]);
            assert_eq!(
                (step, answer.as_str()),
                (Ok(Step::More), "REJECTED EXTERNAL\r\n")
            );
        }
    }

    #[test]
    fn what_is_no_authentication_is_garbage() {
        let cases: [&[u8]; 7] = [
            b"\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0\n",
            b"\0\r\n",
            b"\0BEGIN\r\n",
            b"\0AUTH \xff\xfe\r\n",
            b"\0AUTH EXTERNAL 31303030\n",
        ];
        for bytes in cases {
            assert_eq!(talk(&[bytes]).0, Err(Garbage), "{bytes:?}");
        }
    }

    #[test]
    fn nobody_can_send_more_than_the_bound() {
        let mut handshake = Handshake::new(1_000, GUID);
        let mut answer = Vec::new();
        assert_eq!(handshake.receive(b"\0", &mut answer), Ok(Step::More));
        assert_eq!(
            handshake.receive(&[b'a'; MAX_BYTES + 1], &mut answer),
            Err(Garbage)
        );

        let mut handshake = Handshake::new(1_000, GUID);
        assert_eq!(handshake.receive(b"\0", &mut answer), Ok(Step::More));
        let ended = (0..1_000).any(|_| handshake.receive(b"CANCEL\r\n", &mut answer).is_err());
        assert!(ended && answer.len() < 20 * MAX_BYTES);
    }
}
