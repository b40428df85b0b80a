# shellcheck shell=bash disable=SC2154
# Asks the kernel where packets to peers would go, as fast as it can, until the file disappears.
watch_routes() {
  inside touch /run/watching
  inside sh -c 'while [ -e /run/watching ]; do
    for to in 10.77.0.2 192.168.50.9 '"$derived"'; do ip route get $to 2>&1 | head -1; done; done >/run/watched' &
  watcher=$!
}
# No packet may have gone out by the uplink; that some were refused shows that the gap was seen.
expect_no_leak() {
  inside rm -f /run/watching
  wait "$watcher" || true
  local seen
  seen=$(inside sort /run/watched | sed 's/ uid .*//; s/ metric .*//' | uniq -c)
  expect_equal "$1: no overlay packet could leave by the default route" "$(grep uplink <<<"$seen" || true)" ""
  expect_text "$1: they were unreachable meanwhile" "$seen" 'unreachable|No route to host'
}
# The MTU and the addresses that the daemon gives are there once it is ready, since that is what READY=1 says.
is_back() {
  is_active meshd && [ "$(property meshd MainPID)" != "$pid" ] && has_address 10.77.0.1/24
}

derived=$(inside meshctl --json status | tr -d ' \n' | sed 's/.*"peers"//' | grep -o '"fd[0-9a-f:]*"' | head -1 | tr -d '"')
expect_text "the peer has a derived address" "$derived" '^fd'
expect_text "which is routed to the interface" "$(inside ip route get "$derived")" 'dev mesh-home'

pid=$(property meshd MainPID)
watch_routes
expect "systemctl restart" inside systemctl restart meshd
expect "it is back when systemctl returns" is_back
expect_no_leak "restart"

pid=$(property meshd MainPID)
watch_routes
inside systemctl kill --kill-who=main --signal=KILL meshd
expect "after SIGKILL it starts again by itself" eventually 10 is_back
expect_no_leak "crash"
expect_equal "systemd counted one restart" "$(property meshd NRestarts)" 1
expect_status 0 "status answers again" as alice meshctl status

pid=$(property meshd MainPID)
write /run/systemd/system/meshd.service.d/watchdog.conf <<'UNIT'
[Service]
WatchdogSec=2s
UNIT
inside systemctl daemon-reload
inside systemctl restart meshd
sleep 5
expect_equal "a healthy daemon satisfies its watchdog" "$(property meshd NRestarts)" 0
pid=$(property meshd MainPID)
inside kill -STOP "$pid"
expect "one that hangs is started again" eventually 15 is_back
expect_text "by the watchdog" "$(inside journalctl --unit=meshd --no-pager --lines=50)" 'Watchdog timeout'
inside rm -r /run/systemd/system/meshd.service.d
inside systemctl daemon-reload

inside systemctl restart meshd
expect "stop" inside systemctl stop meshd
expect_equal "leaves no interface, address or route" "$(network_state)" "$network_before"
expect "and nothing in /run" inside test ! -e /run/meshd
expect_status 3 "meshctl says that nobody is there" as alice meshctl status
expect "start" inside systemctl start meshd
expect "brings the network up again" has_address 10.77.0.1/24

inside systemctl kill --kill-who=main --signal=KILL meshd
expect "stop right after a crash" inside systemctl stop meshd
expect_clean "leaves nothing either"
inside systemctl start meshd

# Exit code 1 at every start: it waits to be started again most of the time.
echo '[network.home' | write /etc/meshd/config.toml
inside systemctl kill --kill-who=main --signal=KILL meshd
is_failing() {
  [ "$(property meshd NRestarts)" -ge 2 ] && [ "$(property meshd SubState)" = auto-restart ]
}
expect "a daemon that cannot start is tried again" eventually 10 is_failing
expect_text "and peers stay unreachable meanwhile" "$(inside ip route get 10.77.0.2 2>&1 || true)" 'unreachable|No route'
expect "stop while it waits" inside systemctl stop meshd
expect_clean "leaves nothing"
configuration | write /etc/meshd/config.toml
expect "with the file repaired it starts" inside systemctl start meshd
