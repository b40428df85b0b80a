use std::net::IpAddr;

use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::montgomery::MontgomeryPoint;
use proptest::prelude::*;

use super::*;

/// RFC 8032, section 7.1, test 1.
const SEED: [u8; 32] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];
const PUBLIC: [u8; 32] = [
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
    0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];
const SIGNATURE_OF_NOTHING: [u8; 64] = [
    0xe5, 0x56, 0x43, 0x00, 0xc3, 0x60, 0xac, 0x72, 0x90, 0x86, 0xe2, 0xcc, 0x80, 0x6e, 0x82, 0x8a,
    0x84, 0x87, 0x7f, 0x1e, 0xb8, 0xe5, 0xd9, 0x74, 0xd8, 0x73, 0xe0, 0x65, 0x22, 0x49, 0x01, 0x55,
    0x5f, 0xb8, 0x82, 0x15, 0x90, 0xa3, 0x3b, 0xac, 0xc6, 0x1e, 0x39, 0x70, 0x1c, 0xf9, 0xb4, 0x6b,
    0xd2, 0x5b, 0xf5, 0xf0, 0x59, 0x5b, 0xbe, 0x24, 0x65, 0x51, 0x41, 0x43, 0x8e, 0x7a, 0x10, 0x0b,
];
const TEXT: &str = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena";

fn identity(byte: u8) -> Identity {
    Identity::from_seed(Zeroizing::new([byte; 32]))
}

fn rfc_identity() -> Identity {
    Identity::from_seed(Zeroizing::new(SEED))
}

#[test]
fn keys_and_signatures_are_those_of_rfc_8032() {
    let identity = rfc_identity();
    assert_eq!(identity.id().as_bytes(), &PUBLIC);
    assert_eq!(identity.seed(), &SEED);
    assert_eq!(identity.sign(b""), SIGNATURE_OF_NOTHING);
    assert_eq!(identity.duplicate().sign(b""), SIGNATURE_OF_NOTHING);
}

#[test]
fn an_id_is_52_lowercase_characters() {
    let id = rfc_identity().id();
    assert_eq!(id.to_string(), TEXT);
    assert_eq!(format!("{id:?}"), TEXT);
    assert_eq!(id.short(), &TEXT[..10]);
    assert_eq!(TEXT.parse(), Ok(id));
    assert_eq!(NodeId::from_bytes(&PUBLIC), Ok(id));
}

#[test]
fn texts_of_another_length_are_no_ids() {
    for text in [
        "",
        "a",
        &TEXT[..51],
        &format!("{TEXT}a"),
        &format!("{TEXT} "),
    ] {
        assert_eq!(
            text.parse::<NodeId>(),
            Err(IdError::Length(text.len())),
            "{text:?}"
        );
    }
    // 52 bytes, but fewer characters.
    assert_eq!("é".repeat(26).parse::<NodeId>(), Err(IdError::Length(26)));
}

#[test]
fn texts_with_other_characters_are_no_ids() {
    assert_eq!(
        TEXT.to_uppercase().parse::<NodeId>(),
        Err(IdError::Character(3)),
        "upper case"
    );
    for (wrong, position) in [('1', 1), ('=', 1), (' ', 1), ('\n', 1), ('é', 1), ('\0', 1)] {
        let text = format!("{wrong}{}", &TEXT[1..]);
        assert_eq!(
            text.parse::<NodeId>(),
            Err(IdError::Character(position)),
            "{text:?}"
        );
    }
    let padded = format!("{}====", &TEXT[..48]);
    assert_eq!(padded.parse::<NodeId>(), Err(IdError::Character(49)));
}

#[test]
fn trailing_bits_of_the_text_must_be_zero() {
    // 52 characters hold 260 bits: the last character's low four must be zero, so it is `a` or `q`.

    let mut accepted = Vec::new();
    for last in "abcdefghijklmnopqrstuvwxyz234567".chars() {
        let text = format!(
            "{}{last}",
            &NetworkId::from_bytes(&[7; 32]).to_string()[..51]
        );
        match text.parse::<NetworkId>() {
            Ok(_) => accepted.push(last),
            Err(error) => assert_eq!(error, IdError::TrailingBits),
        }
    }
    assert_eq!(accepted, ['a', 'q']);
}

#[test]
fn small_order_points_are_no_ids() {
    for point in EIGHT_TORSION {
        let bytes = point.compress().to_bytes();
        assert_eq!(
            NodeId::from_bytes(&bytes),
            Err(IdError::SmallOrder),
            "{bytes:02x?}"
        );
    }
}

