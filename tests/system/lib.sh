# What the checks are written in; sourced by `boot`.
# shellcheck shell=bash disable=SC2154

passed=0

# Runs a command in the container, as root.
inside() {
  nsenter -t "$leader" -m -u -i -n -p -C -r -w -- "$@"
}

# Runs a command in the container as somebody else.
as() {
  local user=$1
  shift
  inside setpriv --reuid="$user" --regid="$user" --init-groups -- "$@"
}

# Writes standard input to a file in the container.
write() {
  inside sh -c "mkdir -p \"\$(dirname '$1')\" && cat >'$1'"
}

ok() {
  passed=$((passed + 1))
  printf '  ok  %s\n' "$*"
}

fail() {
  printf '  FAILED  %s\n' "$*" >&2
  diagnose
  exit 1
}

# Called once a check has failed: what a person would look at next.
diagnose() {
  trap - ERR
  {
    echo "--- where"
    local frame=0
    while caller $frame; do frame=$((frame + 1)); done
    echo "--- status"
    inside systemctl --no-pager --full status meshd mesh-relay || true
    echo "--- network"
    inside ip -brief address || true
    inside ip route show table all || true
    inside ip -6 route show table all || true
    echo "--- journal"
    inside journalctl --no-pager --boot --lines=120 || true
  } >&2
  exit 1
}

# expect WHAT COMMAND…: the command succeeds.
expect() {
  local what=$1 output
  shift
  if output=$("$@" 2>&1); then
    ok "$what"
  else
    fail "$what: '$*' ended with $?: $output"
  fi
}

# expect_status CODE WHAT COMMAND…: the command ends with this exit status. Its output is in $output.
expect_status() {
  local wanted=$1 what=$2 status=0
  shift 2
  output=$("$@" 2>&1) || status=$?
  [ "$status" -eq "$wanted" ] || fail "$what: '$*' ended with $status instead of $wanted: $output"
  ok "$what"
}

# expect_text WHAT TEXT PATTERN: the text matches the extended regular expression.
expect_text() {
  grep -Eq -- "$3" <<<"$2" || fail "$1: no /$3/ in: $2"
  ok "$1"
}

# expect_equal WHAT ACTUAL WANTED
expect_equal() {
  [ "$2" = "$3" ] || fail "$1: wanted (-), got (+):
$(diff --unified=0 <(echo "$3") <(echo "$2") | tail -n +4 || true)"
  ok "$1"
}

# eventually SECONDS COMMAND…: tries again until the command succeeds; its failure is the caller's.
eventually() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

# What systemd says of a property of a unit.
property() {
  inside systemctl show --value --property="$2" "$1"
}

is_active() {
  [ "$(property "$1" ActiveState)" = active ]
}

# The network is as it was found.
expect_clean() {
  local tries
  # A unit that was stopped with meshd, after it, may still be at it.
  for tries in $(seq 50); do
    [ "$(network_state)" != "$network_before" ] || break
    sleep 0.1
  done
  expect_equal "$1" "$(network_state)" "$network_before"
}

# What the container has beside the packages: must be the same before and after.
network_state() {
  inside ip -oneline link | sed 's/^[0-9]*: //; s/ qlen .*//'
  inside ip -oneline address | sed 's/^[0-9]*: //; s/ valid_lft.*//; s/ preferred_lft.*//'
  inside ip rule
  inside ip -6 rule
  inside ip route show table all
  inside ip -6 route show table all
}

file_state() {
  inside find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run/systemd -o -path /var/log \
    -o -path /var/lib/dpkg -o -path /var/cache -o -path /debs -o -path /run/log \) -prune -o -print | sort
}
