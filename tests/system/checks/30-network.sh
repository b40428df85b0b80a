# shellcheck shell=bash disable=SC2154
# One network with one peer that does not exist: enough for interface, addresses and routes.
peer=$(inside sh -c 'd=$(mktemp -d) && meshd --state-dir "$d" --print-id home 2>/dev/null; rm -rf "$d"')
configuration() {
  cat <<CONFIG
[network.home]
address = ["10.77.0.1/24"]

[[network.home.peer]]
id = "$peer"
name = "bob"
address = ["10.77.0.2"]
routes = ["192.168.50.0/24"]
$*
CONFIG
}
has_address() {
  inside ip -brief address show dev mesh-home | grep -q "$1"
}

id=$(inside meshd --print-id home)
expect_text "root can ask for the ID before there is a network" "$id" '^[a-z2-7]{52}$'
configuration | write /etc/meshd/config.toml
expect "systemctl reload takes a new file" inside systemctl reload meshd
expect "the network gets its interface" eventually 5 inside ip link show dev mesh-home
expect "and the address of the file" eventually 5 has_address 10.77.0.1/24
expect "and the derived one" eventually 5 has_address ' fd'
expect_text "the peer is routed to it" "$(inside ip route get 10.77.0.2)" 'dev mesh-home'
expect_text "and what is behind the peer" "$(inside ip route get 192.168.50.9)" 'dev mesh-home'
expect_status 0 "everybody sees the network" as alice meshctl status
expect_text "by its name and its peer" "$output" bob
expect_equal "the key is for meshd alone" "$(inside stat -c '%a %U' /var/lib/meshd/networks/home/identity.key)" "600 meshd"
expect_text "and makes the ID that was printed" "$(inside meshctl --json status)" "$id"
health=$(inside meshctl --json status | tr -d ' \n' | sed -n 's/.*"health":\[\([^]]*\)\].*/\1/p')
printf '      health: %s\n' "$health"

configuration 'colour = "red"' | write /etc/meshd/config.toml
expect_status 1 "systemctl reload refuses a bad file" inside systemctl reload meshd
expect_text "the journal names file, line and key" "$(inside journalctl --unit=meshd --lines=20 --output=cat --no-pager)" \
  'config\.toml:9: .*colour'
expect_status 1 "so does meshctl reload" inside meshctl reload
expect "the daemon runs on" is_active meshd
expect "as it was" has_address 10.77.0.1/24
configuration | write /etc/meshd/config.toml
expect_status 0 "meshctl reload takes a good one" inside meshctl reload

expect_status 4 "alice may not bring it down" as alice meshctl down
expect "so it stays up" has_address 10.77.0.1/24
inside usermod --append --groups meshd bob
expect_status 0 "bob, in group meshd, may bring it down" as bob meshctl down
expect "its interface goes" eventually 5 sh -c "! nsenter -t $leader -n ip link show dev mesh-home"
expect_equal "and all its routes" "$(network_state)" "$network_before"
expect_status 4 "alice may not bring it up" as alice meshctl up
expect_status 0 "bob may" as bob meshctl up
expect "its interface is back" eventually 5 has_address 10.77.0.1/24
expect_status 5 "there is no other network" inside meshctl up nowhere
expect_status 0 "meshctl netcheck" as alice meshctl netcheck
expect_status 1 "a peer that is not there does not answer" as alice meshctl ping bob -c 1 -W 1
