//! TLS between relay and client: both sides prove their ed25519 keys as raw public keys (RFC 7250).
//!
//! There is no certificate and no name: a relay's address contains the key that it must prove, and a client *is* its
//! key. Only TLS 1.3 with ed25519 is spoken, without resumption or early data, which would let old messages be replayed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_core::identity::{Identity, NodeId};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme,
};
use zeroize::Zeroizing;

/// The application protocol; its number changes when an old peer would misunderstand a new one's first message.
pub const ALPN: &[u8] = b"mesh-relay/1";
/// What QUIC wants for a server name. It is not sent and names nothing: the relay's key does.
pub const SERVER_NAME: &str = "mesh-relay.invalid";

/// Keeps the NAT's mapping for QUIC, and so for data frames, alive: few NATs forget UDP in less than 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Two lost keep-alives.
const IDLE_TIMEOUT_MS: u32 = 30_000;
/// Unread bytes that one connection may hold. The control stream is the only one.
const RECEIVE_WINDOW: u32 = 32 * 1024;
/// Unacknowledged bytes that one connection may hold.
const SEND_WINDOW: u64 = 32 * 1024;

/// SubjectPublicKeyInfo of an ed25519 key without the key itself (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// PKCS #8 of an ed25519 seed without the seed itself (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Why a TLS configuration could not be made. None of these depends on the peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The key or the protocol version was not accepted.
    #[error("cannot set up TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// QUIC needs a cipher suite that is missing.
    #[error("cannot set up QUIC: {0}")]
    Quic(#[from] NoInitialCipherSuite),
}

/// QUIC for a client of `relay`: proves `identity`, and accepts no server but the one with the key `relay`.
///
/// # Errors
/// If the TLS library refuses the configuration, which does not depend on the arguments.
pub fn client_config(identity: &Identity, relay: &NodeId) -> Result<quinn::ClientConfig, TlsError> {
    client_config_with(identity, Arc::new(RelayVerifier::new(*relay)))
}

/// As [`client_config`], with a verifier that can be asked who answered.
pub(crate) fn client_config_with(
    identity: &Identity,
    verifier: Arc<RelayVerifier>,
) -> Result<quinn::ClientConfig, TlsError> {
    let key = certified_key(identity)?;
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.enable_sni = false;
    tls.resumption = Resumption::disabled();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport(0)));
    Ok(config)
}

/// QUIC for a relay: proves `identity`, and wants every client to prove a node key; which one tells [`peer_id`].
///
/// # Errors
/// If the TLS library refuses the configuration, which does not depend on the arguments.
pub fn server_config(identity: &Identity) -> Result<quinn::ServerConfig, TlsError> {
    let key = certified_key(identity)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(NodeVerifier::default()))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport(1)));
    Ok(config)
}

/// The node that proved its key on a connection; `None` during the handshake.
pub fn peer_id(connection: &quinn::Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?;
    let keys = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    node_of(keys.first()?).ok()
}

/// Bytes of QUIC datagrams that wait to be read, or to be sent: the calls to a few peers.
const DATAGRAM_BYTES: usize = 8 << 10;

fn transport(streams: u32) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BYTES)
        .stream_receive_window(RECEIVE_WINDOW.into())
        .receive_window(RECEIVE_WINDOW.into())
        .send_window(SEND_WINDOW)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(quinn::VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        // Small messages need no large packets, and nothing then depends on the path's MTU.
        .mtu_discovery_config(None)
        .enable_segmentation_offload(false)
        .allow_spin(false);
    transport
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certified_key(identity: &Identity) -> Result<Arc<CertifiedKey>, TlsError> {
    let mut pkcs8 = Zeroizing::new([0; 48]);
    pkcs8[..16].copy_from_slice(&PKCS8_PREFIX);
    pkcs8[16..].copy_from_slice(identity.seed());
    let key = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&pkcs8[..]))?;
    let mut spki = SPKI_PREFIX.to_vec();
    spki.extend(identity.id().as_bytes());
    Ok(Arc::new(CertifiedKey::new(
        vec![CertificateDer::from(spki)],
        key,
    )))
}

/// The node whose key a peer presented. That it has the secret is proved by the handshake's signature.
fn node_of(key: &CertificateDer<'_>) -> Result<NodeId, rustls::Error> {
    key.strip_prefix(&SPKI_PREFIX)
        .and_then(|key| <&[u8; 32]>::try_from(key).ok())
        .and_then(|key| NodeId::from_bytes(key).ok())
        .ok_or_else(|| CertificateError::BadEncoding.into())
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

fn verify_signature(
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    if signature.scheme != SignatureScheme::ED25519 {
        return Err(CertificateError::BadSignature.into());
    }
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
}

fn no_tls12() -> rustls::Error {
    PeerIncompatible::ServerDoesNotSupportTls12Or13.into()
}

/// Accepts one relay, and remembers who else answered.
#[derive(Debug)]
pub(crate) struct RelayVerifier {
    expected: NodeId,
    found: Mutex<Option<NodeId>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl RelayVerifier {
    pub(crate) fn new(expected: NodeId) -> Self {
        Self {
            expected,
            found: Mutex::new(None),
            algorithms: algorithms(),
        }
    }

    /// The relay that answered in place of the expected one.
    pub(crate) fn impostor(&self) -> Option<NodeId> {
        let found = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.filter(|found| *found != self.expected)
    }
}

impl ServerCertVerifier for RelayVerifier {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let node = node_of(key)?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(node);
        if node == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts every node; whether it may use the relay is decided on its hello, where the reason can be told.
#[derive(Debug)]
struct NodeVerifier {
    algorithms: WebPkiSupportedAlgorithms,
}

impl Default for NodeVerifier {
    fn default() -> Self {
        Self {
            algorithms: algorithms(),
        }
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        node_of(key).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(seed: u8) -> Identity {
        Identity::from_seed(Zeroizing::new([seed; 32]))
    }

    #[test]
    fn a_node_is_read_back_from_the_key_that_it_presents() {
        let identity = identity(1);
        let key = certified_key(&identity).unwrap();
        assert_eq!(node_of(&key.cert[0]), Ok(identity.id()));
        // The library derives the same encoding from the secret key.
        assert_eq!(key.key.public_key().unwrap().as_ref(), key.cert[0].as_ref());
    }

    #[test]
    fn keys_of_other_kinds_and_weak_keys_are_refused() {
        let key = certified_key(&identity(1)).unwrap().cert[0].to_vec();
        for bytes in [&key[..43], &[&key[..], &[0]].concat(), &key[12..], &[]] {
            assert!(node_of(&CertificateDer::from(bytes)).is_err());
        }
        let mut x25519 = key.clone();
        x25519[8] = 0x6e;
        assert!(node_of(&CertificateDer::from(x25519)).is_err());
        let mut weak = SPKI_PREFIX.to_vec();
        weak.push(1);
        weak.extend([0; 31]);
        assert!(node_of(&CertificateDer::from(weak)).is_err());
    }

    #[test]
    fn configurations_can_be_made() {
        client_config(&identity(1), &identity(2).id()).unwrap();
        server_config(&identity(2)).unwrap();
    }
}
