//! SSDP (UPnP Device Architecture 2.0, section 1): looks for internet gateway devices on the link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::WireError;

/// The port of SSDP.
pub const PORT: u16 = 1900;
/// The group that is asked over IPv4.
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// The group that is asked over IPv6, on the link alone.
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc);
/// Answers are one packet.
const MAX_RESPONSE: usize = 1_500;
/// Longest path of a URL that is followed.
const MAX_PATH: usize = 512;

/// Devices of later versions answer to the first one as well (UPnP Device Architecture 2.0, section 1.3.2).
const TARGET: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";

/// An `http` URL with an address in the place of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// The host's address and port.
    pub address: SocketAddr,
    /// The path, with its leading slash, and the query.
    pub path: String,
}

/// The request for internet gateway devices, to a group or to one host. They answer within a second.
pub fn search_request(to: SocketAddr) -> Vec<u8> {
    // The interface is of no interest to anybody else.
    let host = SocketAddr::new(to.ip(), to.port());
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {host}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {TARGET}\r\n\r\n"
    )
    .into_bytes()
}

/// Reads an answer: where the description of the device is.
///
/// # Errors
///
/// When it is none, or not about an internet gateway device.
pub fn parse_response(datagram: &[u8]) -> Result<Url, WireError> {
    if datagram.len() > MAX_RESPONSE {
        return Err(WireError::TooLarge);
    }
    let text = str::from_utf8(datagram).map_err(|_| WireError::Invalid("text"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let mut words = status.split(' ');
    let version = words.next().unwrap_or_default();
    if !version.starts_with("HTTP/1.") || words.next() != Some("200") {
        return Err(WireError::Invalid("status line"));
    }
    let (mut location, mut target) = (None, None);
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else {
            return Err(WireError::Invalid("header"));
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("location") {
            location = Some(value);
        } else if name.eq_ignore_ascii_case("st") {
            target = Some(value);
        }
    }
    if target != Some(TARGET) {
        return Err(WireError::Invalid("search target"));
    }
    let location = location.ok_or(WireError::Invalid("location"))?;
    Url::parse(location).ok_or(WireError::Invalid("location"))
}

impl Url {
    /// Reads `http://address[:port][/path]`. Names are not accepted: whoever answers for them may be anywhere.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_at_checked(7)?;
        if !scheme.eq_ignore_ascii_case("http://") {
            return None;
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let address = match authority.strip_prefix('[') {
            Some(v6) => {
                let (ip, port) = v6.split_once(']')?;
                // RFC 6874 in the form that devices use; the scope is ours to know.
                let ip = ip.split('%').next()?;
                SocketAddr::new(IpAddr::V6(ip.parse().ok()?), parse_port(port)?)
            }
            None => {
                let end = authority.find(':').unwrap_or(authority.len());
                let (ip, port) = authority.split_at(end);
                SocketAddr::new(IpAddr::V4(ip.parse().ok()?), parse_port(port)?)
            }
        };
        Some(Self {
            address,
            path: checked_path(path)?,
        })
    }

    /// The URL that `reference` names on a page at this one (RFC 3986, section 5, as far as devices use it).
    pub fn join(&self, reference: &str) -> Option<Self> {
        if reference.contains("://") {
            return Self::parse(reference);
        }
        let path = if reference.starts_with('/') {
            reference.to_owned()
        } else {
            let (directory, _) = self.path.rsplit_once('/')?;
            format!("{directory}/{reference}")
        };
        Some(Self {
            address: self.address,
            path: checked_path(&path)?,
        })
    }
}

/// Nothing that could end the line of a request.
fn checked_path(path: &str) -> Option<String> {
    let path = path.split('#').next()?;
    let fits = path.len() <= MAX_PATH && path.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| path.to_owned())
}

fn parse_port(text: &str) -> Option<u16> {
    match text.strip_prefix(':') {
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port.parse().ok().filter(|port| *port != 0)
        }
        None if text.is_empty() => Some(80),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(target: &str, location: &str) -> Vec<u8> {
        format!(
            "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: {target}\r\nUSN: uuid:x::{target}\r\nEXT:\r\n\
             SERVER: Debian/12 UPnP/1.1 MiniUPnPd/2.3.1\r\nlocation: {location}\r\n\r\n"
        )
        .into_bytes()
    }

    #[test]
    fn a_search_has_the_lines_of_the_architecture() {
        let to = SocketAddr::new(GROUP_V4.into(), PORT);
        assert_eq!(
            String::from_utf8(search_request(to)).unwrap(),
            "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
             ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
        );
    }

    #[test]
    fn an_answer_tells_where_the_description_is() {
        assert_eq!(
            parse_response(&answer(TARGET, "http://192.168.1.1:5000/rootDesc.xml")),
            Ok(Url {
                address: "192.168.1.1:5000".parse().unwrap(),
                path: "/rootDesc.xml".to_owned(),
            })
        );
        assert!(parse_response(&answer("upnp:rootdevice", "http://192.168.1.1/")).is_err());
        assert!(parse_response(&answer(TARGET, "http://router.lan/")).is_err());
        assert!(parse_response(b"HTTP/1.1 404 Not Found\r\n\r\n").is_err());
        assert!(parse_response(&search_request("1.2.3.4:1900".parse().unwrap())).is_err());
        assert!(parse_response(&[b'x'; 1_501]).is_err());
    }

    #[test]
    fn urls_are_plain_and_have_addresses() {
        let parse = |text| Url::parse(text).map(|url| (url.address.to_string(), url.path));
        let accepted = |text, address: &str, path: &str| {
            assert_eq!(
                parse(text),
                Some((address.to_owned(), path.to_owned())),
                "{text}"
            );
        };
        accepted("http://10.0.0.1", "10.0.0.1:80", "/");
        accepted("HTTP://10.0.0.1:8080/a?b#c", "10.0.0.1:8080", "/a?b");
        accepted("http://[fe80::1%25eth0]:80/d.xml", "[fe80::1]:80", "/d.xml");
        for refused in [
            "https://10.0.0.1/",
            "http://10.0.0.1:0/",
            "http://10.0.0.1:+1/",
            "http://10.0.0.1:70000/",
            "http://user@10.0.0.1/",
            "http://example.net/",
            "http://[::1/",
            "http://10.0.0.1/a b",
            "http://10.0.0.1/\r\nX: y",
            "file:///etc/passwd",
            "http:/",
        ] {
            assert_eq!(parse(refused), None, "{refused}");
        }
    }

    #[test]
    fn references_are_resolved_against_their_page() {
        let page = Url::parse("http://10.0.0.1:5000/igd/root.xml").unwrap();
        let path = |reference| page.join(reference).map(|url| url.path);
        assert_eq!(path("/ctl/IPConn").as_deref(), Some("/ctl/IPConn"));
        assert_eq!(path("ctl/IPConn").as_deref(), Some("/igd/ctl/IPConn"));
        assert_eq!(page.join("http://10.0.0.2/x").unwrap().address.port(), 80);
        assert_eq!(page.join("x y"), None);
    }
}
