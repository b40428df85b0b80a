# shellcheck shell=bash disable=SC2154
expect_equal "an unconfigured relay does not run" "$(property mesh-relay ActiveState) $(property mesh-relay Result)" "inactive success"
expect_equal "but starts with the host once it is" "$(inside systemctl is-enabled mesh-relay)" enabled
expect "the example is a valid configuration" \
  inside mesh-relay --check --config /usr/share/doc/mesh-relay/examples/relay.example.toml
printed=$(inside mesh-relay --print-url relay.example.org)
expect_text "root can ask for its address before it runs" "$printed" '^mesh://[a-z2-7]{52}@relay.example.org:443$'
write /etc/mesh-relay/relay.toml <<CONFIG
listen = ["0.0.0.0:443"]
nodes = ["$id"]
CONFIG
expect "a configured one starts" inside systemctl start mesh-relay
expect "and is ready" is_active mesh-relay
url=$(inside journalctl --unit=mesh-relay --output=cat --no-pager | grep -o 'mesh://[a-z2-7]\{52\}@[^ ]*:443' | head -1)
expect_text "its address is in the journal" "$url" '^mesh://'
expect_text "and is the one that was printed" "$printed" "^${url%%@*}@"
relay_pid=$(property mesh-relay MainPID)
expect_equal "it runs as user mesh-relay" "$(inside stat -c %U "/proc/$relay_pid")" mesh-relay
# Bit 10: CAP_NET_BIND_SERVICE.
expect_text "with CAP_NET_BIND_SERVICE alone" "$(inside cat "/proc/$relay_pid/status")" '^CapEff:\s+0000000000000400$'
expect_equal "and its key is its own" "$(inside stat -c '%a %U' /var/lib/mesh-relay)" "700 mesh-relay"

relay_id=${url#mesh://}
relay="mesh://${relay_id%%@*}@198.51.100.2:443"
configuration | sed "s|^\[network.home\]|&\nrelays = [\"$relay\"]|" | write /etc/meshd/config.toml
expect "meshd takes the relay" inside systemctl reload meshd
uses_relay() {
  inside meshctl --json status | tr -d ' \n' | grep -q "\"home_relay\":\"mesh://${relay_id%%@*}"
}
expect "and connects to it" eventually 10 uses_relay
inside systemctl kill --kill-who=main --signal=KILL mesh-relay
relay_is_back() {
  is_active mesh-relay && [ "$(property mesh-relay MainPID)" != "$relay_pid" ]
}
expect "a relay that was killed starts again" eventually 10 relay_is_back
expect_text "under the same address" "$(inside journalctl --unit=mesh-relay --output=cat --no-pager --lines=10)" "${relay_id%%@*}"
expect "stop" inside systemctl stop mesh-relay
