//! HTTP/1.1 (RFC 9112) as far as Prometheus needs it to fetch metrics: one request, one answer, then the end.

use std::net::IpAddr;

use super::prometheus::CONTENT_TYPE;
use crate::limits;

/// Where the metrics are.
pub const PATH: &str = "/metrics";

/// Why a request gets no metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is not HTTP/1.1.
    Malformed,
    /// It asks for something else.
    NotFound,
    /// It wants something else done than to get it.
    NotGet,
    /// It was meant for somebody else.
    Misdirected,
    /// It is longer than [`limits::METRICS_REQUEST`].
    TooLarge,
    /// The metrics cannot be had just now.
    Unavailable,
}

impl Refusal {
    const fn status(self) -> &'static str {
        match self {
            Self::Malformed => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::NotGet => "405 Method Not Allowed\r\nAllow: GET",
            Self::Misdirected => "421 Misdirected Request",
            Self::TooLarge => "431 Request Header Fields Too Large",
            Self::Unavailable => "503 Service Unavailable",
        }
    }

    const fn explanation(self) -> &'static str {
        match self {
            Self::Malformed => "This is not an HTTP/1.1 request.\n",
            Self::NotFound => "There is nothing here but /metrics.\n",
            Self::NotGet => "There is nothing to be done here but GET /metrics.\n",
            Self::Misdirected => {
                "This listens to its own host alone: ask for an IP address or localhost.\n"
            }
            Self::TooLarge => "The request is too large.\n",
            Self::Unavailable => "The daemon is busy or stopping.\n",
        }
    }

    /// The whole answer.
    pub fn response(self) -> Vec<u8> {
        response(
            self.status(),
            "text/plain; charset=utf-8",
            self.explanation(),
        )
    }
}

/// The whole answer with the metrics.
pub fn metrics_response(metrics: &str) -> Vec<u8> {
    response("200 OK", CONTENT_TYPE, metrics)
}

fn response(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Reads what has arrived of a request: `None` if more has to come, else whether it gets the metrics.
///
/// `local`: it came to a loopback address. Then it has to be asked for by an address or as `localhost`: else a web page
/// could have its own host name lead here, and a browser on this host would let it read the answer.
pub fn read_request(bytes: &[u8], local: bool) -> Option<Result<(), Refusal>> {
    let full = bytes.len() >= limits::METRICS_REQUEST;
    let bytes = bytes.get(..limits::METRICS_REQUEST).unwrap_or(bytes);
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return full.then_some(Err(Refusal::TooLarge));
    };
    let head = bytes.get(..end).and_then(|head| str::from_utf8(head).ok());
    Some(
        head.ok_or(Refusal::Malformed)
            .and_then(|head| judge(head, local)),
    )
}

fn judge(head: &str, local: bool) -> Result<(), Refusal> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::Malformed);
    };
    let known = matches!(version, "HTTP/1.1" | "HTTP/1.0");
    if method.is_empty() || !method.bytes().all(is_token) || !known {
        return Err(Refusal::Malformed);
    }
    let host = host(lines)?;
    // RFC 9112, section 3.2; HTTP/1.0 knows no such field.
    if host.is_none() && version == "HTTP/1.1" {
        return Err(Refusal::Malformed);
    }
    // RFC 9112, section 3.2.2: as proxies ask; what it names counts more than the field.
    let (host, target) = match target.strip_prefix("http://") {
        Some(rest) => {
            let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            (Some(name), path)
        }
        None => (host, target),
    };
    let path = target.split('?').next().unwrap_or_default();
    match () {
        () if local && !host.is_none_or(is_local) => Err(Refusal::Misdirected),
        () if path != PATH => Err(Refusal::NotFound),
        () if method != "GET" => Err(Refusal::NotGet),
        () => Ok(()),
    }
}