#[test]
fn torsioned_points_are_no_ids() {
    let key = point(&rfc_identity());
    for torsion in &EIGHT_TORSION[1..] {
        let bytes = (key + torsion).compress().to_bytes();
        assert_eq!(
            NodeId::from_bytes(&bytes),
            Err(IdError::Torsion),
            "{bytes:02x?}"
        );
    }
}

#[test]
fn non_canonical_points_are_no_ids() {
    // y + p for each y in 0..19 that is on the curve, with both signs of x (p = 2^255 - 19).
    let mut found = 0;
    for y in 0..19 {
        for sign in [0, 0x80] {
            let mut bytes = [0xff; 32];
            bytes[0] = 0xed + y;
            bytes[31] = 0x7f | sign;
            match NodeId::from_bytes(&bytes) {
                Err(IdError::NotCanonical) => found += 1,
                other => assert_eq!(other, Err(IdError::NotAPoint), "{bytes:02x?}"),
            }
        }
    }
    assert!(found >= 4, "only {found} were on the curve");
    // x = 0 with its sign set: the neutral element and the point of order two.
    let mut one = [0; 32];
    one[0] = 1;
    one[31] = 0x80;
    assert!(NodeId::from_bytes(&one).is_err());
    let mut minus_one = [0xff; 32];
    minus_one[0] = 0xec;
    assert!(NodeId::from_bytes(&minus_one).is_err());
}

#[test]
fn bytes_off_the_curve_are_no_ids() {
    let off = (0..=255).filter(|byte| {
        let mut bytes = PUBLIC;
        bytes[0] = *byte;
        NodeId::from_bytes(&bytes) == Err(IdError::NotAPoint)
    });
    assert!(off.count() > 100);
}

#[test]
fn the_wireguard_key_is_the_x25519_form_of_the_id() {
    for identity in [rfc_identity(), identity(0), identity(1), identity(0xff)] {
        let public = MontgomeryPoint::mul_base_clamped(*identity.wireguard_secret());
        assert_eq!(public.to_bytes(), identity.id().to_wireguard());
    }
}

#[test]
fn an_id_and_its_negative_share_the_wireguard_key() {
    let id = rfc_identity().id();
    let negative = (-point(&rfc_identity())).compress().to_bytes();
    let negative = NodeId::from_bytes(&negative).expect("also a valid ID");
    assert_ne!(id, negative);
    assert_eq!(id.to_wireguard(), negative.to_wireguard());
}

#[test]
fn network_ids_derive_from_names() {
    let home = NetworkId::from_name("home");
    assert_eq!(home, NetworkId::from_name("home"));
    assert_ne!(home, NetworkId::from_name("Home"));
    assert_eq!(home.to_string(), HOME);
    assert_eq!(HOME.parse(), Ok(home));
    assert_eq!(NetworkId::from_bytes(home.as_bytes()), home);
}

const HOME: &str = "5k4ff7tkvrdvfgdee35pwlhlqmngvijveyw7l7w22ncik32pwa6a";

#[test]
fn overlay_addresses_are_stable() {
    let home = NetworkId::from_name("home");
    let office = NetworkId::from_name("office");
    assert_eq!(overlay_prefix(&home).to_string(), "fdea:b852:fe6a::/64");
    assert_eq!(
        overlay_address(&home, &rfc_identity().id()).to_string(),
        "fdea:b852:fe6a:0:37d:fcc1:7660:b5a1"
    );
    assert_eq!(
        overlay_address(&office, &rfc_identity().id()).to_string(),
        "fd51:82e:1c8b:0:5e1d:8661:2340:352e"
    );
    assert_eq!(
        overlay_address(&home, &identity(1).id()).to_string(),
        "fdea:b852:fe6a:0:953a:c604:59f8:270d"
    );
    assert!(overlay_prefix(&home).contains(&overlay_address(&home, &identity(2).id())));
}

#[test]
fn an_identity_file_reads_back() {
    let identity = rfc_identity();
    let text = identity.to_file();
    assert_eq!(
        *text,
        "meshd-identity-v1\ntvq3dhpp7vngbouejl2jf3bmyrcetrljpmzgsglqhowaghfop5qa\n"
    );
    let read = Identity::parse_file(&text).expect("what was written");
    assert_eq!(read.id(), identity.id());
}

#[test]
fn half_written_identity_files_are_refused() {
    let text = rfc_identity().to_file();
    for length in 0..text.len() {
        assert_eq!(
            Identity::parse_file(&text[..length]).err(),
            Some(IdentityError::Incomplete),
            "{length} bytes"
        );
    }
}

