//! Switches for what makes packets fast, for the day when a kernel, a NIC or a CPU gets one of them wrong.
//!
//! They come from the environment (`systemctl edit meshd`): a machine's defects are no part of a network's configuration.

use std::env;
use std::ffi::OsStr;

use mesh_core::session::{Kernel, KernelError};

/// Environment variable that names the cipher's implementation.
pub const CIPHER: &str = "MESHD_CIPHER";
/// Environment variable that lists what is to be left off, separated by commas.
pub const DISABLE: &str = "MESHD_DISABLE";

/// What is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Implementation of the cipher.
    pub kernel: Kernel,
    /// Many datagrams in one call to send (UDP GSO).
    pub udp_gso: bool,
    /// Many datagrams in one buffer received (UDP GRO).
    pub udp_gro: bool,
    /// Super-packets from TUN devices (TSO, USO), and checksums left to us.
    pub tun_segmentation: bool,
    /// Packets of one flow are written to TUN devices as one.
    pub tun_coalescing: bool,
}

/// A switch that does not exist, or cannot be set here.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    /// Not one of the words that [`DISABLE`] takes.
    #[error(
        "{DISABLE} has {0:?}; it takes udp-gso, udp-gro, tun-segmentation and tun-coalescing, separated by commas"
    )]
    Unknown(String),
    /// What is wrong with [`CIPHER`].
    #[error("{CIPHER}: {0}")]
    Cipher(#[from] KernelError),
}

impl Default for Tuning {
    /// Everything on, and the fastest cipher that the CPU has.
    fn default() -> Self {
        Self {
            kernel: Kernel::best(),
            udp_gso: true,
            udp_gro: true,
            tun_segmentation: true,
            tun_coalescing: true,
        }
    }
}

impl Tuning {
    /// As the environment says.
    ///
    /// # Errors
    ///
    /// [`TuningError`]: a switch that is misspelt must not be taken for one that is set.
    pub fn from_env() -> Result<Self, TuningError> {
        let (cipher, disable) = (env::var_os(CIPHER), env::var_os(DISABLE));
        Self::parse(cipher.as_deref(), disable.as_deref())
    }

    fn parse(cipher: Option<&OsStr>, disable: Option<&OsStr>) -> Result<Self, TuningError> {
        let mut tuning = Self::default();
        if let Some(name) = cipher
            .map(OsStr::to_string_lossy)
            .filter(|name| !name.is_empty())
        {
            tuning.kernel = name.parse()?;
        }
        let words = disable.map(OsStr::to_string_lossy).unwrap_or_default();
        for word in words
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            match word {
                "udp-gso" => tuning.udp_gso = false,
                "udp-gro" => tuning.udp_gro = false,
                "tun-segmentation" => tuning.tun_segmentation = false,
                "tun-coalescing" => tuning.tun_coalescing = false,
                _ => return Err(TuningError::Unknown(word.to_owned())),
            }
        }
        Ok(tuning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(cipher: &str, disable: &str) -> Result<Tuning, String> {
        Tuning::parse(Some(OsStr::new(cipher)), Some(OsStr::new(disable)))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn everything_is_on_unless_switched_off() {
        assert_eq!(parse("", ""), Ok(Tuning::default()));
        assert_eq!(Tuning::parse(None, None).unwrap(), Tuning::default());
        let tuning = parse("ring", "udp-gso, tun-coalescing").unwrap();
        assert_eq!(tuning.kernel, Kernel::Ring);
        assert!(!tuning.udp_gso && !tuning.tun_coalescing);
        assert!(tuning.udp_gro && tuning.tun_segmentation);
        let tuning = parse("", "udp-gro,tun-segmentation").unwrap();
        assert!(!tuning.udp_gro && !tuning.tun_segmentation);
    }

    #[test]
    fn what_is_misspelt_is_refused_by_name() {
        assert!(parse("", "udp-gso,gro").unwrap_err().contains("\"gro\""));
        assert!(parse("rot13", "").unwrap_err().contains("rot13"));
    }
}
