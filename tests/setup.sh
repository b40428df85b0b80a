#!/usr/bin/env bash
# Installs what the tests, the demo and the benchmark need from Debian's archive; does nothing, at once, when all is there.
#
#   tests/setup.sh [build|demo|test|kernel|bench|package]…     (default: build demo test bench)
#
# Rust itself is assumed. No service does anything: none of these packages has one that is on by default, but tinc's,
# which starts the networks in /etc/tinc/nets.boot, of which there are none. (miniupnpd's is in another package.)
set -euo pipefail

# Each line: what shows that it is there (a command, or an absolute path), then the package that brings it.
needs() {
  case "$1" in
    build) cat <<'LIST'
gcc gcc
make make
pkg-config pkg-config
/usr/include/stdlib.h libc6-dev
LIST
      ;;
    demo) cat <<'LIST'
ip iproute2
nft nftables
ping iputils-ping
LIST
      ;;
    test) cat <<'LIST'
conntrack conntrack
ip iproute2
nft nftables
ping iputils-ping
dbus-daemon dbus-daemon
valgrind valgrind
wireguard-go wireguard-go
wg wireguard-tools
miniupnpd miniupnpd-nftables
LIST
      ;;
    kernel) cat <<'LIST'
qemu-system-x86_64 qemu-system-x86
wg wireguard-tools
LIST
      ;;
    bench) cat <<'LIST'
ethtool ethtool
ip iproute2
iperf3 iperf3
nebula nebula
ping iputils-ping
tincd tinc
wireguard-go wireguard-go
wg wireguard-tools
LIST
      ;;
    package) cat <<'LIST'
dh debhelper
dpkg-buildpackage dpkg-dev
fakeroot fakeroot
lintian lintian
mmdebstrap mmdebstrap
systemd-nspawn systemd-container
LIST
      ;;
    *)
      echo "setup: unknown group '$1' (build, demo, test, kernel, bench, package)" >&2
      exit 2
      ;;
  esac
}

PATH="$PATH:/usr/sbin:/sbin"
[ $# -gt 0 ] || set -- build demo test bench

missing=()
for group in "$@"; do
  list=$(needs "$group")
  while read -r proof package; do
    case "$proof" in
      /*) [ -e "$proof" ] || missing+=("$package") ;;
      *) command -v "$proof" >/dev/null || missing+=("$package") ;;
    esac
  done <<<"$list"
done
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if ! command -v apt-get >/dev/null; then
  echo "setup: missing: ${missing[*]}; there is no apt-get here, install them by hand" >&2
  exit 1
fi
as_root=(env DEBIAN_FRONTEND=noninteractive)
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: missing: ${missing[*]}; run 'apt-get install ${missing[*]}' as root" >&2
    exit 1
  fi
  as_root=(sudo "${as_root[@]}")
fi

# A private archive directory: concurrent runs of apt delete each other's downloads.
archives=$(mktemp -d)
trap 'rm -rf "$archives"' EXIT
mkdir "$archives/partial"
chmod -R 755 "$archives"
apt=("${as_root[@]}" apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dir::Cache::archives="$archives" -o APT::Sandbox::User=root)

echo "setup: installing ${missing[*]}"
"${apt[@]}" update
"${apt[@]}" install --no-install-recommends "${missing[@]}" >/dev/null
