#!/bin/sh
# Evaluates the NixOS module offline, against a small stand-in for nixpkgs (check.nix): options are known and of their
# type, and the configuration that comes out is one that meshd accepts.
#
#   packaging/nixos/check.sh [MESHD [MESH-RELAY]]     programs to check the resulting files with
set -eu

here=$(cd "$(dirname "$0")" && pwd)
if ! command -v nix-instantiate >/dev/null; then
    echo "SKIPPED: nix-instantiate is missing (Debian: apt-get install nix-bin)" >&2
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Nothing is built or fetched, but nix wants directories of its own even to evaluate.
export NIX_STATE_DIR="$work/state" NIX_STORE_DIR="$work/store" NIX_CONF_DIR="$work" XDG_CACHE_HOME="$work" HOME="$work" NIX_REMOTE=local

echo "build-users-group =" >"$work/nix.conf"

evaluate() {
    nix-instantiate --eval --strict --json --readonly-mode "$here/check.nix" --attr "$1"
}

failed=0
for name in $(evaluate names.good | tr -d '[]"' | tr , ' '); do
    if [ "$(evaluate "good.$name" 2>"$work/error")" = true ]; then
        echo "  ok  $name"
    else
        echo "  FAILED  $name: $(cat "$work/error")" >&2
        failed=1
    fi
done
# These must not evaluate, each for its own reason.
for name in $(evaluate names.bad | tr -d '[]"' | tr , ' '); do
    reason=$(evaluate "bad.$name.reason" | tr -d '"')
    if evaluate "bad.$name.value" >/dev/null 2>"$work/error"; then
        echo "  FAILED  $name: evaluates, although it must not" >&2
        failed=1
    elif grep -q "$reason" "$work/error"; then
        echo "  ok  $name is refused"
    else
        echo "  FAILED  $name: refused, but not for '$reason': $(cat "$work/error")" >&2
        failed=1
    fi
done

accepts() {
    program=$1
    attribute=$2
    nix-instantiate --eval --readonly-mode "$here/check.nix" --attr "$attribute" --raw >"$work/file.toml" 2>/dev/null ||
        evaluate "$attribute" | sed 's/^"//; s/"$//; s/\\n/\n/g; s/\\"/"/g' >"$work/file.toml"
    if "$program" --check --config "$work/file.toml" 2>"$work/error"; then
        echo "  ok  $(basename "$program") accepts $attribute"
    else
        echo "  FAILED  $(basename "$program") refuses $attribute: $(cat "$work/error" "$work/file.toml")" >&2
        failed=1
    fi
}
[ $# -lt 1 ] || accepts "$1" files.meshd
[ $# -lt 2 ] || accepts "$2" files.relay
exit "$failed"
