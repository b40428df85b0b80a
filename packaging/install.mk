# make install [DESTDIR=…] [PREFIX=/usr], make uninstall, make deb

PREFIX ?= /usr
SYSCONFDIR ?= /etc
BINDIR ?= $(PREFIX)/bin
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
# Neither the bus nor polkit looks into /usr/local.
DBUSDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/share,$(SYSCONFDIR))/dbus-1/system.d
POLKITDIR ?= /usr/share/polkit-1/actions
# Not into an image: there is nobody to tell.
AFTER_INSTALL ?= $(if $(DESTDIR),true,packaging/after-install)
BEFORE_UNINSTALL ?= $(if $(DESTDIR),true,packaging/before-uninstall)

INSTALLED_UNITS := $(notdir $(wildcard systemd/*.service))
INSTALLED_USERS := meshd mesh-relay
MAN_PAGES = $(wildcard packaging/man/*.[1-8])
RELEASE_DIR ?= $(or $(CARGO_TARGET_DIR),target)/release
DEB_DIR := target/debian

.PHONY: install uninstall deb
install: ## install what `make release` has built (DESTDIR=, PREFIX=/usr)
	@for program in meshd meshctl mesh-relay; do \
	  [ -x $(RELEASE_DIR)/$$program ] || { echo "install: no $(RELEASE_DIR)/$$program: run 'make release' first" >&2; exit 1; }; \
	done
	install -d $(addprefix $(DESTDIR),$(BINDIR) $(UNITDIR) $(SYSUSERSDIR) $(DBUSDIR) $(POLKITDIR) $(BASHDIR) $(ZSHDIR) $(FISHDIR))
	install -d $(DESTDIR)$(SYSCONFDIR)/meshd $(DESTDIR)$(SYSCONFDIR)/mesh-relay
	install -m 755 $(addprefix $(RELEASE_DIR)/,meshd meshctl mesh-relay) $(DESTDIR)$(BINDIR)
	for unit in $(INSTALLED_UNITS); do \
	  sed 's|=/usr/bin/mesh|=$(BINDIR)/mesh|' systemd/$$unit >$(DESTDIR)$(UNITDIR)/$$unit && \
	  chmod 644 $(DESTDIR)$(UNITDIR)/$$unit || exit 1; \
	done
	for user in $(INSTALLED_USERS); do \
	  install -m 644 systemd/$$user.sysusers.conf $(DESTDIR)$(SYSUSERSDIR)/$$user.conf || exit 1; \
	done
	install -m 644 packaging/dbus/*.conf $(DESTDIR)$(DBUSDIR)
	install -m 644 packaging/polkit/*.policy $(DESTDIR)$(POLKITDIR)
	for page in $(MAN_PAGES); do \
	  install -D -m 644 -t $(DESTDIR)$(MANDIR)/man$${page##*.} $$page || exit 1; \
	done
	$(RELEASE_DIR)/meshctl completion bash >$(DESTDIR)$(BASHDIR)/meshctl
	$(RELEASE_DIR)/meshctl completion zsh >$(DESTDIR)$(ZSHDIR)/_meshctl
	$(RELEASE_DIR)/meshctl completion fish >$(DESTDIR)$(FISHDIR)/meshctl.fish
	chmod 644 $(addprefix $(DESTDIR),$(BASHDIR)/meshctl $(ZSHDIR)/_meshctl $(FISHDIR)/meshctl.fish)
	install -D -m 644 -t $(DESTDIR)$(DOCDIR)/meshd/examples config.example.toml
	install -D -m 644 -t $(DESTDIR)$(DOCDIR)/mesh-relay/examples packaging/relay.example.toml
	@$(AFTER_INSTALL)

uninstall: ## remove what `make install` has put there; configuration and keys stay
	@$(BEFORE_UNINSTALL)
	rm -f $(addprefix $(DESTDIR)$(BINDIR)/,meshd meshctl mesh-relay)
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,$(INSTALLED_UNITS))
	rm -f $(foreach user,$(INSTALLED_USERS),$(DESTDIR)$(SYSUSERSDIR)/$(user).conf)
	rm -f $(addprefix $(DESTDIR)$(DBUSDIR)/,$(notdir $(wildcard packaging/dbus/*.conf)))
	rm -f $(addprefix $(DESTDIR)$(POLKITDIR)/,$(notdir $(wildcard packaging/polkit/*.policy)))
	rm -f $(foreach page,$(MAN_PAGES),$(DESTDIR)$(MANDIR)/man$(patsubst .%,%,$(suffix $(page)))/$(notdir $(page)))
	rm -f $(DESTDIR)$(BASHDIR)/meshctl $(DESTDIR)$(ZSHDIR)/_meshctl $(DESTDIR)$(FISHDIR)/meshctl.fish
	rm -rf $(DESTDIR)$(DOCDIR)/meshd $(DESTDIR)$(DOCDIR)/mesh-relay
	-rmdir --ignore-fail-on-non-empty $(DESTDIR)$(SYSCONFDIR)/meshd $(DESTDIR)$(SYSCONFDIR)/mesh-relay

deb: ## build Debian packages into target/debian
	tests/setup.sh build package
	packaging/build-deb $(DEB_DIR)
