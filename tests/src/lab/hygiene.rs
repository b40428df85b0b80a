//! What no log may hold: secrets and payload, in any of the forms in which code tends to print bytes, and panics.

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use data_encoding::{BASE32_NOPAD, BASE64, BASE64_NOPAD, HEXLOWER, HEXUPPER};
use ed25519_dalek::SigningKey;

/// Bytes of a secret whose appearance gives it away: few enough to find a shortened print, enough to never meet by chance.
const TELLING: usize = 9;
/// A program of a lab test that logs more is flooding: minutes of life at the highest verbosity stay far below.
const MAX_LOG_BYTES: usize = 8 * 1024 * 1024;

/// Eight random hexadecimal digits.
pub(super) fn nonce() -> Result<String> {
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(HEXLOWER.encode(&bytes))
}

/// The secrets of every `identity.key` below `dir`: the seed, and the X25519 key made from it.
pub(super) fn identities(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        // Links are not followed: one may lead out of the lab's directory.
        if entry.file_type()?.is_dir() {
            found.extend(identities(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "key") {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            for word in text.split_whitespace() {
                let Ok(seed) = BASE32_NOPAD.decode(word.to_uppercase().as_bytes()) else {
                    continue;
                };
                let Ok(seed) = <[u8; 32]>::try_from(seed) else {
                    continue;
                };
                let scalar = SigningKey::from_bytes(&seed).to_scalar_bytes();
                found.push((format!("seed of {}", path.display()), seed.to_vec()));
                found.push((
                    format!("WireGuard key of {}", path.display()),
                    scalar.to_vec(),
                ));
            }
        }
    }
    Ok(found)
}

/// Checks one log.
pub(super) fn check_log(name: &str, log: &[u8], secrets: &[(String, Vec<u8>)]) -> Result<()> {
    if log.len() > MAX_LOG_BYTES {
        bail!("the log of {name} has {} bytes: a flood", log.len());
    }
    if contains(log, b"panicked at") {
        bail!("{name} panicked");
    }
    for (what, secret) in secrets {
        for form in forms(secret) {
            if contains(log, form.as_bytes()) {
                bail!("the log of {name} shows the {what}, as {form}");
            }
        }
    }
    Ok(())
}

/// The texts that would give the first bytes of `secret` away, and those of a base64 text that begins a byte or two earlier.
fn forms(secret: &[u8]) -> Vec<String> {
    let telling = &secret[..secret.len().min(TELLING)];
    let mut forms = vec![HEXLOWER.encode(telling), HEXUPPER.encode(telling)];
    for separator in [" ", ":"] {
        let pairs: Vec<String> = telling.iter().map(|byte| format!("{byte:02x}")).collect();
        forms.push(pairs.join(separator));
    }
    // `{:?}` of a byte slice.
    let mut list = String::new();
    for byte in telling {
        let _ = write!(list, "{byte}, ");
    }
    forms.push(list.trim_end_matches(", ").to_owned());
    // Whole groups only: what follows the telling bytes would change the last characters.
    forms.push(BASE64_NOPAD.encode(&telling[..telling.len() / 3 * 3]));
    for skip in [1, 2] {
        let shifted = &secret[skip..];
        let whole = (shifted.len().min(TELLING)) / 3 * 3;
        forms.push(BASE64.encode(&shifted[..whole]));
    }
    let base32 = BASE32_NOPAD.encode(&secret[..secret.len().min(TELLING + 1) / 5 * 5]);
    forms.push(base32.to_lowercase());
    forms.push(base32);
    if let Ok(text) = std::str::from_utf8(secret) {
        forms.push(text.to_owned());
    }
    forms
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    // The first byte by memchr-like search keeps this quick on logs of megabytes.
    let Some((first, rest)) = needle.split_first() else {
        return false;
    };
    let mut at = 0;
    while let Some(found) = haystack[at..].iter().position(|byte| byte == first) {
        at += found + 1;
        if haystack[at..].starts_with(rest) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str, secret: &[u8]) -> bool {
        check_log(
            "x",
            line.as_bytes(),
            &[("secret".to_owned(), secret.to_vec())],
        )
        .is_err()
    }

    #[test]
    fn a_secret_is_found_in_every_form() {
        let secret: Vec<u8> = (0..32_u8)
            .map(|i| i.wrapping_mul(57).wrapping_add(130))
            .collect();
        assert!(refused(
            &format!("key {}", HEXLOWER.encode(&secret)),
            &secret
        ));
        assert!(refused(
            &format!("key {}", HEXUPPER.encode(&secret)),
            &secret
        ));
        assert!(refused(&format!("key {}", BASE64.encode(&secret)), &secret));
        assert!(refused(
            &format!("key {}", BASE32_NOPAD.encode(&secret).to_lowercase()),
            &secret
        ));
        assert!(refused(&format!("key {secret:?}"), &secret));
        let mut longer = vec![1];
        longer.extend(&secret);
        assert!(refused(&BASE64.encode(&longer), &secret));
        longer.insert(0, 9);
        assert!(refused(&BASE64.encode(&longer), &secret));
        assert!(!refused("nothing of that kind", &secret));
    }

    #[test]
    fn payload_text_is_found() {
        assert!(refused("got payload-12-3", b"payload-12-3"));
        assert!(!refused("got payload-12-4", b"payload-12-3"));
    }

    #[test]
    fn a_panic_is_found() {
        assert!(check_log("x", b"thread 'main' panicked at src/x.rs", &[]).is_err());
    }
}
