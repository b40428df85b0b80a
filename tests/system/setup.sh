#!/usr/bin/env bash
# Installs what the system test needs from Debian's archive, and makes the root file system that it boots.
# Does nothing, at once, when all is there.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${1:?usage: setup.sh CACHE-DIRECTORY}
# What a server has, no more: what the packages need beside this, they must say.
packages=systemd,systemd-sysv,dbus,polkitd,libpam-systemd,iproute2,procps,iputils-ping
tarball=$cache/rootfs.tar
recipe="bookworm minbase $packages"

"$here/../setup.sh" package
if ! command -v nix-instantiate >/dev/null; then
  echo "setup: installing nix-bin"
  # A private archive directory: concurrent runs of apt delete each other's downloads.
  archives=$(mktemp -d)
  mkdir "$archives/partial"
  chmod -R 755 "$archives"
  apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dir::Cache::archives="$archives"
    -o APT::Sandbox::User=root)
  "${apt[@]}" update
  "${apt[@]}" install --no-install-recommends nix-bin >/dev/null
  rm -rf "$archives"
fi

if [ -f "$tarball" ] && [ "$(cat "$tarball.recipe" 2>/dev/null)" = "$recipe" ]; then
  exit 0
fi
echo "setup: making a root file system, once (1 to 2 minutes)"
mkdir -p "$cache"
if ! mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$cache/unfinished.tar" 2>"$cache/mmdebstrap.log"; then
  cat "$cache/mmdebstrap.log" >&2
  exit 1
fi
mv "$cache/unfinished.tar" "$tarball"
printf '%s\n' "$recipe" >"$tarball.recipe"
