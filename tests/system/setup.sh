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

"$here/../setup.sh" build package

if [ -e "$tarball" ] && [ "$(cat "$tarball.recipe" 2>/dev/null)" = "$recipe" ]; then
  exit 0
fi
echo "setup: making a root file system, once (1 to 2 minutes)"
mkdir -p "$cache"
if ! mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$tarball.new" 2>"$cache/mmdebstrap.log"; then
  cat "$cache/mmdebstrap.log" >&2
  exit 1
fi
mv "$tarball.new" "$tarball"
printf '%s\n' "$recipe" >"$tarball.recipe"
