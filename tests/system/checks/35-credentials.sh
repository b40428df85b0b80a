# shellcheck shell=bash disable=SC2154
# A key that only root and systemd see, as agenix, sops-nix or systemd-creds would hand it over.
other=$(inside sh -c 'd=$(mktemp -d); meshd --state-dir "$d" --print-id home 2>/dev/null;
  install -m 400 "$d/networks/home/identity.key" /root/home.key; rm -rf "$d"')
inside sh -c 'umask 077; head -c 32 /dev/urandom | base64 >/root/bob.psk'
write /run/systemd/system/meshd.service.d/credentials.conf <<'UNIT'
[Service]
Environment=MESHD_OPTS=-vv
LoadCredential=home.key:/root/home.key
LoadCredential=bob.psk:/root/bob.psk
UNIT
configuration 'psk_file = "/run/credentials/meshd.service/bob.psk"' |
  sed 's|^\[network.home\]|&\nidentity_file = "/run/credentials/meshd.service/home.key"|' | write /etc/meshd/config.toml
inside systemctl daemon-reload
expect "meshd starts with credentials" inside systemctl restart meshd
expect_text "and has the identity that they hold" "$(inside meshctl --json status)" "$other"
secrets=$(inside sh -c 'tail -n 1 /root/home.key; cat /root/bob.psk; tail -n 1 /var/lib/meshd/networks/home/identity.key')
expect_equal "there are three secrets" "$(grep -c ... <<<"$secrets")" 3
expect_equal "of which none is in the journal, even with -vv" \
  "$(inside journalctl --boot --no-pager --output=export | grep -cF "$secrets" || true)" 0
inside rm -r /run/systemd/system/meshd.service.d /root/home.key /root/bob.psk
inside systemctl daemon-reload
configuration | write /etc/meshd/config.toml
expect "and without them again" inside systemctl restart meshd
expect_text "its own" "$(inside meshctl --json status)" "$id"