#[test]
fn foreign_identity_files_are_refused() {
    let text = rfc_identity().to_file();
    for (foreign, error) in [
        ("-----BEGIN PRIVATE KEY-----\n", IdentityError::Header),
        ("meshd-identity-v2\n", IdentityError::Header),
        ("meshd-identity-v10\n", IdentityError::Header),
        ("\0\0\0\0", IdentityError::Header),
        ("meshd-identity-v1\n\n", IdentityError::Key),
        ("meshd-identity-v1\nshort\n", IdentityError::Key),
        (&text.to_uppercase(), IdentityError::Header),
        (&format!("{}\n", *text), IdentityError::Trailing),
        (&format!("{}x", *text), IdentityError::Trailing),
        (&text.replace('\n', "\r\n"), IdentityError::Header),
    ] {
        assert_eq!(
            Identity::parse_file(foreign).err(),
            Some(error),
            "{foreign:?}"
        );
    }
}

#[test]
fn nothing_prints_the_secret() {
    let identity = rfc_identity();
    assert_eq!(format!("{identity:?}"), format!("Identity({TEXT})"));
    let broken = identity.to_file().replace("tvq3", "TVQ3");
    let error = Identity::parse_file(&broken).expect_err("upper case");
    assert!(!error.to_string().contains("dhpp7"));
}

#[test]
fn wireguard_keys_read_back() {
    let key = rfc_identity().id().to_wireguard();
    let text = format_wireguard_key(&key);
    assert_eq!(text.len(), 44);
    assert_eq!(parse_wireguard_key(&text), Ok(key));
}

#[test]
fn malformed_wireguard_keys_are_refused() {
    let text = format_wireguard_key(&rfc_identity().id().to_wireguard());
    for malformed in [
        "",
        TEXT,
        &text[..43],
        &format!("{text}="),
        &format!("é{}", &text[2..]),
    ] {
        assert_eq!(
            parse_wireguard_key(malformed),
            Err(WireGuardKeyError::Format),
            "{malformed:?}"
        );
    }
    // Two encodings in a row, each with its padding.
    assert_eq!(
        parse_wireguard_key("AAAGPMBbAAAGPMBbAAA=LAnVNlwybq4ZOuzwPMBbAAAB"),
        Err(WireGuardKeyError::Format)
    );
    // The last character before the padding carries two bits that must be zero.
    let trailing = format!("{}B=", "A".repeat(42));
    assert_eq!(
        parse_wireguard_key(&trailing),
        Err(WireGuardKeyError::Format)
    );
}

#[test]
fn weak_and_non_canonical_wireguard_keys_are_refused() {
    for point in EIGHT_TORSION {
        let text = format_wireguard_key(&point.to_montgomery().to_bytes());
        assert_eq!(
            parse_wireguard_key(&text),
            Err(WireGuardKeyError::SmallOrder)
        );
    }
    let mut high = rfc_identity().id().to_wireguard();
    high[31] |= 0x80;
    let mut prime = [0xff; 32];
    (prime[0], prime[31]) = (0xed, 0x7f);
    for key in [high, prime, [0xff; 32]] {
        assert_eq!(
            parse_wireguard_key(&format_wireguard_key(&key)),
            Err(WireGuardKeyError::NotCanonical)
        );
    }
    let mut below = prime;
    below[0] = 0xeb;
    assert!(parse_wireguard_key(&format_wireguard_key(&below)).is_ok());
}

fn point(identity: &Identity) -> EdwardsPoint {
    let point = identity.key.verifying_key().to_edwards();
    assert_ne!(point, ED25519_BASEPOINT_POINT);
    point
}

fn url(rest: &str) -> Result<RelayUrl, RelayUrlError> {
    format!("mesh://{TEXT}@{rest}").parse()
}

#[test]
fn relay_urls_read_back() {
    for rest in [
        "relay.example.org:443",
        "r:1",
        "xn--bcher-kva.example:65535",
        "203.0.113.7:3478",
        "[2001:db8::1]:443",
        "[::1]:443",
    ] {
        let parsed = url(rest).expect(rest);
        let text = format!("mesh://{TEXT}@{rest}");
        assert_eq!(parsed.to_string(), text);
        assert_eq!(parsed.id.to_string(), TEXT);
        assert_eq!(text.parse(), Ok(parsed));
    }
}

#[test]
fn relay_urls_have_one_form_of_each_host() {
    for (rest, form) in [
        ("Relay.Example.ORG:443", "relay.example.org:443"),
        ("relay.example.org.:443", "relay.example.org:443"),
        ("[2001:DB8:0:0::1]:443", "[2001:db8::1]:443"),
        ("[::ffff:203.0.113.7]:443", "203.0.113.7:443"),
    ] {
        assert_eq!(
            url(rest).map(|url| url.to_string()),
            Ok(format!("mesh://{TEXT}@{form}"))
        );
    }
}