/// The one `Host` field among well-formed others.
fn host<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Option<&'a str>, Refusal> {
    let mut host = None;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Refusal::Malformed)?;
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(Refusal::Malformed);
        }
        if name.eq_ignore_ascii_case("host") && host.replace(value.trim()).is_some() {
            return Err(Refusal::Malformed);
        }
    }
    Ok(host)
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// True for an IP address or `localhost`, with or without a port.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost") || bare.unwrap_or(name).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9586\r\nAccept: */*\r\n\r\n";

    fn read(text: &str) -> Option<Result<(), Refusal>> {
        read_request(text.as_bytes(), true)
    }

    #[test]
    fn a_request_for_the_metrics_is_understood_when_it_is_all_there() {
        for end in 0..GOOD.len() {
            assert_eq!(read(&GOOD[..end]), None, "{end}");
        }
        assert_eq!(read(GOOD), Some(Ok(())));
        assert_eq!(read(&GOOD.replace("metrics", "metrics?x=y")), Some(Ok(())));
        assert_eq!(read("GET /metrics HTTP/1.0\r\n\r\n"), Some(Ok(())));
        let absolute = GOOD.replace("/metrics", "http://[::1]:9586/metrics");
        assert_eq!(read(&absolute), Some(Ok(())));
    }

    #[test]
    fn anything_else_is_refused_by_what_it_is() {
        for (from, to, refusal) in [
            ("/metrics", "/", Refusal::NotFound),
            ("/metrics", "/metrics/", Refusal::NotFound),
            ("/metrics", "http://127.0.0.1", Refusal::NotFound),
            (
                "/metrics",
                "http://evil.example/metrics",
                Refusal::Misdirected,
            ),
            ("GET", "POST", Refusal::NotGet),
            ("GET", "get", Refusal::NotGet),
            ("GET", "G\u{e9}T", Refusal::Malformed),
            ("GET", "", Refusal::Malformed),
            ("HTTP/1.1", "HTTP/2", Refusal::Malformed),
            (" HTTP/1.1", "", Refusal::Malformed),
            ("Host: 127.0.0.1:9586", "Accept: x", Refusal::Malformed),
            ("Accept:", "Host:", Refusal::Malformed),
            ("Accept:", "Accept", Refusal::Malformed),
            ("Accept:", " folded:", Refusal::Malformed),
        ] {
            assert_eq!(
                read(&GOOD.replacen(from, to, 1)),
                Some(Err(refusal)),
                "{from} {to}"
            );
        }
    }

    #[test]
    fn a_name_that_a_web_page_could_have_is_no_name_of_this_host() {
        let host = |name: &str| GOOD.replace("127.0.0.1:9586", name);
        for good in [
            "localhost",
            "LOCALHOST:1",
            "[::1]:9586",
            "[::1]",
            "10.1.2.3",
        ] {
            assert_eq!(read(&host(good)), Some(Ok(())), "{good}");
        }
        for bad in [
            "evil.example:9586",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
        ] {
            assert_eq!(read(&host(bad)), Some(Err(Refusal::Misdirected)), "{bad}");
            let abroad = read_request(host(bad).as_bytes(), false);
            assert_eq!(abroad, Some(Ok(())), "{bad}");
        }
    }

    #[test]
    fn a_request_has_a_bound() {
        let long = |length: usize| {
            let line = format!("X: {}\r\n\r\n", "y".repeat(length));
            GOOD.replace("Accept: */*\r\n\r\n", &line)
        };
        assert_eq!(read(&long(4_000)), Some(Ok(())));
        let large = Some(Err(Refusal::TooLarge));
        assert_eq!(read(&long(limits::METRICS_REQUEST)), large);
        assert_eq!(read(&"x".repeat(limits::METRICS_REQUEST)), large);
        assert_eq!(read(&"x".repeat(limits::METRICS_REQUEST - 1)), None);
    }

    #[test]
    fn answers_say_how_long_they_are_and_that_they_are_the_last() {
        let text = String::from_utf8(metrics_response("x 1\n")).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"));
        assert!(text.contains("\r\nContent-Length: 4\r\n") && text.contains("Connection: close"));
        assert!(text.ends_with("\r\n\r\nx 1\n"));
        let text = String::from_utf8(Refusal::NotGet.response()).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n"),
            "{text}"
        );
    }
}
