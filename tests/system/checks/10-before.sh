# shellcheck shell=bash disable=SC2154
# A host with a default route that leads nowhere, and two people: bob may bring networks up, alice may not.
inside ip link add uplink0 type veth peer name uplink1
inside ip link set uplink1 up
inside ip link set uplink0 up
inside ip address add 198.51.100.2/24 dev uplink0
inside ip route add default via 198.51.100.1
inside ip -6 address add 2001:db8::2/64 dev uplink0 nodad
inside ip -6 route add default via 2001:db8::1
inside useradd --system --user-group alice
inside useradd --system --user-group bob
# The kernel adds and confirms link-local addresses by itself, in its own time.
eventually 10 sh -c "! nsenter -t $leader -n ip -6 address | grep -q tentative"
network_before=$(network_state)
files_before=$(file_state)
users_before=$(inside getent passwd)