#[test]
fn relay_urls_tell_addresses_from_names() {
    let ip = |rest| url(rest).expect(rest).host_is_ip();
    assert_eq!(ip("relay.example.org:443"), None);
    assert_eq!(ip("203.0.113.7:443"), Some(IpAddr::from([203, 0, 113, 7])));
    assert_eq!(
        ip("[2001:db8::1]:443"),
        Some(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]))
    );
}

#[test]
fn malformed_relay_urls_are_refused() {
    use RelayUrlError as E;
    for (rest, error) in [
        ("", E::NoPort),
        ("host", E::NoPort),
        ("host:", E::NoPort),
        (":443", E::NoHost),
        ("host:0", E::Port),
        ("host:65536", E::Port),
        ("host:+443", E::Port),
        ("host:0443", E::Port),
        ("host: 443", E::Port),
        ("host:443/", E::Port),
        ("host:99999999999999999999", E::Port),
        ("ho st:443", E::Host),
        ("ho_st:443", E::Host),
        ("höst:443", E::Host),
        ("-host:443", E::Host),
        ("host-.org:443", E::Host),
        ("a..b:443", E::Host),
        (".:443", E::Host),
        ("user@host:443", E::Host),
        ("203.0.113.256:443", E::Host),
        ("203.0.113:443", E::Host),
        ("1:443", E::Host),
        ("2001:db8::1:443", E::Brackets),
        ("[2001:db8::1:443", E::Brackets),
        ("[203.0.113.7]:443", E::Brackets),
        ("[fe80::1%eth0]:443", E::Brackets),
        ("[]:443", E::Brackets),
        ("[::1]", E::NoPort),
        ("[::1]:", E::NoPort),
        ("[::1]443", E::Port),
        ("0.0.0.0:443", E::NotUnicast(IpAddr::from([0, 0, 0, 0]))),
        ("[::]:443", E::NotUnicast(IpAddr::from([0u16; 8]))),
        ("255.255.255.255:443", E::NotUnicast(IpAddr::from([255; 4]))),
        ("224.0.0.1:443", E::NotUnicast(IpAddr::from([224, 0, 0, 1]))),
    ] {
        assert_eq!(url(rest), Err(error), "{rest:?}");
    }
    assert_eq!(url(&format!("{}:443", "a".repeat(64))), Err(E::Host));
    assert_eq!(url(&format!("{}b:443", "a.".repeat(127))), Err(E::Host));
    assert!(url(&format!("{}b:443", "a.".repeat(126))).is_ok());
}

#[test]
fn relay_urls_without_scheme_or_id_are_refused() {
    use RelayUrlError as E;
    for (text, error) in [
        ("", E::Scheme),
        ("host:443", E::Scheme),
        ("https://host:443", E::Scheme),
        ("MESH://host:443", E::Scheme),
        ("mesh://host:443", E::NoId),
        ("mesh://@host:443", E::NoId),
        ("mesh://abc@host:443", E::Id(IdError::Length(3))),
    ] {
        assert_eq!(text.parse::<RelayUrl>(), Err(error), "{text:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC*", rest in "[a-f0-9:.@\\[\\]/-]{0,40}") {
        let _ = text.parse::<NodeId>();
        let _ = text.parse::<NetworkId>();
        let _ = text.parse::<RelayUrl>();
        let _ = parse_wireguard_key(&text);
        let _ = Identity::parse_file(&text);
        if let Ok(parsed) = url(&rest) {
            prop_assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
    }

    #[test]
    fn every_identity_has_a_valid_id(seed: [u8; 32]) {
        let identity = Identity::from_seed(Zeroizing::new(seed));
        let id = identity.id();
        prop_assert_eq!(NodeId::from_bytes(id.as_bytes()), Ok(id));
        prop_assert_eq!(id.to_string().parse(), Ok(id));
        let public = MontgomeryPoint::mul_base_clamped(*identity.wireguard_secret());
        prop_assert_eq!(public.to_bytes(), id.to_wireguard());
        let read = Identity::parse_file(&identity.to_file());
        prop_assert_eq!(read.map(|read| read.id()), Ok(id));
    }

    #[test]
    fn any_accepted_bytes_are_the_only_ones_for_their_point(bytes: [u8; 32]) {
        if let Ok(id) = NodeId::from_bytes(&bytes) {
            prop_assert_eq!(id.as_bytes(), &bytes);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn any_bytes_are_a_network_id(bytes: [u8; 32]) {
        let id = NetworkId::from_bytes(&bytes);
        prop_assert_eq!(id.to_string().parse(), Ok(id));
    }
}
