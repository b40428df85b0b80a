//! Rules about the workspace as a whole, read from `cargo tree` and `Cargo.lock`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the core may depend on directly: parsing, cryptography, containers. Nothing here opens a socket or a file,
/// reads a clock or runs a task.
const CORE_DEPENDENCIES: [&str; 17] = [
    "base64",
    "blake2",
    "chacha20poly1305",
    "curve25519-dalek",
    "data-encoding",
    "ed25519-dalek",
    "ipnet",
    "prefix-trie",
    "rand_chacha",
    "rand_core",
    "ring",
    "roxmltree",
    "serde",
    "slab",
    "thiserror",
    "toml",
    "zeroize",
];

/// What must not come into the core behind another crate either.
const NEVER_IN_CORE: [&str; 14] = [
    "async-io",
    "async-std",
    "hyper",
    "mio",
    "netlink-sys",
    "quinn",
    "quinn-udp",
    "rtnetlink",
    "rustls",
    "smol",
    "socket2",
    "tokio",
    "tun-rs",
    "zbus",
];

/// Cryptography that would need a C toolchain, a system library, or a second implementation beside ring.
const NEVER_ANYWHERE: [&str; 7] = [
    "aws-lc-fips-sys",
    "aws-lc-rs",
    "aws-lc-sys",
    "native-tls",
    "openssl",
    "openssl-sys",
    "schannel",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate lies in the workspace")
        .to_owned()
}

/// Names of the packages in `cargo tree ARGS`, the package itself left out.
fn tree(package: &str, args: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["tree", "--locked", "-p", package, "--prefix", "none"])
        .args(args)
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("names are ASCII");
    text.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != package)
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_core_depends_directly_on_what_the_list_allows_and_nothing_else() {
    let allowed: BTreeSet<String> = CORE_DEPENDENCIES.map(str::to_owned).into();
    let found = tree("mesh-core", &["-e", "normal", "--depth", "1"]);
    let extra: Vec<_> = found.difference(&allowed).collect();
    assert!(
        extra.is_empty(),
        "mesh-core depends on {extra:?}: does it do I/O? If not, allow it here"
    );
    let gone: Vec<_> = allowed.difference(&found).collect();
    assert!(
        gone.is_empty(),
        "mesh-core no longer depends on {gone:?}: take it off the list"
    );
}

#[test]
fn no_runtime_or_socket_crate_comes_into_the_core_behind_another() {
    let found = tree("mesh-core", &["-e", "normal"]);
    let bad: Vec<_> = NEVER_IN_CORE
        .iter()
        .filter(|name| found.contains(**name))
        .collect();
    assert!(bad.is_empty(), "mesh-core reaches {bad:?}");
}

#[test]
fn the_programs_are_built_with_a_cipher() {
    for program in ["meshd", "mesh-relay", "meshctl"] {
        let output = Command::new(env!("CARGO"))
            .current_dir(root())
            .args([
                "tree",
                "--locked",
                "-p",
                program,
                "-e",
                "normal,build,features",
                "--prefix",
                "none",
            ])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("null-cipher"), "{program} does not encrypt");
    }
}

#[test]
fn no_banned_crate_is_in_the_lock_file() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let bad: Vec<_> = NEVER_ANYWHERE
        .iter()
        .filter(|name| lock.contains(&format!("name = \"{name}\"\n")))
        .collect();
    assert!(bad.is_empty(), "Cargo.lock has {bad:?}");
}
