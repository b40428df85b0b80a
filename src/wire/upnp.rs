//! UPnP internet gateway devices: their descriptions, and the calls that map ports (WANIPConnection:2,
//! WANIPv6FirewallControl:1).
//!
//! XML is read by `roxmltree`, which is small, has no unsafe code and knows neither files nor networks. Document types,
//! and with them entities, are refused.

use std::fmt::Write as _;
use std::net::IpAddr;

use roxmltree::{Document, Node, ParsingOptions};

use super::WireError;
use super::ssdp::Url;

/// Elements, attributes and texts of one document; descriptions have a few hundred.
const MAX_NODES: u32 = 4_096;

/// Services that lead to a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceType {
    /// Maps IPv4 ports, and chooses a free one if need be.
    WanIpConnection2,
    /// Maps IPv4 ports.
    WanIpConnection1,
    /// The same on lines with PPP.
    WanPppConnection1,
    /// Opens holes in an IPv6 firewall.
    WanIpv6FirewallControl1,
}

/// A service and where to call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What it is.
    pub kind: ServiceType,
    /// Where its calls go.
    pub control: Url,
}

impl ServiceType {
    const ALL: [Self; 4] = [
        Self::WanIpConnection2,
        Self::WanIpConnection1,
        Self::WanPppConnection1,
        Self::WanIpv6FirewallControl1,
    ];

    /// Its name in descriptions and calls.
    pub const fn urn(self) -> &'static str {
        match self {
            Self::WanIpConnection2 => "urn:schemas-upnp-org:service:WANIPConnection:2",
            Self::WanIpConnection1 => "urn:schemas-upnp-org:service:WANIPConnection:1",
            Self::WanPppConnection1 => "urn:schemas-upnp-org:service:WANPPPConnection:1",
            Self::WanIpv6FirewallControl1 => {
                "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
            }
        }
    }
}

fn document(text: &str) -> Result<Document<'_>, WireError> {
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    // Some devices send a byte or two behind the end.
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    Document::parse_with_options(text, options).map_err(|_| WireError::Invalid("XML"))
}

fn child<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let mut children = node.children();
    let child = children.find(|child| child.tag_name().name() == name)?;
    child.text().map(str::trim)
}

/// The services of a description that was read at `location`, best first. All calls go to the host that it came from.
///
/// # Errors
///
/// When it is no description.
pub fn parse_description(body: &[u8], location: &Url) -> Result<Vec<Service>, WireError> {
    let text = str::from_utf8(body).map_err(|_| WireError::Invalid("text"))?;
    let document = document(text)?;
    let root = document.root_element();
    if root.tag_name().name() != "root" {
        return Err(WireError::Invalid("description"));
    }
    let base = match child(root, "URLBase") {
        Some(base) if !base.is_empty() => Url::parse(base).ok_or(WireError::Invalid("URLBase"))?,
        _ => location.clone(),
    };
    let mut services: Vec<Service> = Vec::new();
    for node in document.descendants() {
        if node.tag_name().name() != "service" {
            continue;
        }
        let kind = child(node, "serviceType");
        let Some(kind) = ServiceType::ALL
            .into_iter()
            .find(|known| kind == Some(known.urn()))
        else {
            continue;
        };
        let control = child(node, "controlURL").and_then(|reference| base.join(reference));
        let Some(control) = control else { continue };
        // The first of a kind: devices list their main connection first.
        let new = services.iter().all(|known| known.kind != kind);
        if new && control.address.ip() == location.address.ip() {
            services.push(Service { kind, control });
        }
    }
    services.sort_by_key(|service| service.kind);
    Ok(services)
}

/// A SOAP call: the value of `SOAPAction`, and the body. Arguments are numbers, addresses and words of ours.
fn call(kind: ServiceType, action: &str, arguments: &[(&str, &str)]) -> (String, String) {
    let urn = kind.urn();
    let mut body = format!(
        "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{urn}\">"
    );
    for (name, value) in arguments {
        // Writing to a string cannot fail.
        let _ = write!(body, "<{name}>{value}</{name}>");
    }
    let _ = write!(body, "</u:{action}></s:Body></s:Envelope>\r\n");
    (format!("{urn}#{action}"), body)
}

/// What people see in the list of their router.
const DESCRIPTION: &str = "meshd";

/// Asks for the external address.
pub fn get_external_address(kind: ServiceType) -> (String, String) {
    call(kind, "GetExternalIPAddress", &[])
}

