# `make` lists what there is. Everything that a target needs beside Rust is installed by tests/setup.sh.

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PROGRAMS := meshd meshctl mesh-relay
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || command -v sudo)
# The lab needs root; without root and without sudo it says so and skips.
AS_ROOT := $(if $(SUDO),--config 'target."cfg(unix)".runner="$(SUDO)"')

.DEFAULT_GOAL := help
.PHONY: help build release demo test test-fast test-unit test-sim test-lab test-system bench bench-scale fmt lint deny setup

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

build: ## build everything, unoptimised
	$(CARGO) build --workspace

# Never in one cargo invocation with the simulator: features are unified, and its settable clock would come along.
release: ## build meshd, meshctl and mesh-relay as they are shipped
	$(CARGO) build --release --locked $(addprefix -p ,$(PROGRAMS))

demo: ## two hosts behind two NATs: first relayed, then direct
	@tests/setup.sh build demo
	@$(MAKE) --no-print-directory release
	@$(CARGO) build --release --locked -p mesh-tests --bin mesh-demo
	@$(SUDO) $(TARGET_DIR)/release/mesh-demo

test: setup lint test-unit test-sim test-lab ## everything that CI runs

setup:
	@tests/setup.sh build test

fmt: ## format the code
	$(CARGO) fmt --all

lint: ## formatting and clippy, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p mesh-tests --all-targets --test lab -- -D warnings
	$(CARGO) clippy --locked -p mesh-tests --features sim --lib --test sim -- -D warnings

test-unit: ## unit tests
	$(CARGO) test --locked --workspace

test-sim: ## the simulator
	$(CARGO) test --locked --release -p mesh-tests --features sim --test sim

# Most of these tests wait most of the time, two of them for a session to age, so more of them run than there are CPUs.
test-lab: setup release ## the real programs in network namespaces (root); LAB="paths --nocapture" for some of them
	$(CARGO) test --locked --release -p mesh-tests --test lab $(AS_ROOT) -- --test-threads=4 $(LAB)

test-system: ## the Debian package in a booted systemd container (root)
	tests/system/run

bench: ## throughput against Debian's wireguard-go (root)
	@tests/setup.sh build bench
	@$(MAKE) --no-print-directory release
	@$(CARGO) build --release --locked -p mesh-tests --bin mesh-bench
	@$(SUDO) $(TARGET_DIR)/release/mesh-bench

bench-scale: ## what a relay forwards, and what peers cost (root); SCALE="relay --runs 3" for a part
	@tests/setup.sh build demo bench
	@$(MAKE) --no-print-directory release
	@$(CARGO) build --release --locked -p mesh-tests --features scale --bin mesh-bench-scale
	@$(SUDO) $(TARGET_DIR)/release/mesh-bench-scale $(SCALE)

deny: ## licences, advisories and bans of all dependencies (cargo-deny)
	$(CARGO) deny check

-include packaging/*.mk
