# shellcheck shell=bash disable=SC2154
expect "both packages install" inside sh -c 'dpkg --install /debs/*.deb'
expect "meshd runs" is_active meshd
expect_equal "meshd starts with the host" "$(inside systemctl is-enabled meshd)" enabled
expect_equal "nothing failed" "$(inside systemctl is-system-running)" running

pid=$(property meshd MainPID)
status=$(inside cat "/proc/$pid/status")
expect_equal "it runs as user meshd" "$(property meshd User) $(inside stat -c %U "/proc/$pid")" "meshd meshd"
for set in CapInh CapPrm CapEff CapBnd CapAmb; do
  # Bit 12: CAP_NET_ADMIN.
  expect_equal "$set is CAP_NET_ADMIN alone" "$(awk -v set="$set:" '$1 == set { print $2 }' <<<"$status")" 0000000000001000
done
expect_text "it cannot gain privileges" "$status" '^NoNewPrivs:\s+1$'
expect_equal "its state is its own" "$(inside stat -c '%a %U' /var/lib/meshd)" "700 meshd"
expect_equal "it has a watchdog" "$(property meshd WatchdogUSec)" 30s

for unit in meshd meshd-cleanup mesh-relay; do
  complaints=$(inside systemd-analyze verify --man=no "$unit.service" 2>&1 | grep "$unit" || true)
  expect_equal "$unit.service is well-formed" "$complaints" ""
  score=$(inside systemd-analyze security --no-pager "$unit" | sed -n 's/.*exposure level for .*: \([0-9.]*\).*/\1/p')
  expect "systemd-analyze security $unit: $score, at most 2.0" awk "BEGIN { exit !(\"$score\" != \"\" && $score <= 2.0) }"
done

expect "meshd --version" inside meshd --version
expect_status 0 "without a configuration, meshctl status works for root" inside meshctl status
expect_text "and says what to do next" "$output" '/etc/meshd/config.toml'
expect_status 0 "and for anybody" as alice meshctl status
expect_text "who is told the same" "$output" '/etc/meshd/config.toml'
expect_text "with --json" "$(as alice meshctl --json status)" '"networks": *\[\]'
expect_status 0 "the control socket answers too" as alice meshctl --socket /run/meshd/control.sock status
expect "meshd is on the system bus" inside busctl --no-pager status net.meshd.Mesh1
expect_status 4 "meshctl reload is not for everybody" as alice meshctl reload
expect_text "and says so in one line" "$(wc -l <<<"$output")" '^1$'

files=$(inside dpkg-query --listfiles meshd)
for file in man/man1/meshctl.1.gz man/man8/meshd.8.gz bash-completion/completions/meshctl \
  zsh/vendor-completions/_meshctl fish/vendor_completions.d/meshctl.fish doc/meshd/examples/config.example.toml; do
  expect_text "$file is in the package" "$files" "^/usr/share/$file$"
done
expect "the example is a valid configuration" inside meshd --check --config /usr/share/doc/meshd/examples/config.example.toml
expect_equal "no configuration is shipped" "$(inside ls -A /etc/meshd /etc/mesh-relay | tr -d '\n')" "/etc/mesh-relay:/etc/meshd:"
