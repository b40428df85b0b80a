//! HTTP/1.1 (RFC 9112) as far as UPnP needs it: one request, one bounded answer, no redirects.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::WireError;

/// Bytes of an answer that are read, head and body; descriptions of devices have some kilobytes.
pub const MAX_RESPONSE: usize = 64 * 1024;
/// Bytes of its head.
const MAX_HEAD: usize = 8 * 1024;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, without any transfer coding.
    pub body: Vec<u8>,
}

/// How the end of the body is told (RFC 9112, section 6.3).
enum Framing {
    Length(usize),
    Chunked,
    End,
}

/// A request; `action` and `body` make it a SOAP call.
pub fn request(to: SocketAddr, path: &str, call: Option<(&str, &str)>) -> Vec<u8> {
    let method = if call.is_some() { "POST" } else { "GET" };
    // Without any IPv6 scope, which means nothing to the other side.
    let host = SocketAddr::new(to.ip(), to.port());
    let mut text = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: meshd UPnP/1.1\r\n"
    );
    if let Some((action, body)) = call {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"{action}\"\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
    } else {
        text.push_str("\r\n");
    }
    text.into_bytes()
}

impl Response {
    /// Reads what has arrived so far; `ended` when nothing follows. `None` if it is not all there yet.
    ///
    /// # Errors
    ///
    /// When it cannot become an answer, or is larger than [`MAX_RESPONSE`].
    pub fn parse(bytes: &[u8], ended: bool) -> Result<Option<Self>, WireError> {
        if bytes.len() > MAX_RESPONSE {
            return Err(WireError::TooLarge);
        }
        let Some(end) = find(bytes, b"\r\n\r\n") else {
            return match (bytes.len() > MAX_HEAD, ended) {
                (true, _) => Err(WireError::TooLarge),
                (false, true) => Err(WireError::Truncated),
                (false, false) => Ok(None),
            };
        };
        let (head, rest) = bytes.split_at(end);
        let rest = rest.get(4..).unwrap_or_default();
        let head = str::from_utf8(head).map_err(|_| WireError::Invalid("head"))?;
        let mut lines = head.split("\r\n");
        let status = status(lines.next().unwrap_or_default())?;
        let body = match framing(lines)? {
            Framing::Length(length) if length > MAX_RESPONSE => return Err(WireError::TooLarge),
            Framing::Length(length) => rest.get(..length).map(<[u8]>::to_vec),
            Framing::Chunked => dechunk(rest)?,
            Framing::End => ended.then(|| rest.to_vec()),
        };
        match body {
            Some(body) => Ok(Some(Self { status, body })),
            None if ended => Err(WireError::Truncated),
            None => Ok(None),
        }
    }
}

fn status(line: &str) -> Result<u16, WireError> {
    let mut words = line.split(' ');
    let version = words.next().unwrap_or_default();
    let code = words.next().unwrap_or_default();
    let plain = version.starts_with("HTTP/1.") && code.len() == 3;
    let code = code.parse().ok().filter(|code| plain && *code >= 200);
    code.ok_or(WireError::Invalid("status line"))
}

fn framing<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Framing, WireError> {
    let mut framing = Framing::End;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(WireError::Invalid("header"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(WireError::Invalid("transfer coding"));
            }
            framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case("content-length")
            && !matches!(framing, Framing::Chunked)
        {
            let length = value
                .parse()
                .map_err(|_| WireError::Invalid("content length"))?;
            framing = Framing::Length(length);
        }
    }
    Ok(framing)
}

/// RFC 9112, section 7.1; `None` if the last chunk has not come. Trailers are not waited for.
fn dechunk(mut rest: &[u8]) -> Result<Option<Vec<u8>>, WireError> {
    let mut body = Vec::new();
    loop {
        let Some(end) = find(rest, b"\r\n") else {
            return Ok(None);
        };
        let line = rest.get(..end).and_then(|line| str::from_utf8(line).ok());
        let size = line.and_then(|line| line.split(';').next()).map(str::trim);
        let size = size.and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.ok_or(WireError::Invalid("chunk"))?;
        if size == 0 {
            return Ok(Some(body));
        }
        if size > MAX_RESPONSE {
            return Err(WireError::TooLarge);
        }
        let from = end + 2;
        let Some(chunk) = rest.get(from..from + size) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        match rest.get(from + size..) {
            Some([b'\r', b'\n', tail @ ..]) => rest = tail,
            Some([] | [b'\r']) => return Ok(None),
            _ => return Err(WireError::Invalid("chunk")),
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(body: &[u8]) -> Result<Option<Response>, WireError> {
        Ok(Some(Response {
            status: 200,
            body: body.to_vec(),
        }))
    }

    #[test]
    fn a_call_has_a_head_a_length_and_a_body() {
        let to = "192.168.1.1:5000".parse().unwrap();
        assert_eq!(
            String::from_utf8(request(to, "/ctl", Some(("urn:x#Do", "<x/>")))).unwrap(),
            "POST /ctl HTTP/1.1\r\nHost: 192.168.1.1:5000\r\nConnection: close\r\nUser-Agent: meshd UPnP/1.1\r\n\
             Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"urn:x#Do\"\r\nContent-Length: 4\r\n\r\n<x/>"
        );
        assert!(request(to, "/d.xml", None).starts_with(b"GET /d.xml HTTP/1.1\r\n"));
    }

    #[test]
    fn an_answer_ends_where_its_head_says() {
        let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<x/>";
        for end in 0..sized.len() {
            assert_eq!(Response::parse(&sized[..end], false), Ok(None), "{end}");
            assert!(Response::parse(&sized[..end], true).is_err(), "{end}");
        }
        assert_eq!(Response::parse(sized, false), ok(b"<x/>"));
        let open = b"HTTP/1.0 200 OK\r\n\r\n<x/>";
        assert_eq!(Response::parse(open, false), Ok(None));
        assert_eq!(Response::parse(open, true), ok(b"<x/>"));
    }

    #[test]
    fn chunks_are_joined() {
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n<x\r\n2;a=b\r\n/>\r\n0\r\n\r\n";
        assert_eq!(Response::parse(chunked, false), ok(b"<x/>"));
        for end in 0..chunked.len() - 4 {
            assert_eq!(Response::parse(&chunked[..end], false), Ok(None), "{end}");
        }
        for bad in [
            "fffffffffffffffff\r\n",
            "-1\r\n",
            "2\r\n<xy\r\n",
            "10001\r\n",
        ] {
            let text = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{bad}");
            assert!(Response::parse(text.as_bytes(), false).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_too_large_or_no_answer_is_refused_early() {
        let huge = vec![b'x'; MAX_RESPONSE + 1];
        assert_eq!(Response::parse(&huge, false), Err(WireError::TooLarge));
        assert_eq!(
            Response::parse(&huge[..MAX_HEAD + 1], false),
            Err(WireError::TooLarge)
        );
        let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n";
        assert_eq!(Response::parse(sized, false), Err(WireError::TooLarge));
        for bad in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 2\r\n\r\n",
        ] {
            assert!(Response::parse(bad.as_bytes(), false).is_err(), "{bad}");
        }
    }
}
