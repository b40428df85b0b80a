# shellcheck shell=bash disable=SC2154
# The same packages under a higher version.
inside sh -c 'mkdir /upgrade && for deb in /debs/*.deb; do
  dpkg-deb --raw-extract $deb /upgrade/tree && sed -i "s/^Version: .*/&+upgrade/" /upgrade/tree/DEBIAN/control &&
  dpkg-deb --build /upgrade/tree /upgrade/$(basename $deb) >/dev/null && rm -r /upgrade/tree || exit 1; done'
pid=$(property meshd MainPID)
watch_routes
expect "upgrade" inside sh -c 'dpkg --install /upgrade/*.deb'
expect "the new daemon runs" is_back
expect_no_leak "upgrade"
expect_text "it is the new package" "$(inside dpkg-query --show meshd)" '\+upgrade$'
expect_text "with the same identity" "$(inside meshctl --json status)" "$id"
expect "configuration stays" inside test -s /etc/meshd/config.toml
inside rm -r /upgrade
