# shellcheck shell=bash disable=SC2154
expect "remove" inside dpkg --remove meshd mesh-relay
expect_equal "no interface, address or route is left" "$(network_state)" "$network_before"
expect "no process" inside sh -c '! pgrep -u meshd && ! pgrep -u mesh-relay'
expect "configuration and identity stay" inside test -s /etc/meshd/config.toml -a -s /var/lib/meshd/networks/home/identity.key
expect "install again" inside sh -c 'dpkg --install /debs/*.deb'
expect "the same identity" eventually 5 has_address 10.77.0.1/24
expect_text "is used" "$(inside meshctl --json status)" "$id"

write /run/systemd/system/meshd.service.d/crash.conf <<'UNIT'
[Service]
Restart=no
UNIT
inside systemctl daemon-reload
inside systemctl kill --kill-who=main --signal=KILL meshd
expect "purge, even after a crash from which it did not recover" inside dpkg --purge meshd mesh-relay
inside rm -r /run/systemd/system/meshd.service.d
inside systemctl daemon-reload
inside systemctl reset-failed
expect_equal "the network is as before" "$(network_state)" "$network_before"
left=$(comm -13 <(echo "$files_before") <(file_state))
# The users stay, as Debian's do; bob was put into a group.
left=$(grep -Ev '^/etc/(passwd|shadow|group|gshadow)-?$' <<<"$left" || true)
expect_equal "no file is left" "$left" ""
expect_equal "no file is gone" "$(comm -23 <(echo "$files_before") <(file_state))" ""
expect_equal "only the two users stay" \
  "$(comm -13 <(sort <<<"$users_before") <(inside getent passwd | sort) | cut -d: -f1 | xargs)" "mesh-relay meshd"
expect_equal "nothing failed" "$(inside systemctl is-system-running)" running