/// Asks for a UDP mapping to `internal`:`port` at `external`, for `lease` seconds; 0 is for ever, for devices that know
/// nothing else. Version 2 may choose another external port.
pub fn add_port_mapping(
    kind: ServiceType,
    external: u16,
    internal: IpAddr,
    port: u16,
    lease: u32,
) -> (String, String) {
    let action = match kind {
        ServiceType::WanIpConnection2 => "AddAnyPortMapping",
        _ => "AddPortMapping",
    };
    call(
        kind,
        action,
        &[
            ("NewRemoteHost", ""),
            ("NewExternalPort", &external.to_string()),
            ("NewProtocol", "UDP"),
            ("NewInternalPort", &port.to_string()),
            ("NewInternalClient", &internal.to_string()),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", DESCRIPTION),
            ("NewLeaseDuration", &lease.to_string()),
        ],
    )
}

/// Ends a mapping.
pub fn delete_port_mapping(kind: ServiceType, external: u16) -> (String, String) {
    call(
        kind,
        "DeletePortMapping",
        &[
            ("NewRemoteHost", ""),
            ("NewExternalPort", &external.to_string()),
            ("NewProtocol", "UDP"),
        ],
    )
}

/// Asks for a hole in the IPv6 firewall for UDP from anywhere to `internal`:`port`, for `lease` seconds.
pub fn add_pinhole(internal: IpAddr, port: u16, lease: u32) -> (String, String) {
    call(
        ServiceType::WanIpv6FirewallControl1,
        "AddPinhole",
        &[
            ("RemoteHost", ""),
            ("RemotePort", "0"),
            ("InternalClient", &internal.to_string()),
            ("InternalPort", &port.to_string()),
            ("Protocol", "17"),
            ("LeaseTime", &lease.to_string()),
        ],
    )
}

/// Closes a hole again.
pub fn delete_pinhole(id: u16) -> (String, String) {
    call(
        ServiceType::WanIpv6FirewallControl1,
        "DeletePinhole",
        &[("UniqueID", &id.to_string())],
    )
}

/// What a device answered to a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Why not (`errorCode`); 0 for a fault without a code.
    pub fault: Option<u16>,
    /// `NewExternalIPAddress`.
    pub external_address: Option<IpAddr>,
    /// `NewReservedPort`.
    pub reserved_port: Option<u16>,
    /// `UniqueID`.
    pub pinhole: Option<u16>,
}

