//! The public keys of stock WireGuard devices, as `wg` writes them.

use curve25519_dalek::montgomery::MontgomeryPoint;
use data_encoding::{BASE64, BASE64_NOPAD};
use thiserror::Error;

/// Why a text is not the public key of a WireGuard device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireGuardKeyError {
    /// Not 32 bytes in base64.
    #[error("a WireGuard public key is 44 characters of base64; copy the output of `wg pubkey`")]
    Format,
    /// A second spelling of a key, which no program prints.
    #[error(
        "it is not the canonical form of a WireGuard public key; copy the output of `wg pubkey`"
    )]
    NotCanonical,
    /// A point with which every shared secret is zero.
    #[error(
        "it is a weak key (of small order), which no device has; do not trust where it came from"
    )]
    SmallOrder,
}

/// Reads an X25519 public key in base64.
///
/// # Errors
///
/// If it is not 32 bytes, not below the field's prime (X25519 would reduce it, so that one device had two keys), or
/// of small order.
pub fn parse_wireguard_key(text: &str) -> Result<[u8; 32], WireGuardKeyError> {
    // Not `BASE64.decode`: that takes padding inside the text too, and a key would have two spellings.
    let symbols = match text.strip_suffix('=') {
        Some(symbols) if symbols.len() == BASE64_NOPAD.encode_len(32) => symbols,
        _ => return Err(WireGuardKeyError::Format),
    };
    let decoded = BASE64_NOPAD
        .decode(symbols.as_bytes())
        .map_err(|_| WireGuardKeyError::Format)?;
    let key: [u8; 32] = decoded.try_into().map_err(|_| WireGuardKeyError::Format)?;
    // 2^255 - 19 in little-endian is ed, thirty times ff, 7f.
    let below_prime =
        key[31] < 0x7f || (key[31] == 0x7f && (key[0] < 0xed || key[1..31] != [0xff; 30]));
    if !below_prime {
        return Err(WireGuardKeyError::NotCanonical);
    }
    // A clamped scalar is a multiple of the cofactor, so it takes exactly the points of small order to zero.
    if MontgomeryPoint(key).mul_clamped([0; 32]).to_bytes() == [0; 32] {
        return Err(WireGuardKeyError::SmallOrder);
    }
    Ok(key)
}

/// Writes an X25519 public key as [`parse_wireguard_key`] reads it.
pub fn format_wireguard_key(key: &[u8; 32]) -> String {
    BASE64.encode(key)
}