/// Reads an answer; arguments that make no sense are missing.
///
/// # Errors
///
/// When it is no SOAP envelope.
pub fn parse_answer(body: &[u8]) -> Result<Answer, WireError> {
    let text = str::from_utf8(body).map_err(|_| WireError::Invalid("text"))?;
    let document = document(text)?;
    if document.root_element().tag_name().name() != "Envelope" {
        return Err(WireError::Invalid("envelope"));
    }
    let mut answer = Answer::default();
    for node in document.descendants() {
        let value = node.text().map(str::trim).unwrap_or_default();
        match node.tag_name().name() {
            "Fault" => answer.fault = answer.fault.or(Some(0)),
            "errorCode" => answer.fault = Some(value.parse().unwrap_or(0)),
            "NewExternalIPAddress" => answer.external_address = value.parse().ok(),
            "NewReservedPort" => answer.reserved_port = value.parse().ok(),
            "UniqueID" => answer.pinhole = value.parse().ok(),
            _ => {}
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESCRIPTION: &str = r#"<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major></specVersion><device>
<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:2</deviceType><deviceList><device><deviceList><device>
<serviceList>
<service><serviceType>urn:schemas-upnp-org:service:WANIPv6FirewallControl:1</serviceType><controlURL>/ctl/IP6FCtl</controlURL></service>
<service><serviceType> urn:schemas-upnp-org:service:WANIPConnection:1 </serviceType><controlURL>ctl/IPConn</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:2</serviceType><controlURL>http://10.0.0.1:81/c</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType><controlURL>http://10.0.0.2/ppp</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/l3</controlURL></service>
</serviceList></device></deviceList></device></deviceList></device></root>"#;

    fn location() -> Url {
        Url::parse("http://10.0.0.1:5000/igd/root.xml").unwrap()
    }

    #[test]
    fn services_come_best_first_and_from_the_describing_host_alone() {
        let services = parse_description(DESCRIPTION.as_bytes(), &location()).unwrap();
        let found: Vec<_> = services
            .iter()
            .map(|service| {
                (
                    service.kind,
                    service.control.address.port(),
                    service.control.path.as_str(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                (ServiceType::WanIpConnection2, 81, "/c"),
                (ServiceType::WanIpConnection1, 5000, "/igd/ctl/IPConn"),
                (ServiceType::WanIpv6FirewallControl1, 5000, "/ctl/IP6FCtl"),
            ]
        );
    }

    #[test]
    fn a_base_address_elsewhere_leads_nowhere() {
        let with_base = |base: &str| {
            DESCRIPTION.replacen(
                "<specVersion>",
                &format!("<URLBase>{base}</URLBase><specVersion>"),
                1,
            )
        };
        let services = |base: &str| parse_description(with_base(base).as_bytes(), &location());
        assert_eq!(
            services("http://10.0.0.1:7/").unwrap()[1]
                .control
                .address
                .port(),
            7
        );
        // All that is left is what names the describing host itself.
        assert_eq!(services("http://10.9.9.9/").unwrap().len(), 1);
        assert!(services("http://example.net/").is_err());
    }

    #[test]
    fn document_types_and_endless_documents_are_refused() {
        let bomb = "<!DOCTYPE root [<!ENTITY a \"aaaa\">]><root>&a;</root>";
        assert!(parse_description(bomb.as_bytes(), &location()).is_err());
        let deep = format!("<root>{}", "<a>".repeat(20_000));
        assert!(parse_description(deep.as_bytes(), &location()).is_err());
        let wide = format!("<root>{}</root>", "<a/>".repeat(16_000));
        assert!(parse_description(wide.as_bytes(), &location()).is_err());
        assert!(parse_description(b"<html/>", &location()).is_err());
        assert!(parse_description(b"\xff", &location()).is_err());
    }

    #[test]
    fn a_call_has_its_arguments_in_the_order_of_the_service() {
        let internal = IpAddr::from([10, 0, 0, 9]);
        let (action, body) = add_port_mapping(ServiceType::WanIpConnection2, 7, internal, 8, 7200);
        assert_eq!(
            action,
            "urn:schemas-upnp-org:service:WANIPConnection:2#AddAnyPortMapping"
        );
        assert!(body.contains(
            "<u:AddAnyPortMapping xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:2\">\
             <NewRemoteHost></NewRemoteHost><NewExternalPort>7</NewExternalPort><NewProtocol>UDP</NewProtocol>\
             <NewInternalPort>8</NewInternalPort><NewInternalClient>10.0.0.9</NewInternalClient>\
             <NewEnabled>1</NewEnabled><NewPortMappingDescription>meshd</NewPortMappingDescription>\
             <NewLeaseDuration>7200</NewLeaseDuration></u:AddAnyPortMapping>"
        ));
        assert!(parse_answer(body.as_bytes()).is_ok(), "it is an envelope");
        let (action, _) = add_port_mapping(ServiceType::WanIpConnection1, 7, internal, 8, 7200);
        assert!(action.ends_with("#AddPortMapping"));
    }

    fn answered(inside: &str) -> Answer {
        let body = format!(
            "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{inside}</s:Body></s:Envelope>\0"
        );
        parse_answer(body.as_bytes()).unwrap()
    }

    #[test]
    fn answers_and_faults_are_told_apart() {
        let none = Answer::default();
        assert_eq!(
            answered(
                "<u:X xmlns:u=\"u\"><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress></u:X>"
            ),
            Answer {
                external_address: Some([203, 0, 113, 7].into()),
                ..none.clone()
            }
        );
        assert_eq!(
            answered("<u:X xmlns:u=\"u\"><NewReservedPort> 4242 </NewReservedPort></u:X>"),
            Answer {
                reserved_port: Some(4242),
                ..none.clone()
            }
        );
        assert_eq!(
            answered(
                "<s:Fault><detail><UPnPError><errorCode>725</errorCode></UPnPError></detail></s:Fault>"
            ),
            Answer {
                fault: Some(725),
                ..none.clone()
            }
        );
        assert_eq!(
            answered("<s:Fault/>"),
            Answer {
                fault: Some(0),
                ..none.clone()
            }
        );
        assert_eq!(
            answered("<NewReservedPort>70000</NewReservedPort><UniqueID>-1</UniqueID>"),
            none
        );
        assert!(parse_answer(b"<html/>").is_err());
    }
}
